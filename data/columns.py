"""Which column of a file holds what, found by name, and the row that its values make. (no torch)

A label column may hold ids only while the file itself says what they are called, in a column of names beside it. Rows
then carry both, and the names count. In the place of a label column, a file may have a column for each label of the
task, with 1 where a text has it and 0 where not.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.arguments import UserError, one_line
from data.folding import folded
from data.row_values import shown

TEXT_COLUMNS = ("text", "text_a", "sentence", "content", "review", "comment", "question")
LABEL_COLUMNS = ("label", "labels", "emotion", "emotions", "sentiment", "category", "class")
NAME_COLUMNS = ("label_text", "label_name", "label_names", "emotion_name", "class_name", "category_name")
ID_COLUMNS = ("id", "comment_id", "comment id", "idx", "index")
RATIONALE_COLUMNS = ("rationale", "reasoning", "explanation")
_COLUMNS = {
    "text": TEXT_COLUMNS, "label": LABEL_COLUMNS, "name": NAME_COLUMNS, "id": ID_COLUMNS,
    "rationale": RATIONALE_COLUMNS,
}  # fmt: skip
_MARKS = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}
Labels = Sequence[str]


class Row(NamedTuple):
    """One row as it was found.

    Attributes:
        line: line number, 1 = first; in a Parquet file or a JSON list, the row's number.
        text, label, id, rationale: the values of these columns.
        name: what the file itself calls the id, or ids, in `label`; "" where it does so in other rows only, None where
            it nowhere does.
        problem: why this is no row; the rest then says nothing.
    """

    line: int
    text: Any
    label: Any = None
    id: Any = None
    rationale: Any = None
    name: Any = None
    problem: str | None = None


class Columns:
    """What is in the columns of a file.

    Args:
        header: the columns' names.
        labels: of the task; where each of them is a column, in upper or lower case, and none is a label column, these
            say which a text has.

    Attributes:
        names: field of `Row` -> column: `["Review", "label"]` -> `{"text": "Review", "label": "label"}`. Names of
            labels without ids beside them are the labels.
        of_labels: label -> its column; all of the task's, or nothing.
        read: the columns that are to be read: those of `names`, then those of `of_labels`.
    """

    def __init__(self, header: Sequence[str], labels: Labels = ()):
        self.header = header
        by_name = {folded(name): name for name in header}
        found = {label: by_name[folded(label)] for label in labels if folded(label) in by_name}
        self._found, self._missing = list(found), [label for label in labels if label not in found]
        others = [name for name in header if name not in found.values()]
        complete = bool(found) and not self._missing and "text" in _find(others)
        self.of_labels = found if complete else {}
        self.names = _find(others if complete else header)
        self.read = [*self.names.values(), *self.of_labels.values()]

    @property
    def has_labels(self) -> bool:
        """Whether the file says which labels a text has."""
        return "label" in self.names or bool(self.of_labels)

    @property
    def is_incomplete(self) -> bool:
        """Whether columns are named after labels of the task, but not after each, and nothing else says the labels."""
        several = len(self._found) > 1 or (bool(self._found) and len(self.header) > 3)
        return several and bool(self._missing) and not self.has_labels

    def check(self, path: Path, line: int, labels_required: bool) -> None:
        """Raise a `UserError` where a column is not there that is needed, one stands there twice, or labels do so."""
        there = one_line(", ".join(map(repr, self.header[:100])))
        for field, known in (("text", TEXT_COLUMNS), ("label", LABEL_COLUMNS)):
            if field in self.names or (field == "label" and (self.of_labels or not labels_required)):
                continue
            if field == "label" and self._found:
                missing = one_line(", ".join(map(repr, self._missing[:100])))
                raise UserError(
                    f"{path}:{line}: a column for {self._found[0]!r}, but none for {missing}; a file has one for each "
                    f"label of the task, or a label column ({', '.join(known)})"
                )
            raise UserError(f"{path}:{line}: no {field} column among {there}; known names are {', '.join(known)}")
        if self.of_labels and "label" in self.names:
            raise UserError(
                f"{path}:{line}: a label column ({self.names['label']!r}) and a column for each label; which of them "
                "says what the labels are? Remove the other"
            )
        counts = Counter(map(folded, self.header))
        for name in self.read:
            if counts[folded(name)] > 1:
                raise UserError(f"{path}:{line}: the column {name!r} stands there twice (upper and lower case are one)")

    def row(self, line: int, values: Sequence[Any]) -> Row:
        """The row of these values, which are those of the columns `read`."""
        row = Row(line, **dict(zip(self.names, values[: len(self.names)], strict=True)))
        if "name" in self.names and row.name is None:
            return row._replace(name="")
        return self._with_marks(row, values[len(self.names) :]) if self.of_labels else row

    def _with_marks(self, row: Row, marks: Sequence[Any]) -> Row:
        """`row` with the labels that have a mark."""
        labels = []
        for (label, column), mark in zip(self.of_labels.items(), marks, strict=True):
            has_it = _MARKS.get(str(mark).strip().casefold())
            if has_it is None:
                return row._replace(problem=f"column {column!r} is {shown(mark)}, where 1 or 0 is expected")
            if has_it:
                labels.append(label)
        return row._replace(label=labels)


def _find(header: Sequence[str]) -> dict[str, str]:
    by_name = {name.strip().casefold(): name for name in header}
    found = {
        field: by_name[next(name for name in names if name in by_name)]
        for field, names in _COLUMNS.items()
        if any(name in by_name for name in names)
    }
    if "name" in found and "label" not in found:
        found["label"] = found.pop("name")
    return found
