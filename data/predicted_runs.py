"""What finished runs predicted, whole in memory, and the task they did: what analyses are made of. (no torch)"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy

from data.arguments import UserError, one_line
from data.contract import Contract
from data.files import PREDICTIONS_FILE, RESULTS_FILE, TASK_FILE, file_hash, read_json
from data.folding import folded
from data.labels import CUSTOM_TEMPLATE, NONE, LabelTask, label_problem
from data.prediction_rows import answer_of, check_row, rows_of
from data.predictions import Prediction
from data.summaries.cases import PROCESS
from data.summaries.task import KIND, SUMMARY_TASKS, SummaryTask
from data.tasks import Task

TEST_FOLDER = "test"  # in a run's directory: where inference.py puts what it predicts, unless it is told otherwise


@dataclass(frozen=True)
class PredictedRun:
    """One run's predictions.

    Attributes:
        folder: where they lie, as the user named it or the folder `test` in it.
        rows: the rows of predictions.jsonl, n of them.
        contract, contract_path: the run's task.json, there or one folder above; None where there is none.
    """

    folder: str
    rows: list[dict[str, Any]]
    contract: Contract | None
    contract_path: Path | None

    @property
    def path(self) -> Path:
        """Its predictions.jsonl."""
        return Path(self.folder) / PREDICTIONS_FILE

    @property
    def directory(self) -> Path:
        """Where its task.json lies, and with it what training has left; else the folder of the predictions."""
        return self.contract_path.parent if self.contract_path else Path(self.folder)

    @cached_property
    def sha256(self) -> str:
        """Of its predictions.jsonl."""
        return file_hash(self.path)

    @cached_property
    def labelled(self) -> list[dict[str, Any]]:
        """The rows that have gold labels."""
        return [row for row in self.rows if row["gold"] is not None]

    @property
    def has_probabilities(self) -> bool:
        return all(row["probabilities"] is not None for row in self.rows)

    @property
    def predictions(self) -> list[Prediction]:
        """What was answered to each of the n rows, as far as it is scored."""
        return [answer_of(row) for row in self.rows]

    def probabilities(self, task: Task) -> numpy.ndarray | None:
        """The probabilities (n, K), labels in the task's order; None where a row has none."""
        if not self.has_probabilities:
            return None
        return numpy.array([[row["probabilities"][label] for label in task.labels] for row in self.rows], dtype=float)

    def task(self) -> Task:
        """What the run's rows are about: the task of its task.json, else the labels in its test_results.json.

        Raises:
            UserError: there is neither, or a row's labels are not of the task.
        """
        without = any(row["gold"] == [] for row in self.rows)
        task = self.contract.task if self.contract else _task_of_results(Path(self.folder) / RESULTS_FILE, without)
        for number, row in enumerate(self.rows, start=1):
            check_row(row, f"{self.path}:{number}", task)
        return task


def read_run(folder: str | Path, written: bool = False) -> PredictedRun:
    """A run's predictions and its task.json.

    Args:
        folder: one with a predictions.jsonl, or one with such a folder `test` in it.
        written: whether its rows are to be written summaries; else they are to have labels.

    Raises:
        UserError: no predictions there, a line that is none, or rows of the other kind.
    """
    folder = evaluated(folder, PREDICTIONS_FILE)
    path = folder / PREDICTIONS_FILE
    task = written_task(folder)
    if task is not None and not written:
        raise UserError(f"{path}: its answers are summaries (task {task.name}), where labels are needed")
    rows = list(rows_of(path, task))
    if not rows:
        raise UserError(f"{path}: no predictions in it")
    place = trained_directory(folder)
    if place is None:
        return PredictedRun(str(folder), rows, None, None)
    return PredictedRun(str(folder), rows, Contract.load(place), place / TASK_FILE)


def written_task(folder: str | Path) -> SummaryTask | None:
    """The task of a run whose answers are written summaries, by its task.json, else by its first row; None = labels.

    Args:
        folder: see `read_run`.

    Raises:
        UserError: a broken task.json.
    """
    folder = evaluated(folder, PREDICTIONS_FILE)
    place = trained_directory(folder)
    task = Contract.load(place).task if place else _task_of_first_row(folder / PREDICTIONS_FILE)
    return task if isinstance(task, SummaryTask) else None


def _task_of_first_row(path: Path) -> SummaryTask | None:
    try:
        with path.open("rb") as file:
            row = json.loads(file.readline().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError):  # whoever reads the rows says what is wrong with them
        return None
    return SUMMARY_TASKS[KIND] if isinstance(row, dict) and PROCESS in row else None


def named_folder(spec: str) -> tuple[str, str]:
    """The name and the folder of a run as a command line has them: `name=folder`, or a folder, which is its own name.

    >>> named_folder("lora=outputs/a"), named_folder("outputs/a")
    (('lora', 'outputs/a'), ('outputs/a', 'outputs/a'))
    """
    name, _, folder = spec.rpartition("=")
    return name or folder, folder


def output_directory(output_dir: str | None, model_path: str, what: str) -> Path:
    """`--output_dir`, or the folder `test` of a trained model.

    Raises:
        UserError: neither; says that `what` is to go there.
    """
    if output_dir is not None:
        return Path(output_dir)
    if not (Path(model_path) / TASK_FILE).is_file():
        raise UserError(f"--output_dir is needed for an untuned model: where {what} to go")
    return Path(model_path) / TEST_FOLDER


def evaluated(folder: str | Path, name: str) -> Path:
    """`folder` itself, or the folder `test` in it where only that has the file `name`."""
    inner = Path(folder) / TEST_FOLDER
    return inner if (inner / name).is_file() and not (Path(folder) / name).is_file() else Path(folder)


def check_same_rows(runs: Sequence[PredictedRun]) -> None:
    """Raise a `UserError` naming the first id at which a run predicted another test file than the first one."""
    first = runs[0]
    for other in runs[1:]:
        both = min(len(other.rows), len(first.rows))
        for row, expected in zip(other.rows[:both], first.rows[:both], strict=True):
            for field in ("id", "text", "gold"):
                if row[field] != expected[field]:
                    found, wanted = (one_line(repr(each[field]), 60) for each in (row, expected))
                    raise UserError(
                        f"{other.path}: id {row['id']!r} has {field} {found}, {first.path} has {wanted} in its place; "
                        "they predict different files"
                    )
        if len(other.rows) != len(first.rows):
            longer, shorter = (other, first) if len(other.rows) > len(first.rows) else (first, other)
            raise UserError(
                f"{shorter.path}: ends before id {longer.rows[len(shorter.rows)]['id']!r} of {longer.path} "
                f"({len(shorter.rows)} rows, not {len(longer.rows)})"
            )


def trained_directory(folder: str | Path) -> Path | None:
    """Of a folder with predictions or scores, where the task.json of the model lies: there, or one above, if at all."""
    places = (Path(folder), Path(folder).resolve().parent)
    return next((place for place in places if (place / TASK_FILE).is_file()), None)


def _task_of_results(path: Path, without: bool) -> Task:
    """The task of an untuned model's predictions, as far as its scores tell: labels, and whether a text has one.

    Args:
        path: the scores.
        without: whether a row has no gold label, though labels were looked for.
    """
    results = read_json(path, missing_ok=True, fields={"per_label": dict, "confusion_matrix": list})
    labels = tuple(results.get("per_label", ()))
    if not labels:
        raise UserError(f"{path.parent}: neither a {TASK_FILE} nor scores in a {RESULTS_FILE} say what its labels are")
    for label in labels:
        if problem := label_problem(label):
            raise UserError(f"{path}: label {one_line(repr(label), 60)} {problem}")
    kind = "single_label" if "confusion_matrix" in results else "multi_label"
    allow_none = without and kind == "multi_label" and NONE not in map(folded, labels)
    return LabelTask(path.parent.name or "task", kind, labels, CUSTOM_TEMPLATE, allow_none=allow_none)
