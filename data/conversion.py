"""Published data sets: from the files of their sources to the layouts that loading reads. (no torch)"""

import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.arguments import UserError, one_line
from data.columns import Row
from data.files import write_json_lines, write_text
from data.formats import read_rows
from data.labels import LabelTask
from data.published import DataSet
from data.summaries import psyqa
from data.summaries.cases import read_cases


def convert(data_set: DataSet, raw: Path, ready: Path) -> None:
    """Write a data set's splits and labels.txt, as the table in data/published.py has them.

    Args:
        data_set: the entry.
        raw: where the files of its source lie.
        ready: the folder that becomes `data/<name>`.

    Raises:
        UserError: the source has not the rows that the table states.
    """
    write = next(write for source, write in _WRITERS.items() if getattr(data_set, source))
    write(data_set, raw, ready)
    for folder, task in data_set.tasks.items():
        if task.labels:
            write_labels(ready / folder, task)


def write_labels(folder: Path, task: LabelTask) -> None:
    """`labels.txt`: one label a line, line number = id."""
    write_text(folder / "labels.txt", "".join(f"{label}\n" for label in task.labels))


# --- rows of texts and labels ---------------------------------------------------------------------------------------


def write_splits(data_set: DataSet, raw: Path, ready: Path) -> None:
    """A file a split, for each of the data set's tasks."""
    layout = data_set.layout
    for split in data_set.splits:
        rows = read_split(data_set, split, raw)
        for folder in data_set.tasks:
            lines = [layout.header] if layout.header else []
            lines += [written(data_set, folder, row) for row in rows]
            write_text(ready / folder / f"{split}.{layout.ending}", "".join(f"{line}\n" for line in lines))


def read_split(data_set: DataSet, split: str, raw: Path) -> list[Row]:
    """Rows of one split, checked in number; a tab or line break in a text becomes a space.

    Returns:
        The rows, their labels as tuples of the source's names.
    """
    files = data_set.splits[split]
    paths = sorted(raw.glob(files.pattern))
    rows = [row for path in paths for row in read_rows(path, is_gold=lambda cell: False, labels_required=True)]
    where = f"{data_set.name}: {', '.join(path.relative_to(raw).as_posix() for path in paths)}"
    if len(rows) != files.rows:
        raise UserError(f"{where}: found {len(rows):,} rows, expected {files.rows:,}")
    cleaned = list(cleaned_rows(data_set, where, rows))
    broken = sum(new.text != old.text for new, old in zip(cleaned, rows, strict=True))
    note = f"; in {broken:,} texts a tab or line break became a space" if broken else ""
    print(f"{data_set.name}: {split} has {len(rows):,} rows{note}")
    return cleaned


def cleaned_rows(data_set: DataSet, where: str, rows: list[Row]) -> Iterator[Row]:
    """Each row with a text of one line and its labels by name."""
    for row in rows:
        if row.problem or not isinstance(row.text, str):
            raise UserError(f"{where}: row {row.line}: {row.problem or f'its text is {row.text!r}'}")
        if row.id is None and "{id}" in data_set.layout.line:
            raise UserError(f"{where}: row {row.line} has no id")
        several = isinstance(row.label, list) and first_task(data_set).kind == "multi_label"
        numbers, names = (row.label, row.name) if several else ([row.label], [row.name])
        names = names or [None] * len(numbers)
        labels = tuple(label_of(data_set, number, name) for number, name in zip(numbers, names, strict=True))
        yield row._replace(text=re.sub(r"[\t\r\n]+", " ", row.text), label=labels)


def first_task(data_set: DataSet) -> LabelTask:
    """The task whose labels are those of the source."""
    return next(iter(data_set.tasks.values()))


def label_of(data_set: DataSet, number: Any, name: str | None) -> str:
    """The label that has this id in the source; `name` is what the source calls it, where it says so.

    Raises:
        UserError: there is no such id, or the source gives it to another label.
    """
    task = first_task(data_set)
    labels = task.published_order or task.labels
    id = int(number) if str(number).isascii() and str(number).isdigit() and len(str(number)) < 9 else -1
    if id not in range(len(labels)):
        raise UserError(
            f"{data_set.name}: a row has label {one_line(repr(number), 60)}, expected 0 to {len(labels) - 1}"
        )
    if name != labels[id] and name in labels:
        raise UserError(f"{data_set.name}: its id {id} is {name!r}, expected {labels[id]!r}")
    return labels[id]


def written(data_set: DataSet, folder: str, row: Row) -> str:
    """A row's line in the files of the task in `folder`."""
    task, coarser = data_set.tasks[folder], data_set.coarser.get(folder, {})
    labels = sorted({coarser.get(label, label) for label in row.label}, key=task.ids.__getitem__)
    ids = ",".join(str(task.ids[label]) for label in labels)
    return data_set.layout.line.format(text=row.text, label=",".join(labels), label_id=ids, id=row.id)


# --- a file of negative texts, and one of positive ones -------------------------------------------------------------


def write_reviews(data_set: DataSet, raw: Path, ready: Path) -> None:
    """`{train,dev,test}.jsonl`: 80, 10 and 10 % of each label, shuffled with a fixed seed.

    Each text is kept once, so that none is in two splits (nearly every one of chn-reviews stands there twice); one
    that has both labels is dropped. Three out of four texts of chn-reviews are sentences of ChnSentiCorp, of all its
    splits: do not train on these and test on those.
    """
    labels_of = read_reviews(data_set, raw)
    order = random.Random(0)
    splits: dict[str, list[dict]] = {"dev": [], "test": [], "train": []}
    for label in (0, 1):
        rows = [{"text": text, "label": label} for text, labels in labels_of.items() if labels == {label}]
        order.shuffle(rows)
        tenth = len(rows) // 10
        for split, part in zip(splits, (rows[:tenth], rows[tenth : 2 * tenth], rows[2 * tenth :]), strict=True):
            splits[split] += part
    for split, rows in splits.items():
        order.shuffle(rows)
        write_json_lines(ready / f"{split}.jsonl", rows)
        positive = sum(row["label"] for row in rows)
        print(f"{data_set.name}: {split} has {len(rows):,} rows, {positive:,} of them positive")


def read_reviews(data_set: DataSet, raw: Path) -> dict[str, set[int]]:
    """Each text -> the labels it has: 0 negative, 1 positive."""
    labels_of: dict[str, set[int]] = {}
    for label, file in enumerate(data_set.reviews):
        lines = (raw / file.pattern).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if len(lines) != file.rows:
            raise UserError(f"{data_set.name}: {file.pattern}: found {len(lines):,} lines, expected {file.rows:,}")
        for line in lines:
            labels_of.setdefault(line.strip(), set()).add(label)
    labels_of.pop("", None)
    both = sum(len(labels) > 1 for labels in labels_of.values())
    lines_in_all = sum(file.rows for file in data_set.reviews)
    print(f"{data_set.name}: {lines_in_all:,} lines hold {len(labels_of):,} different reviews", end="; ")
    print(f"{both} of them have both labels and are dropped")
    return labels_of


# --- counselling cases ----------------------------------------------------------------------------------------------


def write_cases(data_set: DataSet, raw: Path, ready: Path) -> None:
    """Files of cases as they are, once each of their rows has been read."""
    for name, files in data_set.cases.items():
        path = raw / files.pattern
        count = sum(1 for _ in read_cases(path, data_set.name))
        if count != files.rows:
            raise UserError(f"{data_set.name}: {files.pattern}: found {count:,} cases, expected {files.rows:,}")
        shutil.copyfile(path, ready / name)
        print(f"{data_set.name}: {name} has {count:,} cases")


def write_questions(data_set: DataSet, raw: Path, ready: Path) -> None:
    """Questions and their answers as cases; see data/summaries/psyqa.py."""
    psyqa.write_cases(raw / data_set.questions, ready, data_set.name)


# what a data set has at its source -> what writes it
_WRITERS = {"splits": write_splits, "reviews": write_reviews, "cases": write_cases, "questions": write_questions}
