"""The runs of a report: their names, and the files that each has left, read and checked. (no torch)

What is not there was not measured, and its section of the report says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from data.arguments import UserError, one_line
from data.files import (
    ARGS_FILE,
    DATA_REPORT_FILE,
    PREDICTIONS_FILE,
    RESULTS_FILE,
    REWARDS_FILE,
    STATE_FILE,
    TRAIN_RESULTS_FILE,
    read_json,
)
from data.predicted_runs import PredictedRun, evaluated, read_run
from data.report.heat_map import ATTENTION_FILE, read_attention
from data.report.run_files import read_rewards, read_run_file
from data.tasks import Task

if TYPE_CHECKING:
    from pandas import DataFrame

ROBUSTNESS_FILE = "robustness_result.json"
Interval = tuple[float, float]


class Flip(TypedDict):
    id: str
    text: str
    perturbed: str
    gold: list[str] | None
    before: list[str]
    after: list[str]


class Strength(TypedDict):
    strength: float
    changed: float
    accuracy: float
    f1_macro: float
    accuracy_interval: Interval
    f1_macro_interval: Interval
    flips: float
    examples: list[Flip]


class Clean(TypedDict):
    accuracy: float
    f1_macro: float
    accuracy_interval: Interval
    f1_macro_interval: Interval


class Perturbation(TypedDict):
    title: dict[str, str]
    strengths: list[Strength]


class Robustness(TypedDict):
    """What the report shows of a robustness_result.json."""

    model_path: str
    test_data_path: str
    task: str
    n: int
    clean: Clean
    perturbations: dict[str, Perturbation]
    robustness_score: float
    robustness_score_interval: Interval
    robustness_score_is: str


@dataclass(frozen=True)
class Source:
    """A run of the report.

    Attributes:
        name: what the report calls it.
        run: its predictions.
        task: what they are about.
    """

    name: str
    run: PredictedRun
    task: Task

    @cached_property
    def args(self) -> dict[str, Any]:
        """The flags that training began with; empty where there are none."""
        return self._trained(ARGS_FILE)

    @cached_property
    def state(self) -> dict[str, Any]:
        return self._trained(STATE_FILE)

    @cached_property
    def train_results(self) -> dict[str, Any]:
        return self._trained(TRAIN_RESULTS_FILE)

    @cached_property
    def data_report(self) -> dict[str, Any]:
        return self._trained(DATA_REPORT_FILE)

    @cached_property
    def results(self) -> dict[str, Any]:
        """What was written with the predictions: how fast, by which backend."""
        return read_run_file(self.run.folder, RESULTS_FILE, missing_ok=True)

    @cached_property
    def rewards(self) -> "DataFrame | None":
        has_some = self.run.contract is not None and (self.run.directory / REWARDS_FILE).is_file()
        return read_rewards(self.run.directory) if has_some else None

    @cached_property
    def robustness(self) -> dict[str, Any] | None:
        path = self._analysed(ROBUSTNESS_FILE)
        if path is None:
            return None
        content = read_json(path)
        _check_form(path, content, Robustness)
        return content

    @cached_property
    def attention(self) -> dict[str, Any] | None:
        path = self._analysed(ATTENTION_FILE)
        return None if path is None else read_attention(path)

    def _trained(self, name: str) -> dict[str, Any]:
        return {} if self.run.contract is None else read_run_file(self.run.directory, name, missing_ok=True)

    def _analysed(self, name: str) -> Path | None:
        """A file that an analysis has written into the folder of the predictions, or into `test` there."""
        path = evaluated(self.run.folder, name) / name
        return path if path.exists() else None


def read_sources(specs: Sequence[str]) -> list[Source]:
    """Runs as the command line names them, `name=folder` or a folder, which is its own name.

    Raises:
        UserError: a name twice, no predictions in a folder, or a file in it that is broken.
    """
    sources: list[Source] = []
    for name, folder in map(named_folder, specs):
        if name in (source.name for source in sources):
            raise UserError(
                f"--runs: two are called {one_line(name, 100)}; the report shows each by itself, so name them apart, as "
                "name=folder (python -m scripts.compare makes one line of several seeds)"
            )
        run = read_run(folder)
        sources.append(Source(name, run, run.task()))
    return sources


def named_folder(spec: str) -> tuple[str, str]:
    """The name and the folder of a run.

    >>> named_folder("lora=outputs/a"), named_folder("outputs/a")
    (('lora', 'outputs/a'), ('outputs/a', 'outputs/a'))
    """
    name, _, folder = spec.rpartition("=")
    return name or folder, folder


def same_rows(one: Source, other: Source) -> bool:
    """Whether two runs answered the same rows with the same labels to choose from, so that they can be compared."""
    if one.task.labels != other.task.labels or len(one.run.rows) != len(other.run.rows):
        return False
    pairs = zip(one.run.rows, other.run.rows, strict=True)
    return all((a["text"], a["gold"]) == (b["text"], b["gold"]) for a, b in pairs)


def _check_form(path: Path, content: dict[str, Any], form: type) -> None:
    """Raise a `UserError` naming the first field of an analysis that is missing or of another type."""
    from pydantic import TypeAdapter, ValidationError

    try:
        TypeAdapter(form).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {one_line(place, 100)}: {one_line(first['msg'])}; this is no {path.name}") from error


def predictions_file(source: Source) -> Path:
    return Path(source.run.folder) / PREDICTIONS_FILE
