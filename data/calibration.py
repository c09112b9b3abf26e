"""Scores of labels -> probabilities that can be believed, and the labels they stand for. (no torch)

A temperature makes the probabilities as sure as they are right; a threshold for each label decides what a multi-label
task predicts. Both are fitted on validation rows and stand in task.json.

Shapes: n texts, K labels in the task's order. `scores` (n, K) are logits of a head, summed log-probabilities of
candidate answers, or of the probabilities of the labels in written answers the logarithm (single-label) or the logit
(multi-label), `scores_of`; `gold` is one label tuple a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy

from data.metrics import label_metrics
from data.predictions import Prediction
from data.tasks import Task

Activation = Literal["softmax", "sigmoid"]
Decision = Literal["answer", "thresholds"]
Gold = Sequence[Sequence[str]]

DEFAULT_THRESHOLD = 0.5
MIN_POSITIVES = 10  # texts with a label from which it gets a threshold of its own
LEAST_PROBABILITY = 1e-6
FOLDS = 5
TEMPERATURE_BOUNDS = (0.05, 20.0)
ECE_BINS = 15


@dataclass(frozen=True)
class Calibration:
    """What is fitted on validation rows.

    Attributes:
        temperature: divides the scores before they become probabilities.
        thresholds: label -> probability from which it is predicted; None in a single-label task.
    """

    temperature: float
    thresholds: dict[str, float] | None


def probabilities(scores, activation: Activation, temperature: float = 1.0) -> numpy.ndarray:
    """Scores (n, K) -> probabilities (n, K).

    Args:
        scores: see above; n may be 0.
        activation: "softmax" where the labels compete (rows add up to 1), "sigmoid" where each is decided by itself.
        temperature: divides the scores; above 1 makes the probabilities less sure.

    Raises:
        ValueError: scores that are not finite, or a temperature that is not above 0.
    """
    from scipy.special import expit, softmax

    if not temperature > 0:
        raise ValueError(f"temperature {temperature}: must be above 0")
    scaled = _finite(scores) / temperature
    return softmax(scaled, axis=1) if activation == "softmax" else expit(scaled)


def scores_of(probabilities, activation: Activation, least: float = LEAST_PROBABILITY) -> numpy.ndarray:
    """Probabilities (n, K) -> scores (n, K) that have them at temperature 1 (softmax forgets a common summand).

    Args:
        probabilities: see above.
        activation: see `probabilities`.
        least: what is taken for a smaller probability; of an answer that was not looked at, 0 is known.
    """
    from scipy.special import logit

    given = numpy.asarray(probabilities, dtype=float)
    if activation == "softmax":
        return numpy.log(numpy.maximum(given, least))
    return logit(numpy.clip(given, least, 1 - 1e-7))


def decide(probabilities, task: Task, thresholds: dict[str, float] | None) -> list[tuple[str, ...]]:
    """Probabilities (n, K) -> labels of each text, in the task's order.

    Args:
        probabilities: of the task's labels; n may be 0.
        task: in a single-label task the most probable label is the answer; in a multi-label one every label at or above
            its threshold, or the most probable one where none is: each text has at least one label, unless the task
            allows none.
        thresholds: label -> threshold; a label that is not in it, and with None every label, has `DEFAULT_THRESHOLD`.
    """
    probabilities = numpy.asarray(probabilities, dtype=float)
    chosen = probabilities.argmax(axis=1)[:, None] == numpy.arange(len(task.labels))  # (n, K), one True a row
    if task.kind == "multi_label":
        least = numpy.array([(thresholds or {}).get(label, DEFAULT_THRESHOLD) for label in task.labels])
        reached = probabilities >= least
        chosen = numpy.where(task.allow_none | reached.any(axis=1, keepdims=True), reached, chosen)
    return [tuple(task.labels[i] for i in row.nonzero()[0]) for row in chosen]


def set_probability(probabilities, labels: Sequence[str], task: Task, activation: Activation) -> float:
    """How probable it is that a text has these labels and no others.

    Args:
        probabilities: (K,) of the task's labels.
        labels: what was decided.
        task: gives the labels.
        activation: with "softmax" one of the labels is right, and it is one of these; with "sigmoid" each label by
            itself is as decided.
    """
    chosen = numpy.isin(numpy.array(task.labels), labels)
    if activation == "softmax":
        return float(probabilities[chosen].sum())
    return float(numpy.where(chosen, probabilities, 1 - probabilities).prod())


def fit_temperature(scores, gold: Gold, task: Task, activation: Activation) -> float:
    """The temperature under which the gold labels are the most probable (Guo et al., 2017, "On Calibration of Modern
    Neural Networks").

    What is minimised is the mean over texts of the negative log-likelihood: with softmax, of a text's gold labels,
    each counting the same share; with sigmoid, of the yes or no of every label. It has one minimum, looked for within
    `TEMPERATURE_BOUNDS`. 1.0 where no other temperature is better.

    Raises:
        ValueError: nothing to fit on, lengths that differ, scores that are not finite, gold labels of another task, or
            with softmax a text without any.
    """
    from scipy.optimize import minimize_scalar

    scores, truth = _checked(scores, gold, task)
    if activation == "softmax" and not truth.any(axis=1).all():
        raise ValueError("a text without a gold label, where one of the labels has to be right")

    def loss(log_temperature: float) -> float:
        return _negative_log_likelihood(scores / numpy.exp(log_temperature), truth, activation)

    best = minimize_scalar(loss, bounds=tuple(numpy.log(TEMPERATURE_BOUNDS)), method="bounded").x
    return float(numpy.exp(min(0.0, best, key=loss)))


def fit_thresholds(probabilities, gold: Gold, task: Task, min_positives: int = MIN_POSITIVES) -> dict[str, float]:
    """For each label of a multi-label task, the threshold with the best F1 on these rows.

    It is put midway between the least probability that it lets pass and the next one below (0 below the least of all).
    Of thresholds with equal F1 the one nearest to 0.5 is taken.

    What is best for a handful of texts is mostly chance: labels with fewer than `min_positives` of them share one
    threshold, which would have the best micro F1 if all labels used it. A label without any gets `DEFAULT_THRESHOLD`.

    Raises:
        ValueError: see `fit_temperature`.
    """
    probabilities, truth = _checked(probabilities, gold, task)
    common = _best_threshold(truth.ravel(), probabilities.ravel()) if truth.any() else DEFAULT_THRESHOLD
    thresholds = {}
    for column, label in enumerate(task.labels):
        positives = truth[:, column].sum()
        threshold = common if positives else DEFAULT_THRESHOLD
        if positives >= max(min_positives, 1):
            threshold = _best_threshold(truth[:, column], probabilities[:, column])
        thresholds[label] = threshold
    return thresholds


def calibration_scores(probabilities, gold: Gold, task: Task) -> dict[str, float]:
    """How far probabilities (n, K) can be believed.

    Returns:
        `ece`: expected calibration error (Naeini et al., 2015, "Obtaining Well Calibrated Probabilities Using Bayesian
        Binning"), sum over bins b of n_b / n * |mean probability in b - share of b that is true|, in `ECE_BINS` bins of
        equal width, upper edges included. Single-label: the probability of the most probable label, true where that
        label is gold. Multi-label: the probabilities of all labels together, each true where its label is gold.

        `brier`: Brier score (Brier, 1950, "Verification of Forecasts Expressed in Terms of Probability"), y being 1 for
        gold labels and 0 for others. Single-label: mean over texts of the sum over labels of (p - y)^2, 0 to 2.
        Multi-label: mean over texts and labels of (p - y)^2, 0 to 1.

        `auc`: how likely a text with a label has a higher probability of it than one without, mean over the labels that
        some texts have and some have not; of two labels that exclude each other, that of the second. Left out where no
        label is such.

    Raises:
        ValueError: see `fit_temperature`.
    """
    from sklearn.metrics import roc_auc_score

    probabilities, truth = _checked(probabilities, gold, task)
    if task.kind == "single_label":
        top = probabilities.argmax(axis=1)
        ece = _expected_calibration_error([(probabilities.max(axis=1), truth[numpy.arange(len(truth)), top])])
        brier = ((probabilities - truth) ** 2).sum(axis=1).mean()
    else:
        # label by label: a file may have millions of rows
        by_label = list(zip(probabilities.T, truth.T, strict=True))
        ece = _expected_calibration_error(by_label)
        brier = numpy.mean([((probability - true) ** 2).mean() for probability, true in by_label])
    columns = [1] if task.kind == "single_label" and len(task.labels) == 2 else range(len(task.labels))
    areas = [roc_auc_score(truth[:, k], probabilities[:, k]) for k in columns if 0 < truth[:, k].sum() < len(truth)]
    measured = {"ece": float(ece), "brier": float(brier)}
    return measured | {"auc": float(numpy.mean(areas))} if areas else measured


def bin_places(probabilities, bins: int) -> numpy.ndarray:
    """Which of `bins` intervals of equal width, from 0 to 1, each probability (m,) is in; upper edges belong to them.

    >>> bin_places(numpy.array([0.0, 0.5, 0.51, 1.0]), 2).tolist()
    [0, 0, 1, 1]
    """
    return numpy.clip(numpy.ceil(probabilities * bins).astype(int) - 1, 0, bins - 1)


def calibrate(
    scores, gold: Gold, task: Task, activation: Activation
) -> tuple[Calibration, dict[str, dict[str, float]]]:
    """Fit the temperature, and in a multi-label task thresholds of the probabilities under it.

    Returns:
        The calibration, and the metrics `before` (temperature 1, default thresholds) and `after`: those of
        `calibration_scores`, `f1_macro`, `f1_micro` and `accuracy`. They are of the rows that were fitted on: on others
        the gain is smaller.

    Raises:
        ValueError: see `fit_temperature`.
    """
    fitted = fit(scores, gold, task, activation)
    calibrated = probabilities(scores, activation, fitted.temperature)
    before = _metrics(probabilities(scores, activation), gold, task, None)
    after = _metrics(calibrated, gold, task, fitted.thresholds)
    return fitted, {"before": before, "after": after}


def fit(scores, gold: Gold, task: Task, activation: Activation) -> Calibration:
    """`calibrate` without the metrics."""
    temperature = fit_temperature(scores, gold, task, activation)
    if task.kind != "multi_label":
        return Calibration(temperature, None)
    return Calibration(temperature, fit_thresholds(probabilities(scores, activation, temperature), gold, task))


def cross_fitted(scores, gold: Gold, task: Task, activation: Activation) -> list[tuple[str, ...]]:
    """What temperature and thresholds decide of texts that they were not fitted on.

    Of n texts, those with i % 5 == k are decided by what was fitted on the others, for each k (5-fold cross-fitting;
    Stone, 1974, "Cross-Validatory Choice and Assessment of Statistical Predictions"). Thresholds that were fitted on
    the very texts they are measured on would look better than they are.

    Raises:
        ValueError: see `fit_temperature`; fewer than two texts.
    """
    scores, folds = _finite(scores), numpy.arange(len(gold)) % FOLDS
    decided: list[tuple[str, ...]] = [()] * len(gold)
    for fold in range(min(FOLDS, len(gold))):
        (inside,), (others,) = (folds == fold).nonzero(), (folds != fold).nonzero()
        fitted = fit(scores[others], [gold[i] for i in others], task, activation)
        shares = probabilities(scores[inside], activation, fitted.temperature)
        for i, labels in zip(inside, decide(shares, task, fitted.thresholds), strict=True):
            decided[i] = labels
    return decided


def better_decision(
    answers: Gold, scores, gold: Gold, task: Task, activation: Activation
) -> tuple[Decision, dict[str, float]]:
    """Whether written answers or thresholds of their labels' probabilities are better, by the task's default metric.

    Args:
        answers: the labels of each text in the answer that was written.
        scores, gold, task, activation: see `calibrate`; the thresholds are those of `cross_fitted`.

    Returns:
        "thresholds" where they are better, else "answer"; and the metric under both.
    """
    ways = {"answer": answers}
    if len(gold) > 1:
        ways["thresholds"] = cross_fitted(scores, gold, task, activation)
    metrics = {
        way: label_metrics(gold, [Prediction(tuple(labels), valid=True) for labels in decided], task)[
            task.default_metric
        ]
        for way, decided in ways.items()
    }
    return max(metrics, key=metrics.get), metrics  # the first of equal ones


def _metrics(probabilities, gold: Gold, task: Task, thresholds: dict[str, float] | None) -> dict[str, float]:
    predictions = [Prediction(labels, valid=True) for labels in decide(probabilities, task, thresholds)]
    scores = label_metrics(gold, predictions, task)
    return calibration_scores(probabilities, gold, task) | {n: scores[n] for n in ("f1_macro", "f1_micro", "accuracy")}


def _negative_log_likelihood(scaled, truth, activation: Activation) -> float:
    """Mean over texts; `scaled` scores and 0/1 `truth`, both (n, K)."""
    from scipy.special import log_softmax

    if activation == "softmax":
        return -(log_softmax(scaled, axis=1) * truth / truth.sum(axis=1, keepdims=True)).sum(axis=1).mean()
    return (numpy.logaddexp(0, scaled) - truth * scaled).sum(axis=1).mean()


def _best_threshold(truth, predicted) -> float:
    """The threshold of `predicted` probabilities (m,) with the best F1 against 0/1 `truth` (m,), some of it 1."""
    from sklearn.metrics import precision_recall_curve

    predicted = predicted.round(12)  # equal scores added up in another order differ in the last digits
    precision, recall, least = precision_recall_curve(truth, predicted)  # `least`: each probability there is, ascending
    f1 = 2 * precision * recall / numpy.maximum(precision + recall, numpy.finfo(float).tiny)
    midway = (numpy.append(0.0, least[:-1]) + least) / 2
    best = midway[f1[:-1] >= f1.max() - 1e-12]
    return float(best[abs(best - DEFAULT_THRESHOLD).argmin()])


def _expected_calibration_error(parts: Sequence[tuple[numpy.ndarray, numpy.ndarray]]) -> float:
    """See `calibration_scores`; probabilities (m,) and whether each is true (m,), part by part."""
    gaps = sum(
        numpy.bincount(bin_places(confidence, ECE_BINS), weights=confidence - truth, minlength=ECE_BINS)
        for confidence, truth in parts
    )
    return abs(gaps).sum() / sum(len(confidence) for confidence, _ in parts)


def _finite(scores) -> numpy.ndarray:
    scores = numpy.asarray(scores, dtype=float)
    if not numpy.isfinite(scores).all():
        raise ValueError("a score is not finite")
    return scores


def _checked(scores, gold: Gold, task: Task) -> tuple[numpy.ndarray, numpy.ndarray]:
    """`scores` as an array, and `gold` as a 0/1 matrix, both (n, K)."""
    scores = _finite(scores)
    if not len(gold) or scores.shape != (len(gold), len(task.labels)):
        raise ValueError(f"scores {scores.shape} do not fit {len(gold)} texts with {len(task.labels)} labels")
    truth = numpy.zeros(scores.shape)
    for row, labels in enumerate(gold):
        fits = len(labels) == 1 if task.kind == "single_label" else labels or task.allow_none
        if not fits or not set(labels) <= task.ids.keys():
            raise ValueError(f"text {row}: gold labels {list(labels)} do not fit the {task.kind} task {task.name}")
        truth[row, [task.ids[label] for label in labels]] = 1
    return scores, truth
