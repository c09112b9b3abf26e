import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.arguments import UserError
from data.contract import Contract
from data.labels import LabelTask
from data.tasks import BUILT_IN_TASKS, Task
from scripts.ensemble import Args, main, voted
from tests.conftest import ROOT

SST2 = BUILT_IN_TASKS["sst2"]
GROUPS = BUILT_IN_TASKS["goemotions-group"]  # ambiguous, negative, neutral, positive
# three runs' P(Positive) of four texts: two runs barely wrong on the third, one surely right
POSITIVE = {"a": (0.9, 0.2, 0.45, 0.6), "b": (0.8, 0.3, 0.45, 0.4), "c": (0.7, 0.1, 0.95, 0.4)}
GOLD = ("Positive", "Negative", "Positive", "Negative")


def row(number: int, labels, gold, task: Task, probabilities=None) -> dict:
    names = dict(zip(task.labels, probabilities, strict=True)) if probabilities else None
    return {
        "id": f"c{number}", "text": f"text {number}", "gold": gold, "labels": labels, "probabilities": names,
        "confidence": None, "valid": bool(labels), "completion": "", "truncated": False, "pruned_mass": None,
    }  # fmt: skip


def write_run(
    folder: Path, rows: list[dict], task: Task | None, thresholds=None, contract_dir: Path | None = None
) -> str:
    folder.mkdir(parents=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if task is not None:
        Contract(task, thresholds=thresholds).save(contract_dir or folder)
    return str(folder)


def sst2_rows(run: str, probabilities: bool = True) -> list[dict]:
    return [
        row(i, ["Positive" if p > 0.5 else "Negative"], [gold], SST2, (1 - p, p) if probabilities else None)
        for i, (p, gold) in enumerate(zip(POSITIVE[run], GOLD, strict=True))
    ]


@pytest.fixture
def runs(tmp_path) -> list[str]:
    return [write_run(tmp_path / run, sst2_rows(run), SST2) for run in POSITIVE]


def ensemble(runs, output: Path, **flags) -> tuple[list[dict], dict]:
    main(Args(runs=runs, output_dir=str(output), **flags))
    lines = (output / "predictions.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], json.loads((output / "test_results.json").read_text())


def test_the_mean_of_probabilities_decides(runs, tmp_path, capsys):
    rows, results = ensemble(runs, tmp_path / "out")
    assert [r["labels"] for r in rows] == [["Positive"], ["Negative"], ["Positive"], ["Negative"]]
    assert rows[2] == row(2, ["Positive"], ["Positive"], SST2) | {
        "probabilities": pytest.approx({"Negative": 1.15 / 3, "Positive": 1.85 / 3}), "confidence": pytest.approx(1.85 / 3)
    }  # fmt: skip
    assert (results["n"], results["accuracy"], results["invalid_rate"]) == (4, 1.0, 0.0)
    assert results["confusion_matrix"] == [[2, 0], [0, 2]]
    assert results["auc"] == 1.0
    assert results["brier"] > 0
    assert 0 < results["ece"] < 1
    assert {name: results[name] for name in ("backend", "how", "runs", "weights", "seed", "examples_per_second")} == {
        "backend": "ensemble", "how": "mean", "runs": runs, "weights": [1, 1, 1], "seed": None,
        "examples_per_second": None,
    }  # fmt: skip
    assert "accuracy       1.0000" in (tmp_path / "out" / "test_summary.txt").read_text()
    table = capsys.readouterr().out.splitlines()
    assert table[0].split()[:3] == ["accuracy", "macro", "F1"]
    assert [line.split()[:2] for line in table[1:4]] == [[runs[0], "0.5000"], [runs[1], "0.7500"], [runs[2], "1.0000"]]
    assert table[4].split()[:3] == ["ensemble", "(mean)", "1.0000"]


def test_the_vote_of_the_same_runs_decides_otherwise(runs, tmp_path):
    rows, results = ensemble(runs, tmp_path / "out", how="vote")
    assert rows[2]["labels"] == ["Negative"]
    assert rows[2]["probabilities"] is None
    assert results["accuracy"] == 0.75
    assert results["how"] == "vote"
    assert not results.keys() & {"auc", "ece", "brier"}


def test_weights_turn_mean_and_vote(runs, tmp_path):
    rows, results = ensemble(runs, tmp_path / "mean", weights=[8, 1, 1])
    assert rows[3]["labels"] == ["Positive"]
    assert rows[3]["probabilities"]["Positive"] == pytest.approx(0.56)
    assert results["weights"] == [8, 1, 1]
    rows, _ = ensemble(runs, tmp_path / "vote", how="vote", weights=[1, 1, 2.5])
    assert rows[2]["labels"] == ["Positive"]
    rows, _ = ensemble(runs, tmp_path / "one", how="vote", weights=[0, 0, 1])
    assert [r["labels"][0] for r in rows] == [r["labels"][0] for r in sst2_rows("c")]


def test_runs_without_probabilities_vote(runs, tmp_path):
    bare = write_run(tmp_path / "bare", sst2_rows("c", probabilities=False), SST2)
    rows, results = ensemble([*runs[:2], bare], tmp_path / "out")
    assert results["how"] == "vote"
    assert rows[2]["labels"] == ["Negative"]
    with pytest.raises(UserError, match=r"--how mean: .*/bare/predictions.jsonl: id 'c0' has no probabilities"):
        ensemble([*runs[:2], bare], tmp_path / "never", how="mean")
    assert not (tmp_path / "never").exists()


def test_votes():
    equal = [0.25] * 4
    # a tie goes to the run named first, not to the label that stands first in the task
    assert voted([["Positive"], ["Negative"], ["Negative"], ["Positive"]], equal, SST2) == ("Positive",)
    assert voted([["Negative"], ["Positive"]], [0.5, 0.5], SST2) == ("Negative",)
    assert voted([["Positive"], ["Negative"], ["Negative"]], [0.3, 0.1, 0.2], SST2) == ("Positive",)  # 0.1 + 0.2 > 0.3
    assert voted([[], ["Negative"], []], [0.4, 0.2, 0.4], SST2) == ("Negative",)
    assert voted([[], []], [0.5, 0.5], SST2) == ()
    # several labels: at least half of the runs
    answers = [["positive", "neutral"], ["positive"], ["neutral", "positive", "ambiguous"], ["negative"]]
    assert voted(answers, equal, GROUPS) == ("neutral", "positive")
    # no label has half: those given most often
    answers = [["positive"], ["negative", "positive"], ["neutral", "negative"], [], [], ["ambiguous"]]
    assert voted(answers, [1 / 6] * 6, GROUPS) == ("negative", "positive")
    assert voted([[], []], [0.5, 0.5], GROUPS) == ()


def test_a_text_that_no_run_answered_stays_unanswered(tmp_path):
    rows = [row(0, ["Positive"], ["Positive"], SST2), row(1, [], ["Positive"], SST2)]
    rows, results = ensemble([write_run(tmp_path / name, rows, SST2) for name in "ab"], tmp_path / "out")
    assert (rows[1]["labels"], rows[1]["valid"]) == ([], False)
    assert (results["accuracy"], results["invalid_rate"], results["unread"]["Positive"]) == (0.5, 0.5, 1)


def group_run(folder: Path, thresholds, probabilities) -> str:
    return write_run(
        folder, [row(0, ["positive"], ["negative", "positive"], GROUPS, probabilities)], GROUPS, thresholds
    )


def test_the_mean_of_thresholds_counts_in_multi_label_tasks(tmp_path):
    low, high = dict.fromkeys(GROUPS.labels, 0.2), dict.fromkeys(GROUPS.labels, 0.4)
    a = group_run(tmp_path / "a", low, (0.1, 0.3, 0.2, 0.9))
    b = group_run(tmp_path / "b", high, (0.1, 0.34, 0.3, 0.7))
    plain = group_run(tmp_path / "plain", None, (0.1, 0.34, 0.3, 0.7))
    assert ensemble([a, b], tmp_path / "out")[0][0]["labels"] == ["negative", "positive"]  # 0.32 against 0.3, 0.25
    assert ensemble([a, b], tmp_path / "more", weights=[1, 3])[0][0]["labels"] == ["positive"]  # 0.33 against 0.35
    assert ensemble([a, plain], tmp_path / "half")[0][0]["labels"] == ["positive"]  # 0.32 against 0.5


def test_probabilities_of_written_answers_need_not_add_up_to_one(tmp_path):
    """An answer of two labels gives its probability to both; how sure the ensemble is stays from 0 to 1."""
    runs = [group_run(tmp_path / name, None, (0.1, 0.8, 0.05, 0.9)) for name in "ab"]
    (row,), _ = ensemble(runs, tmp_path / "out")
    assert row["labels"] == ["negative", "positive"]
    assert row["confidence"] == pytest.approx(0.9 * 0.8 * 0.95 * 0.9)
    heads = [write_run(tmp_path / n, [json.loads(json.dumps(row))], GROUPS) for n in "cd"]
    assert ensemble(heads, tmp_path / "again")[0][0]["probabilities"] == pytest.approx(row["probabilities"])


def test_a_text_that_one_run_cut_was_cut(runs, tmp_path):
    rows = [json.loads(line) for line in (Path(runs[0]) / "predictions.jsonl").read_text().splitlines()]
    cut = [rows[0] | {"truncated": True}, *rows[1:-1], {k: v for k, v in rows[-1].items() if k != "truncated"}]
    runs.append(write_run(tmp_path / "cut", cut, SST2))
    assert [row["truncated"] for row in ensemble(runs, tmp_path / "out")[0]] == [True, False, False, False]


def test_a_broken_member_leaves_the_ensemble_of_last_time(runs, tmp_path):
    ensemble(runs, tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (Path(runs[1]) / "predictions.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"b/predictions.jsonl:1: id is not there"):
        ensemble(runs, tmp_path / "out")
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}


def test_the_task_may_stand_above_or_in_flags(tmp_path):
    above = write_run(tmp_path / "run" / "test", sst2_rows("a"), SST2, contract_dir=tmp_path / "run")
    bare = [write_run(tmp_path / "x" / name, sst2_rows(name), None) for name in "bc"]
    assert ensemble([above, *bare], tmp_path / "out")[1]["accuracy"] == 1.0
    assert ensemble(bare, tmp_path / "flag", task="sst2")[1]["confusion_matrix"] == [[2, 0], [0, 2]]
    (tmp_path / "labels.txt").write_text("Negative\nPositive\n")
    assert ensemble(bare, tmp_path / "labels", label_path=str(tmp_path / "labels.txt"))[1]["n"] == 4
    with pytest.raises(UserError, match=r"--task or --label_path is needed: none of the runs has a task.json"):
        ensemble(bare, tmp_path / "never")
    with pytest.raises(UserError, match=r"--task r8 contradicts .*run/task.json: id 0 is 'acq' in the first"):
        ensemble([above, *bare], tmp_path / "never", task="r8")
    other = write_run(tmp_path / "other", [], BUILT_IN_TASKS["chnsenticorp"])
    shutil.copy(Path(above) / "predictions.jsonl", other)
    with pytest.raises(UserError, match=r"other/task.json contradicts .*run/task.json: id 0 is '负面'"):
        ensemble([above, other], tmp_path / "never")
    several = LabelTask("own", "multi_label", SST2.labels, SST2.template)
    with pytest.raises(UserError, match=r"several/task.json: is a multi_label task, .*run/task.json is single_label"):
        ensemble([above, write_run(tmp_path / "several", sst2_rows("b"), several)], tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_texts_without_gold_are_predicted_but_not_scored(tmp_path):
    runs = [write_run(tmp_path / n, [r | {"gold": None} for r in sst2_rows(n)], SST2) for n in POSITIVE]
    main(Args(runs=runs, output_dir=str(tmp_path / "out")))
    assert [path.name for path in (tmp_path / "out").glob("[!.]*")] == ["predictions.jsonl"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [r["labels"][0] for r in rows] == list(GOLD)
    assert all(r["gold"] is None for r in rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[1].update(id="c9"), r"/odd/predictions.jsonl: id 'c9' has id 'c9', .*/a/predictions.jsonl has 'c1'"),
        (lambda rows: rows[2].update(text="other"), r"/odd/predictions.jsonl: id 'c2' has text 'other'"),
        (lambda rows: rows[3].update(gold=["Positive"]), r"/odd/predictions.jsonl: id 'c3' has gold \['Positive'\]"),
        (lambda rows: rows[0].update(gold=None), r"/odd/predictions.jsonl: id 'c0' has gold None"),
        (lambda rows: rows.pop(), r"/odd/predictions.jsonl: ends before id 'c3' of .*/a/predictions.jsonl \(3 rows, not 4\)"),
        (lambda rows: rows.append(rows[0]), r"/a/predictions.jsonl: ends before id 'c0' of .*/odd/predictions.jsonl"),
        (lambda rows: rows[1].update(labels=["joy"]), r"/odd/predictions.jsonl: id 'c1' has label 'joy', which task sst2"),
        (lambda rows: rows[1].update(probabilities={"joy": 1}), r"/odd/predictions.jsonl: id 'c1' has probabilities of \['joy'\]"),
        (lambda rows: rows[1]["probabilities"].update(Negative=float("nan")), r"/odd/predictions.jsonl: id 'c1' has probabilities that are not"),
        (lambda rows: rows[1].update(labels="Positive"), r"/odd/predictions.jsonl:2: labels is 'Positive', so this is no"),
        (lambda rows: rows[1].pop("gold"), r"/odd/predictions.jsonl:2: gold is not there, so this is no"),
        (lambda rows: rows.clear(), r"/odd/predictions.jsonl: no predictions in it"),
    ],
)  # fmt: skip
def test_runs_that_do_not_belong_together(runs, tmp_path, change, message):
    rows = sst2_rows("b")
    change(rows)
    odd = write_run(tmp_path / "odd", rows, SST2)
    with pytest.raises(UserError, match=message):
        ensemble([runs[0], odd], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_predictions(runs, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"/empty/predictions.jsonl: cannot be read \(No such file or directory\)"):
        ensemble([*runs, str(tmp_path / "empty")], tmp_path / "out")
    cases = {b"{}\n[1]": ":1: id is not there", b"{": ":1: not a JSON object", b"\xff": ":1: byte 0xff is not UTF-8"}
    for content, message in cases.items():
        (tmp_path / "empty" / "predictions.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=rf"/empty/predictions.jsonl{message}"):
            ensemble([*runs, str(tmp_path / "empty")], tmp_path / "out")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("a", r"--runs: 1 given; an ensemble needs at least two"),
        ("a b", r"--output_dir is needed"),
        ("a b a/../a --output_dir out", r"--runs: a/../a is given twice; --weights lets a run count more"),
        ("a b --output_dir b", r"--output_dir b: is one of the runs"),
        ("a b --output_dir out --weights 1", r"--weights: 1 numbers for 2 runs; give one per run"),
        ("a b --output_dir out --weights 1 -1", r"--weights -1.0: must be at least 0 and finite"),
        ("a b --output_dir out --weights 1 nan", r"--weights: must be finite, found 'nan'"),
        ("a b --output_dir out --weights 0 0", r"--weights: all are 0, so no run counts"),
        ("a b --output_dir out --how max", r"--how: invalid choice: 'max'"),
        ("a b --output_dir out --task sst", r"--task sst: unknown"),
    ],
)
def test_mistakes_in_flags(runs, monkeypatch, tmp_path, capsys, flags, message):
    from data.arguments import run

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ensemble.py", "--runs", *flags.split()])
    with pytest.raises(SystemExit, match="2"):
        run(main, Args, {})
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"ensemble.py: error: {message}")
    assert stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_command_line(runs, tmp_path):
    flags = ["--output_dir", str(tmp_path / "out"), "--weights", "1", "1", "2"]
    command = [sys.executable, "-m", "scripts.ensemble", *runs, *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"written to {tmp_path}/out"
    assert json.loads((tmp_path / "out" / "test_results.json").read_text())["weights"] == [1, 1, 2]
