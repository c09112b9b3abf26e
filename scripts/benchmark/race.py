"""Contestants that take turns, and what they are measured on."""

import multiprocessing
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from data.arguments import UserError, check_at_least, check_output_dir, flag
from data.contract import Precision
from data.engine.models import check_model_path, pick_device
from data.engine.precision import pick_precision

RaceArgsType = TypeVar("RaceArgsType", bound="RaceArgs")


@dataclass(frozen=True)
class Case:
    """Data to train on: a task, the folder under `--data_dir` that holds it, and how many texts make a batch."""

    what: str
    task: str
    folder: str
    batch_size: int


CASES = {
    "28-labels": Case("instruction with 28 labels first", "goemotions-original", "goemotions/original", 32),
    "4-labels": Case("instruction with 4 labels first", "goemotions-group", "goemotions/group", 32),
    "text-first": Case("SST-2, text first: nothing to share", "sst2", "sst2", 32),
    "long-texts": Case("R8, long texts, text first", "r8", "r8", 8),
}


@dataclass
class RaceArgs:
    """What all benchmarks are told."""

    model_path: str | None = flag(None, "the model: hub id or directory")
    data_dir: str = flag("data", "folder of the data sets, as download.py fills it")
    output_dir: str = flag("outputs/benchmark", "where the figures go")
    contestants: list[str] = flag([], "who takes part")
    rounds: int = flag(5, "timed turns of each contestant")
    warmup: int = flag(1, "turns before them that are not timed")
    precision: Precision = flag("auto", "number format of our contestants; auto = the one main_SFT.py would take here")
    peer_precision: Precision = flag("auto", "number format of those that we are compared with")

    def __post_init__(self):
        if self.model_path is None:
            raise UserError("--model_path is needed")
        check_at_least(self, rounds=1, warmup=1)
        check_output_dir(self.output_dir)


def checked(args: RaceArgsType) -> RaceArgsType:
    """`args` with formats in the place of "auto", once the model is known to be there.

    Raises:
        UserError: it is not.
    """
    check_model_path(args.model_path)
    formats = {
        name: pick_precision(getattr(args, name), args.model_path, pick_device())
        for name in ("precision", "peer_precision")
    }
    formats["precision"].say()
    return replace(args, **{name: choice.format for name, choice in formats.items()})


@dataclass
class TrainingRaceArgs(RaceArgs):
    """What the benchmarks of a training step are told, too."""

    warmup: int = flag(2, "steps before them that are not timed")
    lora_r: int = flag(16, "rank of the adapter, where the model brings none")
    seed: int = flag(42, "seed of order, adapter and drawing")

    def __post_init__(self):
        super().__post_init__()
        check_at_least(self, lora_r=1, seed=0)


def train_file(data_dir: str, case: Case) -> Path:
    """The training rows of a case.

    Raises:
        UserError: not there.
    """
    folder = Path(data_dir) / case.folder
    found = sorted(folder.glob("train.*"))
    if not found:
        name = case.folder.partition("/")[0]
        raise UserError(f"{folder}: no train file there; get it with: python download.py --dataset {name}")
    return found[0]


def check_known(args: Any, **allowed: Iterable[str]) -> None:
    """Raise a `UserError` naming the first value of a list flag that is none of those allowed."""
    for name, known in allowed.items():
        if unknown := [value for value in getattr(args, name) if value not in known]:
            raise UserError(f"--{name} {unknown[0]}: must be of {', '.join(known)}")


# --- taking turns ---------------------------------------------------------------------------------------------------


class Contestant:
    """A process that works when it is asked to. `work(turns, **settings)` runs in it and takes one turn after another.

    A turn is `turns.wait()`, then the work, then `turns.done(**figures)`.
    """

    def __init__(self, work: Callable[..., None], **settings: Any):
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(work, theirs, settings))
        self._process.start()
        theirs.close()

    def turn(self) -> dict[str, Any]:
        """Let it take its next turn; what it reports, with `seconds` from being asked to being done."""
        begin = time.perf_counter()
        try:
            self._connection.send("go")
            figures = self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise UserError("a contestant died; out of memory?") from error
        if "failure" in figures:
            raise RuntimeError(f"a contestant failed:\n{figures['failure']}")
        return {"seconds": time.perf_counter() - begin} | figures

    def stop(self) -> None:
        self._connection.close()  # whoever waits for a turn ends, and tidies up behind itself
        self._process.join(10)
        self._process.terminate()
        self._process.join()


def race(racers: dict[str, Contestant], rounds: int, name: str) -> dict[str, list[dict[str, Any]]]:
    """Let all take turns, and stop them; what each reported, turn by turn."""
    turns: dict[str, list[dict[str, Any]]] = {which: [] for which in racers}
    try:
        for number in range(rounds):
            for which, racer in racers.items():
                turns[which].append(racer.turn())
                if which != "machine":
                    seconds = turns[which][-1]["seconds"]
                    print(f"{name} step {number + 1} {which:9} {seconds:7.2f} s", flush=True)
    finally:
        for racer in racers.values():
            racer.stop()
    return turns


class Turns:
    """The contestant's end of the line."""

    def __init__(self, connection):
        self._connection = connection

    def wait(self) -> None:
        self._connection.recv()

    def done(self, **figures: Any) -> None:
        synchronize()
        self._connection.send(figures | {"peak_bytes": peak_memory()})


def synchronize() -> None:
    """A GPU works on after it has been asked; wait for it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> int:
    """Most bytes this process had at any time: on the GPU, if it has one, else in main memory, with its children's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # not ru_maxrss: on Linux a process starts with the peak of the one that started it
    family = [status, *(Path(f"/proc/{child.pid}/status") for child in multiprocessing.active_children())]
    lines = [line for each in family for line in each.read_text().splitlines() if line.startswith("VmHWM")]
    return sum(int(line.split()[1]) for line in lines) * 1024


def _work(work: Callable[..., None], connection, settings: dict[str, Any]) -> None:
    try:
        work(Turns(connection), **settings)
    except (EOFError, BrokenPipeError):
        return
    except BaseException:  # whatever it was, the one who waits has to hear of it
        connection.send({"failure": traceback.format_exc()})
        raise
