"""How sure runs are: by hand, against scikit-learn, and through the script."""

import json
import random
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, roc_auc_score

from data.arguments import UserError
from data.calibration import ECE_BINS, calibration_scores, probabilities
from data.confidence import (
    NoConfidenceError,
    analyse,
    at_coverages,
    calibration_errors,
    reliability,
    risk_coverage,
)
from data.contract import Contract
from data.predicted_runs import PredictedRun, read_run
from data.tasks import BUILT_IN_TASKS, Task
from scripts.confidence import Args, main

SST2, EMOTION = BUILT_IN_TASKS["sst2"], BUILT_IN_TASKS["emotion"]
GROUPS = BUILT_IN_TASKS["goemotions-group"]  # ambiguous, negative, neutral, positive
# few values, so that many answers are equally sure; edges of intervals among them
ANSWERS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.2, 1 / 3, 0.6, 0.8, 0.9, 0.95, 1.0]), st.booleans()), min_size=1, max_size=40
).map(lambda pairs: tuple(map(list, zip(*pairs, strict=True))))


def row(number: int, confidence, gold, labels, shares=None) -> dict:
    return {
        "id": f"c{number}", "text": f"text {number}", "gold": gold, "labels": labels, "probabilities": shares,
        "confidence": confidence, "valid": True, "completion": "", "truncated": False,
    }  # fmt: skip


def run_of(rows: list[dict], task: Task) -> PredictedRun:
    return PredictedRun("run", rows, Contract(task), Path("run/task.json"))


def write_run(folder: Path, rows: list[dict], task: Task) -> str:
    (folder / "test").mkdir(parents=True)
    (folder / "test" / "predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    Contract(task).save(folder)
    return str(folder)


def classified(task: Task, n: int, seed: int = 0) -> list[dict]:
    """Rows of a single-label classifier, whose confidence is the probability of its most probable label."""
    generator = numpy.random.default_rng(seed)
    shares = probabilities(generator.normal(0, 2, (n, len(task.labels))), "softmax")
    rows = []
    for i, each in enumerate(shares):
        gold = generator.choice(len(task.labels), p=each) if generator.random() < 0.7 else 0
        named = dict(zip(task.labels, each.tolist(), strict=True))
        rows.append(row(i, float(each.max()), [task.labels[gold]], [task.labels[each.argmax()]], named))
    return rows


def tagged(n: int, seed: int = 1) -> list[dict]:
    """Rows with several labels a text, each label's probability above 0.5 or not."""
    generator = numpy.random.default_rng(seed)
    rows = []
    for i, shares in enumerate(generator.random((n, 4))):
        labels = [label for label, share in zip(GROUPS.labels, shares, strict=True) if share > 0.5]
        gold = [label for label, share in zip(GROUPS.labels, shares, strict=True) if generator.random() < share]
        confidence = float(numpy.maximum(shares, 1 - shares).prod())
        named = dict(zip(GROUPS.labels, shares.tolist(), strict=True))
        rows.append(row(i, confidence, gold or [GROUPS.labels[0]], labels or [GROUPS.labels[0]], named))
    return rows


# --- measures -------------------------------------------------------------------------------------------------------


def test_reliability_by_hand():
    # 0 and an upper edge belong to their interval; the one between them has no answers
    bins = reliability([0.0, 0.25, 0.2, 0.75, 1.0], [1, 0, 0, 1, 1], bins=4)
    assert bins == [
        {"from": 0.0, "to": 0.25, "n": 3, "confidence": pytest.approx(0.15), "accuracy": pytest.approx(1 / 3)},
        {"from": 0.5, "to": 0.75, "n": 1, "confidence": 0.75, "accuracy": 1.0},
        {"from": 0.75, "to": 1.0, "n": 1, "confidence": 1.0, "accuracy": 1.0},
    ]
    errors = calibration_errors(bins)
    assert errors["ece"] == pytest.approx((3 * (1 / 3 - 0.15) + 0.25) / 5)
    assert errors["mce"] == pytest.approx(0.25)


@given(ANSWERS)
def test_reliability_is_that_of_scikit_learn(answers):
    confidence, correct = answers
    right, sure = calibration_curve(correct, confidence, n_bins=10)
    bins = reliability(confidence, correct, bins=10)
    assert [each["accuracy"] for each in bins] == pytest.approx(right)
    assert [each["confidence"] for each in bins] == pytest.approx(sure)
    assert sum(each["n"] for each in bins) == len(confidence)
    assert all(each["from"] < each["confidence"] <= each["to"] + 1e-12 or each["from"] == 0 for each in bins)


def test_as_sure_as_right_is_no_error():
    confidence, correct = [0.25] * 4 + [0.5] * 4 + [1.0], [1, 0, 0, 0, 1, 1, 0, 0, 1]
    assert calibration_errors(reliability(confidence, correct)) == {"ece": 0.0, "mce": 0.0}
    assert calibration_errors(reliability([1.0, 1.0], [0, 0])) == {"ece": 1.0, "mce": 1.0}


@given(ANSWERS)
def test_errors_are_between_none_and_the_worst(answers):
    errors = calibration_errors(reliability(*answers))
    assert 0 <= errors["ece"] <= errors["mce"] + 1e-12 <= 1 + 2e-12


def test_risk_and_coverage_by_hand():
    # the two that are 0.8 sure cannot be told apart: they come in together
    curve = risk_coverage([0.1, 0.8, 0.9, 0.8], [0, 1, 1, 0])
    assert curve["coverage"] == [0.25, 0.75, 1.0]
    assert curve["accuracy"] == pytest.approx([1.0, 2 / 3, 0.5])
    assert curve["area"] == pytest.approx((0 + 1 / 3 + 1 / 3 + 1 / 2) / 4)
    # confidence that says nothing: the area is the share of wrong answers
    assert risk_coverage([0.5] * 4, [1, 0, 0, 0]) == {"coverage": [1.0], "accuracy": [0.25], "area": 0.75}
    assert risk_coverage([0.9, 0.8], [1, 1])["area"] == 0


@given(ANSWERS, st.randoms())
def test_the_area_is_the_mean_risk_among_those_at_least_as_sure(answers, shuffler):
    pairs = list(zip(*answers, strict=True))
    curve = risk_coverage(*answers)
    risks = [numpy.mean([not right for sure, right in pairs if sure >= bar]) for bar, _ in pairs]
    assert curve["area"] == pytest.approx(numpy.mean(risks))
    assert (curve["coverage"][-1], curve["accuracy"][-1]) == (1.0, pytest.approx(numpy.mean(answers[1])))
    shuffler.shuffle(pairs)
    assert risk_coverage(*zip(*pairs, strict=True)) == curve


def test_a_long_curve_has_few_points():
    generator = numpy.random.default_rng(0)
    confidence = generator.random(5000)
    correct = generator.random(5000) < confidence
    curve = risk_coverage(confidence, correct)
    assert 190 <= len(curve["coverage"]) == len(curve["accuracy"]) <= 200
    order = (-confidence).argsort()
    assert (curve["coverage"][0], curve["accuracy"][0]) == (1 / 5000, correct[order][0])
    for share, accuracy in zip(curve["coverage"], curve["accuracy"], strict=True):
        assert accuracy == pytest.approx(correct[order][: round(share * 5000)].mean())
    assert max(numpy.diff(curve["coverage"])) < 0.006
    assert curve["area"] == pytest.approx((1 - correct[order].cumsum() / numpy.arange(1, 5001)).mean())


def test_accuracy_of_what_is_left():
    confidence = [0.9, 0.8, 0.7, 0.6, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    correct = [1, 1, 1, 0, 1, 1, 0, 1, 0, 0]
    assert at_coverages(confidence, correct, (1, 0.9, 0.4, 0.05)) == [
        {"at_most": 1, "coverage": 1.0, "accuracy": 0.6, "least_confidence": 0.1},
        {"at_most": 0.9, "coverage": 0.9, "accuracy": pytest.approx(6 / 9), "least_confidence": 0.2},
        # the fourth is as sure as the fifth, so both go
        {"at_most": 0.4, "coverage": 0.3, "accuracy": 1.0, "least_confidence": 0.7},
        {"at_most": 0.05, "coverage": 0.0, "accuracy": None, "least_confidence": None},
    ]
    assert at_coverages([0.5] * 3, [1, 0, 1])[1]["accuracy"] is None
    shares = at_coverages(numpy.arange(35) / 35, numpy.ones(35), (0.8,))
    assert shares[0]["coverage"] == 0.8, "not 27 of 35 because of a last digit"


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([], [], "no answers"),
        ([0.5], [1, 0], "not of the same answers"),
        ([[0.5]], [[1]], "not of the same answers"),
        ([1.5], [1], "a confidence is not from 0 to 1"),
        ([float("nan")], [1], "a confidence is not from 0 to 1"),
        ([0.5], [0.5], "neither right"),
    ],
)
def test_numbers_that_are_no_confidence(confidence, correct, message):
    with pytest.raises(ValueError, match=message):
        risk_coverage(confidence, correct)
    with pytest.raises(ValueError, match=message):
        calibration_errors(reliability(confidence, correct))


# --- a run ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [SST2, EMOTION], ids=lambda task: task.name)
def test_a_classifier_is_measured_as_its_test_results_are(task, tmp_path):
    folder = write_run(tmp_path / "run", classified(task, 300), task)
    analysis = analyse(read_run(folder))
    rows = [json.loads(line) for line in (tmp_path / "run/test/predictions.jsonl").read_text().splitlines()]
    shares = numpy.array([[one["probabilities"][label] for label in task.labels] for one in rows])
    scores = calibration_scores(shares, [one["gold"] for one in rows], task)
    assert analysis["of_labels"] == pytest.approx(scores)
    assert analysis["ece"] == pytest.approx(scores["ece"])

    confidence = numpy.array([one["confidence"] for one in rows])
    correct = numpy.array([one["labels"] == one["gold"] for one in rows])
    assert (analysis["task"], analysis["kind"], analysis["n"]) == (task.name, "single_label", 300)
    assert analysis["accuracy"] == accuracy_score([one["gold"] for one in rows], [one["labels"] for one in rows])
    assert analysis["mean_confidence"] == pytest.approx(confidence.mean())
    assert analysis["share_above_0.9"] == (confidence > 0.9).mean() == analysis["histogram"][-1]["n"] / 300
    assert analysis["brier"] == pytest.approx(brier_score_loss(correct, confidence))
    if task is SST2:  # the two labels are wrong by the same
        assert analysis["brier"] == pytest.approx(scores["brier"] / 2)
    right, sure = calibration_curve(correct, confidence, n_bins=ECE_BINS)
    assert [each["accuracy"] for each in analysis["reliability"]] == pytest.approx(right)
    assert [each["confidence"] for each in analysis["reliability"]] == pytest.approx(sure)
    assert analysis["mce"] == pytest.approx(abs(right - sure).max())
    right, sure = calibration_curve(correct, confidence, n_bins=10)
    filled = [each for each in analysis["histogram"] if each["n"]]
    assert [each["accuracy"] for each in filled] == pytest.approx(right)
    assert sum(each["n"] for each in filled) == 300
    assert len(analysis["histogram"]) == 10
    assert analysis["risk_coverage"] == risk_coverage(confidence, correct)
    assert [each["at_most"] for each in analysis["at_coverage"]] == [1.0, 0.9, 0.8, 0.5]
    assert analysis["at_coverage"][0]["accuracy"] == pytest.approx(analysis["accuracy"])
    assert analysis["per_label"] is None
    json.dumps(analysis, allow_nan=False)


def test_labels_one_by_one():
    rows = tagged(200)
    analysis = analyse(run_of(rows, GROUPS))
    right = numpy.array([set(one["labels"]) == set(one["gold"]) for one in rows])
    assert analysis["accuracy"] == right.mean()
    assert analysis["brier"] == pytest.approx(brier_score_loss(right, [one["confidence"] for one in rows]))
    assert list(analysis["per_label"]) == list(GROUPS.labels)
    for label, found in analysis["per_label"].items():
        shares = numpy.array([one["probabilities"][label] for one in rows])
        gold = numpy.array([label in one["gold"] for one in rows])
        assert found["support"] == gold.sum()
        assert found["share_predicted"] == numpy.mean([label in one["labels"] for one in rows])
        assert found["mean_probability"] == pytest.approx(shares.mean())
        assert found["brier"] == pytest.approx(brier_score_loss(gold, shares))
        assert found["auc"] == pytest.approx(roc_auc_score(gold, shares))
        accuracy, sure = calibration_curve(gold, shares, n_bins=ECE_BINS)
        assert [each["accuracy"] for each in found["reliability"]] == pytest.approx(accuracy)
        counts = [each["n"] for each in found["reliability"]]
        assert found["ece"] == pytest.approx(numpy.average(abs(accuracy - sure), weights=counts))
        assert found["mce"] == pytest.approx(abs(accuracy - sure).max())
    auc = [found["auc"] for found in analysis["per_label"].values()]
    assert analysis["of_labels"]["auc"] == pytest.approx(numpy.mean(auc))


def test_a_label_that_no_text_has():
    shares = dict.fromkeys(GROUPS.labels, 0.2)
    rows = [row(i, 0.5, ["negative"], ["negative"], shares | {"negative": 0.9}) for i in range(3)]
    per_label = analyse(run_of(rows, GROUPS))["per_label"]
    assert per_label["positive"]["auc"] is per_label["negative"]["auc"] is None
    assert per_label["positive"]["support"] == 0
    assert per_label["positive"]["ece"] == pytest.approx(0.2)
    json.dumps(per_label, allow_nan=False)


def test_a_text_without_gold_labels_in_its_list():
    shares = dict.fromkeys(GROUPS.labels, 0.2)
    rows = [row(0, 0.5, [], ["negative"], shares), row(1, 0.5, ["negative"], ["negative"], shares)]
    analysis = analyse(run_of(rows, GROUPS))
    assert (analysis["accuracy"], analysis["of_labels"]) == (0.5, None)
    assert analysis["per_label"]["negative"]["support"] == 1


def test_the_order_of_rows_and_labels_does_not_matter():
    rows = tagged(60) + [row(100 + i, 0.5, ["negative", "positive"], ["positive"], None) for i in range(6)]
    for one in rows:
        one["probabilities"] = one["probabilities"] or dict.fromkeys(GROUPS.labels, 0.25)
    before = json.dumps(analyse(run_of(rows, GROUPS), examples=70))
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        assert json.dumps(analyse(run_of(rows, GROUPS), examples=70)) == before
    turned = [one | {"labels": one["labels"][::-1]} for one in rows]
    assert analyse(run_of(turned, GROUPS))["accuracy"] == json.loads(before)["accuracy"]


def test_the_rows_to_look_at():
    rows = [
        row(1, 0.9, ["positive"], ["negative"]),
        row(2, 0.95, ["positive"], ["positive"]),
        row(3, 0.9, ["positive", "neutral"], ["positive"]),
        row(4, 0.1, None, ["neutral"]),
        row(5, 0.2, ["neutral"], ["ambiguous"]),
    ]
    analysis = analyse(run_of(rows, GROUPS), examples=3)
    assert [one["id"] for one in analysis["least_confident"]] == ["c4", "c5", "c1"]
    assert [one["id"] for one in analysis["most_confidently_wrong"]] == ["c1", "c3", "c5"]
    assert analysis["most_confidently_wrong"][0] == {
        "id": "c1", "text": "text 1", "gold": ["positive"], "labels": ["negative"], "confidence": 0.9
    }  # fmt: skip
    assert analyse(run_of(rows, GROUPS), examples=0)["most_confidently_wrong"] == []


def test_rows_without_gold_count_for_confidence_alone():
    rows = [row(1, 0.95, None, ["Positive"]), row(2, 0.85, ["Positive"], ["Positive"])]
    analysis = analyse(run_of(rows, SST2))
    assert (analysis["n"], analysis["without_gold"], analysis["accuracy"]) == (2, 1, 1.0)
    assert analysis["mean_confidence"] == pytest.approx(0.9)
    assert analysis["histogram"][8:] == [
        {"from": 0.8, "to": 0.9, "n": 1, "accuracy": 1.0},
        {"from": 0.9, "to": 1.0, "n": 1, "accuracy": None},
    ]
    assert analysis["reliability"][0]["n"] == 1
    analysis = analyse(run_of(rows[:1], SST2))
    assert {name for name, value in analysis.items() if value is None} == {
        "accuracy", "most_confidently_wrong", "reliability", "ece", "mce", "brier", "risk_coverage", "at_coverage",
        "of_labels", "per_label",
    }  # fmt: skip
    assert analysis["least_confident"][0]["gold"] is None


def test_rows_without_confidence():
    rows = [row(1, None, ["Positive"], ["Negative"]), row(2, 1.001, ["Positive"], ["Positive"])]
    del rows[0]["confidence"]  # as an earlier EmoTune may have written it
    analysis = analyse(run_of(rows, SST2))
    assert (analysis["n"], analysis["without_confidence"], analysis["accuracy"]) == (1, 1, 1.0)
    assert analysis["mean_confidence"] == 1.0
    with pytest.raises(NoConfidenceError, match=r"run/predictions\.jsonl: no row has a confidence.*--probabilities"):
        analyse(run_of(rows[:1], SST2))
    assert issubclass(NoConfidenceError, UserError)


# --- the script -----------------------------------------------------------------------------------------------------


def test_a_table_and_a_file_for_each_run(tmp_path, capsys):
    rows = [row(i, 0.95, ["Positive"], ["Positive"]) for i in range(9)] + [row(9, 0.9, ["Positive"], ["Negative"])]
    folders = [write_run(tmp_path / "a", rows, SST2), write_run(tmp_path / "b", tagged(50), GROUPS)]
    main(Args(runs=folders, examples=2))
    printed = capsys.readouterr().out
    for name in "ab":
        folder = tmp_path / name / "test"
        assert {path.name for path in folder.iterdir() if path.name[0] != "."} == {
            "predictions.jsonl", "confidence_analysis.json"
        }  # fmt: skip
        written = json.loads((folder / "confidence_analysis.json").read_text())
        assert written == analyse(read_run(folder), examples=2)
    lines = [line.strip() for line in printed.splitlines()]
    assert f"{tmp_path}/a/test: task sst2, 10 texts" in lines
    assert "accuracy                                 90.0 %" in lines
    assert "answers that are more than 90 % sure     90.0 %" in lines
    assert "if the least sure 10 % go to a person  100.0 %   (sure to 0.950 or more)" in lines
    assert "if the least sure 20 % go to a person  - (too many are equally sure)" in lines
    assert "0.8 to 0.9           1     0.0 %" in lines
    assert "0.9 to 1.0           9   100.0 %" in lines
    assert "0.900  Negative (gold: Positive)  c9: text 9" in lines
    tables = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert [cells[0] for cells in tables] == [
        "label", tables[1][0], *GROUPS.labels, "run", tables[7][0], f"{tmp_path}/a/test", f"{tmp_path}/b/test"
    ]  # fmt: skip
    head, first = tables[6], tables[8]
    assert dict(zip(head, first, strict=True)) == {
        "run": f"{tmp_path}/a/test", "texts": "10", "confidence": "94.5 %", "> 0.9": "90.0 %", "accuracy": "90.0 %",
        "at 90 %": "100.0 %", "at 80 %": "-", "at 50 %": "-", "ECE": "0.1350", "MCE": "0.9000", "Brier": "0.0833",
        "AURC": "0.0100",
    }  # fmt: skip
    assert lines[-1] == "warning: these runs did not predict the same texts"


def test_a_single_run_is_not_put_beside_others(tmp_path, capsys):
    runs = [write_run(tmp_path / name, classified(SST2, 20, seed), SST2) for seed, name in enumerate("ab")]
    main(Args(runs=runs[:1]))
    assert "| run" not in capsys.readouterr().out
    main(Args(runs=runs))
    printed = capsys.readouterr().out
    assert "| run" in printed
    assert "warning" not in printed, "the same texts"


def test_texts_without_labels(tmp_path, capsys):
    rows = [row(1, 0.95, None, ["Positive"]), row(2, 0.85, None, ["Positive"])]
    main(Args(runs=[write_run(tmp_path / "a", rows, SST2)], plots=True))
    printed = capsys.readouterr().out
    assert "task sst2, 2 texts, 2 of them without gold labels" in printed
    assert "no gold labels, so how right it is cannot be said" in printed
    assert "ECE" not in printed
    assert {path.name for path in (tmp_path / "a/test").iterdir() if path.suffix == ".png"} == {
        "confidence_histogram.png"
    }
    rows[0]["gold"] = ["Positive"]
    main(Args(runs=[write_run(tmp_path / "b", rows, SST2)]))
    assert "1 of them without gold labels" in capsys.readouterr().out


def test_pictures(tmp_path, capsys):
    folder = write_run(tmp_path / "a", classified(SST2, 20), SST2)
    main(Args(runs=[folder], plots=True))
    names = ("reliability.png", "risk_coverage.png", "confidence_histogram.png")
    for name in names:
        assert imread(tmp_path / "a" / "test" / name).shape[1] == 598  # 4.6 inches
    assert f"written to {folder}/test: confidence_analysis.json, {', '.join(names)}\n" in capsys.readouterr().out


def test_a_run_without_confidence_leaves_all_as_it_was(tmp_path, capsys):
    good = write_run(tmp_path / "good", classified(SST2, 5), SST2)
    unsure = write_run(tmp_path / "unsure", [row(1, None, ["Positive"], ["Negative"])], SST2)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=r"unsure/test/predictions\.jsonl: no row has a confidence"):
        main(Args(runs=[good, unsure]))
    assert sorted(tmp_path.rglob("*")) == before
    assert capsys.readouterr().out == ""


def test_wrong_flags(tmp_path):
    with pytest.raises(UserError, match="--runs is needed"):
        Args()
    with pytest.raises(UserError, match="--examples -1: must be at least 0"):
        Args(runs=["a"], examples=-1)
    folder = write_run(tmp_path / "a", classified(SST2, 5), SST2)
    with pytest.raises(UserError, match=r"--runs: .*/a/test has the same predictions as .*/a$"):
        main(Args(runs=[folder, f"{folder}/test"]))
    with pytest.raises(UserError, match=r"nowhere/predictions\.jsonl: cannot be read"):
        main(Args(runs=[folder, str(tmp_path / "nowhere")]))
