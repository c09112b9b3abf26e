"""torchrun or Accelerate's launcher, ending as their processes do: python -m scripts._distributed torchrun --flags

A process that found a mistake (exit code 2), or that was told to end (143), has said so in one line. Either launcher
would put a traceback of its own behind it and end with 1, which Slurm cannot tell from a crash.
"""

import logging
import runpy
import sys

MODULES = {"torchrun": "torch.distributed.run", "accelerate": "accelerate.commands.accelerate_cli"}
SAID = (2, 143)  # exit codes of processes that have said why


def main(program: str, *arguments: str) -> None:
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    # each process that fails, which the error names as well
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)
    sys.argv = [program, *arguments]
    try:
        runpy.run_module(MODULES[program], run_name="__main__", alter_sys=True)
    except SignalException as error:  # the processes have ended by now, having saved a checkpoint
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if failure.exitcode not in SAID:
            raise
        sys.exit(failure.exitcode)


if __name__ == "__main__":
    main(*sys.argv[1:])
