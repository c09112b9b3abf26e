"""Which task the flags name, and in which words it asks."""

import dataclasses
import os

import pytest

from data.arguments import UserError
from data.labels import CUSTOM_TEMPLATE, LabelTask
from data.published import EMOTION_TEMPLATE
from data.tasks import BUILT_IN_TASKS, LABEL_TASKS, check_same_labels, read_labels, resolve_task, with_prompt

GROUP = BUILT_IN_TASKS["goemotions-group"]


def write_labels(path, *labels):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(labels) + "\n", encoding="utf-8")
    return str(path)


def test_labels_alone_name_a_built_in_task(tmp_path):
    path = write_labels(tmp_path / "group" / "labels.txt", "ambiguous", "negative", "neutral", "positive")
    assert resolve_task(None, path) is GROUP
    assert resolve_task("goemotions-group", path) is GROUP
    own = write_labels(tmp_path / "birds" / "labels.txt", "owl", "wren")
    assert resolve_task(None, own) == LabelTask(
        "birds", "multi_label", ("owl", "wren"), resolve_task(None, own).template
    )
    assert resolve_task("single_label", own).kind == "single_label"
    assert resolve_task(None, None) is None


@pytest.mark.parametrize("name", [None, "emotion"])
def test_a_labels_file_says_what_ids_mean(tmp_path, name):
    path = write_labels(tmp_path / "emotion" / "labels.txt", *BUILT_IN_TASKS["emotion"].labels)
    assert resolve_task("emotion", None).published_order[0] == "sadness"
    assert resolve_task(name, path) == BUILT_IN_TASKS["emotion"]
    assert resolve_task(name, path).published_order == ()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["joy", "", "fear"], r"labels.txt:2: empty line"),
        (["joy", "fear", "Joy"], r"labels.txt:3: label 'Joy' stands already on line 1"),
        (["joy", "a, b"], r"labels.txt:2: .* comma"),
        (["joy", "a  b", "a b"], r"labels.txt:3: label 'a b' stands already on line 2"),
        (["caf\u00e9", "cafe\u0301"], r"labels.txt:2: .* stands already on line 1"),
        (["joy", "a\x00b"], r"labels.txt:2: label 'a\\x00b' holds a control character"),
        (["joy", "a\u2028b"], r"labels.txt:2: .* line break"),
        (["joy", "<answer>"], r"labels.txt:2: .* holds a tag"),
        (["joy", "a" * 300], r"labels.txt:2: label 'a{20}'… has 300 characters; a label has at most 200"),
        ([f"label {i}" for i in range(10_001)], r"needs at most 10,000 labels, one a line; found 10,001"),
        (["a" * 2**20] * 11, r"labels.txt: over 10 MB"),
        (["joy"], "at least two labels"),
    ],
)
def test_bad_label_files(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        read_labels(write_labels(tmp_path / "labels.txt", *lines))


@pytest.mark.parametrize("path", ["pipe", "folder", "/dev/zero"])
def test_a_label_path_that_is_no_file(tmp_path, path):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=rf"--label_path {tmp_path / path}: is no file"):
        read_labels(tmp_path / path)


def test_labels_are_composed(tmp_path):
    path = write_labels(tmp_path / "labels.txt", "cafe\u0301", "tea")
    assert read_labels(path) == ("caf\u00e9", "tea")
    check_same_labels("one", ["cafe\u0301", "tea"], "other", ["caf\u00e9", "tea"])


def test_task_and_labels_that_contradict(tmp_path):
    path = write_labels(tmp_path / "labels.txt", "ambiguous", "neutral", "negative", "positive")
    with pytest.raises(UserError, match="id 1 is 'neutral' in the first, 'negative' in the second"):
        resolve_task("goemotions-group", path)
    with pytest.raises(UserError, match="unknown"):
        resolve_task("goemotion", None)
    with pytest.raises(UserError, match="needs --label_path"):
        resolve_task("multi_label", None)


def test_the_built_in_tasks_are_those_of_the_data_sets():
    assert list(LABEL_TASKS) == [
        "goemotions-original", "goemotions-ekman", "goemotions-group", "sst2", "r8", "chnsenticorp", "emotion",
    ]  # fmt: skip


@pytest.mark.parametrize("name", LABEL_TASKS)
def test_wordings(name):
    task = BUILT_IN_TASKS[name]
    assert with_prompt(task, "task") is task
    first = EMOTION_TEMPLATE if name.startswith(("goemotions", "emotion")) else CUSTOM_TEMPLATE
    expected = dataclasses.replace(task, template=first, use_chat_template=True)
    assert with_prompt(task, "instruction_first") == expected
    alone = with_prompt(task, "text_only")
    assert alone.plain_prompt("how nice") == "how nice"
    assert not alone.use_chat_template


def test_what_a_folder_is_called_makes_no_difference(tmp_path):
    for folder in ("emotions-of-birds", "birds"):
        own = resolve_task(None, write_labels(tmp_path / folder / "labels.txt", "calm", "tense"))
        assert own.template == with_prompt(own, "instruction_first").template == CUSTOM_TEMPLATE
