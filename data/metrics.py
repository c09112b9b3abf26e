"""Scores of predicted label sets. (no torch)"""

from collections.abc import Sequence
from typing import Any

import numpy

from data.predictions import Prediction
from data.tasks import Task

# What `--metric_for_best` accepts, beside "loss"; each is a key of `label_metrics`.
LABEL_METRICS = (
    "accuracy",
    *(f"{name}_{average}" for average in ("micro", "macro", "weighted") for name in ("precision", "recall", "f1")),
    "jaccard",
)
# where there are probabilities: keys of `data.calibration.calibration_scores`, as a summary shows them
PROBABILITY_METRICS = {"auc": "AUC", "ece": "ECE", "brier": "Brier score"}
# where there are sets of labels: keys of `data.conformal.set_scores`
SET_METRICS = {
    "coverage": ("coverage", "right labels that stand in their text's set"),
    "mean_set_size": ("labels a set", ""),
    "abstained_rate": ("abstained", "the set is too large"),
    "coverage_answered": ("  else covered", ""),
    "accuracy_answered": ("  else right", "the whole label set right"),
}


def label_metrics(gold: Sequence[Sequence[str]], predictions: Sequence[Prediction], task: Task) -> dict[str, Any]:
    """Compare predicted with gold label sets.

    Args:
        gold: gold labels of each text.
        predictions: predictions of the same texts, in the same order.
        task: gives the labels.

    Returns:
        `n`; `accuracy` (share of texts whose set is exactly right, `is_right`); precision, recall and F1, each
        `_micro`, `_macro` (mean over all labels of the task, also those that never occur) and `_weighted` (by support);
        `jaccard` (mean over texts of |P∩G| / |P∪G|, `similarity`); `invalid_rate` (share of answers not given to the
        letter; what could be read of them is scored); `per_label` (precision, recall, f1, support); for single-label
        tasks `confusion_matrix` (rows gold, columns predicted, in label order) and `unread` (texts of each gold label
        whose answer held no label at all, and so stand in no column).

    Raises:
        ValueError: nothing to score, or lengths that differ.
    """
    from sklearn.metrics import precision_recall_fscore_support

    if not gold or len(gold) != len(predictions):
        raise ValueError(f"cannot score {len(predictions)} predictions against {len(gold)} gold label sets")
    truth, guess = indicators(gold, task), indicators([p.labels for p in predictions], task)
    right = sum(is_right(p, g) for p, g in zip(predictions, gold, strict=True))
    scores: dict[str, Any] = {"n": len(gold), "accuracy": right / len(gold)}
    for average in ("micro", "macro", "weighted"):
        values = precision_recall_fscore_support(truth, guess, average=average, zero_division=0)[:3]
        scores |= {f"{name}_{average}": float(v) for name, v in zip(("precision", "recall", "f1"), values, strict=True)}
    scores["jaccard"] = sum(similarity(p, g) for p, g in zip(predictions, gold, strict=True)) / len(gold)
    scores["invalid_rate"] = sum(not p.valid for p in predictions) / len(predictions)
    columns = precision_recall_fscore_support(truth, guess, average=None, zero_division=0)
    scores["per_label"] = {
        label: {"precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
        for label, p, r, f, s in zip(task.labels, *columns, strict=True)
    }
    if task.kind == "single_label":
        scores["confusion_matrix"], scores["unread"] = _confusion(gold, predictions, task)
    return scores


def is_right(prediction: Prediction, gold: Sequence[str]) -> bool:
    """Whether the whole label set is right. An answer of which nothing could be read never is, also where none applies.

    >>> is_right(Prediction((), valid=True), ()), is_right(Prediction((), valid=False), ())
    (True, False)
    """
    return set(prediction.labels) == set(gold) and not prediction.unread


def similarity(prediction: Prediction, gold: Sequence[str]) -> float:
    """The Jaccard index of an answer's labels and the gold ones; 0 where nothing could be read of it."""
    return 0.0 if prediction.unread else jaccard(prediction.labels, gold)


def jaccard(predicted: Sequence[str], gold: Sequence[str]) -> float:
    """|P∩G| / |P∪G|; 1.0 when both are empty.

    >>> jaccard(["joy", "love"], ["joy"])
    0.5
    """
    union = set(predicted) | set(gold)
    return len(set(predicted) & set(gold)) / len(union) if union else 1.0


def indicators(label_sets: Sequence[Sequence[str]], task: Task) -> numpy.ndarray:
    """Label sets -> 0/1 matrix, (texts, labels)."""
    matrix = numpy.zeros((len(label_sets), len(task.labels)), dtype=numpy.uint8)
    for row, labels in enumerate(label_sets):
        for label in labels:
            matrix[row, task.ids[label]] = 1
    return matrix


def _confusion(
    gold: Sequence[Sequence[str]], predictions: Sequence[Prediction], task: Task
) -> tuple[list[list[int]], dict[str, int]]:
    matrix = [[0] * len(task.labels) for _ in task.labels]
    unread = dict.fromkeys(task.labels, 0)
    for (label,), prediction in zip(gold, predictions, strict=True):
        if prediction.label is None:
            unread[label] += 1
        else:
            matrix[task.ids[label]][task.ids[prediction.label]] += 1
    return matrix, unread


def format_summary(scores: dict[str, Any], title: str) -> str:
    """`test_summary.txt`: the scores as a person reads them."""
    lines = [
        title,
        "",
        f"texts          {scores['n']}",
        f"accuracy       {scores['accuracy']:.4f}   (the whole label set right)",
        f"macro F1       {scores['f1_macro']:.4f}",
        f"micro F1       {scores['f1_micro']:.4f}",
        f"weighted F1    {scores['f1_weighted']:.4f}",
        f"Jaccard        {scores['jaccard']:.4f}",
        f"invalid rate   {scores['invalid_rate']:.4f}",
        *(f"{shown:<15}{scores[name]:.4f}" for name, shown in PROBABILITY_METRICS.items() if name in scores),
        *(
            f"{shown:<15}{scores[name]:.4f}{f'   ({note})' * bool(note)}"
            for name, (shown, note) in SET_METRICS.items()
            if name in scores
        ),
        "",
        f"{'label':<20}{'precision':>10}{'recall':>10}{'f1':>10}{'support':>10}",
    ]
    for label, row in scores["per_label"].items():
        lines.append(
            f"{label:<20}{row['precision']:>10.4f}{row['recall']:>10.4f}{row['f1']:>10.4f}{row['support']:>10}"
        )
    if "confusion_matrix" in scores:
        lines += ["", "confusion matrix (rows: gold, columns: predicted, in the order above)"]
        lines += ["".join(f"{count:>7}" for count in row) for row in scores["confusion_matrix"]]
    return "\n".join(lines) + "\n"
