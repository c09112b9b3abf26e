"""Sets of labels that keep a promise: by hand, for any rows, through a run, inference.py and the two scripts."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

import inference
from data.arguments import UserError
from data.conformal import Promise, check_rows, fit_promise, missed_share, promised_sets, rows_needed, set_scores
from data.contract import Contract
from data.loading import load_examples
from data.prediction_rows import rows_of
from data.predictions import Prediction
from data.tasks import BUILT_IN_TASKS
from inference import Predictor
from main_SFT import main as train
from scripts import calibrate, coverage
from tests.test_objective_runs import TEXTS
from tests.test_objective_runs import args as sft_args  # noqa: F401  (a fixture)

SST2, EMOTION = BUILT_IN_TASKS["sst2"], BUILT_IN_TASKS["emotion"]
GROUPS = BUILT_IN_TASKS["goemotions-group"]  # ambiguous, negative, neutral, positive
SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.25, 0.5, 0.7, 0.9, 1.0])  # few, so that many are equal
LEVELS = st.sampled_from([0.3, 0.5, 0.6, 2 / 3, 0.75, 0.8])


def pools(task, fewest: int, most: int):
    """Probabilities (n, K) and gold labels of rows; in a multi-label task a text may have none."""
    gold = st.sets(st.sampled_from(task.labels), min_size=1, max_size=1)
    if task.kind == "multi_label":
        gold = st.sets(st.sampled_from(task.labels))
    row = st.tuples(st.lists(SHARES, min_size=len(task.labels), max_size=len(task.labels)), gold.map(task.in_order))
    return st.lists(row, min_size=fewest, max_size=most)


def missed_on(rows, cutoff: float, task) -> float:
    """The sum of the missed shares."""
    sets = promised_sets([shares for shares, _ in rows], cutoff, task)
    return sum(missed_share(gold, found) for (_, gold), found in zip(rows, sets, strict=True))


# --- the promise ----------------------------------------------------------------------------------------------------


def check_kept(rows, level: float, task) -> None:
    """Each row tried on sets that were calibrated on the others: exchangeable rows in all their orders."""
    missed = 0.0
    for left in range(len(rows)):
        others = rows[:left] + rows[left + 1 :]
        promise = fit_promise([shares for shares, _ in others], [gold for _, gold in others], task, level)
        missed += missed_on([rows[left]], promise.cutoff, task)
    assert missed / len(rows) <= 1 - level + 1e-9


@given(pools(EMOTION, 5, 14), LEVELS)
def test_what_is_promised_is_kept_with_one_label(rows, level):
    check_kept(rows, level, EMOTION)


@given(pools(GROUPS, 5, 14), LEVELS)
def test_what_is_promised_is_kept_with_several_labels(rows, level):
    check_kept(rows, level, GROUPS)


@given(pools(GROUPS, 4, 14), LEVELS)
def test_no_larger_cutoff_would_do(rows, level):
    shares, gold = zip(*rows, strict=True)
    promise = fit_promise(shares, gold, GROUPS, level)
    allowed = (len(rows) + 1) * (1 - level) - 1 + 1e-6
    assert missed_on(rows, promise.cutoff, GROUPS) <= allowed
    for larger in {p for row in shares for p in row if p > promise.cutoff}:
        assert missed_on(rows, larger, GROUPS) > allowed
    assert promise.rows == len(rows)


@given(pools(EMOTION, 4, 14), LEVELS)
def test_with_one_label_it_is_the_quantile_of_split_conformal_prediction(rows, level):
    reached = []
    for shares, (label,) in rows:
        place = EMOTION.ids[label]
        reached.append(1.0 if place == numpy.argmax(shares) else shares[place])
    k = int(numpy.ceil((len(rows) + 1) * level - 1e-9))  # the k-th smallest score 1 - p
    assert fit_promise(*zip(*rows, strict=True), EMOTION, level).cutoff == sorted(reached, reverse=True)[k - 1]


def test_a_cutoff_by_hand():
    shares = [[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]]
    gold = [("Negative",), ("Positive",), ("Negative",), ("Negative",)]  # reach 1, 0.4, 0.3, 1
    # (missed + 1) / 5 <= 1 - level: of four rows none may be missed at 0.8, one at 0.6, two at 0.4
    assert [fit_promise(shares, gold, SST2, level).cutoff for level in (0.8, 0.6, 0.4)] == [0.3, 0.4, 1.0]
    assert promised_sets(shares, 0.4, SST2) == [("Negative",), ("Negative", "Positive"), ("Positive",), ("Negative",)]
    assert promised_sets(shares, 1.0, SST2) == [("Negative",), ("Negative",), ("Positive",), ("Negative",)]


def test_shares_that_are_missed_by_hand():
    shares = [[0.1, 0.9, 0.3, 0.2], [0.1, 0.2, 0.4, 0.8], [0.7, 0.1, 0.1, 0.6]]
    gold = [("negative", "neutral"), ("neutral", "positive"), ()]  # beside the top: 0.3 and 0.4, half a text each
    # (missed + 1) / 4 <= 1 - level
    assert fit_promise(shares, gold, GROUPS, 0.75) == Promise(0.75, 0.3, 3)
    assert fit_promise(shares, gold, GROUPS, 0.6).cutoff == 0.4  # half a text may be missed
    assert fit_promise(shares, gold, GROUPS, 0.5).cutoff == 1.0
    assert promised_sets(shares, 0.3, GROUPS) == [
        ("negative", "neutral"),
        ("neutral", "positive"),
        ("ambiguous", "positive"),
    ]


def test_equal_probabilities_stand_or_fall_together():
    equal, gold = [[0.5, 0.5]] * 9, [("Positive",)] * 9
    assert fit_promise(equal, gold, SST2, 0.9).cutoff == 0.5
    assert promised_sets(equal, 0.5, SST2) == [SST2.labels] * 9
    assert fit_promise(equal, [("Negative",)] * 9, SST2, 0.9).cutoff == 1.0  # the first of them is the most probable
    # one of four may be missed, but it is one of two that are equally probable
    shares = [[0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.6, 0.4]]
    assert fit_promise(shares, [("Positive",)] * 4, SST2, 0.6).cutoff == 0.2


def test_texts_without_gold_labels_miss_nothing():
    assert fit_promise([[0.1, 0.2, 0.3, 0.4]] * 9, [()] * 9, GROUPS, 0.9).cutoff == 1.0
    assert missed_share((), ("joy",)) == 0


def test_random_rows_are_covered_as_promised():
    """1,000 rows, 200 splits: the mean is within a point of the promise where the top label alone does not keep it."""
    draw = numpy.random.default_rng(0)
    shares = draw.dirichlet([0.5] * 6, size=1000)
    gold = [(EMOTION.labels[draw.choice(6, p=row)],) for row in shares]
    for level in (0.8, 0.9, 0.95):
        found = coverage.analyse(shares, gold, Contract(EMOTION, objective="classify"), level, 200, seed=1)
        assert abs(found["coverage"]["mean"] - level) < 0.01
        assert abs(found["refitted"]["mean"] - level) < 0.01


def test_too_few_rows():
    assert [rows_needed(level) for level in (0.5, 0.9, 0.95, 0.99, 0.9999)] == [1, 9, 19, 99, 9999]
    check_rows(0.9, 9)
    with pytest.raises(UserError, match=r"^--coverage 0.9: needs at least 9 validation rows, found 8$"):
        fit_promise([[0.5, 0.5]] * 8, [("Positive",)] * 8, SST2, 0.9)
    with pytest.raises(UserError, match=r"^--coverage 1.0: must be from 0.01 to 0.9999$"):
        check_rows(1.0, 10**6)
    with pytest.raises(ValueError, match=r"probabilities \(9, 3\) do not fit 9 texts, 2 labels"):
        fit_promise([[0.5] * 3] * 9, [("Positive",)] * 9, SST2, 0.9)


@pytest.mark.parametrize(
    ("values", "message"),
    [((1.0, 0.5, 99), "level 1.0"), ((0.9, 1.5, 99), "cutoff 1.5"), ((0.9, 0.5, 8), "rows 8: level 0.9 needs")],
)
def test_promises_that_no_calibration_gives(values, message):
    with pytest.raises(ValueError, match=message):
        Promise(*values)


def test_scores_of_sets_by_hand():
    gold = [("joy",), ("fear",), ("anger",)]
    answers = [
        Prediction(("joy",), True, label_set=("joy",)),
        Prediction(("joy",), True, label_set=("fear", "joy")),
        Prediction(("joy",), True, label_set=("fear", "joy", "love"), abstained=True),
    ]
    assert set_scores(gold, answers) == pytest.approx(
        {
            "coverage": 2 / 3,
            "mean_set_size": 2,
            "abstained_rate": 1 / 3,
            "coverage_answered": 1,
            "accuracy_answered": 0.5,
        }
    )
    assert set_scores(gold[2:], answers[2:]) == {"coverage": 0, "mean_set_size": 3, "abstained_rate": 1}


# --- a run ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(sft_args, tmp_path) -> Path:  # noqa: F811
    """A head on three emotions that promises 0.75."""
    train(dataclasses.replace(sft_args, objective="classify", max_steps=8, test_data_path=None, coverage=0.75))
    return Path(sft_args.output_dir)


def infer(run: Path, **flags):
    return inference.Args(
        model_path=str(run), test_data_path=str(run.parent / "test.txt"), precision="fp32", **flags
    )  # fmt: skip


def lines(run: Path) -> list[dict]:
    return list(rows_of(run / "test" / "predictions.jsonl", Contract.load(run).task))


def test_a_run_promises_and_inference_keeps_it(run, capsys):
    promise = Contract.load(run).coverage
    assert (promise.level, promise.rows) == (0.75, 12)
    assert json.loads((run / "calibration.json").read_text())["coverage"] == dataclasses.asdict(promise)
    assert "| promise | --coverage 0.75: sets" in (run / "README.md").read_text()

    inference.main(infer(run))
    plain = lines(run)
    assert not {"label_set", "abstained"} & plain[0].keys()
    inference.main(infer(run, coverage=0.75, max_set_size=1))
    rows = lines(run)
    scores = json.loads((run / "test" / "test_results.json").read_text())
    # the rows of calibration themselves: at most (n + 1) / 4 - 1 of them are missed
    assert sum(row["gold"][0] not in row["label_set"] for row in rows) <= 13 / 4 - 1
    for row, before in zip(rows, plain, strict=True):
        assert row["labels"] == before["labels"]
        assert set(row["labels"]) <= set(row["label_set"])
        assert row["abstained"] == (len(row["label_set"]) > 1)
        assert row["label_set"] == [
            label
            for label, share in row["probabilities"].items()
            if share >= promise.cutoff or label == max(row["probabilities"], key=row["probabilities"].get)
        ]
    assert scores["coverage"] == numpy.mean([row["gold"][0] in row["label_set"] for row in rows])
    assert scores["abstained_rate"] == pytest.approx(numpy.mean([row["abstained"] for row in rows]))
    summary = (run / "test" / "test_summary.txt").read_text()
    assert f"coverage       {scores['coverage']:.4f}   (right labels that stand in their text's set)" in summary

    capsys.readouterr()
    inference.main(dataclasses.replace(infer(run, coverage=0.75), test_data_path=None, text="so happy"))
    said = json.loads(capsys.readouterr().out)
    assert said["label_set"]
    assert said["abstained"] is False
    inference.main(dataclasses.replace(infer(run), test_data_path=None, text="so happy"))
    assert not {"label_set", "abstained"} & json.loads(capsys.readouterr().out).keys()


@pytest.mark.parametrize("task", [EMOTION, GROUPS], ids=lambda task: task.kind)
def test_written_answers_have_sets_too(sft_args, task):  # noqa: F811
    """What is promised of the probabilities in calibration is kept by those of inference: they are the same."""
    labels = {"joy": "positive", "sadness": "negative", "anger": "negative,neutral"}
    folder = Path(sft_args.train_data_path).parent
    for name in ("train", "dev"):
        rows = [(text, label) for label, texts in TEXTS.items() for text in texts]
        if task is GROUPS:
            ids = [",".join(str(GROUPS.ids[each]) for each in labels[label].split(",")) for _, label in rows]
            lines = [f"{text}\t{ids[n]}\tc{n}" for n, (text, _) in enumerate(rows)]
            (folder / f"{name}.tsv").write_text("\n".join(lines))
    ending = "tsv" if task is GROUPS else "txt"
    args = dataclasses.replace(
        sft_args, task=task.name, objective="generate", max_steps=8, test_data_path=None, coverage=0.75,
        train_data_path=str(folder / f"train.{ending}"), dev_data_path=str(folder / f"dev.{ending}"),
    )  # fmt: skip
    train(args)
    dev = load_examples(args.dev_data_path, task)
    with Predictor(args.output_dir, precision="fp32", coverage=0.75) as predictor:
        found = predictor.predict_batch([example.text for example in dev])
    missed = sum(missed_share(example.labels, one.label_set) for example, one in zip(dev, found, strict=True))
    assert missed <= 13 / 4 - 1
    assert all(one.probabilities and one.label_set for one in found)


def test_a_file_of_sets_goes_on_only_as_one(run, monkeypatch):
    inference.main(infer(run, coverage=0.75))
    whole = lines(run)
    folder = run / "test"
    settings = inference.prediction_settings(infer(run, coverage=0.75)) | {"first_row": 1, "last_row": 12, "rows": 12}
    begun = "".join(f"{json.dumps(row)}\n" for row in whole[:5])
    for name in ("predictions.jsonl", "test_results.json"):
        (folder / name).unlink()
    (folder / "predictions.partial.jsonl").write_text(begun)
    (folder / "predictions.partial.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"--coverage None: .* began with 0.75"):
        inference.main(infer(run))
    asked = []
    predictions = Predictor.predictions
    monkeypatch.setattr(
        Predictor, "predictions", lambda self, texts, *a: predictions(self, [asked.append(t) or t for t in texts], *a)
    )
    inference.main(infer(run, coverage=0.75))
    assert len(asked) == 7
    assert [row["label_set"] for row in lines(run)] == [row["label_set"] for row in whole]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (dict(coverage=0.9), r"--coverage 0.9 contradicts .*run/task.json: calibrated for 0.75; .*scripts.calibrate"),
        (dict(coverage=0.0), r"--coverage 0.0: must be from 0.01 to 0.9999"),
        (dict(max_set_size=3), r"--max_set_size 3: does nothing without --coverage"),
        (dict(coverage=0.75, max_set_size=0), r"--max_set_size 0: must be at least 1"),
        (dict(coverage=0.75, load_in_4bit=True), r"--coverage: .* not of --load_in_4bit"),
    ],
)
def test_what_is_not_promised(run, flags, message):
    with pytest.raises(UserError, match=message):
        inference.main(infer(run, **flags))
    with pytest.raises(UserError, match=message):
        Predictor(str(run), precision="fp32", **flags)


@pytest.mark.parametrize(
    ("contract", "flags", "message"),
    [
        (Contract(EMOTION, cot=True), {}, r"--coverage: not of answers with reasoning"),
        (Contract(EMOTION), {"backend": "vllm"}, r"--coverage: needs probabilities of labels: --probabilities on"),
        (Contract(EMOTION), {"constrained": False}, r"--coverage: needs probabilities of valid answers"),
        (Contract(EMOTION), {}, r"promises nothing yet; python -m scripts.calibrate --model_path .* --coverage 0.9"),
    ],
)
def test_models_that_promise_nothing(tiny_model_dir, tmp_path, contract, flags, message):
    shutil.copytree(tiny_model_dir, tmp_path / "run")
    contract.save(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        inference.main(inference.Args(model_path=str(tmp_path / "run"), text="hi", coverage=0.9, **flags))


def test_an_untuned_model_promises_nothing(tiny_model_dir):
    with pytest.raises(UserError, match=r"--coverage 0.9: .* is untuned, and only a trained model promises something"):
        Predictor(str(tiny_model_dir), "emotion", coverage=0.9)


def test_training_asks_for_enough_rows_first(sft_args):  # noqa: F811
    args = dataclasses.replace(sft_args, objective="classify", coverage=0.95)
    with pytest.raises(UserError, match=r"--coverage 0.95: needs at least 19 validation rows, found 12"):
        train(args)
    assert not Path(args.output_dir).exists()
    for flags, message in ((dict(calibration=False), "needs --calibration on"), (dict(cot=True), "reasoning")):
        with pytest.raises(UserError, match=rf"--coverage 0.95: .*{message}"):
            dataclasses.replace(args, **dict(objective=None) | flags)


# --- scripts --------------------------------------------------------------------------------------------------------


def fresh_rows(folder: Path) -> Path:
    path = folder / "fresh.txt"
    rows = [f"{text} indeed;{label}" for label, texts in TEXTS.items() for text in texts]
    path.write_text("\n".join(rows), encoding="utf-8")
    return path


def calibrated(run: Path, path: Path, **flags) -> Contract:
    calibrate.main(calibrate.Args(model_path=str(run), dev_data_path=str(path), precision="fp32", **flags))
    return Contract.load(run)


def test_a_run_is_calibrated_on_fresh_rows(run, tmp_path, capsys):
    before, fresh = Contract.load(run), fresh_rows(tmp_path)
    after = calibrated(run, fresh)
    assert after.coverage.level == 0.75  # as it promised already
    assert "sets of labels hold 0.75 of the right ones" in capsys.readouterr().out
    after = calibrated(run, fresh, coverage=0.9)
    assert (after.coverage.level, after.coverage.rows) == (0.9, 12)
    kept = dict(temperature=1.0, coverage=None)
    assert dataclasses.replace(after, **kept) == dataclasses.replace(before, **kept)
    with Predictor(str(run), precision="fp32", coverage=0.9) as predictor:
        texts = [line.rpartition(";")[::2] for line in fresh.read_text().splitlines()]
        sets = [prediction.label_set for prediction in predictor.predict_batch([text for text, _ in texts])]
    assert all(label in found for (_, label), found in zip(texts, sets, strict=True))  # 13 / 10 - 1: none is missed


def test_rows_that_a_run_was_trained_on(run, tmp_path):
    before = (run / "task.json").read_bytes()
    with pytest.raises(
        UserError, match=r"--dev_data_path .*train.txt: the model was trained on these rows; use others"
    ):
        calibrated(run, tmp_path / "train.txt")
    with pytest.raises(UserError, match=r"--coverage 0.99: needs at least 99 rows in .*fresh.txt, found 12"):
        calibrated(run, fresh_rows(tmp_path), coverage=0.99)
    assert (run / "task.json").read_bytes() == before


def test_a_calibration_that_is_stopped_leaves_the_run_as_it_was(run, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("data.files.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        calibrated(run, fresh_rows(tmp_path), coverage=0.9)
    after = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file() and path.suffix != ".lock"}
    assert after == {name: content for name, content in before.items() if not name.endswith(".lock")}


def test_the_analysis_of_a_run(run, capsys):
    inference.main(infer(run))
    coverage.main(coverage.Args(runs=[str(run)], levels=[0.5, 0.75], resplits=5))
    found = json.loads((run / "test" / coverage.ANALYSIS_FILE).read_text())
    assert (found["n"], found["resplits"]) == (12, 5)
    assert [(row["level"], row["rows"]) for row in found["levels"]] == [(0.5, 6), (0.75, 6)]
    assert [list(row["abstained"]) for row in found["levels"]] == [["1", "2", "3", "5"]] * 2
    assert "| 75 %" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"--coverage 0.9: needs at least 9 rows in half of .*, found 6"):
        coverage.main(coverage.Args(runs=[str(run)], levels=[0.9]))
