"""The table of data sets: whether its entries can be what they say."""

import csv
import dataclasses
import os
import string
from pathlib import Path

import pytest

from data.loading import load_examples
from data.published import (
    DATA_SETS,
    GOEMOTIONS_EKMAN,
    GOEMOTIONS_GROUP,
    GOEMOTIONS_LABELS,
    data_set_of,
    recommended_settings,
)
from data.tasks import BUILT_IN_TASKS
from main_SFT import Args


@pytest.mark.parametrize("name", DATA_SETS)
def test_an_entry_fits_together(name):
    data_set = DATA_SETS[name]
    assert (data_set.hub is None) != (data_set.archive is None)
    sources = ("splits", "reviews", "cases", "questions")
    assert sum(bool(getattr(data_set, source)) for source in sources) == 1
    assert data_set.model
    if data_set.cases or data_set.questions:
        assert not any(task.labels for task in data_set.tasks.values()), "a case has no labels"
        return
    first = next(iter(data_set.tasks.values()))
    assert not first.published_order or sorted(first.published_order) == sorted(first.labels)
    for folder, task in data_set.tasks.items():
        coarser = data_set.coarser.get(folder, {label: label for label in task.labels})
        assert set(coarser) == set(first.labels)
        assert set(coarser.values()) == set(task.labels)
    if data_set.splits:
        assert {"train", "test"} <= set(data_set.splits)
        fields = {field for _, field, _, _ in string.Formatter().parse(data_set.layout.line) if field}
        assert {"text"} < fields <= {"text", "label", "label_id", "id"}


@pytest.mark.parametrize("name", DATA_SETS)
def test_settings_are_flags_of_main_sft(name):
    data_set = DATA_SETS[name]
    for tuning, settings in [*data_set.settings.items(), *data_set.encoder_settings.items()]:
        args = Args(model_path="m", task="sst2", train_data_path="x", tuning=tuning, **settings)
        assert dataclasses.asdict(args).items() >= settings.items()


def test_settings_go_by_the_task():
    assert recommended_settings("sst2", "full")["eval_steps"] == 50
    assert recommended_settings("sst2", "head") == {}
    assert recommended_settings("birds", "lora") == {}
    assert recommended_settings("chnsenticorp", "full") == {}
    assert recommended_settings("chnsenticorp", "full", encoder=True)["learning_rate"] == 1e-4
    assert recommended_settings("chnsenticorp", "lora", encoder=True) == recommended_settings("chnsenticorp", "lora")
    assert data_set_of("goemotions-ekman").name == "goemotions"
    assert data_set_of("chnsenticorp").name == "chnsenticorp"  # not chn-reviews, which has its task
    assert data_set_of("birds") is None


def test_goemotions_labels_and_families():
    assert len(GOEMOTIONS_LABELS) == 28
    assert set(GOEMOTIONS_EKMAN) == set(GOEMOTIONS_GROUP) == set(GOEMOTIONS_LABELS)
    assert set(GOEMOTIONS_EKMAN.values()) == set(BUILT_IN_TASKS["goemotions-ekman"].labels)
    assert set(GOEMOTIONS_GROUP.values()) == set(BUILT_IN_TASKS["goemotions-group"].labels)


DATASETS = Path(os.environ.get("EMOTUNE_DATASETS", "no-such-folder")) / "goemotions"


@pytest.mark.skipif(not DATASETS.is_dir(), reason="EMOTUNE_DATASETS does not name a folder with goemotions/")
@pytest.mark.parametrize(("name", "mapping"), [("ekman", GOEMOTIONS_EKMAN), ("group", GOEMOTIONS_GROUP)])
@pytest.mark.parametrize("split", ["train", "dev"])
def test_the_mapping_reproduces_the_published_files(name, mapping, split):
    fine = load_examples(DATASETS / "original" / f"{split}.tsv", BUILT_IN_TASKS["goemotions-original"])
    coarse = load_examples(DATASETS / name / f"{split}.tsv", BUILT_IN_TASKS[f"goemotions-{name}"])
    assert [{mapping[label] for label in e.labels} for e in fine] == [set(e.labels) for e in coarse]
    assert [e.text for e in fine] == [e.text for e in coarse]


@pytest.mark.skipif(not DATASETS.is_dir(), reason="EMOTUNE_DATASETS does not name a folder with goemotions/")
def test_the_published_files_are_read_without_the_quotes_of_csv():
    path = DATASETS / "original" / "train.tsv"
    texts = [example.text for example in load_examples(path, BUILT_IN_TASKS["goemotions-original"])]
    with path.open(encoding="utf-8", newline="\n") as file:
        meant = [cells[0].strip() for cells in csv.reader(file, delimiter="\t", strict=True)]
    assert texts == meant
    assert sum('"' in text for text in texts) == 1_097
