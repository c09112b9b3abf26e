import dataclasses
import json

import pytest

from data.arguments import UserError
from data.contract import Contract, check_run_settings, contract_for
from data.tasks import BUILT_IN_TASKS

GROUP = BUILT_IN_TASKS["goemotions-group"]
LABELS = "ambiguous\nnegative\nneutral\npositive\n"


@pytest.fixture
def run_dir(tmp_path):
    Contract(GROUP, max_length=300, base_model="models/base", seed=7).save(tmp_path)
    (tmp_path / "labels.txt").write_text(LABELS)
    (tmp_path / "other.txt").write_text(LABELS.replace("neutral", "mixed"))
    return tmp_path


def test_what_is_saved_is_loaded(run_dir):
    contract = Contract.load(run_dir)
    assert contract == Contract(GROUP, max_length=300, base_model="models/base", seed=7)
    content = json.loads((run_dir / "task.json").read_text())
    assert content["format_version"] == 1
    assert content["task"]["labels"] == list(GROUP.labels)
    assert content["task"]["template_hash"] == GROUP.template_hash
    assert content["library_versions"]["torch"]


def test_flags_that_agree_are_taken(run_dir):
    for flags in (
        {},
        {"task_name": "goemotions-group"},
        {"label_path": str(run_dir / "labels.txt")},
        {"max_length": 300},
    ):
        assert contract_for(str(run_dir), **flags) == Contract.load(run_dir)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"task_name": "goemotions-ekman"}, r"--task goemotions-ekman contradicts .*task.json: id 0 is 'anger'"),
        (
            {"label_path": "other.txt"},
            r"--label_path .*other.txt contradicts .*task.json: id 2 is 'mixed' .* 'neutral'",
        ),
        ({"max_length": 512}, r"--max_length 512 contradicts .*trained with 300"),
        ({"cot": True}, r"--cot on contradicts .*trained with off"),
    ],
)
def test_flags_that_contradict_name_both_values(run_dir, flags, message):
    if "label_path" in flags:
        flags = {"label_path": str(run_dir / flags["label_path"])}
    with pytest.raises(UserError, match=message):
        contract_for(str(run_dir), **flags)


def test_an_edited_prompt_is_noticed(run_dir):
    path = run_dir / "task.json"
    path.write_text(path.read_text().replace("Which does the writer", "What does the writer"))
    with pytest.raises(UserError, match="the prompt template has hash"):
        Contract.load(run_dir)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"format_version": 99}'])
def test_a_broken_task_json_is_one_clear_error(tmp_path, content):
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(UserError, match=r"task.json"):
        Contract.load(tmp_path)


def test_an_adapter_without_task_json_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter without task.json"):
        contract_for(str(tmp_path), "goemotions-group")


def test_an_untuned_model_needs_a_task(tmp_path):
    with pytest.raises(UserError, match="name --task or --label_path"):
        contract_for(str(tmp_path))
    assert contract_for(str(tmp_path), "sst2").task is BUILT_IN_TASKS["sst2"]


def test_a_run_cannot_be_continued_as_another(tmp_path):
    path = tmp_path / "args.json"
    path.write_text(json.dumps({"learning_rate": 1e-4, "max_steps": 10}))
    check_run_settings(path, {"learning_rate": 1e-4, "max_steps": 20, "new_flag": 1}, may_change=("max_steps",))
    with pytest.raises(UserError, match=r"--learning_rate 0.001: .* began with 0.0001"):
        check_run_settings(path, {"learning_rate": 1e-3}, may_change=())
    path.write_text("[]")
    with pytest.raises(UserError, match=r"args.json: not a JSON object .*, so the run there cannot be continued"):
        check_run_settings(path, {"learning_rate": 1e-4}, may_change=())


def test_switches_of_a_run_that_an_earlier_version_began(tmp_path):
    """They were "on" and "off" where they are true and false now."""
    path = tmp_path / "args.json"
    path.write_text(json.dumps({"constrained": "off", "calibration": "on", "cot": False, "prefix_sharing": "on"}))
    check_run_settings(path, {"constrained": False, "calibration": True, "cot": False, "prefix_sharing": "on"}, ())
    with pytest.raises(UserError, match=r"--constrained on: .* began with off"):
        check_run_settings(path, {"constrained": True}, ())
    with pytest.raises(UserError, match=r"--cot on: .* began with off"):
        check_run_settings(path, {"cot": True}, ())


def test_a_task_of_the_users_own_survives(tmp_path):
    own = dataclasses.replace(GROUP, name="birds", kind="single_label", labels=("owl", "wren"))
    Contract(own).save(tmp_path)
    assert contract_for(str(tmp_path)).task == own
