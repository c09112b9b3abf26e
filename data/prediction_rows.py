"""The rows of predictions.jsonl: read and checked in one place, whoever wrote them, and measured. (no torch)"""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from data.arguments import UserError, one_line
from data.calibration import calibration_scores, probabilities, scores_of
from data.conformal import set_scores
from data.contract import Contract
from data.files import is_of_type
from data.labels import LabelTask
from data.metrics import is_right, label_metrics
from data.predictions import Prediction
from data.tasks import Task

# those of the first line every row has; what an earlier EmoTune wrote may lack the others
AT_ONCE = 1_000  # rows whose probabilities are turned back at once: a file may have millions
NEEDED = {"id": str, "text": str, "gold": list | None, "labels": list, "valid": bool}
FIELDS = NEEDED | {
    "probabilities": dict | None, "confidence": float | None, "completion": str, "truncated": bool,
    "pruned_mass": float | None,
    "label_set": list | None, "abstained": bool,
}  # fmt: skip
MAY_LACK = {"label_set", "abstained", "pruned_mass"}  # there where a flag asked for them, or since some version


def row_in(line: bytes, place: str, task: Task | None = None) -> dict[str, Any]:
    """A line of predictions.jsonl as a row; one of labels without probabilities has None there.

    Args:
        line: the line.
        place: file and line number, for error messages.
        task: whose rows they are; None = one of labels, which are not looked at.

    Raises:
        UserError: it is none.
    """
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: byte 0x{line[error.start]:02x} is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not a JSON object ({one_line(error, 100)})") from error
    if not isinstance(row, dict):
        raise UserError(f"{place}: not a JSON object (but {one_line(repr(row), 60)})")
    if task is None:
        check_fields(row, place)
    else:
        task.check_row(row, place)
    return row


def check_fields(row: dict[str, Any], place: str) -> None:
    """Raise a `UserError` that names `place` where a row has not the fields of a text's prediction.

    What an earlier EmoTune did not write is put in as None: `probabilities`.
    """
    for field, wanted in FIELDS.items():
        if not is_of_type(row[field], wanted) if field in row else field in NEEDED:
            found = one_line(repr(row[field]), 60) if field in row else "not there"
            raise UserError(f"{place}: {field} is {found}, so this is no line of predictions")
    row.setdefault("probabilities", None)


def check_row(row: dict[str, Any], place: str, task: LabelTask) -> None:
    """Raise a `UserError` that names `place` where a row's labels or its probabilities are not of the task."""
    for label in (*(row["gold"] or ()), *row["labels"], *(row.get("label_set") or ())):
        if not isinstance(label, str) or label not in task.ids:
            shown = one_line(repr(label), 60)
            raise UserError(f"{place}: id {row['id']!r} has label {shown}, which task {task.name} has not")
    if task.kind == "single_label" and row["gold"] is not None and len(row["gold"]) != 1:
        raise UserError(f"{place}: id {row['id']!r} has {len(row['gold'])} gold labels, but task {task.name} takes one")
    found = row["probabilities"]
    if found is not None and found.keys() != task.ids.keys():
        shown = one_line(repr(list(found)), 60)
        raise UserError(
            f"{place}: id {row['id']!r} has probabilities of {shown}, not of the labels of task {task.name}"
        )
    if found is not None and not all(is_of_type(p, float) and 0 <= p <= 1 for p in found.values()):
        raise UserError(f"{place}: id {row['id']!r} has probabilities that are not from 0 to 1")
    for name in ("confidence", "pruned_mass"):
        value = row.get(name)
        if value is not None and not -0.01 <= value <= 1.01:  # rounding
            raise UserError(f"{place}: id {row['id']!r} has a {name} that is not from 0 to 1")


def is_right_row(row: dict[str, Any]) -> bool:
    """Whether the answer of a row with gold labels is wholly right; see `data.metrics.is_right`."""
    return is_right(answer_of(row), row["gold"])


def rows_of(path: str | Path, task: Task | None = None) -> Iterator[dict[str, Any]]:
    """The rows of a file of predictions; see `row_in`.

    Raises:
        UserError: it cannot be read, or a line is none of predictions.
    """
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield row_in(line.removeprefix(b"\xef\xbb\xbf"), f"{path}:{number}", task)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


@dataclass
class Cuts:
    """How many of the rows that went by had a text that was cut; `what_is_lost` says how."""

    max_length: int
    what_is_lost: str
    rows: int = 0
    cut: int = 0

    def counted(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows themselves."""
        for row in rows:
            self.rows, self.cut = self.rows + 1, self.cut + row.get("truncated", False)
            yield row

    def say(self) -> None:
        """A line on the console, if there were any."""
        if self.cut:
            print(
                f"{self.cut:,} of {self.rows:,} texts were longer than --max_length {self.max_length} allows and lost "
                f"{self.what_is_lost}"
            )


def measure(rows: Iterable[dict[str, Any]], contract: Contract) -> dict[str, Any]:
    """Scores of predicted rows, as `test_results.json` has them.

    Args:
        rows: rows of predictions.jsonl; gone through once.
        contract: what they were predicted under.

    Returns:
        `n`; where the rows have gold labels, `label_metrics`; where they have probabilities, too, `ece`, `brier` and
        `auc`, and under `uncalibrated` the first two without the contract's temperature; where they have sets of
        labels, `data.conformal.set_scores`.
    """
    task = contract.task
    gold: list[tuple[str, ...]] = []
    predicted: list[Prediction] = []
    flat = array("f")  # probabilities (n, K), row by row
    one: dict[Any, Any] = {}  # equal label sets and predictions are one object: a file may have millions of them
    count = 0
    for count, row in enumerate(rows, start=1):  # noqa: B007
        if row["gold"] is None:
            continue
        labels = tuple(row["gold"])
        gold.append(one.setdefault(labels, labels))
        answer = answer_of(row)
        predicted.append(one.setdefault(answer, answer))
        if row["probabilities"] is not None:
            flat.extend(map(row["probabilities"].__getitem__, task.labels))
    if not gold:
        return {"n": count}
    results = label_metrics(gold, predicted, task)
    if len(flat) == len(gold) * len(task.labels):
        calibrated = numpy.frombuffer(flat, dtype=numpy.float32).reshape(len(gold), -1)
        results |= calibration_scores(calibrated, gold, task)
        parts = [uncalibrated(calibrated[begin : begin + AT_ONCE], contract) for begin in range(0, len(gold), AT_ONCE)]
        before = calibration_scores(numpy.concatenate(parts), gold, task)
        results["uncalibrated"] = {name: before[name] for name in ("ece", "brier")}
    return results | promised_scores(gold, predicted)


def uncalibrated(calibrated: numpy.ndarray, contract: Contract) -> numpy.ndarray:
    """Probabilities (n, K) as they were before the contract's temperature, in the same number format."""
    scores = scores_of(calibrated, contract.activation, numpy.finfo(numpy.float32).tiny) * contract.temperature
    return probabilities(scores, contract.activation).astype(calibrated.dtype)


def answer_of(row: dict[str, Any]) -> Prediction:
    """What was answered to a row, as far as it is scored."""
    found = row.get("label_set")
    return Prediction(
        tuple(row["labels"]),
        row["valid"],
        label_set=None if found is None else tuple(found),
        abstained=row.get("abstained", False),
    )


def promised_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Prediction]) -> dict[str, Any]:
    """See `data.conformal.set_scores`; nothing where an answer has no set."""
    return {} if any(each.label_set is None for each in predicted) else set_scores(gold, predicted)
