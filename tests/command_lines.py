"""Run many command lines of the scripts, each in a fork of one interpreter that has done the stages' imports already.

    echo '[["main_SFT.py --batch_size 0", "-m scripts.gather --help"], []]' | python tests/command_lines.py

Those of the second list are begun where PEFT, and with it PyTorch, is imported already: they get as far as a tokenizer.
Prints a JSON list of what came of each; see `run`.
"""

import json
import os
import runpy
import shlex
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import download  # noqa: F401
import inference  # noqa: F401
import main_grpo  # noqa: F401
import main_SFT  # noqa: F401
import merge_lora  # noqa: F401


def run(command: str) -> dict:
    """What a command line ends with: `code` (exit code), `stdout`, `stderr`, and `modules`, all that it has imported."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr, tempfile.TemporaryFile() as modules:
        child = os.fork()
        if child == 0:
            os.dup2(stdout.fileno(), 1)
            os.dup2(stderr.fileno(), 2)
            code = _exit_code(*shlex.split(command))
            sys.stdout.flush()
            sys.stderr.flush()
            modules.write("\n".join(sys.modules).encode())
            modules.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (stdout, stderr, modules):
            file.seek(0)
        said, complained, imported = (file.read().decode() for file in (stdout, stderr, modules))
    return {"code": code, "stdout": said, "stderr": complained, "modules": imported.split()}


def _exit_code(script: str, *flags: str) -> int:
    """Be `python script flags`, or `python -m module flags`."""
    try:
        if script == "-m":
            sys.argv = list(flags)
            runpy.run_module(flags[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = [script, *flags]
            runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    light, heavy = json.load(sys.stdin)
    outcomes = [run(command) for command in light]
    if heavy:
        import peft  # noqa: F401
    print(json.dumps(outcomes + [run(command) for command in heavy]))
