"""How a run was made, what is different now, and the same run again.

    # the commands, from the first on, and whether files, libraries, processor and code are still those of the run
    python -m scripts.reproduce outputs/sft

    # run it again into another folder, with as many threads and processes, and compare the weights
    python -m scripts.reproduce outputs/sft --again outputs/sft-again

The same command gives the same weights, bit for bit, on the same processor in fp32 and, on the machines that were
tried, in bf16; a run that was killed and resumed gives those of one that was not. Another number of threads or
processes, another processor or another library may round otherwise. Exit code 1: something is different.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.arguments import UserError, check_output_dir, flag, one_line, run
from data.contract import HASHES, Contract, library_versions
from data.files import ARGS_FILE, TASK_FILE, TRAIN_RESULTS_FILE, file_hash, read_json
from data.report.commands import command_line, stage_of
from data.report.run_files import read_run_file

ROOT = Path(__file__).parents[1]


@dataclass
class Args:
    run: str | None = flag(None, "folder of a run of main_SFT.py or main_grpo.py")
    again: str | None = flag(None, "run it again into this folder, and compare")

    def __post_init__(self):
        if self.run is None:
            raise UserError("--run is needed: folder of a run of main_SFT.py or main_grpo.py")
        if self.again is not None:
            check_output_dir(self.again, "--again")
            if Path(self.again).resolve() == Path(self.run).resolve():
                raise UserError(f"--again {self.again}: is the run itself")
            if Path(self.again).is_dir() and any(Path(self.again).iterdir()):
                raise UserError(f"--again {self.again}: is not empty")


def flags_of(folder: str | Path) -> dict[str, Any]:
    """The flags a run began with, and the hashes of its files.

    Raises:
        UserError: no args.json, or a broken one.
    """
    read_run_file(folder, ARGS_FILE)
    return read_json(Path(folder) / ARGS_FILE)


def lineage(folder: str) -> list[str]:
    """The runs that a run began with, from the first on, and itself."""
    runs = [folder]
    while (start := flags_of(runs[0]).get("model_path")) and (Path(start) / ARGS_FILE).is_file() and start not in runs:
        runs.insert(0, start)
    return runs


def command(folder: str, output_dir: str | None = None) -> str:
    """The command that made a run, with as many processes and threads as it had."""
    flags, machine = flags_of(folder), trained_on(folder)
    program = f"python {stage_of(flags)}"
    if (processes := machine.get("processes") or 1) > 1:
        program = f"torchrun --standalone --nproc_per_node {processes} {stage_of(flags)}"
    if machine.get("threads"):
        program = f"OMP_NUM_THREADS={machine['threads']} {program}"
    return command_line(program, flags | ({"output_dir": output_dir} if output_dir else {}))


def trained_on(folder: str | Path) -> dict[str, Any]:
    """What `data.engine.machine.machine` said as the run ended; nothing of one that has not ended, or of before."""
    return read_run_file(folder, TRAIN_RESULTS_FILE, missing_ok=True).get("machine") or {}


def differences(folder: str) -> Iterator[str]:
    """What is not as it was when the run was made, a line each.

    Raises:
        UserError: a broken file in the run.
    """
    from data.engine.machine import machine
    from data.learning.checkpoints import start_hashes

    flags = flags_of(folder)
    now = start_hashes(str(flags.get("model_path")))
    for name, then in flags.get(HASHES, {}).items():
        path = Path(str(flags.get(name.partition("/")[0]))) / name.partition("/")[2]
        here = now.get(name) if "/" in name else (file_hash(path) if path.is_file() else None)
        if then != here:
            yield f"{one_line(str(path), 200)}: {'is missing' if here is None else 'holds something else'}"
    if (Path(folder) / TASK_FILE).is_file():
        for name, version in Contract.load(folder).library_versions.items():
            if (installed := library_versions().get(name)) != version:
                yield f"{name}: {installed}, was {version}"
    then = trained_on(folder)
    if not then:
        yield f"{Path(folder) / TRAIN_RESULTS_FILE}: does not say which machine made it"
        return
    for name, here in machine().items():
        if name not in ("threads", "processes") and here != then.get(name):
            yield f"{name}: {here}, was {then.get(name)}"


def weights(folder: str | Path) -> dict[str, str]:
    """Name -> hash of the files of weights in a run.

    Raises:
        UserError: there are none.
    """
    found = {path.name: file_hash(path) for path in sorted(Path(folder).glob("*.safetensors"))}
    if not found:
        raise UserError(f"{folder}: no weights there; the run has not ended")
    return found


def make_again(args: Args) -> bool:
    """Run the command into `--again`; whether the weights are equal.

    Raises:
        UserError: the command failed.
    """
    before = weights(args.run)
    environment, words = dict(os.environ), shlex.split(command(args.run, args.again).replace("\\\n", " "))
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    words = [sys.executable, *(["-m", "torch.distributed.run"] if words[0] == "torchrun" else []), *words[1:]]
    if code := subprocess.run(words, cwd=ROOT, env=environment).returncode:
        raise UserError(f"--again {args.again}: the command ended with exit code {code}")
    after = weights(args.again)
    scores = [read_run_file(folder, TRAIN_RESULTS_FILE).get("best_metric") for folder in (args.run, args.again)]
    if before == after:
        print(f"{args.again}: the same weights as {args.run}, bit for bit")
    else:
        print(f"{args.again}: other weights than {args.run}; best on the validation rows {scores[1]}, was {scores[0]}")
    return before == after


def main(args: Args) -> None:
    runs = lineage(args.run)
    for folder in runs:
        print(command(folder) + "\n")
    changed = list(differences(args.run))
    print("\n".join(f"different now: {line}" for line in changed) or "nothing is different now")
    same = make_again(args) if args.again is not None else not changed
    if not same:
        sys.exit(1)


if __name__ == "__main__":
    run(main, Args, {}, positional="run")
