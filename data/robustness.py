"""What is left of a model's scores when its texts are perturbed, from what it predicted. (no torch)"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy

from data.loading import Example
from data.metrics import is_right
from data.perturbing.perturbations import PERTURBATIONS, Language, perturb
from data.predictions import Prediction
from data.significance import bootstrap_scores
from data.tasks import Task

ROBUSTNESS_FILE = "robustness_result.json"
LEVEL = 0.95  # share of the drawn sets of rows that an interval holds
SCORE_IS = (
    "The accuracy under a perturbation divided by the accuracy on the texts as they are, averaged over all "
    "perturbations and strengths, at most 1: 1 means that nothing was lost, 0.9 that a tenth of the right answers was."
)
_METRICS = ("accuracy", "f1_macro")


@dataclass(frozen=True)
class Copy:
    """The texts of a test set, n of them, under one perturbation of one strength."""

    perturbation: str
    strength: float
    texts: tuple[str, ...]


def perturbed_copies(
    texts: Sequence[str], names: Sequence[str], strengths: Sequence[float], seed: int, language: Language | None = None
) -> list[Copy]:
    """A copy for each perturbation and strength, weak ones first; see `data.perturbing.perturbations.perturb`."""
    return [
        Copy(name, strength, tuple(perturb(name, text, strength, seed, language) for text in texts))
        for name in names
        for strength in sorted(strengths)
    ]


def distinct_texts(texts: Sequence[str], copies: Sequence[Copy]) -> list[str]:
    """Every text once, in the order of the test set and then of the copies: what there is to predict."""
    return list(dict.fromkeys([*texts, *(text for copy in copies for text in copy.texts)]))


def measure(
    examples: Sequence[Example],
    copies: Sequence[Copy],
    predicted: Mapping[str, Prediction],
    task: Task,
    seed: int = 42,
    shown: int = 5,
    rounds: int = 1000,
) -> dict[str, Any]:
    """Scores on the texts as they are and on each copy, and what is left of them.

    The score is of accuracy, not of macro F1: accuracy is a mean over texts, so that a tenth lost means that a tenth
    of what was right is wrong now, whatever the labels are; a rare label, of which the macro F1 makes as much as of a
    frequent one, cannot carry it up or down. The mean is cut off at 1, not what goes into it: else chance gains would
    count for nothing and chance losses in full, and a model that loses nothing would seem to.

    Args:
        examples: n texts with gold labels.
        copies: of the same texts, at least one.
        predicted: text -> prediction, for all of `distinct_texts`.
        task: gives the labels.
        seed: of the bootstrap, which draws the same rows for the texts as they are and for all copies.
        shown: examples of changed answers for each copy.
        rounds: how often rows are drawn.

    Returns:
        What robustness_result.json says of them: `n`, `clean`, `perturbations`, `robustness_score` with its interval
        (both None where no answer was right to begin with) and `robustness_score_is`.
    """
    gold = [example.labels for example in examples]
    answers = [[predicted[example.text] for example in examples]]
    answers += [[predicted[text] for text in copy.texts] for copy in copies]
    observed, drawn = bootstrap_scores(gold, answers, task, _METRICS, rounds, seed)
    scores = [_with_intervals(observed, drawn, i) for i in range(len(answers))]
    perturbations: dict[str, dict[str, Any]] = {}
    for copy, after, numbers in zip(copies, answers[1:], scores[1:], strict=True):
        title = PERTURBATIONS[copy.perturbation].title
        entry = perturbations.setdefault(copy.perturbation, {"title": title, "strengths": []})
        entry["strengths"].append(
            {
                "strength": copy.strength,
                "changed": _share(text != example.text for text, example in zip(copy.texts, examples, strict=True)),
                **numbers,
                "flips": _share(set(a.labels) != set(b.labels) for a, b in zip(after, answers[0], strict=True)),
                "examples": flipped(examples, copy, answers[0], after)[:shown],
            }
        )
    score, interval = robustness_score(observed["accuracy"][None], drawn["accuracy"])
    return {
        "n": len(examples),
        "clean": scores[0],
        "perturbations": perturbations,
        "robustness_score": score,
        "robustness_score_interval": interval,
        "robustness_score_is": SCORE_IS,
    }


def robustness_score(observed: numpy.ndarray, drawn: numpy.ndarray) -> tuple[float | None, list[float] | None]:
    """What `SCORE_IS` says, and its percentile interval.

    Args:
        observed: accuracies (1, 1 + copies), the first on the texts as they are.
        drawn: the same of each round of the bootstrap (rounds, 1 + copies); a round without a right answer is left out.
    """
    if not observed[0, 0]:
        return None, None
    ratios = _ratios(drawn[drawn[:, 0] > 0])
    return float(_ratios(observed)[0]), [float(end) for end in numpy.quantile(ratios, _ends())]


def _ratios(accuracies: numpy.ndarray) -> numpy.ndarray:
    return numpy.minimum(accuracies[:, 1:].mean(axis=1) / accuracies[:, 0], 1)


def _ends() -> list[float]:
    return [(1 - LEVEL) / 2, (1 + LEVEL) / 2]


def _with_intervals(observed: dict[str, numpy.ndarray], drawn: dict[str, numpy.ndarray], run: int) -> dict[str, Any]:
    values = {metric: float(observed[metric][run]) for metric in _METRICS}
    ends = {f"{metric}_interval": numpy.quantile(drawn[metric][:, run], _ends()).tolist() for metric in _METRICS}
    return values | ends


def _share(conditions) -> float:
    conditions = list(conditions)
    return sum(conditions) / len(conditions)


def flipped(
    examples: Sequence[Example], copy: Copy, before: Sequence[Prediction], after: Sequence[Prediction]
) -> list[dict[str, Any]]:
    """Texts whose label set changed: first those that were right and are wrong, of these the surest first."""
    found = []
    for example, text, old, new in zip(examples, copy.texts, before, after, strict=True):
        if set(old.labels) == set(new.labels):
            continue
        was_right, now_right = (is_right(each, example.labels) for each in (old, new))
        row = {
            "id": example.id,
            "text": example.text,
            "perturbed": text,
            "gold": list(example.labels),
            "before": list(old.labels),
            "after": list(new.labels),
        }
        found.append(((not was_right, now_right, -(old.confidence or 0)), row))
    return [row for _, row in sorted(found, key=lambda each: each[0])]
