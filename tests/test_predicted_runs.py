"""Runs as analyses read them: the right folder, the right task, and clear errors."""

import json

import pytest

from data.arguments import UserError
from data.contract import Contract
from data.labels import Prediction
from data.metrics import label_metrics
from data.predicted_runs import read_run
from data.tasks import BUILT_IN_TASKS

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
