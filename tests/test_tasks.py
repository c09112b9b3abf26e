import dataclasses
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.arguments import UserError
from data.labels import ANSWER_FORM
from data.loading import load_examples
from data.tasks import (
    BUILT_IN_TASKS,
    GOEMOTIONS_EKMAN,
    GOEMOTIONS_GROUP,
    GOEMOTIONS_LABELS,
    Task,
    read_labels,
    resolve_task,
)

GROUP = BUILT_IN_TASKS["goemotions-group"]
SST2 = BUILT_IN_TASKS["sst2"]
R8 = BUILT_IN_TASKS["r8"]
CHINESE = BUILT_IN_TASKS["chnsenticorp"]


@pytest.mark.parametrize(
    ("completion", "labels", "valid"),
    [
        ("positive", ("positive",), True),
        (" Positive. ", ("positive",), True),
        ("POSITIVE,negative", ("negative", "positive"), True),
        ("neutral ,  ambiguous。", ("ambiguous", "neutral"), True),
        ("positive，negative", ("negative", "positive"), True),
        ("positive!", ("positive",), True),
        ("positive, positive", ("positive",), False),
        ("positive, happy", ("positive",), False),
        ("The comment is positive", ("positive",), False),
        ("positively", (), False),
        ('"positive"', ("positive",), False),
        ("", (), False),
        (",", (), False),
        ("<answer>positive</answer>", ("positive",), False),
        ("<think>why</think> positive", ("positive",), False),
    ],
)
def test_parse(completion, labels, valid):
    prediction = GROUP.parse(completion)
    assert (prediction.labels, prediction.valid) == (labels, valid)
    assert prediction.completion == completion


@pytest.mark.parametrize(
    ("completion", "labels", "valid", "rationale"),
    [
        ("<think>\nso glad\n</think>\n<answer>positive</answer>", ("positive",), True, "so glad"),
        ("<think>negative, or so?</think><answer>Positive, neutral.</answer>\n", ("neutral", "positive"), True, None),
        ("<answer>positive</answer><think>late</think>", (), False, None),
        ("<think>a</think><answer>positive</answer> more", ("positive",), False, None),
        ("<think>a</think><think>b</think><answer>positive</answer>", ("positive",), False, None),
        ("<think>a</think>\n<answer>positive", ("positive",), False, None),
        ("positive", ("positive",), False, None),
        ("<think>positive", ("positive",), False, None),
    ],
)
def test_parse_with_reasoning(completion, labels, valid, rationale):
    prediction = GROUP.parse(completion, cot=True)
    assert (prediction.labels, prediction.valid) == (labels, valid)
    if rationale:
        assert prediction.rationale == rationale


def test_parse_single_label():
    assert SST2.parse("positive.").label == "Positive"
    two = SST2.parse("Positive, Negative")
    assert two.labels == ("Positive",)
    assert not two.valid
    assert R8.parse("money-fx").labels == ("money-fx",)
    assert R8.parse("it is Money-FX, I think").labels == ("money-fx",)
    assert CHINESE.parse("正面。").label == "正面"
    assert CHINESE.parse("我觉得是负面的").label == "负面"


@given(st.data())
def test_every_target_parses_to_itself(data):
    task = data.draw(st.sampled_from(list(BUILT_IN_TASKS.values())))
    size = 1 if task.kind == "single_label" else 5
    gold = data.draw(st.lists(st.sampled_from(task.labels), min_size=1, max_size=size, unique=True))
    in_order = tuple(label for label in task.labels if label in gold)
    plain = task.parse(task.target(gold))
    assert plain.valid
    assert plain.labels == in_order
    reasoned = task.parse(task.target(gold, "because, well, joy"), cot=True)
    assert reasoned.valid
    assert (reasoned.labels, reasoned.rationale) == (in_order, "because, well, joy")


def test_labels_with_punctuation_and_spaces_of_their_own():
    task = Task("odd", "multi_label", ("No.", "why?", "U.S.", "very  good"), "{text}")
    for label in task.labels:
        prediction = task.parse(task.target([label]))
        assert (prediction.labels, prediction.valid) == ((label,), True)
    assert task.parse("why?, no., U.S.").labels == ("No.", "why?", "U.S.")


@given(st.text())
def test_parse_takes_any_text(text):
    prediction = GROUP.parse(text)
    assert set(prediction.labels) <= set(GROUP.labels)
    assert not prediction.valid or prediction.labels


def test_prompt_has_instruction_first_and_text_last():
    prompt = GROUP.prompt("what {labels} a day")
    assert prompt.endswith("what {labels} a day")  # braces of the text are left alone
    assert "ambiguous, negative, neutral, positive" in prompt
    assert ANSWER_FORM["multi_label"] in prompt
    assert GROUP.messages("x") == [{"role": "user", "content": GROUP.prompt("x")}]
    assert "<think>" in GROUP.prompt("x", cot=True)
    assert "<think>" in SST2.prompt("x", cot=True)


def test_prompts_of_the_earlier_systems():
    assert SST2.prompt("fun") == (
        'Please carefully read the following reference text:"fun", and determine which of the following categories '
        'it belongs to:["Negative","Positive"],answer:'
    )
    assert CHINESE.plain_prompt("很好") == "评论：很好\n情感倾向："


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": ("one",)},
        {"labels": ("joy", "Joy")},
        {"labels": ("joy", "sad, mad")},
        {"labels": ("joy", "")},
        {"template": "no text here"},
        {"kind": "ranking"},
    ],
)
def test_a_task_that_cannot_work_is_refused(changes):
    with pytest.raises(ValueError, match="task"):
        dataclasses.replace(GROUP, **changes)


def test_goemotions_labels_and_families():
    assert len(GOEMOTIONS_LABELS) == 28
    assert set(GOEMOTIONS_EKMAN) == set(GOEMOTIONS_GROUP) == set(GOEMOTIONS_LABELS)
    assert set(GOEMOTIONS_EKMAN.values()) == set(BUILT_IN_TASKS["goemotions-ekman"].labels)
    assert set(GOEMOTIONS_GROUP.values()) == set(GROUP.labels)


DATASETS = Path(os.environ.get("EMOTUNE_DATASETS", "no-such-folder")) / "goemotions"


@pytest.mark.skipif(not DATASETS.is_dir(), reason="EMOTUNE_DATASETS does not name a folder with goemotions/")
@pytest.mark.parametrize(("name", "mapping"), [("ekman", GOEMOTIONS_EKMAN), ("group", GOEMOTIONS_GROUP)])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_the_mapping_reproduces_the_published_files(name, mapping, split):
    fine = load_examples(DATASETS / "original" / f"{split}.tsv", BUILT_IN_TASKS["goemotions-original"])
    coarse = load_examples(DATASETS / name / f"{split}.tsv", BUILT_IN_TASKS[f"goemotions-{name}"])
    assert [{mapping[label] for label in e.labels} for e in fine] == [set(e.labels) for e in coarse]
    assert [e.text for e in fine] == [e.text for e in coarse]


def write_labels(path, *labels):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(labels) + "\n", encoding="utf-8")
    return str(path)


def test_labels_alone_name_a_built_in_task(tmp_path):
    path = write_labels(tmp_path / "group" / "labels.txt", "ambiguous", "negative", "neutral", "positive")
    assert resolve_task(None, path) is GROUP
    assert resolve_task("goemotions-group", path) is GROUP
    own = write_labels(tmp_path / "birds" / "labels.txt", "owl", "wren")
    assert resolve_task(None, own) == Task("birds", "multi_label", ("owl", "wren"), resolve_task(None, own).template)
    assert resolve_task("single_label", own).kind == "single_label"
    assert resolve_task(None, None) is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["joy", "", "fear"], r"labels.txt:2: empty line"),
        (["joy", "fear", "Joy"], r"labels.txt:3: label 'Joy' stands already on line 1"),
        (["joy", "a, b"], r"labels.txt:2: .* comma"),
        (["joy"], "at least two labels"),
    ],
)
def test_bad_label_files(tmp_path, lines, message):
    with pytest.raises(UserError, match=message):
        read_labels(write_labels(tmp_path / "labels.txt", *lines))


def test_task_and_labels_that_contradict(tmp_path):
    path = write_labels(tmp_path / "labels.txt", "ambiguous", "neutral", "negative", "positive")
    with pytest.raises(UserError, match="id 1 is 'neutral' in the first, 'negative' in the second"):
        resolve_task("goemotions-group", path)
    with pytest.raises(UserError, match="unknown"):
        resolve_task("goemotion", None)
    with pytest.raises(UserError, match="needs --label_path"):
        resolve_task("multi_label", None)
