"""F1 as a reward: what a label in an answer is worth to the F1 of many texts. (no torch)

F1 is no property of one answer. It is one of counts over texts: of label k, the true positives TP_k, the predictions
P_k and the gold labels G_k, F1_k = 2 TP_k / (P_k + G_k). Macro F1 is the mean of F1_k over the K labels, micro F1 is
2 sum TP / (sum P + sum G). Where the counts are expected ones, of the probabilities m_k(x) that label k is in the
answer to text x, F1 has a gradient:

    d macro F1 / d m_k(x) = 2 / (K D_k) (g_k(x) - F1_k / 2)        D_k = P_k + G_k, g_k(x) = 1 if k is gold, else 0
    d micro F1 / d m_k(x) = 2 / D (g_k(x) - F1 / 2)                D = sum of D_k

So a label that is gold is worth the more, the rarer it is, and one that is not costs the more, the better its F1
already is (Lipton et al., 2014, "Optimal Thresholding of Classifiers to Maximize F1 Measure": predict it where its
probability is over F1 / 2). These values, times the number of texts n in the counts, are what the labels of an answer
earn; their sum over an answer is its reward.

The counts are those of the current texts and, fading, of those before: a batch alone has too few texts of a rare label.
They begin with a few texts of the training data's label frequencies, half of them right. Two things make the gradient a
biased one: the earlier texts were answered by earlier models, and F1 of expected counts is not the expected F1 of drawn
answers (they agree as n grows).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy

from data.files import read_json, write_json

FIRST_TEXTS = 32  # that the counts begin with
MEMORY_FILE = "f1_memory_{}.json"
Average = Literal["macro", "micro"]


@dataclass(frozen=True)
class Counts:
    """Expected counts over n texts: (K,) true positives, predictions, gold labels."""

    true_positives: numpy.ndarray
    predicted: numpy.ndarray
    gold: numpy.ndarray
    texts: float

    @classmethod
    def of(cls, marginals: numpy.ndarray, gold: numpy.ndarray) -> "Counts":
        """Counts of B texts, from the probabilities that a label is in the answer and 0/1 gold, both (B, K)."""
        return cls((marginals * gold).sum(axis=0), marginals.sum(axis=0), gold.sum(axis=0), float(len(gold)))

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.true_positives + other.true_positives, self.predicted + other.predicted, self.gold + other.gold,
            self.texts + other.texts,
        )  # fmt: skip

    def __mul__(self, factor: float) -> "Counts":
        return Counts(self.true_positives * factor, self.predicted * factor, self.gold * factor, self.texts * factor)

    def f1(self, average: Average) -> float:
        """F1 of these counts; of a label that neither occurs nor is predicted, 0."""
        if average == "micro":
            return float(_ratio(2 * self.true_positives.sum(), self.predicted.sum() + self.gold.sum()))
        return float(_ratio(2 * self.true_positives, self.predicted + self.gold).mean())

    def worth(self, gold: numpy.ndarray, average: Average) -> numpy.ndarray:
        """n times the derivative of F1 by the probability of each label in each text, (B, K); 0/1 `gold` (B, K)."""
        sums, positives = self.predicted + self.gold, self.true_positives
        if average == "micro":
            sums, positives = numpy.full_like(sums, sums.sum()), numpy.full_like(sums, positives.sum())
            labels = 1
        else:
            labels = len(sums)
        return _ratio(2 * self.texts / labels, sums) * (gold - _ratio(positives, sums))


def _ratio(above, below) -> numpy.ndarray:
    """above / below, 0 where there is nothing below."""
    below = numpy.asarray(below, dtype=float)
    return numpy.where(below > 0, above / numpy.where(below > 0, below, 1), 0.0)


class F1Memory:
    """What F1 rewards remember of earlier texts.

    Args:
        average: "macro" or "micro".
        frequencies: share of the training rows that have each label, (K,).
        window: texts after which a share of 1/e is left of what was counted.
    """

    def __init__(self, average: Average, frequencies: Sequence[float], window: int):
        self.average, self.window = average, window
        # few: an F1 that a rare label does not have yet would keep it from being predicted
        texts = min(FIRST_TEXTS, window)
        expected = numpy.asarray(frequencies, dtype=float) * texts
        self.counts = Counts(expected / 2, expected, expected, float(texts))

    def with_texts(self, *step: Counts) -> Counts:
        """What is remembered, and these texts."""
        return sum(step, start=self.counts)

    def remember(self, step: Counts) -> None:
        """Add texts, and let the earlier ones fade by as many."""
        self.counts = self.counts * (1 - 1 / self.window) ** step.texts + step

    def save(self, checkpoint: str | Path, process: int = 0) -> None:
        """Put what is remembered into a checkpoint; each process has its own."""
        state = {name: numpy.asarray(value).tolist() for name, value in vars(self.counts).items()}
        write_json(Path(checkpoint, MEMORY_FILE.format(process)), state)

    def load(self, checkpoint: str | Path, process: int = 0) -> None:
        """Go on with what a checkpoint kept.

        Raises:
            UserError: it kept nothing.
        """
        state = read_json(Path(checkpoint, MEMORY_FILE.format(process)))
        self.counts = Counts(**{name: numpy.array(state[name]) for name in ("true_positives", "predicted", "gold")},
                             texts=state["texts"])  # fmt: skip
