"""The label task: parser, targets, prompts."""

import dataclasses
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.labels import ANSWER_FORM, TEXT_ONLY, LabelTask
from data.tasks import BUILT_IN_TASKS, LABEL_TASKS

GROUP = BUILT_IN_TASKS["goemotions-group"]
OR_NONE = dataclasses.replace(GROUP, allow_none=True)
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
    task = data.draw(st.sampled_from(list(LABEL_TASKS.values())))
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
    task = LabelTask("odd", "multi_label", ("No.", "why?", "U.S.", "very  good"), "{text}")
    for label in task.labels:
        prediction = task.parse(task.target([label]))
        assert (prediction.labels, prediction.valid) == ((label,), True)
    assert task.parse("why?, no., U.S.").labels == ("No.", "why?", "U.S.")


def test_accents_are_read_however_they_are_encoded():
    composed, apart = "caf\u00e9", "cafe\u0301"
    for stored in (composed, apart):  # the second as in a task.json of an earlier version
        task = LabelTask("moods", "multi_label", ("calm", stored), "{text}")
        for written in (composed, apart, apart.upper()):
            prediction = task.parse(f"calm, {written}")
            assert (prediction.labels, prediction.valid) == (("calm", stored), True)
            assert task.parse(f"so {written}!").labels == (stored,)
        assert task.named(composed) == task.named(apart) == stored
        assert task.named("cafe") is None


def test_braces_in_a_label_are_its_own():
    task = LabelTask("code", "multi_label", ("{text}", "{labels}", "{answer_form}"), "{labels} of {text}")
    assert task.prompt("this {text}") == "{text}, {labels}, {answer_form} of this {text}"


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


def test_where_no_chat_template_is_the_prompt_ends_where_the_answer_begins():
    assert GROUP.plain_prompt("fine").endswith("Comment:\nfine\n\nAnswer:")
    assert SST2.plain_prompt("fine") == SST2.prompt("fine")  # its colon says so already
    whole = dataclasses.replace(GROUP, template="{text}", use_chat_template=False)
    assert whole.plain_prompt("fine") == "fine"


def test_what_counts_by_default():
    assert (GROUP.default_metric, SST2.default_metric) == ("f1_macro", "accuracy")


def test_what_belongs_to_the_name_makes_no_other_task():
    other = dataclasses.replace(GROUP, instruction_first="{text}", header_allowed=True)
    assert other == GROUP
    of_the_data = {"most_labels"}  # is kept, and yet makes no other task
    assert dataclasses.replace(GROUP, most_labels=2) == GROUP
    assert (
        set(GROUP.stored()) == {"name", "kind", "labels", "template", "use_chat_template", "allow_none"} | of_the_data
    )
    assert dataclasses.replace(GROUP, allow_none=True) != GROUP
    assert dataclasses.replace(GROUP, template="{text}") != GROUP


def test_prompts_with_the_text_first():
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
        {"labels": ("joy", "</think>")},
        {"labels": ("joy", "sad\nmad")},
        {"labels": ("joy", "\ud83d")},
        {"template": "no text here"},
        {"template": "{text} and once more {text}"},
        {"kind": "ranking"},
        {"most_labels": 0},
        {"allow_none": True, "labels": ("joy", "None")},
        {"allow_none": True, "kind": "single_label"},
    ],
)
def test_a_task_that_cannot_work_is_refused(changes):
    with pytest.raises(ValueError, match="task"):
        dataclasses.replace(GROUP, **changes)


@pytest.mark.parametrize(
    ("completion", "labels", "valid"),
    [
        ("none", (), True),
        (" None. ", (), True),
        ("NONE,", (), True),
        ("none, positive", ("positive",), False),
        ("none, none", (), False),
        ("none of them", (), False),
        ("nonesuch", (), False),
        ("", (), False),
        ("positive", ("positive",), True),
        ("<answer>none</answer>", (), False),
    ],
)
def test_that_none_applies_is_an_answer(completion, labels, valid):
    prediction = OR_NONE.parse(completion)
    assert (prediction.labels, prediction.valid, prediction.unread) == (labels, valid, not labels and not valid)
    if not labels:
        assert not GROUP.parse(completion).valid


def test_that_none_applies_is_written_and_asked_for():
    assert (OR_NONE.target(()), OR_NONE.target(["positive"])) == ("none", "positive")
    assert OR_NONE.target((), "so so") == "<think>\nso so\n</think>\n<answer>none</answer>"
    assert OR_NONE.parse(OR_NONE.target((), "so so"), cot=True).valid
    assert "Answer with all that apply, separated by commas, or with none if none applies.\n" in OR_NONE.prompt("fine")
    assert "<answer> and </answer>: Answer with all that apply, separated by commas, or with none" in OR_NONE.prompt(
        "fine", cot=True
    )
    bare = dataclasses.replace(OR_NONE, template="Labels: {labels}\n{text}")
    assert bare.prompt("fine").startswith("Answer with all that apply, separated by commas, or with none if none appl")
    assert dataclasses.replace(OR_NONE, template=TEXT_ONLY).prompt("fine") == "fine"  # a head reads nothing else
    assert GROUP.prompt("fine") == OR_NONE.prompt("fine").replace(", or with none if none applies", "")
    assert (OR_NONE.kind_in_words, GROUP.kind_in_words) == (
        "any number of labels a text, or none", "one or more labels a text",
    )  # fmt: skip


def test_answers_in_words():
    assert OR_NONE.parse("none").in_words("?") == "none"
    assert OR_NONE.parse("neither").in_words("?") == "?"
    assert OR_NONE.parse("positive, negative").in_words("?") == "negative, positive"


def test_an_answer_has_as_many_labels_as_a_training_row():
    rows = [SimpleNamespace(gold=gold) for gold in ((), ("positive",), ("negative", "neutral", "positive"))]
    assert OR_NONE.answered_as_in(rows).most_labels == 3
    assert OR_NONE.answered_as_in(rows[:1]).most_labels == 1
    assert OR_NONE.answered_as_in([]).most_labels == 1
