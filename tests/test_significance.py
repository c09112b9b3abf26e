"""Intervals and tests over the rows of a test file: against plain loops, closed forms, and truths that are known."""

import random

import numpy
import pytest
from scipy.stats import binom

from data.metrics import label_metrics
from data.predictions import Prediction
from data.significance import (
    METRICS,
    bootstrap_intervals,
    bootstrap_scores,
    holm,
    mcnemar,
    mean_intervals,
    mean_paired_bootstrap,
    paired_bootstrap,
)
from data.tasks import BUILT_IN_TASKS

MANY = BUILT_IN_TASKS["goemotions-original"]
ONE = BUILT_IN_TASKS["emotion"]
tasks = pytest.mark.parametrize("task", [MANY, ONE], ids=lambda task: task.name)


def made_up(task, n: int, right: float, seed: int = 0) -> tuple[list[tuple[str, ...]], list[Prediction]]:
    """Gold labels, the first ones of the task far more often than the last, and answers of which a share is right."""
    draw = random.Random(seed)
    weights = [1 / (1 + place) for place in range(len(task.labels))]
    gold, predictions = [], []
    for _ in range(n):
        count = draw.choice((1, 1, 2)) if task.kind == "multi_label" else 1
        gold.append(tuple(dict.fromkeys(draw.choices(task.labels, weights, k=count))))
        other = draw.choice([(), (draw.choice(task.labels),), tuple(draw.sample(task.labels, 2)), gold[-1][:1]])
        guess = other[:1] if task.kind == "single_label" else other
        predictions.append(Prediction(gold[-1] if draw.random() < right else guess, valid=True))
    return gold, predictions


def others(gold, task, seed: int, right: float = 0.3) -> list[Prediction]:
    """Another system's answers to the same texts."""
    draw = random.Random(seed)
    return [Prediction(g if draw.random() < right else (draw.choice(task.labels),), valid=True) for g in gold]


@tasks
def test_all_rows_score_as_label_metrics_scores_them(task):
    gold, predictions = made_up(task, 300, 0.4)
    observed, _ = bootstrap_scores(gold, [predictions, others(gold, task, 1)], task, rounds=1)
    for place, system in enumerate((predictions, others(gold, task, 1))):
        scores = label_metrics(gold, system, task)
        assert {m: observed[m][place] for m in METRICS} == pytest.approx({m: scores[m] for m in METRICS}, abs=1e-14)


@tasks
def test_drawn_rows_score_as_if_they_were_written_out(task, monkeypatch):
    """The same weights through a plain loop; and however few are drawn at a time, they are the same ones."""
    gold, predictions = made_up(task, 60, 0.4)
    baseline = others(gold, task, 1)
    _, drawn = bootstrap_scores(gold, [predictions, baseline], task, rounds=40, seed=7)
    kinds: dict = {}
    for row, (g, p, b) in enumerate(zip(gold, predictions, baseline, strict=True)):
        kinds.setdefault((g, p.labels, b.labels), []).append(row)
    counts = numpy.array([len(rows) for rows in kinds.values()])
    weights = numpy.random.default_rng(7).multinomial(60, counts / 60, 40)
    for number, weight in enumerate(weights):
        rows = [rows[0] for rows, times in zip(kinds.values(), weight, strict=True) for _ in range(times)]
        for place, system in enumerate((predictions, baseline)):
            scores = label_metrics([gold[row] for row in rows], [system[row] for row in rows], task)
            for metric in METRICS:
                assert drawn[metric][number, place] == pytest.approx(scores[metric], abs=1e-14)
    monkeypatch.setattr("data.significance._MOST_WEIGHTS", 1)
    _, again = bootstrap_scores(gold, [predictions, baseline], task, rounds=40, seed=7)
    assert all((again[metric] == drawn[metric]).all() for metric in METRICS)


@tasks
def test_seeds_reproduce_and_levels_nest(task):
    gold, predictions = made_up(task, 200, 0.4)
    first = bootstrap_intervals(gold, predictions, task, rounds=200)
    assert first == bootstrap_intervals(gold, predictions, task, rounds=200)
    assert first != bootstrap_intervals(gold, predictions, task, rounds=200, seed=43)
    narrow = bootstrap_intervals(gold, predictions, task, rounds=200, level=0.5)
    for metric, (low, high) in first.items():
        assert low < narrow[metric][0] < narrow[metric][1] < high
    assert list(bootstrap_intervals(gold, predictions, task, metrics=("jaccard",), rounds=10)) == ["jaccard"]


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Answers of which 70 % are right, in 400 made-up test files: 95 % intervals hold 0.7 in about 95 of 100, 50 % ones
    in half of them."""
    draw = random.Random(3)
    held = {0.95: 0, 0.5: 0}
    for trial in range(400):
        gold = [("joy",)] * 150
        predictions = [Prediction(("joy" if draw.random() < 0.7 else "fear",), valid=True) for _ in gold]
        for level in held:
            (low, high) = bootstrap_intervals(gold, predictions, ONE, ("accuracy",), 300, trial, level)["accuracy"]
            held[level] += low <= 0.7 <= high
    assert 0.92 <= held[0.95] / 400 <= 0.975
    assert 0.43 <= held[0.5] / 400 <= 0.57


def test_an_accuracy_spreads_as_a_binomial_does():
    gold = [("joy",)] * 500
    predictions = [Prediction(("joy",) if row < 400 else ("fear",), valid=True) for row in range(500)]
    low, high = bootstrap_intervals(gold, predictions, ONE, rounds=20_000)["accuracy"]
    assert (low, high) == pytest.approx([binom.ppf(q, 500, 0.8) / 500 for q in (0.025, 0.975)], abs=0.002)


@tasks
def test_the_same_answers_differ_by_nothing(task):
    gold, predictions = made_up(task, 100, 0.5)
    for metric in METRICS:
        found = paired_bootstrap(gold, predictions, list(predictions), task, metric, rounds=100)
        assert found == {"difference": 0.0, "interval": [0.0, 0.0], "p": 1.0}
    assert mcnemar(gold, predictions, predictions) == {"better": 0, "worse": 0, "p": 1.0}


@tasks
def test_systems_that_change_places_change_the_sign(task):
    gold, predictions = made_up(task, 150, 0.5)
    baseline = others(gold, task, 1)
    for metric in METRICS:
        one = paired_bootstrap(gold, predictions, baseline, task, metric, rounds=200)
        other = paired_bootstrap(gold, baseline, predictions, task, metric, rounds=200)
        assert one["difference"] == -other["difference"] != 0
        assert one["interval"] == pytest.approx([-other["interval"][1], -other["interval"][0]], abs=1e-15)
        assert one["p"] == other["p"]
        scores = [label_metrics(gold, system, task)[metric] for system in (predictions, baseline)]
        assert one["difference"] == pytest.approx(scores[0] - scores[1], abs=1e-14)
        assert one["interval"][0] < one["difference"] < one["interval"][1]
    here, there = mcnemar(gold, predictions, baseline), mcnemar(gold, baseline, predictions)
    assert (here["better"], here["worse"], here["p"]) == (there["worse"], there["better"], there["p"])


def test_p_is_small_for_systems_that_differ_and_even_for_those_that_do_not():
    gold, predictions = made_up(ONE, 300, 0.8)
    assert paired_bootstrap(gold, predictions, others(gold, ONE, 1), ONE)["p"] == pytest.approx(1 / 1001)
    ps = []
    for trial in range(200):  # two systems that are equally good
        one, other = others(gold, ONE, 2 * trial, 0.5), others(gold, ONE, 2 * trial + 1, 0.5)
        ps.append(paired_bootstrap(gold, one, other, ONE, "accuracy", rounds=200, seed=trial)["p"])
    assert 0.02 <= numpy.mean([p <= 0.05 for p in ps]) <= 0.1
    assert 0.4 <= numpy.mean([p <= 0.5 for p in ps]) <= 0.6


def test_the_p_value_agrees_with_mcnemar_where_there_are_many_texts():
    gold = [("joy",)] * 1000
    right, wrong = Prediction(("joy",), valid=True), Prediction(("fear",), valid=True)
    one = [right] * 540 + [wrong] * 60 + [right] * 400
    other = [right] * 500 + [wrong] * 40 + [right] * 60 + [right] * 400
    assert mcnemar(gold, one, other)["p"] == pytest.approx(0.057, abs=0.001)
    # McNemar without a continuity correction: 20 / sqrt(100) = 2 standard deviations
    p = paired_bootstrap(gold, one, other, ONE, "accuracy", rounds=20_000)["p"]
    assert p == pytest.approx(0.0455, abs=0.012)


@pytest.mark.parametrize(("better", "worse"), [(0, 1), (1, 0), (8, 2), (3, 3), (0, 9), (40, 61)])
def test_mcnemar_is_a_fair_coin(better, worse):
    gold = [("joy", "love")] * (better + worse + 5)
    right, wrong = Prediction(("love", "joy"), valid=True), Prediction(("joy",), valid=True)
    one = [right] * better + [wrong] * worse + [right] * 3 + [wrong] * 2
    other = [wrong] * better + [right] * worse + [right] * 3 + [wrong] * 2
    tail = sum(binom.pmf(k, better + worse, 0.5) for k in range(min(better, worse) + 1))
    assert mcnemar(gold, one, other) == {"better": better, "worse": worse, "p": pytest.approx(min(1, 2 * tail))}


@tasks
def test_several_seeds_are_one_system(task):
    gold, first = made_up(task, 120, 0.5)
    seeds = [first, others(gold, task, 1), others(gold, task, 2)]
    assert mean_intervals(gold, [first], task, rounds=50) == bootstrap_intervals(gold, first, task, rounds=50)
    baseline = [others(gold, task, 3), others(gold, task, 4)]
    found = mean_paired_bootstrap(gold, seeds, baseline, task, rounds=200)
    for metric in METRICS:
        means = [numpy.mean([label_metrics(gold, s, task)[metric] for s in each]) for each in (seeds, baseline)]
        assert found[metric]["difference"] == pytest.approx(means[0] - means[1], abs=1e-14)
    three = mean_intervals(gold, seeds, task, rounds=500)["accuracy"]
    one = bootstrap_intervals(gold, seeds[1], task, rounds=500)["accuracy"]
    assert three[1] - three[0] < one[1] - one[0], "a mean of three varies less"


def test_holm():
    assert holm({}) == {}
    assert holm({"a": 0.04}) == {"a": 0.04}
    # Holm's own steps by hand: 4 * 0.005, 3 * 0.01, 2 * 0.03, 0.04 raised to the one before
    assert holm({"w": 0.01, "x": 0.04, "y": 0.03, "z": 0.005}) == pytest.approx(
        {"w": 0.03, "x": 0.06, "y": 0.06, "z": 0.02}
    )
    assert list(holm({"w": 0.9, "x": 0.8}).items()) == [("w", 1.0), ("x", 1.0)]


def test_what_cannot_be_scored():
    gold, predictions = made_up(ONE, 5, 0.5)
    with pytest.raises(ValueError, match="cannot score 4 predictions against 5"):
        bootstrap_intervals(gold, predictions[:4], ONE)
    with pytest.raises(ValueError, match="cannot score 4 predictions against 5"):
        paired_bootstrap(gold, predictions, predictions[:4], ONE)
    with pytest.raises(ValueError, match="cannot score 0 predictions against 0"):
        mcnemar([], [], [])
    with pytest.raises(ValueError, match=r"unknown metrics \['auc'\]"):
        bootstrap_intervals(gold, predictions, ONE, ("auc",))
    with pytest.raises(ValueError, match="0 rounds"):
        bootstrap_intervals(gold, predictions, ONE, rounds=0)
    with pytest.raises(ValueError, match="level 1: must be"):
        bootstrap_intervals(gold, predictions, ONE, level=1)
