"""Sets of labels that keep a promise: of the gold labels, a wanted share stands in them. (no torch)

A set has the labels of a text whose probability reaches a cutoff, and its most probable label in any case. What a set
leaves out of a text's gold labels is the share that is missed: with one label a text 0 or 1, and 0 where there is no
gold label. The cutoff is the largest, and so the sets are the smallest, under which on n rows of calibration

    (sum of the missed shares + 1) / (n + 1)  <=  1 - level,

which bounds the mean share missed of further rows, as long as these are drawn like the others and no row of calibration
was learnt from (conformal risk control: Angelopoulos et al., 2022). The promise is one of the mean over texts, and over
draws of the rows of calibration; it is not one of each text, nor of each label.

With one label a text this is split conformal prediction (Vovk et al., 2005; Angelopoulos and Bates, 2021) with the
score 1 - p of the gold label, whose ceil((n + 1) * level) / n quantile is 1 - cutoff (Sadinle, Lei and Wasserman,
2019). The score of a most probable label counts as 0, since that label is in every set.

Shapes: n texts, K labels in the task's order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import numpy

from data.arguments import UserError
from data.predictions import Prediction
from data.tasks import Task

LEVELS = (0.01, 0.9999)  # what may be promised
_ROUNDING = 1e-9  # of a sum of shares
TOP_ALONE = 1.0  # a cutoff above which there is none


@dataclass(frozen=True)
class Promise:
    """What sets of labels were calibrated for.

    Attributes:
        level: the share of a text's gold labels that stands in its set, in the mean over texts.
        cutoff: probability from which a label is in the set.
        rows: how many rows it was calibrated on.

    Raises:
        ValueError: values that no calibration gives.
    """

    __pydantic_config__ = {"strict": True, "extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012

    level: float
    cutoff: float
    rows: int

    def __post_init__(self):
        if not LEVELS[0] <= self.level <= LEVELS[1]:
            raise ValueError(f"level {self.level}: must be from {LEVELS[0]} to {LEVELS[1]}")
        if not 0 <= self.cutoff <= 1:
            raise ValueError(f"cutoff {self.cutoff}: must be from 0 to 1")
        if self.rows < rows_needed(self.level):
            raise ValueError(f"rows {self.rows}: level {self.level} needs at least {rows_needed(self.level)}")


def rows_needed(level: float) -> int:
    """The fewest rows of calibration on which something else than "all labels" can keep a promise: (n + 1)(1 - level)
    is then at least 1.

    >>> rows_needed(0.9), rows_needed(0.95), rows_needed(0.5)
    (9, 19, 1)
    """
    return ceil(1 / _left(level)) - 1


def check_rows(level: float, rows: int, what: str = "validation rows") -> None:
    """Raise a `UserError` where `--coverage` cannot be, or cannot be promised with so many rows."""
    if not LEVELS[0] <= level <= LEVELS[1]:
        raise UserError(f"--coverage {level}: must be from {LEVELS[0]} to {LEVELS[1]}")
    if rows < rows_needed(level):
        raise UserError(f"--coverage {level}: needs at least {rows_needed(level)} {what}, found {rows}")


def fit_promise(probabilities, gold: Sequence[Sequence[str]], task: Task, level: float) -> Promise:
    """The cutoff that keeps `level`; see above.

    Args:
        probabilities: (n, K), as they are predicted: under the temperature.
        gold: gold labels of each of the n texts; a text may have none.
        task: gives the labels.
        level: what is promised.

    Raises:
        UserError: too few rows.
        ValueError: lengths that differ.
    """
    check_rows(level, len(gold))
    probabilities = numpy.asarray(probabilities, dtype=float)
    if probabilities.shape != (len(gold), len(task.labels)):
        raise ValueError(f"probabilities {probabilities.shape} do not fit {len(gold)} texts, {len(task.labels)} labels")
    top = probabilities.argmax(axis=1)
    reached, shares = [TOP_ALONE], [0.0]  # the cutoff up to which a gold label is in its set, and its share of a text
    for row, labels in enumerate(gold):
        for place in {task.ids[label] for label in labels} - {int(top[row])}:
            reached.append(probabilities[row, place])
            shares.append(1 / len(set(labels)))
    order = numpy.argsort(reached, kind="stable")
    cutoffs, first = numpy.unique(numpy.array(reached)[order], return_index=True)
    missed = numpy.cumsum(numpy.array([0.0, *numpy.array(shares)[order]]))[first]  # labels below each cutoff
    allowed = float((len(gold) + 1) * _left(level) - 1)
    return Promise(level, float(cutoffs[missed <= allowed + _ROUNDING].max()), len(gold))


def promised_sets(probabilities, cutoff: float, task: Task) -> list[tuple[str, ...]]:
    """Probabilities (n, K) -> the set of labels of each text, in the task's order; n may be 0."""
    probabilities = numpy.asarray(probabilities, dtype=float).reshape(-1, len(task.labels))
    top = probabilities.argmax(axis=1)[:, None] == numpy.arange(len(task.labels))
    return [tuple(task.labels[k] for k in row.nonzero()[0]) for row in (probabilities >= cutoff) | top]


def missed_share(gold: Sequence[str], found: Sequence[str]) -> float:
    """The share of a text's gold labels that a set lacks; 0 where there are none.

    >>> missed_share(["joy", "love"], ["joy", "fear"]), missed_share([], [])
    (0.5, 0.0)
    """
    wanted = set(gold)
    return len(wanted - set(found)) / len(wanted) if wanted else 0.0


def set_scores(gold: Sequence[Sequence[str]], predictions: Sequence[Prediction]) -> dict[str, Any]:
    """How well sets of labels keep their promise, on n texts with gold labels.

    Returns:
        `coverage`: mean share of a text's gold labels that are in its set; `mean_set_size`; `abstained_rate`: share of
        texts with more labels in the set than were allowed. Of the other texts, if there are any, `coverage_answered`
        and `accuracy_answered`, the share of answers that are exactly right.
    """
    covered = numpy.array([1 - missed_share(g, p.label_set) for g, p in zip(gold, predictions, strict=True)])
    answered = numpy.array([not p.abstained for p in predictions])
    scores = {
        "coverage": float(covered.mean()),
        "mean_set_size": float(numpy.mean([len(p.label_set) for p in predictions])),
        "abstained_rate": float(1 - answered.mean()),
    }
    if answered.any():
        right = numpy.array([set(g) == set(p.labels) for g, p in zip(gold, predictions, strict=True)])
        scores["coverage_answered"] = float(covered[answered].mean())
        scores["accuracy_answered"] = float(right[answered].mean())
    return scores


def _left(level: float) -> Fraction:
    """1 - level, exactly as it was typed: 1 / (1 - 0.9) is above 10 in floating point."""
    return 1 - Fraction(str(level))
