"""data/sample and data/sample_zh are what the quickstarts learn from: their size, their labels, and nothing twice.

data/sample_psyqa is in the form of PsyQA, which may not be passed on: questions and answers of our own.
"""

import difflib
import json
from collections import Counter
from itertools import combinations

import pytest

from data.loading import data_report, load_examples
from data.summaries.psyqa import split_answer
from data.tasks import BUILT_IN_TASKS, resolve_task
from tests.conftest import ROOT, SAMPLE

TASK = BUILT_IN_TASKS["goemotions-original"]
SMALLEST = {"train": 560, "dev": 112, "test": 168}


@pytest.fixture(scope="module")
def splits():
    return {split: load_examples(SAMPLE / f"{split}.tsv", TASK) for split in SMALLEST}


def test_labels_are_the_28_of_goemotions():
    assert resolve_task(None, str(SAMPLE / "labels.txt")) is TASK


@pytest.mark.parametrize("split", SMALLEST)
def test_size_and_two_label_rows(splits, split):
    rows = splits[split]
    assert len(rows) >= SMALLEST[split]
    assert sum(len(e.labels) == 2 for e in rows) >= len(rows) / 8
    assert {label for e in rows for label in e.labels} == set(TASK.labels)


def test_every_label_is_learnable(splits):
    counts = Counter(label for e in splits["train"] for label in e.labels)
    assert min(counts[label] for label in TASK.labels) >= 18


def test_no_text_and_no_id_stands_twice(splits):
    everything = [e for rows in splits.values() for e in rows]
    assert len({e.id for e in everything}) == len(everything)
    assert len({" ".join(e.text.casefold().split()) for e in everything}) == len(everything)
    report = data_report(TASK, splits["train"], splits["dev"], splits["test"])
    assert report["dev_rows_also_in_train"] == report["test_rows_also_in_train"] == 0


# --- the Chinese one ------------------------------------------------------------------------------------------------

CHINESE = ROOT / "data" / "sample_zh"
CHINESE_SIZES = {"train": 120, "dev": 24, "test": 48}


@pytest.fixture(scope="module")
def chinese():
    task = resolve_task(None, str(CHINESE / "labels.txt"))
    assert task is BUILT_IN_TASKS["chnsenticorp"]
    return {split: load_examples(CHINESE / f"{split}.tsv", task) for split in CHINESE_SIZES}


@pytest.mark.parametrize("split", CHINESE_SIZES)
def test_labels_and_subjects_of_the_chinese_comments_are_balanced(chinese, split):
    counts = Counter((example.id.partition("-")[0], *example.labels) for example in chinese[split])
    cells = {(subject, label) for subject in ("hotel", "shop", "film") for label in ("正面", "负面")}
    assert dict(counts) == dict.fromkeys(cells, CHINESE_SIZES[split] // 6)


def test_chinese_comments_are_short_and_long(chinese):
    texts = [example.text for rows in chinese.values() for example in rows]
    assert all(8 <= len(text) <= 150 for text in texts)
    assert sum(len(text) > 60 for text in texts) >= 12
    assert not any(mark in text for text in texts for mark in ",?!;:"), "the punctuation of Chinese is full-width"


def test_no_chinese_comment_stands_twice_or_nearly(chinese):
    everything = [example for rows in chinese.values() for example in rows]
    assert len({example.id for example in everything}) == len(everything)
    for one, other in combinations((example.text for example in everything), 2):
        matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
        if matcher.real_quick_ratio() > 0.6 and matcher.quick_ratio() > 0.6:
            assert matcher.ratio() <= 0.6, (one, other)


# --- questions and answers in PsyQA's form --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def questions():
    return json.loads((ROOT / "data" / "sample_psyqa" / "psyqa.json").read_text(encoding="utf-8"))


def test_questions_have_one_to_three_answers(questions):
    assert len({each["questionID"] for each in questions}) == len(questions) == 12
    assert Counter(len(each["answers"]) for each in questions) == {1: 2, 2: 8, 3: 2}
    for each in questions:
        assert set(each) == {"questionID", "question", "description", "keywords", "answers"}


def test_answers_are_of_one_paragraph_and_of_several_and_a_case_can_be_made_of_each(questions):
    answers = [answer["answer_text"] for each in questions for answer in each["answers"]]
    assert all(150 <= len(text) <= 400 for text in answers)
    assert 8 <= sum("\n" in text for text in answers) <= len(answers) - 8
    assert all(map(split_answer, answers))
    texts = [*answers, *(each[name] for each in questions for name in ("question", "description"))]
    assert not any(mark in text for text in texts for mark in ",?!;:"), "the punctuation of Chinese is full-width"


def test_no_sentence_of_an_answer_stands_twice(questions):
    sentences = [
        sentence for each in questions for answer in each["answers"]
        for sentence in answer["answer_text"].replace("\n", "。").split("。") if sentence
    ]  # fmt: skip
    assert len(set(sentences)) == len(sentences)
