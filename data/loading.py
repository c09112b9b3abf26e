"""Rows -> Examples, validated: every bad row is named by file and line. Then splits and the data report. (no torch)"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data.arguments import UserError, one_line
from data.columns import Row
from data.formats import read_rows
from data.gold import GoldReader, is_gold
from data.labels import NONE, LabelTask, holds_tags
from data.row_values import RowError, checked_id, checked_text, missing, rejection, seen_text
from data.summaries.cases import Case
from data.tasks import Task
from data.text_files import check_readable


@dataclass(frozen=True)
class Example:
    """One text with its gold labels (in the task's order; none where no label applies; None = the file has no gold)."""

    id: str
    text: str
    labels: tuple[str, ...] | None
    rationale: str | None = None

    @property
    def asked(self) -> str:
        """What a model is asked about: its input."""
        return self.text

    @property
    def gold(self) -> tuple[str, ...] | None:
        """What it should answer, if that is known."""
        return self.labels

    @property
    def beginning(self) -> str:
        """What is common to inputs that begin alike."""
        return self.text

    @property
    def strata(self) -> tuple[str, ...]:
        """By what a split is stratified."""
        return self.labels or (NONE,)


TaskRow = Example | Case  # what a task reads: its `asked` is what a model is asked about, its `gold` the right answer


def load_examples(
    path: str | Path,
    task: Task,
    flag: str = "--train_data_path",
    labels_required: bool = True,
    cot: bool = False,
    rejected: list[dict[str, Any]] | None = None,
    most_labels: int | None = None,
) -> list[TaskRow]:
    """Read and check a data file.

    Args:
        path: the file.
        task: whose rows they are. Where it has labels, gold may be ids, names, or lists of either ("3,17", ["joy"], 0);
            where the file says what its ids are called, these names count.
        flag: the flag that named the file, for error messages.
        labels_required: False also takes files without any labels (to predict on).
        cot: every row needs a rationale.
        rejected: where bad rows are put, with file, line and error; None = stop at the first.
        most_labels: that a row may have, since an answer holds no more; None = all.

    Raises:
        UserError: the file or one of its rows is not right.
    """
    before = len(rejected or ())
    examples = list(task.read(path, flag, labels_required, cot, rejected, most_labels))
    if bad := len(rejected or ()) - before:
        print(f"{one_line(path)}: {bad} bad rows skipped")
    return examples


def read_examples(
    path: str | Path, task: LabelTask, flag: str, labels_required: bool = True, cot: bool = False,
    rejected: list[dict[str, Any]] | None = None, most_labels: int | None = None,
) -> Iterator[Example]:  # fmt: skip
    """The rows of a data file one by one; see `load_examples`."""
    path = Path(path)
    check_readable(path, flag)
    labelled: bool | None = None  # as the first row is
    gold = GoldReader(task)
    first_line, bad = 0, 0
    for row in read_rows(path, lambda cell: is_gold(cell, task), labels_required, task.header_allowed, task.labels):
        try:
            example = _example(row, gold, labels_required, cot, most_labels)
        except RowError as error:
            if rejected is None:
                raise UserError(f"{path}:{row.line}: {error}") from error
            rejected.append(rejection(path, row.line, error, row.text))
            bad += 1
            continue
        if labelled is None:
            labelled, first_line = example.labels is not None, row.line
        if labelled != (example.labels is not None):
            line = row.line if labelled else first_line
            raise UserError(f"{path}:{line}: no label, while other rows have one")
        yield example
    if labelled is None:
        raise UserError(f"{flag} {path}: no rows in it" + (f" ({bad} rejected)" if bad else ""))


class ExampleFile:
    """The rows of a file to predict on, read from it anew each time they are gone through.

    Args:
        path, task, flag, rejected: see `load_examples`; the file is checked to its end here.
        limit: the first rows only.
        shard: (i, n), the i-th (from 1) of n parts of like size, which lie one behind the other.

    Attributes:
        labelled: whether the rows have gold.
        total: how many rows there are with those of the other parts.
    """

    def __init__(
        self, path: str | Path, task: Task, flag: str, rejected: list[dict[str, Any]] | None = None,
        limit: int | None = None, shard: tuple[int, int] = (1, 1),
    ):  # fmt: skip
        self._read = lambda bad: task.read(path, flag, labels_required=False, rejected=bad)
        self._skips = rejected is not None
        count = 0
        for count, example in enumerate(self._read(rejected), start=1):
            if count == 1:
                self.labelled = example.gold is not None
        if rejected:
            print(f"{one_line(path)}: {len(rejected)} bad rows skipped")
        count = min(count, limit or count)
        self._begin, self._end = (count * i // shard[1] for i in (shard[0] - 1, shard[0]))
        self.total = count

    def __len__(self) -> int:
        return self._end - self._begin

    @property
    def span(self) -> dict[str, int]:
        """Which of the whole's rows these are."""
        return {"first_row": self._begin + 1, "last_row": self._end, "rows": self.total}

    def __iter__(self) -> Iterator[TaskRow]:
        return islice(self.whole(), self._begin, self._end)

    def whole(self) -> Iterator[TaskRow]:
        """The rows of all parts."""
        return islice(self._read([] if self._skips else None), self.total)


def _example(row: Row, gold: GoldReader, labels_required: bool, cot: bool, most_labels: int | None) -> Example:
    if row.problem:
        raise RowError(row.problem)
    line, text, label, identity, rationale = row[:5]
    text = seen_text("text", text)
    labels = None if not labels_required and missing(label) and not row.name else gold.labels(row)
    rationale = None if missing(rationale) else checked_text("rationale", rationale) or None
    if cot and not rationale:
        raise RowError("no rationale, which --cot needs (a column named rationale)")
    if cot and holds_tags(rationale):
        raise RowError("the rationale holds a tag of those that stand around reasoning and answer")
    if most_labels is not None and labels and len(labels) > most_labels:
        raise RowError(f"{len(labels)} labels, while an answer holds at most {most_labels}")
    return Example(str(line) if missing(identity) else checked_id(identity) or str(line), text, labels, rationale)


# --- split and report -----------------------------------------------------------------------------------------------


def _key(text: str) -> str:
    """Texts that differ in case or spaces only are one."""
    return " ".join(text.casefold().split())


def split_validation(examples: Sequence[TaskRow], ratio: float, seed: int) -> tuple[list[TaskRow], list[TaskRow]]:
    """Split off a share for validation, stratified by each row's rarest label; equal texts stay on one side.

    Returns:
        Training and validation examples, each in the file's order. With few rows a label may miss in validation;
        the last text of which a label is the rarest stays in training.
    """
    frequency = Counter(label for example in examples for label in example.strata)
    rows_of_text, texts_of_label = defaultdict(list), defaultdict(list)
    for i, example in enumerate(examples):
        rows_of_text[_key(example.text)].append(i)
    for key, rows in rows_of_text.items():
        labels = [label for i in rows for label in examples[i].strata]
        texts_of_label[min(labels, key=lambda label: (frequency[label], label))].append(key)
    generator, chosen, owed = random.Random(seed), set(), 0.0
    for label in sorted(texts_of_label):
        keys = texts_of_label[label]
        generator.shuffle(keys)
        owed += len(keys) * ratio  # carried over, so that many small labels still add up to the ratio
        take = min(int(owed + 0.5), len(keys) - 1)
        owed -= take
        chosen.update(i for key in keys[:take] for i in rows_of_text[key])
    train = [example for i, example in enumerate(examples) if i not in chosen]
    return train, [examples[i] for i in sorted(chosen)]


def data_report(
    task: Task, train: Sequence[TaskRow], dev: Sequence[TaskRow], test: Sequence[TaskRow]
) -> dict[str, Any]:
    """Leakage and conflicts: what makes a score look better, or a model worse, than it is.

    Returns:
        Rows of each split, what the task says of the training rows, and rows of dev and test whose text also stands in
        train.
    """
    texts = {_key(row.text) for row in train}
    return {
        "rows": {"train": len(train), "dev": len(dev), "test": len(test)},
        **task.data_report(train),
        "dev_rows_also_in_train": sum(_key(row.text) in texts for row in dev),
        "test_rows_also_in_train": sum(_key(row.text) in texts for row in test),
    }


def label_report(train: Sequence[Example]) -> dict[str, Any]:
    """Label counts of training rows, how many have no label or repeat an earlier text, and texts that carry different
    labels."""
    gold_of: dict[str, set] = defaultdict(set)
    for example in train:
        gold_of[_key(example.text)].add(example.labels)
    counts = Counter(label for example in train for label in example.labels)
    return {
        "train_label_counts": dict(counts.most_common()),
        "train_rows_without_a_label": sum(not example.labels for example in train),
        "train_repeated_rows": len(train) - len(gold_of),
        "train_texts_with_different_labels": sum(len(gold) > 1 for gold in gold_of.values()),
    }
