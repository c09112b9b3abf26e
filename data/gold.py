"""What stands in a label column -> labels of the task: ids, names, or ids that the file itself names. (no torch)"""

import re
from collections.abc import Callable
from typing import Any

from data.arguments import one_line
from data.columns import Row
from data.row_values import RowError, missing, shown
from data.tasks import Task

_ID = re.compile(r"[+-]?\d+(\.0+)?", re.ASCII)
_NUMBER = re.compile(r"[+\-\u2212]?(\d+[.,]?\d*|[.,]\d+)(e[+-]?\d+)?", re.IGNORECASE)  # a label that is one is no id


class _BareIdError(RowError):
    """An id that may mean another label where it comes from."""


class GoldReader:
    """The labels of a file's rows. A file has few different values: each is read once.

    Raises (all methods):
        RowError: what is there are no labels of the task.
    """

    def __init__(self, task: Task):
        self.task = task
        self._known: dict[Any, tuple[str, ...]] = {}
        self._pairs: dict[
            tuple[str, str], tuple[str, int]
        ] = {}  # ("id", 3) and ("name", joy) -> the other, and its line

    def labels(self, row: Row) -> tuple[str, ...]:
        """The labels of a row. Names that stand beside ids count, whatever these ids are in the task's own order."""
        if row.name is None:
            return self._read(row.label, lambda: _gold(row.label, self.task))
        return self._read((_key(row.label), _key(row.name)), lambda: self._named(row))

    def _read(self, value: Any, read: Callable[[], tuple[str, ...]]) -> tuple[str, ...]:
        key = _key(value)
        try:
            labels = self._known.get(key)
        except TypeError:  # an object, or a list of lists, is no key
            return read()
        if labels is None:
            labels = self._known[key] = read()
        return labels

    def _named(self, row: Row) -> tuple[str, ...]:
        """Labels of a row in a file that has ids and names, as far as this pair of them has not been read before."""
        ids, names = _parts(row.label), _parts(row.name)
        if not ids:
            return _gold(row.name or row.label, self.task)
        if not all(map(_ID.fullmatch, ids)) or all(id in self.task.ids for id in ids):
            return _gold(row.label, self.task)  # names by themselves; those of stars may be numbers
        self._check_pairs(ids, names, row.line)
        spelt = {label.casefold(): label for label in self.task.labels}
        try:
            return _gold([spelt.get(name.casefold(), name) for name in names], self.task)
        except RowError as error:
            raise RowError(f"{error} (what the file itself calls its label {_joined(ids)})") from error

    def _check_pairs(self, ids: list[str], names: list[str], line: int) -> None:
        """An id has one name in a file, and a name one id."""
        if len(ids) != len(names):
            raise RowError(f"label {_joined(ids)} has {len(names)} names ({_joined(names)})")
        for id, name in zip(ids, names, strict=True):
            for side, one, other in (("id", id, name), ("name", name, id)):
                before, first_line = self._pairs.setdefault((side, one), (other, line))
                if before != other:
                    one, other, before = _joined([one]), _joined([other]), _joined([before])
                    raise RowError(f"label {one} is {other} here, but {before} on line {first_line}")


def _key(value: Any) -> Any:
    return tuple(value) if type(value) is list else value


def _parts(value: Any) -> list[str]:
    """`"3,17"`, `[3, 17]` -> `["3", "17"]`; nothing where there is no value that could be split."""
    several = isinstance(value, list)
    values = value if several else [value]
    if not all(isinstance(each, (str, int, float)) and not missing(each) for each in values):
        return []
    return [
        part.strip() for each in values for part in ([str(each)] if several else str(each).split(",")) if part.strip()
    ]


def _joined(values: list[str]) -> str:
    return one_line(", ".join(values), 60)


def is_gold(cell: str, task: Task) -> bool:
    """Whether a cell of a table could be the gold of the task; an empty one tells nothing."""
    if not cell.strip():
        return False
    try:
        _gold(cell, task)
    except _BareIdError:
        return True
    except RowError:
        return False
    return True


def _gold(value: Any, task: Task) -> tuple[str, ...]:
    """`3`, `"3,17"`, `"joy"`, `["joy", 3]` -> labels in the task's order; `[]` and `""`, where it allows none, none."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values or (type(value) is str and not value.strip()):
        if task.allow_none:
            return ()
        raise RowError("no label" + ", which needs --allow_none" * (task.kind == "multi_label"))
    if len(values) == 1 and type(values[0]) is str and task.named(values[0].strip()) is None:
        values = values[0].split(",")
    labels = {_label(v, task) for v in values}
    if len(labels) != len(values):
        raise RowError(f"a label stands twice in {shown(value)}")
    if task.kind == "single_label" and len(labels) > 1:
        raise RowError(f"{len(labels)} labels ({shown(value)}), but task {task.name} takes exactly one")
    return tuple(sorted(labels, key=task.ids.__getitem__))


def _label(value: Any, task: Task) -> str:
    if missing(value) and task.allow_none:
        raise RowError("no label is given; where none applies, write [] or an empty cell")
    if missing(value) or value == "":
        raise RowError("no label")
    if not isinstance(value, (str, int, float)):
        raise RowError(f"label is {shown(value)}, where an id or a name is expected")
    name = str(value).strip()
    if isinstance(value, bool) and task.named(name) is None:
        name = name.lower()  # as JSON writes it
    if (label := task.named(name)) is not None:  # as it is written, before it is read as a number
        return label
    if type(value) is not str:
        name = name.removesuffix(".0")  # Parquet and pandas keep ids with gaps as floats
    if name in task.ids:
        return name
    if not name:
        raise RowError("no label")
    # labels that are numbers themselves ("1" to "5" stars) are read as names only, for ids would be mistaken for them
    if name.isascii() and name.isdigit() and len(name) < 9 and not any(map(_NUMBER.fullmatch, task.labels)):
        return _label_of_id(int(name), task)
    raise RowError(f"label {shown(name)} is not in the label set of task {task.name}")


def _label_of_id(number: int, task: Task) -> str:
    if number >= len(task.labels):
        raise RowError(f"label id {number}: task {task.name} has ids 0 to {len(task.labels) - 1}")
    if task.published_order:
        raise _BareIdError(
            f"label id {number}: is {task.published_order[number]!r} in the published files of {task.name}, but "
            f"{task.labels[number]!r} in our labels.txt; write labels by name, or name a labels.txt with --label_path"
        )
    return task.labels[number]
