import json
from dataclasses import replace

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, softmax
from sklearn.metrics import brier_score_loss, f1_score, roc_auc_score

from data.calibration import (
    Calibration,
    better_decision,
    calibrate,
    calibration_scores,
    cross_fitted,
    decide,
    fit_temperature,
    fit_thresholds,
    probabilities,
    scores_of,
    set_probability,
)
from data.contract import Contract
from data.engine import evaluation
from data.labels import LabelTask
from data.loading import Example
from data.predictions import Prediction
from data.tasks import BUILT_IN_TASKS

GROUPS = BUILT_IN_TASKS["goemotions-group"]  # ambiguous, negative, neutral, positive
SST2 = BUILT_IN_TASKS["sst2"]  # Negative, Positive
EMOTION = BUILT_IN_TASKS["emotion"]
PAIR = LabelTask("pair", "multi_label", ("often", "seldom"), "{text}")
ACTIVATIONS = st.sampled_from(["softmax", "sigmoid"])
without_deadline = settings(deadline=None, max_examples=50)  # the first call imports scipy and scikit-learn


def label_sets(matrix, task):
    """0/1 matrix -> label tuples."""
    return [tuple(label for label, held in zip(task.labels, row, strict=True) if held) for row in matrix]


def indicators(gold, task):
    return numpy.array([[label in labels for label in task.labels] for labels in gold], dtype=int)


def draw_single(seed, task=EMOTION, n=2000, spread=2.0):
    """Logits that are calibrated by construction: gold labels are drawn from their softmax."""
    generator = numpy.random.default_rng(seed)
    scores = generator.normal(scale=spread, size=(n, len(task.labels)))
    return scores, [(task.labels[generator.choice(len(row), p=row)],) for row in softmax(scores, axis=1)]


def draw_multi(seed, task=GROUPS, n=3000, offset=-1.0):
    """Logits that are calibrated by construction, but that texts without any label are left out."""
    generator = numpy.random.default_rng(seed)
    scores = generator.normal(loc=offset, scale=1.5, size=(n, len(task.labels)))
    truth = generator.random(scores.shape) < expit(scores)
    return scores[truth.any(axis=1)], label_sets(truth[truth.any(axis=1)], task)


def f1(truth, guess):
    """By its definition; of all labels together where there are several: micro F1. scikit-learn takes 100 times as long."""
    return 2 * (truth & guess).sum() / max(truth.sum() + guess.sum(), 1)


def negative_log_likelihood(scores, gold, task, activation, temperature):
    """By the definition, from probabilities, one text after the other."""
    total = 0.0
    for row, labels in zip(probabilities(scores, activation, temperature), gold, strict=True):
        if activation == "softmax":
            total -= sum(numpy.log(row[task.ids[label]]) for label in labels) / len(labels)
        else:
            total -= sum(numpy.log(p if label in labels else 1 - p) for label, p in zip(task.labels, row, strict=True))
    return total / len(gold)


@st.composite
def labelled_scores(draw, task=GROUPS):
    """Scores with up to 25 texts, many of them equal, and gold label sets that owe nothing to them."""
    n = draw(st.integers(1, 25))
    row = st.lists(st.sampled_from([-4.0, -1.5, -1.0, 0.0, 0.3, 1.0, 2.5]), min_size=4, max_size=4)
    scores = numpy.array(draw(st.lists(row, min_size=n, max_size=n)))
    gold = draw(st.lists(st.sets(st.sampled_from(task.labels), min_size=1), min_size=n, max_size=n))
    return scores, [tuple(sorted(labels)) for labels in gold]


# --- probabilities --------------------------------------------------------------------------------------------------


def test_probabilities_by_hand():
    scores = numpy.log([[1.0, 2.0, 5.0]])
    assert probabilities(scores, "softmax") == pytest.approx(numpy.array([[1 / 8, 2 / 8, 5 / 8]]))
    assert probabilities(scores, "sigmoid") == pytest.approx(numpy.array([[1 / 2, 2 / 3, 5 / 6]]))
    # a temperature of 1/2 squares the odds
    assert probabilities(scores, "softmax", 0.5) == pytest.approx(numpy.array([[1 / 30, 4 / 30, 25 / 30]]))
    assert probabilities(scores, "sigmoid", 0.5) == pytest.approx(numpy.array([[1 / 2, 4 / 5, 25 / 26]]))


@pytest.mark.filterwarnings("error")
def test_scores_far_from_zero_do_not_overflow():
    scores = numpy.array([[-4000.0, -4001.0], [5000.0, -5000.0]], dtype=numpy.float32)
    e = numpy.e
    assert probabilities(scores, "softmax") == pytest.approx(numpy.array([[e / (1 + e), 1 / (1 + e)], [1.0, 0.0]]))
    assert probabilities(scores, "sigmoid").tolist() == [[0.0, 0.0], [1.0, 0.0]]
    assert numpy.isfinite(fit_temperature(scores, [("Negative",), ("Positive",)], SST2, "softmax"))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_scores_have_the_probabilities_they_are_of(activation):
    shares = numpy.array([[0.7, 0.2, 0.1], [1 / 3, 1 / 3, 1 / 3]])
    assert probabilities(scores_of(shares, activation), activation) == pytest.approx(shares)
    # of what was not looked at, 0 is known; no score is infinite
    assert numpy.isfinite(scores_of([[0.0, 1.0]], activation)).all()
    assert probabilities(scores_of([[0.0, 1.0]], activation), activation) == pytest.approx(
        numpy.array([[0, 1]]), abs=1e-5
    )


def test_cross_fitted_thresholds_never_saw_what_they_decide():
    """One text in five holds the label at a probability that no other has: what is fitted on the others lacks it."""
    gold = [("positive",) if i % 2 else ("negative",) for i in range(40)]
    shares = numpy.full((40, 4), 0.01)
    for i, (label,) in enumerate(gold):
        shares[i, GROUPS.ids[label]] = 0.9
    scores = scores_of(shares, "sigmoid")
    assert cross_fitted(scores, gold, GROUPS, "sigmoid") == gold
    both = [("negative",), ("negative", "positive"), ("negative",)]  # without the second, none is positive
    shares = numpy.array([[0.01, 0.9, 0.01, 0.01], [0.01, 0.9, 0.01, 0.3], [0.01, 0.9, 0.01, 0.01]])
    scores = scores_of(shares, "sigmoid")
    assert cross_fitted(scores, both, GROUPS, "sigmoid")[1] == ("negative",)
    fitted, _ = calibrate(scores, both, GROUPS, "sigmoid")
    assert decide(probabilities(scores, "sigmoid", fitted.temperature), GROUPS, fitted.thresholds) == both


def test_what_decides_is_what_is_better():
    gold = [("positive",) if i % 2 else ("negative",) for i in range(40)]
    right = numpy.full((40, 4), 0.01)
    for i, (label,) in enumerate(gold):
        right[i, GROUPS.ids[label]] = 0.3  # below what any threshold is that nothing was fitted for
    scores = scores_of(right, "sigmoid")
    wrong = [("neutral",)] * 40
    assert better_decision(wrong, scores, gold, GROUPS, "sigmoid") == (
        "thresholds", {"answer": 0.0, "thresholds": pytest.approx(0.5)}
    )  # fmt: skip
    assert better_decision(gold, scores, gold, GROUPS, "sigmoid")[0] == "answer"  # of two that are equal
    assert better_decision(gold[:1], scores[:1], gold[:1], GROUPS, "sigmoid")[0] == "answer"
    # chance looks good on the rows it was fitted on alone
    chance = numpy.random.default_rng(0).random((40, 4))
    _, metrics = better_decision(gold, scores_of(chance, "sigmoid"), gold, GROUPS, "sigmoid")
    flattered = calibrate(scores_of(chance, "sigmoid"), gold, GROUPS, "sigmoid")[1]["after"]["f1_macro"]
    assert metrics["thresholds"] < flattered


@pytest.mark.parametrize("better", ["thresholds", "answer"])
def test_what_decides_in_a_run_that_writes(tmp_path, monkeypatch, capsys, better):
    gold = [("positive",) if i % 2 else ("negative",) for i in range(40)]
    shares = numpy.random.default_rng(0).random((40, 4))  # chance
    if better == "thresholds":
        shares = 0.01 + 0.29 * indicators(gold, GROUPS)
    answers = gold if better == "answer" else [("neutral",)] * 40
    earlier = Contract(GROUPS, temperature=3.0, thresholds=dict.fromkeys(GROUPS.labels, 0.9), decide="thresholds")
    earlier.save(tmp_path)
    asked = []

    class MadeUp:
        def __init__(self, directory, **settings):
            self.contract = Contract.load(directory)

        def predict_batch(self, texts, progress):
            asked.append((texts, self.contract))
            named = (dict(zip(GROUPS.labels, row, strict=True)) for row in shares)
            return [Prediction(a, True, probabilities=p) for a, p in zip(answers, named, strict=True)]

    monkeypatch.setattr(evaluation, "Predictor", MadeUp)
    examples = [Example(str(i), f"text {i}", labels) for i, labels in enumerate(gold)]
    evaluation.calibrate_once(str(tmp_path), examples, 8, "fp32", coverage=0.75)
    ((texts, unfitted),) = asked  # all of it in one pass
    assert texts == [example.text for example in examples]
    assert unfitted == replace(earlier, temperature=1.0, thresholds=None, decide="answer")
    scores = scores_of(shares, "sigmoid")
    fitted, metrics = calibrate(scores, gold, GROUPS, "sigmoid")
    contract = Contract.load(tmp_path)
    assert (contract.decide, contract.temperature, contract.thresholds) == (
        better,
        fitted.temperature,
        fitted.thresholds,
    )
    assert (contract.coverage.level, contract.coverage.rows) == (0.75, 40)
    written = json.loads((tmp_path / "calibration.json").read_text())
    assert written["n"] == 40
    assert written["decide"] == better
    way, compared = better_decision(answers, scores, gold, GROUPS, "sigmoid")
    assert (way, written["f1_macro"]) == (better, compared)
    assert compared[better] == 0.5  # of two labels of four, all right
    assert (written["before"], written["after"]) == (metrics["before"], metrics["after"])
    assert written["coverage"]["level"] == 0.75
    said = capsys.readouterr().out
    assert f"labels are decided by {better}: f1_macro of answer " in said
    assert "calibrated on 40 validation rows: ece " in said
    evaluation.calibrate_once(str(tmp_path), examples, 8, "fp32", coverage=0.75)
    evaluation.calibrate_once(str(tmp_path), [], 8, "fp32", coverage=0.9)
    replace(contract, cot=True, coverage=None, decide="answer").save(tmp_path)
    (tmp_path / "calibration.json").unlink()
    evaluation.calibrate_once(str(tmp_path), examples, 8, "fp32")
    assert len(asked) == 1


def test_no_texts():
    nothing = numpy.zeros((0, 4))
    assert probabilities(nothing, "softmax").shape == probabilities(nothing, "sigmoid").shape == (0, 4)
    assert decide(nothing, GROUPS, None) == []


@without_deadline
@given(labelled_scores(), st.floats(-100, 100))
def test_a_shift_changes_softmax_only(rows, shift):
    scores, gold = rows
    assert probabilities(scores + shift, "softmax") == pytest.approx(probabilities(scores, "softmax"))
    fitted = [fit_temperature(s, gold, GROUPS, "softmax") for s in (scores, scores + shift)]
    losses = [negative_log_likelihood(scores, gold, GROUPS, "softmax", t) for t in fitted]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    if abs(shift) > 0.1:
        assert not numpy.allclose(probabilities(scores + shift, "sigmoid"), probabilities(scores, "sigmoid"))


@without_deadline
@given(labelled_scores(), ACTIVATIONS, st.floats(0.2, 20))
def test_a_temperature_never_changes_the_most_probable_label(rows, activation, temperature):
    scores, _ = rows
    single = LabelTask("emotions", "single_label", GROUPS.labels, "{text}")
    at_one, scaled = (probabilities(scores, activation, t) for t in (1.0, temperature))
    assert decide(at_one, single, None) == decide(scaled, single, None)
    # nor, where each label is decided by itself, on which side of 0.5 it is
    assert decide(expit(scores), GROUPS, None) == decide(expit(scores / temperature), GROUPS, None)


# --- decisions ------------------------------------------------------------------------------------------------------


def test_single_label_is_the_most_probable():
    assert decide(numpy.array([[0.4, 0.6], [0.51, 0.49], [0.5, 0.5]]), SST2, None) == [
        ("Positive",), ("Negative",), ("Negative",),
    ]  # fmt: skip
    # thresholds are of no concern here
    assert decide(numpy.array([[0.4, 0.6]]), SST2, {"Negative": 0.1, "Positive": 0.9}) == [("Positive",)]


def test_multi_label_is_all_that_reach_their_threshold():
    shares = numpy.array([[0.5, 0.2, 0.9, 0.49], [0.1, 0.3, 0.2, 0.25], [0.6, 0.7, 0.8, 0.9]])
    assert decide(shares, GROUPS, None) == [("ambiguous", "neutral"), ("negative",), GROUPS.labels]
    thresholds = {"positive": 0.25, "neutral": 0.95, "negative": 0.31, "ambiguous": 0.65}
    assert decide(shares, GROUPS, thresholds) == [("positive",), ("positive",), ("negative", "positive")]
    # a label that is not named has 0.5; one that misses it is the answer only where nothing reaches its own
    assert decide(shares, GROUPS, {"negative": 0.2}) == [
        ("ambiguous", "negative", "neutral"), ("negative",), GROUPS.labels,
    ]  # fmt: skip


# --- temperature ----------------------------------------------------------------------------------------------------


def test_a_known_temperature_is_found():
    # the first label has a score of 3 more, and is right in three of four texts: odds of 3 need a difference of log 3
    scores = numpy.array([[3.0, 0.0]] * 4)
    gold = [("Negative",)] * 3 + [("Positive",)]
    assert fit_temperature(scores, gold, SST2, "softmax") == pytest.approx(3 / numpy.log(3), rel=1e-3)
    # each label by itself: 3 says yes to "often", true in three texts, -3 says no to "seldom", true in two; so five of
    # eight times the side taken is the right one, and odds of 5/3 need a difference of log 5/3
    scores = numpy.array([[3.0, -3.0]] * 4)
    gold = [("often",)] * 2 + [("often", "seldom"), ("seldom",)]
    assert fit_temperature(scores, gold, PAIR, "sigmoid") == pytest.approx(3 / numpy.log(5 / 3), rel=1e-3)


def test_several_gold_labels_count_the_same():
    scores = numpy.array([[2.0, 2.0, 0.0, 0.0]])
    # both high ones are gold: the less the others get, the better, down to the lowest temperature
    assert fit_temperature(scores, [("ambiguous", "negative")], GROUPS, "softmax") < 0.1
    # a high and a low one are: best is the same for all, up to the highest temperature
    assert fit_temperature(scores, [("negative", "neutral")], GROUPS, "softmax") == pytest.approx(20, rel=0.01)


def test_scores_that_tell_nothing_keep_temperature_one():
    assert fit_temperature(numpy.zeros((3, 2)), [("Negative",)] * 3, SST2, "softmax") == 1.0


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_the_temperature_undoes_a_factor(factor):
    scores, gold = draw_single(0)
    assert fit_temperature(scores * factor, gold, EMOTION, "softmax") == pytest.approx(factor, rel=0.1)
    scores, gold = draw_multi(0, offset=0.0)
    assert fit_temperature(scores * factor, gold, GROUPS, "sigmoid") == pytest.approx(factor, rel=0.1)


@without_deadline
@given(labelled_scores(), ACTIVATIONS)
def test_the_fitted_temperature_is_no_worse_than_others(rows, activation):
    scores, gold = rows
    fitted = fit_temperature(scores, gold, GROUPS, activation)
    assert 0.05 <= fitted <= 20
    # from 0.2 on: colder, the probabilities themselves round to 0 and 1
    loss = negative_log_likelihood(scores, gold, GROUPS, activation, max(fitted, 0.2))
    for other in (1.0, 0.5, 2.0, 10.0):
        assert loss <= negative_log_likelihood(scores, gold, GROUPS, activation, other) + 1e-6


# --- thresholds -----------------------------------------------------------------------------------------------------


def test_thresholds_by_hand():
    shares = numpy.array([[0.9, 0.3], [0.8, 0.4], [0.3, 0.2], [0.2, 0.6], [0.1, 0.7]])
    gold = [("often",), ("often", "seldom"), ("often",), ("seldom",), ("seldom",)]
    fitted = fit_thresholds(shares, gold, PAIR, min_positives=1)
    assert fitted == {"often": pytest.approx(0.25), "seldom": pytest.approx(0.35)}
    # nothing is lower than the least probability: midway to 0
    assert fit_thresholds(shares, [("often", "seldom")] * 5, PAIR, min_positives=1) == {"often": 0.05, "seldom": 0.1}


@pytest.mark.parametrize(("least", "threshold"), [(0.2, 0.85), (0.4, 0.2)])
def test_of_equal_thresholds_the_one_nearest_a_half(least, threshold):
    # first alone, or all: both F1 = 2/3; midway are 0.85 and half of the least
    shares = numpy.array([[0.9, 0.1], [0.8, 0.6], [0.7, 0.6], [least, 0.6]])
    gold = [("often",), ("seldom",), ("seldom",), ("often", "seldom")]
    assert fit_thresholds(shares, gold, PAIR, min_positives=1)["often"] == pytest.approx(threshold)


def test_a_threshold_is_not_put_between_probabilities_that_rounding_made_two():
    shares = numpy.array([[0.3, 0.9], [numpy.nextafter(0.3, 1), 0.8], [0.1, 0.7]])
    gold = [("seldom",), ("often",), ("seldom",)]
    assert fit_thresholds(shares, gold, PAIR, min_positives=1)["often"] == pytest.approx(0.2)


@without_deadline
@given(labelled_scores(), ACTIVATIONS)
def test_no_threshold_has_a_better_f1(rows, activation):
    scores, gold = rows
    shares, truth = probabilities(scores, activation).round(12), indicators(gold, GROUPS)
    fitted = fit_thresholds(shares, gold, GROUPS, min_positives=1)
    for k, label in enumerate(GROUPS.labels):
        if not truth[:, k].any():
            assert fitted[label] == 0.5
            continue
        best = max(f1(truth[:, k], shares[:, k] >= other) for other in (0.5, *shares[:, k]))
        assert f1(truth[:, k], shares[:, k] >= fitted[label]) == pytest.approx(best)
        assert fitted[label] not in shares[:, k]


@without_deadline
@given(labelled_scores(), ACTIVATIONS)
def test_rare_labels_share_the_threshold_with_the_best_micro_f1(rows, activation):
    scores, gold = rows
    shares, truth = probabilities(scores, activation).round(12), indicators(gold, GROUPS)
    fitted = fit_thresholds(shares, gold, GROUPS, min_positives=len(gold) + 1)
    (common,) = {fitted[label] for label, n in zip(GROUPS.labels, truth.sum(axis=0), strict=True) if n}
    best = max(f1(truth, shares >= other) for other in (0.5, *shares.ravel()))
    assert f1(truth, shares >= common) == pytest.approx(best)


@pytest.mark.parametrize(("count", "threshold"), [(9, 0.105), (10, 0.155)])
def test_ten_texts_give_a_label_a_threshold_of_its_own(count, threshold):
    # without a mistake: 0.8 for all `ambiguous`, 0.2 for the `negative` and 0.3 for the `neutral`, 0.01 for all others
    gold = [("ambiguous", *["negative"] * (row < 20), *["neutral"] * (row < count)) for row in range(30)]
    shares = numpy.where(indicators(gold, GROUPS), [0.8, 0.2, 0.3, 1.0], 0.01)
    assert fit_thresholds(shares, gold, GROUPS) == pytest.approx(
        {"ambiguous": 0.4, "negative": 0.105, "neutral": threshold, "positive": 0.5}
    )


# --- how good probabilities are -------------------------------------------------------------------------------------


def test_calibration_error_by_hand():
    # two are 0.9 sure, one of them right: 1.8 - 1; one is 0.6 sure and right: 0.6 - 1
    shares = numpy.array([[0.1, 0.9], [0.1, 0.9], [0.6, 0.4]])
    scores = calibration_scores(shares, [("Positive",), ("Negative",), ("Negative",)], SST2)
    assert scores["ece"] == pytest.approx((0.8 + 0.4) / 3)
    assert scores["brier"] == pytest.approx((2 * 0.01 + 2 * 0.81 + 2 * 0.16) / 3)
    # 0.15 and 0.2, the upper edge of their bin, are taken together: 0.35 - 1; so are both 0.9: 1.8 - 2
    shares = numpy.array([[0.2, 0.9], [0.15, 0.9]])
    scores = calibration_scores(shares, [("seldom",), ("often", "seldom")], PAIR)
    assert scores["ece"] == pytest.approx((0.65 + 0.2) / 4)
    assert scores["brier"] == pytest.approx((0.04 + 0.01 + 0.7225 + 0.01) / 4)
    assert scores["auc"] == 0.0  # of `often`; all texts have `seldom`


def test_probabilities_of_zero_and_one():
    right = numpy.array([[0.0, 1.0], [1.0, 0.0]])
    gold = [("Positive",), ("Negative",)]
    assert calibration_scores(right, gold, SST2) == {"ece": 0.0, "brier": 0.0, "auc": 1.0}
    assert calibration_scores(1 - right, gold, SST2) == {"ece": 1.0, "brier": 2.0, "auc": 0.0}


def test_scores_are_those_of_scikit_learn():
    scores, gold = draw_multi(3, n=300)
    shares, truth = probabilities(scores, "sigmoid"), indicators(gold, GROUPS)
    found = calibration_scores(shares, gold, GROUPS)
    assert found["brier"] == pytest.approx(numpy.mean([brier_score_loss(truth[:, k], shares[:, k]) for k in range(4)]))
    assert found["auc"] == pytest.approx(roc_auc_score(truth, shares, average="macro"))

    scores, gold = draw_single(4, n=300)
    shares, truth = probabilities(scores, "softmax"), indicators(gold, EMOTION)
    found = calibration_scores(shares, gold, EMOTION)
    assert found["brier"] == pytest.approx(sum(brier_score_loss(truth[:, k], shares[:, k]) for k in range(6)))
    assert found["auc"] == pytest.approx(roc_auc_score(truth.argmax(axis=1), shares, multi_class="ovr"))

    scores, gold = draw_single(5, task=SST2, n=300)
    shares, truth = probabilities(scores, "softmax"), indicators(gold, SST2)
    assert calibration_scores(shares, gold, SST2)["auc"] == pytest.approx(roc_auc_score(truth[:, 1], shares[:, 1]))
    uneven = numpy.array([[0.7, 0.9], [0.6, 0.1]])  # only where they do not add up to 1 do the two labels differ
    assert calibration_scores(uneven, [("Positive",), ("Negative",)], SST2)["auc"] == 1.0


def test_no_area_without_both_sides():
    shares = numpy.array([[0.1, 0.9], [0.4, 0.6]])
    assert calibration_scores(shares, [("Positive",)] * 2, SST2).keys() == {"ece", "brier"}


# --- both together --------------------------------------------------------------------------------------------------


def test_an_over_confident_model_learns_to_doubt():
    scores, gold = draw_single(6)
    calibration, metrics = calibrate(scores * 4, gold, EMOTION, "softmax")
    before, after = metrics["before"], metrics["after"]
    assert calibration == Calibration(pytest.approx(4, rel=0.1), None)
    assert before["ece"] > 0.1
    assert after["ece"] < 0.03
    assert after["brier"] < before["brier"]
    unchanged = ("accuracy", "f1_macro", "f1_micro")
    assert [after[name] for name in unchanged] == [before[name] for name in unchanged]
    assert before.keys() == after.keys() == {"ece", "brier", "auc", *unchanged}
    assert {type(value) for value in (*before.values(), *after.values(), calibration.temperature)} == {float}


def test_a_diffident_multi_label_model_gets_a_better_macro_f1():
    scores, gold = draw_multi(7, offset=-2.0)
    scores = (scores - 1) * 2  # too low and too far apart
    half = len(gold) // 2
    calibration, metrics = calibrate(scores[:half], gold[:half], GROUPS, "sigmoid")
    assert calibration.temperature > 1
    assert calibration.thresholds.keys() == GROUPS.ids.keys()
    assert all(type(t) is float and 0 < t < 0.5 for t in calibration.thresholds.values())
    assert metrics["after"]["ece"] < metrics["before"]["ece"]
    assert metrics["after"]["f1_macro"] > metrics["before"]["f1_macro"] + 0.02

    # and so on texts it was not fitted on
    shares, truth = probabilities(scores[half:], "sigmoid", calibration.temperature), indicators(gold[half:], GROUPS)
    default, fitted = (
        f1_score(truth, indicators(decide(shares, GROUPS, thresholds), GROUPS), average="macro")
        for thresholds in (None, calibration.thresholds)
    )
    assert fitted > default + 0.01


def test_metrics_are_of_the_decisions():
    scores = numpy.array([[-1.0, -2.0], [-1.0, -3.0], [-3.0, -1.0]])
    gold = [("often", "seldom"), ("often",), ("seldom",)]
    _, metrics = calibrate(scores, gold, PAIR, "sigmoid")
    # nothing reaches 0.5, so the most probable one is the answer: one `seldom` is missed
    assert metrics["before"]["accuracy"] == pytest.approx(2 / 3)
    assert metrics["before"]["f1_macro"] == pytest.approx((1 + 2 / 3) / 2)
    assert metrics["before"]["f1_micro"] == pytest.approx(6 / 7)
    assert metrics["after"]["accuracy"] == metrics["after"]["f1_macro"] == 1.0


# --- mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "gold", "message"),
    [
        (numpy.zeros((0, 2)), [], r"scores \(0, 2\) do not fit 0 texts with 2 labels"),
        (numpy.zeros((2, 2)), [("Positive",)], r"scores \(2, 2\) do not fit 1 texts"),
        (numpy.zeros((1, 3)), [("Positive",)], "with 2 labels"),
        (numpy.zeros(2), [("Positive",)] * 2, "do not fit"),
        (numpy.array([[0.0, numpy.nan]]), [("Positive",)], "not finite"),
        (numpy.array([[0.0, -numpy.inf]]), [("Positive",)], "not finite"),
        (numpy.zeros((1, 2)), [()], r"text 0: gold labels \[\] do not fit"),
        (numpy.zeros((1, 2)), [("Positive", "Negative")], "do not fit the single_label task sst2"),
        (numpy.zeros((2, 2)), [("Positive",), ("joy",)], r"text 1: gold labels \['joy'\]"),
    ],
)
def test_mistakes_are_named(scores, gold, message):
    for compute in (
        lambda: calibrate(scores, gold, SST2, "softmax"),
        lambda: fit_temperature(scores, gold, SST2, "softmax"),
        lambda: fit_thresholds(scores, gold, SST2),
        lambda: calibration_scores(scores, gold, SST2),
    ):
        with pytest.raises(ValueError, match=message):
            compute()


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_is_above_zero(temperature):
    with pytest.raises(ValueError, match="temperature"):
        probabilities(numpy.zeros((1, 2)), "softmax", temperature)


def test_probabilities_of_broken_scores():
    with pytest.raises(ValueError, match="not finite"):
        probabilities(numpy.array([[numpy.nan, 0.0]]), "sigmoid")


def test_the_probability_of_a_label_set():
    shares = numpy.array([0.1, 0.6, 0.2, 0.1])
    assert set_probability(shares, ("negative", "neutral"), GROUPS, "softmax") == pytest.approx(0.8)
    assert set_probability(shares, ("negative",), GROUPS, "sigmoid") == pytest.approx(0.9 * 0.6 * 0.8 * 0.9)
    assert set_probability(shares, (), GROUPS, "sigmoid") == pytest.approx(0.9 * 0.4 * 0.8 * 0.9)


# --- no label -------------------------------------------------------------------------------------------------------

OR_NONE = replace(GROUPS, allow_none=True)


def test_no_label_need_reach_its_threshold():
    shares = numpy.array([[0.1, 0.3, 0.2, 0.25], [0.6, 0.1, 0.1, 0.1]])
    assert decide(shares, OR_NONE, None) == [(), ("ambiguous",)]
    assert decide(shares, OR_NONE, {"negative": 0.3}) == [("negative",), ("ambiguous",)]
    assert set_probability(shares[0], (), OR_NONE, "sigmoid") == pytest.approx(0.9 * 0.7 * 0.8 * 0.75)


def test_fitted_on_texts_without_a_label():
    scores = numpy.array([[-2.0, -1.0, -3.0, -2.0], [3.0, -1.0, -2.0, -1.0], [-1.0, -2.0, -2.0, 2.0]] * 10)
    gold = [(), ("ambiguous",), ("positive",)] * 10
    fitted, metrics = calibrate(scores, gold, OR_NONE, "sigmoid")
    assert metrics["after"]["accuracy"] == 1.0
    assert metrics["after"]["f1_macro"] == 0.5  # of two labels there is none to find
    assert fitted.thresholds["negative"] == 0.5
    none_at_all = fit_thresholds(probabilities(scores, "sigmoid"), [()] * 30, OR_NONE)
    assert set(none_at_all.values()) == {0.5}
    with pytest.raises(ValueError, match="one of the labels has to be right"):
        fit_temperature(scores, gold, OR_NONE, "softmax")
    with pytest.raises(ValueError, match=r"text 0: gold labels \[\] do not fit"):
        fit_temperature(scores, gold, GROUPS, "sigmoid")
