"""Runs as analyses read them: the right folder, the right task, and clear errors."""

import json

import pytest

import inference
from data.arguments import UserError
from data.contract import Contract
from data.metrics import label_metrics
from data.predicted_runs import read_run, written_task
from data.predictions import Prediction
from data.sampling import Sampling
from data.summaries.cases import read_written
from data.tasks import BUILT_IN_TASKS
from scripts import gather

GROUP = BUILT_IN_TASKS["goemotions-group"]
EMOTION = BUILT_IN_TASKS["emotion"]


def row(number: int, gold: list[str] | None, labels: list[str], probabilities=None) -> dict:
    return dict(
        id=f"r{number}", text=f"text {number}", gold=gold, labels=labels, valid=True, probabilities=probabilities
    )


def write(folder, rows) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))


def test_a_run_is_its_folder_or_the_folder_test_in_it(tmp_path):
    write(tmp_path / "run" / "test", [row(1, ["positive"], ["negative"]), row(2, None, ["positive"])])
    Contract(task=GROUP, objective="generate").save(tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert run.folder == str(tmp_path / "run" / "test")
    assert run.directory == tmp_path / "run"
    assert run.task().labels == GROUP.labels
    assert [one["id"] for one in run.labelled] == ["r1"]
    assert not run.has_probabilities
    assert run.probabilities(GROUP) is None
    write(tmp_path / "run", [row(3, ["positive"], ["positive"])])
    assert read_run(tmp_path / "run").folder == str(tmp_path / "run")


@pytest.mark.parametrize("task", [GROUP, EMOTION], ids=lambda task: task.name)
def test_scores_tell_the_task_where_no_task_json_does(tmp_path, task):
    label = task.labels[1]
    write(tmp_path, [row(1, [label], [label], {name: float(name == label) for name in task.labels})])
    with pytest.raises(UserError, match=r"neither a task\.json nor scores"):
        read_run(tmp_path).task()
    scores = label_metrics([(label,)], [Prediction((label,), True)], task)
    (tmp_path / "test_results.json").write_text(json.dumps(scores))
    run = read_run(tmp_path)
    assert (run.task().labels, run.task().kind) == (task.labels, task.kind)
    assert run.probabilities(run.task()).tolist() == [[float(name == label) for name in task.labels]]
    write(tmp_path, [row(1, [label], ["hunger"])])
    with pytest.raises(UserError, match=r"predictions\.jsonl:1: id 'r1' has label 'hunger'"):
        read_run(tmp_path).task()


def test_no_predictions(tmp_path):
    with pytest.raises(UserError, match=r"predictions\.jsonl: cannot be read"):
        read_run(tmp_path / "nowhere")
    write(tmp_path, [])
    with pytest.raises(UserError, match="no predictions in it"):
        read_run(tmp_path)


# --- written summaries ----------------------------------------------------------------------------------------------

WRITTEN = {
    "id": "1", "case_description": ["Sleeps badly."], "consultation_process": ["They talked."], "summary": "Better.",
    "truncated": False, "finished": True,
}  # fmt: skip


def test_a_run_of_summaries_is_read_as_such_only(tmp_path):
    write(tmp_path, [WRITTEN])
    assert written_task(tmp_path).name == "emotion-summary"
    with pytest.raises(UserError, match=r"its answers are summaries \(task emotion-summary\), where labels are needed"):
        read_run(tmp_path)
    Contract(BUILT_IN_TASKS["emotion-summary-zh"], max_length=4096, sampling=Sampling()).save(tmp_path)
    assert written_task(tmp_path).name == "emotion-summary-zh"
    assert read_run(tmp_path, written=True).rows == [WRITTEN]
    write(tmp_path, [WRITTEN | {"summary": 3}])
    with pytest.raises(UserError, match=r"predictions\.jsonl:1: summary is .* so this is no line of written summaries"):
        read_run(tmp_path, written=True)
    write(tmp_path / "labels", [row(1, None, ["positive"])])
    (tmp_path / "task.json").unlink()
    assert written_task(tmp_path / "labels") is None
    (tmp_path / "labels" / "predictions.jsonl").write_text("[" * 100_000)
    assert written_task(tmp_path / "labels") is None


def test_parts_of_a_file_of_summaries_are_put_together(tiny_model_dir, tmp_path):
    cases = [
        {k: v for k, v in WRITTEN.items() if "_" in k} | {"experience_and_reflection": f"Number {i}."} for i in range(3)
    ]
    (tmp_path / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    flags = dict(
        model_path=str(tiny_model_dir), task="emotion-summary-en", test_data_path=str(tmp_path / "cases.jsonl"),
        max_length=1024, max_new_tokens=5, precision="fp32",
    )  # fmt: skip
    inference.main(inference.Args(**flags, output_dir=str(tmp_path / "whole")))
    for shard in ("1/2", "2/2"):
        inference.main(inference.Args(**flags, output_dir=str(tmp_path / "parts"), shard=shard))
    gather.main(gather.Args(str(tmp_path / "parts"), str(tiny_model_dir), "emotion-summary-en"))
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    rows = [
        [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
        for folder in (whole, parts)
    ]
    for a, b in zip(*rows, strict=True):
        assert a.pop("confidence") == pytest.approx(b.pop("confidence"))
        assert a == b
    scores = [json.loads((folder / "test_results.json").read_text()) for folder in (whole, parts)]
    assert scores[0]["rougeL_f1"] == scores[1]["rougeL_f1"]
    # what is written can be read by the scripts that score and judge summaries
    written = list(read_written(parts / "predictions.jsonl", "--file"))
    assert [each.case.summary for each in written] == ["Number 0.", "Number 1.", "Number 2."]
