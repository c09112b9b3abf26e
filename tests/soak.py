"""Stages killed at random moments, again and again: the same command goes on, to the result of a run left in peace.

    python -m tests.soak                              # 50 runs, spread over the stages, and a table
    python -m tests.soak --stages sft exact --runs 8 --first_seed 1

Each run is killed (`kill -9`, the whole process group) up to `--kills` times, at moments drawn from all of the time
that an undisturbed run takes. Then what it wrote is compared byte for byte with what an undisturbed run wrote. Tiny
models in fp32 on the CPU, the command lines that users give.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.arguments import UserError, check_at_least, flag, run
from data.engine.model_files import ADAPTER_WEIGHTS
from data.files import PREDICTIONS_FILE
from data.report.tables import markdown_table
from tests.conftest import ROOT, SAMPLE, make_tokenizer, save_tiny_model

STEPS = 16


@dataclass(frozen=True)
class Stage:
    """A command, and which of the files it writes count.

    Attributes:
        words: (where the earlier stages wrote, its own output folder) -> the command.
        results: patterns of files in the output folder.
    """

    words: Callable[[Path, Path], Sequence[object]]
    results: tuple[str, ...]


def _training(script: str, start: str, *flags: object) -> Callable[[Path, Path], Sequence[object]]:
    def words(base: Path, output: Path) -> Sequence[object]:
        return (
            script, "--model_path", base / start, "--train_data_path", SAMPLE / "train.tsv", "--output_dir", output,
            "--max_steps", STEPS, "--eval_steps", 4, "--logging_steps", 4, "--eval_samples", 8, "--batch_size", 8, "--precision", "fp32",
            "--calibration", "off", *flags,
        )  # fmt: skip  # a logged row is the mean of the steps since the one before, or since the run was resumed

    return words


STAGES = {
    "sft": Stage(_training("main_SFT.py", "model", "--task", "goemotions-original"), (ADAPTER_WEIGHTS, "task.json")),
    "full": Stage(
        _training("main_SFT.py", "model", "--task", "goemotions-original", "--tuning", "full"), ("model.safetensors",)
    ),
    "sampled": Stage(_training("main_grpo.py", "sft", "--expectation", "sampled"), (ADAPTER_WEIGHTS, "rewards.csv")),
    "exact": Stage(_training("main_grpo.py", "sft", "--expectation", "exact"), (ADAPTER_WEIGHTS, "rewards.csv")),
    "merge": Stage(
        lambda base, output: ("merge_lora.py", "--training_output_dir", base / "sft", "--output_dir", output),
        ("model.safetensors", "config.json", "task.json"),
    ),
    "inference": Stage(
        lambda base, output: (
            "inference.py", "--model_path", base / "sft", "--test_data_path", SAMPLE / "train.tsv", "--output_dir",
            output, "--precision", "fp32", "--batch_size", 4,
        ),
        (PREDICTIONS_FILE,),
    ),
    "download": Stage(
        lambda base, output: (
            "download.py", "--dataset", "psyqa", "--source", ROOT / "data" / "sample_psyqa" / "psyqa.json",
            "--target_dir", output,
        ),
        ("*/*.jsonl",),
    ),
}  # fmt: skip


@dataclass
class Args:
    stages: list[str] = flag(list(STAGES), f"which of {', '.join(STAGES)}")
    runs: int = flag(50, "runs in all, stage by stage")
    kills: int = flag(3, "how often a run is killed, if it is not done before")
    first_seed: int = flag(0, "seed of the moments")

    def __post_init__(self):
        check_at_least(self, runs=1, kills=1, first_seed=0)
        for name in self.stages:
            if name not in STAGES:
                raise UserError(f"--stages {name}: must be of {', '.join(STAGES)}")


@dataclass
class Outcome:
    """What came of the runs of a stage."""

    runs: int = 0
    kills: int = 0
    equal: int = 0


def digest(folder: Path, patterns: Sequence[str]) -> dict[str, str]:
    """Name -> hash of the files in `folder` that match; none may be missing."""
    found = {}
    for pattern in patterns:
        paths = sorted(folder.glob(pattern))
        assert paths, f"{folder / pattern}: was not written"
        found |= {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return found


def start(words: Sequence[object], log: Path) -> subprocess.Popen:
    """A command in a process group of its own."""
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, *map(str, words)], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def to_the_end(words: Sequence[object], log: Path) -> float:
    """Run a command; seconds it took.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    begin = time.monotonic()
    if code := start(words, log).wait(600):
        raise RuntimeError(f"exit code {code}: {' '.join(map(str, words))}\n{log.read_text()[-3000:]}")
    return time.monotonic() - begin


def killed_run(words: Sequence[object], log: Path, seconds: float, kills: int, draw: random.Random) -> int:
    """Run a command that is killed at random moments, then to its end; how often it was killed."""
    for number in range(kills):
        process = start(words, log)
        try:
            code = process.wait(draw.uniform(0, seconds))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            continue
        if code:
            raise RuntimeError(f"exit code {code} after {number} kills\n{log.read_text()[-3000:]}")
        return number
    to_the_end(words, log)
    return kills


def main(args: Args) -> None:
    draw, outcomes = random.Random(args.first_seed), {name: Outcome() for name in args.stages}
    faults = []
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        save_tiny_model(make_tokenizer(), base / "model")
        peace: dict[str, tuple[dict[str, str], float]] = {}
        for name in dict.fromkeys(["sft", *args.stages]):  # the others begin with it
            words = STAGES[name].words(base, base / name)
            seconds = to_the_end(words, base / "log")
            peace[name] = digest(base / name, STAGES[name].results), seconds
            print(f"{name}: {seconds:.1f} s undisturbed", flush=True)
        for number in range(args.runs):
            name = args.stages[number % len(args.stages)]
            output, log = Path(folder) / "killed", Path(folder) / "log"
            wanted, seconds = peace[name]
            outcome = outcomes[name]
            outcome.runs += 1
            try:
                outcome.kills += killed_run(STAGES[name].words(base, output), log, seconds, args.kills, draw)
                found = digest(output, STAGES[name].results)
                different = [file for file in wanted | found if wanted.get(file) != found.get(file)]
                outcome.equal += not different
                if different:
                    faults.append(f"run {number} ({name}): {', '.join(different)} differ")
                    print(faults[-1], flush=True)
            except (RuntimeError, AssertionError) as error:
                faults.append(f"run {number} ({name}): {error}")
                print(faults[-1], flush=True)
            print(
                f"run {number} {name}: {outcome.kills} kills so far, {outcome.equal}/{outcome.runs} equal", flush=True
            )
            shutil.rmtree(output, ignore_errors=True)
            log.unlink(missing_ok=True)
    rows = [[name, str(o.runs), str(o.kills), str(o.equal)] for name, o in outcomes.items()]
    print(markdown_table(["stage", "runs", "kills", "equal to one left in peace"], rows))
    if faults:
        print("\n".join(faults))
        sys.exit(1)


if __name__ == "__main__":
    run(main, Args, {})
