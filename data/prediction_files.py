"""predictions.jsonl: written as rows are predicted, continued after a kill, measured from the file. (no torch)"""

import json
import os
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy

from data.calibration import calibration_scores, probabilities
from data.contract import Contract, check_run_settings
from data.files import PREDICTIONS_FILE, RESULTS_FILE, SUMMARY_FILE, write_json, write_text
from data.labels import Prediction
from data.metrics import format_summary, label_metrics

PART_NAME = "predictions-{i}-of-{n}.jsonl"  # of a file that several machines share


class PredictionFile:
    """A file of predictions in the making: `predictions.partial.jsonl` until it is whole.

    Args:
        directory: where it goes.
        settings: what decides the predictions; a file begun with others is not continued.
        name: its name when it is whole.
        go_on: False begins anew.

    Attributes:
        done: rows that are in it already.

    Raises:
        UserError: a file begun with other settings.
    """

    def __init__(
        self, directory: str | Path, settings: dict[str, Any], name: str = PREDICTIONS_FILE, go_on: bool = True
    ):
        self.path = Path(directory) / name
        self._partial = self.path.with_suffix(".partial.jsonl")
        self._settings = self.path.with_suffix(".partial.json")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not go_on:
            self._partial.unlink(missing_ok=True)
        if self._partial.is_file():
            check_run_settings(self._settings, settings, may_change=())
        else:
            write_json(self._settings, settings)
        self._file = self._partial.open("a+b")
        self.done = self._whole_rows()

    def _whole_rows(self) -> int:
        """How many rows there are; half a row at the end, from a kill while it was written, is cut off."""
        rows = end = 0
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            rows, end = rows + 1, end + len(line)
        self._file.truncate(end)
        return rows

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows behind those that are there, each as it comes; they outlive this process."""
        for row in rows:
            self._file.write(f"{json.dumps(row, ensure_ascii=False)}\n".encode())
            self._file.flush()

    def close(self) -> None:
        """Write no more; what is there can be continued."""
        self._file.close()

    def finish(self) -> None:
        """Put the file in its place."""
        with self._partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(self._partial, self.path)
        self._settings.unlink(missing_ok=True)


def rows_of(path: str | Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of predictions."""
    with Path(path).open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)


def measure(rows: Iterable[dict[str, Any]], contract: Contract) -> dict[str, Any]:
    """Scores of predicted rows, as `test_results.json` has them.

    Args:
        rows: rows of predictions.jsonl; gone through once.
        contract: what they were predicted under.

    Returns:
        `n`; where the rows have gold labels, `label_metrics`; where they have probabilities, too, `ece`, `brier` and
        `auc`, and under `uncalibrated` the first two without the contract's temperature.
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
        labels, answer = tuple(row["gold"]), (tuple(row["labels"]), row["valid"])
        gold.append(one.setdefault(labels, labels))
        predicted.append(one.setdefault(answer, Prediction(*answer)))
        if row["probabilities"] is not None:
            flat.extend(row["probabilities"].values())
    if not gold:
        return {"n": count}
    results = label_metrics(gold, predicted, task)
    if len(flat) == len(gold) * len(task.labels):
        calibrated = numpy.frombuffer(flat, dtype=numpy.float32).reshape(len(gold), -1)
        results |= calibration_scores(calibrated, gold, task)
        if contract.objective != "generate":
            plain = probabilities(_scores(calibrated, contract), contract.activation)
            before = calibration_scores(plain, gold, task)
            results["uncalibrated"] = {name: before[name] for name in ("ece", "brier")}
    return results


def write_results(directory: str | Path, results: dict[str, Any], title: str) -> str:
    """`test_results.json`, and the same for people in `test_summary.txt`; returns the latter's text."""
    summary = format_summary(results, title)
    write_json(Path(directory) / RESULTS_FILE, results)
    write_text(Path(directory) / SUMMARY_FILE, summary)
    return summary


def remove_results(directory: str | Path) -> None:
    """Remove the scores of earlier predictions, which others are about to replace."""
    for name in (RESULTS_FILE, SUMMARY_FILE):
        (Path(directory) / name).unlink(missing_ok=True)


def _scores(calibrated, contract: Contract) -> numpy.ndarray:
    """Probabilities -> scores that have them under the contract's temperature (softmax forgets a common summand)."""
    from scipy.special import logit

    tiny = numpy.finfo(numpy.float32).tiny
    if contract.activation == "softmax":
        return numpy.log(numpy.maximum(calibrated, tiny)) * contract.temperature
    return logit(numpy.clip(calibrated.astype(float), tiny, 1 - 1e-7)) * contract.temperature
