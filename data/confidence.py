"""How sure a run is of its answers, and how right it is to be: the content of confidence_analysis.json. (no torch)

Shapes: m answers. `confidence` (m,) is the probability that each gives itself, 0 to 1; `correct` (m,) is 1 for those
that are right and 0 for others.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy

from data.arguments import UserError
from data.calibration import ECE_BINS, bin_places, calibration_scores
from data.predicted_runs import PredictedRun
from data.prediction_rows import is_right_row
from data.tasks import Task

CONFIDENCE_FILE = "confidence_analysis.json"
EXAMPLES = 20  # rows in each list
SURE = 0.9
COVERAGES = (1.0, 0.9, 0.8, 0.5)  # shares of the texts that the model answers itself, at most
_INTERVALS = 10  # of the histogram
_POINTS = 200  # of a curve, at most
_FIELDS = ("id", "text", "gold", "labels", "confidence")  # of a row in the lists


class NoConfidenceError(UserError):
    """No row of a run has a confidence, so there is nothing to analyse; a report says so and leaves its section out."""


def reliability(confidence, correct, bins: int = ECE_BINS) -> list[dict[str, float]]:
    """The points of a reliability diagram (Niculescu-Mizil and Caruana, 2005, "Predicting Good Probabilities With
    Supervised Learning"): in each interval of confidence, how sure the answers are and how many are right.

    Args:
        confidence, correct: (m,), see above; for a label's probabilities, 1 where the label is gold.
        bins: intervals of equal width; as in `data.calibration`, an upper edge belongs to its interval.

    Returns:
        Of each interval that has answers, in ascending order: its edges `from` and `to`, `n`, and the means
        `confidence` and `accuracy`.

    Raises:
        ValueError: shapes that do not fit, or numbers that are not from 0 to 1.
    """
    confidence, correct = _checked(confidence, correct)
    places = bin_places(confidence, bins)
    counts, sure, right = (numpy.bincount(places, weights, minlength=bins) for weights in (None, confidence, correct))
    return [
        {
            "from": place / bins,
            "to": (place + 1) / bins,
            "n": int(counts[place]),
            "confidence": float(sure[place] / counts[place]),
            "accuracy": float(right[place] / counts[place]),
        }
        for place in map(int, counts.nonzero()[0])
    ]


def calibration_errors(bins: Sequence[dict[str, float]]) -> dict[str, float]:
    """Expected and maximum calibration error (Naeini et al., 2015, "Obtaining Well Calibrated Probabilities Using
    Bayesian Binning") of what `reliability` gives: the mean of |confidence - accuracy| over the answers, and the
    largest of any interval, however few answers it has.

    >>> calibration_errors(reliability([0.75, 0.75, 0.25, 0.25], [1, 0, 0, 0], bins=2))
    {'ece': 0.25, 'mce': 0.25}

    Raises:
        ValueError: no answers.
    """
    if not bins:
        raise ValueError("no answers")
    gaps = [abs(each["confidence"] - each["accuracy"]) for each in bins]
    total = sum(each["n"] for each in bins)
    return {"ece": sum(each["n"] * gap for each, gap in zip(bins, gaps, strict=True)) / total, "mce": max(gaps)}


def risk_coverage(confidence, correct) -> dict[str, Any]:
    """Accuracy of the surest answers, the more the less sure (Geifman and El-Yaniv, 2017, "Selective Classification for
    Deep Neural Networks"; their risk is the share of wrong answers, 1 - accuracy).

    Answers of equal confidence cannot be told apart, so they come in together, and their order does not matter.

    Args:
        confidence, correct: (m,) with m > 0, see above.

    Returns:
        `coverage` (share of all answers that are taken, ascending, the last 1) and `accuracy` of these, at no more than
        200 points; `area` under the curve of the risk, from all points (AURC: Geifman, Uziel and El-Yaniv, 2019,
        "Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers"): the mean over answers of the risk among
        those that are at least as sure. The less the better; where confidence says nothing, it is 1 - accuracy.

    Raises:
        ValueError: see `reliability`, or no answers.

    >>> risk_coverage([0.9, 0.8, 0.8, 0.1], [1, 1, 0, 0])
    {'coverage': [0.25, 0.75, 1.0], 'accuracy': [1.0, 0.6666666666666666, 0.5], 'area': 0.2916666666666667}
    """
    taken, accuracy, _ = _surest(confidence, correct)
    area = ((1 - accuracy) * numpy.diff(taken, prepend=0)).sum() / taken[-1]
    # the points next to evenly spaced coverages, first and last included
    shown = numpy.unique(taken.searchsorted(numpy.linspace(taken[0], taken[-1], _POINTS).round()))
    coverage = taken[shown] / taken[-1]
    return {"coverage": coverage.tolist(), "accuracy": accuracy[shown].tolist(), "area": float(area)}


def at_coverages(confidence, correct, coverages: Sequence[float] = COVERAGES) -> list[dict[str, float | None]]:
    """How right a model is if it answers no more than a share of the texts, and a person the others.

    Args:
        confidence, correct: (m,) with m > 0, see above.
        coverages: the shares.

    Returns:
        Of each: `at_most`, the share; `coverage`, the largest share up to it that holds all answers of equal confidence
        or none of them; `accuracy` of these answers; `least_confidence` among them. The last two are None where the
        coverage is 0.

    Raises:
        ValueError: see `risk_coverage`.
    """
    taken, accuracy, least = _surest(confidence, correct)
    rows = []
    for share in coverages:
        fitting = numpy.flatnonzero(taken <= share * taken[-1] + 1e-9)  # a product's last digit
        row: dict[str, float | None] = {"at_most": share, "coverage": 0.0, "accuracy": None, "least_confidence": None}
        if len(fitting):
            last = fitting[-1]
            row |= {"coverage": float(taken[last] / taken[-1]), "accuracy": float(accuracy[last])}
            row["least_confidence"] = float(least[last])
        rows.append(row)
    return rows


def _surest(confidence, correct) -> tuple[numpy.ndarray, numpy.ndarray, numpy.ndarray]:
    """Of each confidence that there is, the surest first: how many answers are at least as sure, how right they are,
    and the confidence itself."""
    confidence, correct = _checked(confidence, correct)
    if not len(confidence):
        raise ValueError("no answers")
    levels, group = numpy.unique(-confidence, return_inverse=True)
    taken = numpy.bincount(group).cumsum()
    return taken, numpy.bincount(group, weights=correct).cumsum() / taken, -levels


def _checked(confidence, correct) -> tuple[numpy.ndarray, numpy.ndarray]:
    confidence, correct = numpy.asarray(confidence, dtype=float), numpy.asarray(correct, dtype=float)
    if confidence.ndim != 1 or confidence.shape != correct.shape:
        raise ValueError(f"confidence {confidence.shape} and correct {correct.shape} are not of the same answers")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise ValueError("a confidence is not from 0 to 1")
    if not numpy.isin(correct, (0, 1)).all():
        raise ValueError("an answer is neither right (1) nor wrong (0)")
    return confidence, correct


# --- a run ----------------------------------------------------------------------------------------------------------


def analyse(run: PredictedRun, examples: int = EXAMPLES) -> dict[str, Any]:
    """The content of confidence_analysis.json. The order of the run's rows does not matter.

    An answer is right if its label set is exactly the gold one, as `accuracy` in test_results.json has it.

    Args:
        run: its rows without a confidence are counted, and else left out.
        examples: rows in each list, at most.

    Returns:
        Of all rows with a confidence: `task`, `kind`, `n`, `without_confidence` (rows that were left out),
        `without_gold` (rows among the n), `mean_confidence`, `share_above_0.9`, `histogram` (of ten intervals, upper
        edges included: `from`, `to`, `n`, and `accuracy` of those with gold labels, None where there are none), and
        `least_confident` (rows: `id`, `text`, `gold`, `labels`, `confidence`).

        Of those with gold labels, and None where there are none: `accuracy`, `most_confidently_wrong` (rows),
        `reliability`, `ece`, `mce`, `brier` (mean of (confidence - correct)^2, 0 to 1), `risk_coverage`,
        `at_coverage` (`at_coverages`).

        Of these where all rows have probabilities, else None: `of_labels`, what `calibration_scores` says of the
        probabilities of the labels, as test_results.json does (where each text has one label and the confidence is
        that of the most probable label, its `ece` is that of the answers); and in a multi-label task `per_label`:
        label -> `support`, `share_predicted`, `mean_probability`, `ece`, `mce`, `brier`, `auc` (None where all texts
        have the label or none) and `reliability`.

    Raises:
        NoConfidenceError: no row has a confidence.
        UserError: see `PredictedRun.task`.
    """
    task = run.task()
    rows = [row for row in run.rows if row.get("confidence") is not None]
    if not rows:
        raise NoConfidenceError(
            f"{run.path}: no row has a confidence, so there is nothing to analyse: predict again with "
            "inference.py, --probabilities for those of the labels, too (an ensemble has some with --how mean)"
        )
    left_out = len(run.rows) - len(rows)
    run = replace(run, rows=sorted(rows, key=_least_sure_first))  # sums, too, have the same last digit in any order
    confidence = _confidence_of(run.rows)
    return {
        "task": task.name,
        "kind": task.kind,
        "n": len(rows),
        "without_confidence": left_out,
        "without_gold": len(rows) - len(run.labelled),
        "mean_confidence": float(confidence.mean()),
        f"share_above_{SURE}": float((confidence > SURE).mean()),
        "histogram": _histogram(run.rows, confidence),
        "least_confident": _shown(run.rows[:examples]),
        **_of_labelled(replace(run, rows=run.labelled), task, examples),
    }


def _of_labelled(run: PredictedRun, task: Task, examples: int) -> dict[str, Any]:
    """What gold labels tell; all rows have some."""
    names = (
        "accuracy", "most_confidently_wrong", "reliability", "ece", "mce", "brier", "risk_coverage", "at_coverage",
        "of_labels", "per_label",
    )  # fmt: skip
    if not run.rows:
        return dict.fromkeys(names)
    confidence, correct = _confidence_of(run.rows), numpy.array([is_right_row(row) for row in run.rows], dtype=float)
    wrong = sorted((row for row in run.rows if not is_right_row(row)), key=_surest_first)
    bins = reliability(confidence, correct)
    shares, gold = run.probabilities(task), [row["gold"] for row in run.rows]
    known = task.allow_none or all(gold)
    return {
        "accuracy": float(correct.mean()),
        "most_confidently_wrong": _shown(wrong[:examples]),
        "reliability": bins,
        **calibration_errors(bins),
        "brier": float(((confidence - correct) ** 2).mean()),
        "risk_coverage": risk_coverage(confidence, correct),
        "at_coverage": at_coverages(confidence, correct),
        "of_labels": calibration_scores(shares, gold, task) if shares is not None and known else None,
        "per_label": _per_label(run, shares, task) if shares is not None and task.kind == "multi_label" else None,
    }


def _per_label(run: PredictedRun, shares: numpy.ndarray, task: Task) -> dict[str, dict[str, Any]]:
    """See `analyse`; `shares` are the probabilities (n, K)."""
    from sklearn.metrics import roc_auc_score

    table = {}
    for column, label in enumerate(task.labels):
        probability = shares[:, column]
        gold = numpy.array([label in row["gold"] for row in run.rows], dtype=float)
        bins = reliability(probability, gold)
        both = 0 < gold.sum() < len(gold)
        table[label] = {
            "support": int(gold.sum()),
            "share_predicted": sum(label in row["labels"] for row in run.rows) / len(run.rows),
            "mean_probability": float(probability.mean()),
            **calibration_errors(bins),
            "brier": float(((probability - gold) ** 2).mean()),
            "auc": float(roc_auc_score(gold, probability)) if both else None,
            "reliability": bins,
        }
    return table


def _histogram(rows: Sequence[dict[str, Any]], confidence: numpy.ndarray) -> list[dict[str, Any]]:
    inside: list[list[dict[str, Any]]] = [[] for _ in range(_INTERVALS)]
    for row, place in zip(rows, bin_places(confidence, _INTERVALS), strict=True):
        inside[place].append(row)
    table = []
    for place, found in enumerate(inside):
        right = [is_right_row(row) for row in found if row["gold"] is not None]
        edges = {"from": place / _INTERVALS, "to": (place + 1) / _INTERVALS}
        table.append(edges | {"n": len(found), "accuracy": sum(right) / len(right) if right else None})
    return table


def _confidence_of(rows: Sequence[dict[str, Any]]) -> numpy.ndarray:
    return numpy.clip([row["confidence"] for row in rows], 0.0, 1.0)  # a sum's last digit


def _least_sure_first(row: dict[str, Any]) -> tuple:
    return row["confidence"], row["id"], row["text"]


def _surest_first(row: dict[str, Any]) -> tuple:
    return -row["confidence"], row["id"], row["text"]


def _shown(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{field: row[field] for field in _FIELDS} for row in rows]
