"""data/sample is what the quickstart learns from: its size, its labels, and nothing twice."""

from collections import Counter

import pytest

from data.loading import data_report, load_examples
from data.tasks import BUILT_IN_TASKS, resolve_task
from tests.conftest import SAMPLE

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
    report = data_report(splits["train"], splits["dev"], splits["test"])
    assert report["dev_rows_also_in_train"] == report["test_rows_also_in_train"] == 0
