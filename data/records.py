"""JSON, JSON Lines and Parquet -> rows, their columns found by name. (no torch)

A label column may hold ids only while the file itself says what they are called: in a column of names beside it, or in
the schema that the library datasets writes into a Parquet file. Rows then carry both, and the names count.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Any, NamedTuple

from data.arguments import UserError, one_line
from data.text_files import Lines, begin_of, lines_of

TEXT_COLUMNS = ("text", "text_a", "sentence", "content", "review", "comment", "question")
LABEL_COLUMNS = ("label", "labels", "emotion", "emotions", "sentiment", "category", "class")
NAME_COLUMNS = ("label_text", "label_name", "label_names", "emotion_name", "class_name", "category_name")
ID_COLUMNS = ("id", "comment_id", "comment id", "idx", "index")
RATIONALE_COLUMNS = ("rationale", "reasoning", "explanation")
_COLUMNS = {
    "text": TEXT_COLUMNS, "label": LABEL_COLUMNS, "name": NAME_COLUMNS, "id": ID_COLUMNS,
    "rationale": RATIONALE_COLUMNS,
}  # fmt: skip


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


class Written(str):
    """A number of a JSON file, spelt as it is there: 1.10 is no other label than "1.10", and may have any length."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class _NoRecord(str):
    """Why there is no record, in its place."""


# --- columns by name ------------------------------------------------------------------------------------------------


def find_columns(header: Sequence[str]) -> dict[str, str]:
    """Which column holds what: `["Review", "label"]` -> `{"text": "Review", "label": "label"}`.

    Names of labels without ids beside them are the labels.
    """
    folded = {name.strip().casefold(): name for name in header}
    found = {
        field: folded[next(name for name in names if name in folded)]
        for field, names in _COLUMNS.items()
        if any(name in folded for name in names)
    }
    if "name" in found and "label" not in found:
        found["label"] = found.pop("name")
    return found


def check_columns(path: Path, line: int, names: dict[str, str], header: Sequence[str], labels_required: bool) -> None:
    """Raise a `UserError` where `header` lacks a column that is needed, or has one of those it needs twice."""
    for field, known in (("text", TEXT_COLUMNS), ("label", LABEL_COLUMNS)):
        if field not in names and (field == "text" or labels_required):
            there = one_line(", ".join(map(repr, header[:100])))
            raise UserError(f"{path}:{line}: no {field} column among {there}; known names are {', '.join(known)}")
    counts = Counter(name.strip().casefold() for name in header)
    for name in names.values():
        if counts[name.strip().casefold()] > 1:
            raise UserError(f"{path}:{line}: the column {name!r} stands there twice (upper and lower case are one)")


# --- JSON -----------------------------------------------------------------------------------------------------------


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _NoRecord:
    record = dict(pairs)
    if len(record) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        return _NoRecord(f"the key {one_line(repr(twice), 60)} stands there twice")
    return record


def _constant(name: str) -> Written | None:
    return None if name == "NaN" else Written(name)  # NaN is how pandas and NumPy say "nothing there"


_DECODER = JSONDecoder(object_pairs_hook=_object, parse_int=Written, parse_float=Written, parse_constant=_constant)


def is_json(path: Path, first: str, is_table: bool) -> bool:
    """Whether a file is JSON, by its first line.

    Args:
        path: the file.
        first: its first line with a word in it.
        is_table: its name ends as that of a table; a text may begin with "[" or "{" there.
    """
    if not is_table:
        return first.lstrip()[0] in "[{"
    if re.match(r"\s*\[\s*\{\s*\"", first):
        return True
    if first.strip() == "[":
        return next((line for _, line in lines_of(path) if line.strip() != "["), "").lstrip().startswith("{")
    try:
        return first.lstrip()[0] == "{" and isinstance(_DECODER.decode(first), dict)
    except (ValueError, RecursionError):
        return False


def json_rows(path: Path, first: str, lines: Lines, labels_required: bool) -> Iterator[Row]:
    """Rows of a JSON list, or of JSON Lines; `first` is the first of the lines."""
    records = _list_records(path) if first.lstrip()[0] == "[" else _line_records(lines)
    return _named_rows(path, records, labels_required)


def json_objects(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """The objects of a JSON list, or of JSON Lines, whatever their keys: numbers are `Written` there.

    Yields:
        Line number (in a list: the object's number, 1 = first), and the object, or why there is none.

    Raises:
        UserError: the file is empty, of another kind, not UTF-8, or a list that is not whole.
    """
    is_table = begin_of(path).startswith(b"PAR1")
    first = "" if is_table else next((line for _, line in lines_of(path)), None)
    if first is None:
        raise UserError(f"{path}: the file is empty")
    if first.lstrip()[:1] not in ("[", "{"):
        raise UserError(f"{path}: is no JSON; expected an object a line, or a list of objects")
    for number, record in _list_records(path) if first.lstrip()[0] == "[" else _line_records(lines_of(path)):
        yield number, record if isinstance(record, dict | _NoRecord) else "not an object with named values"


def json_object(text: str) -> dict[str, Any] | str:
    """The JSON object that `text` is, or why it is none; see `json_objects`."""
    try:
        record = _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({one_line(error, 100)})"
    return record if isinstance(record, dict | _NoRecord) else "not an object with named values"


def _list_records(path: Path) -> Iterable[tuple[int, Any]]:
    try:
        return enumerate(_DECODER.decode("".join(line for _, line in lines_of(path, blank=True))), start=1)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{getattr(error, 'lineno', 1)}: not JSON ({error})") from error


def _line_records(lines: Lines) -> Iterator[tuple[int, Any]]:
    for number, line in lines:
        try:
            yield number, _DECODER.decode(line)
        except (ValueError, RecursionError) as error:
            reason = f"{error.msg} at character {error.pos + 1}" if isinstance(error, JSONDecodeError) else error
            yield number, _NoRecord(f"not JSON ({reason}); expected an object a line, or a list of objects")


def _named_rows(path: Path, records: Iterable[tuple[int, Any]], labels_required: bool) -> Iterator[Row]:
    """Rows from objects, by the names of their values."""
    names_of: dict[tuple[str, ...], dict[str, str]] = {}  # records of one file mostly have the same keys
    for number, record in records:
        if not isinstance(record, dict):
            problem = str(record) if isinstance(record, _NoRecord) else "not an object with named values"
            yield Row(number, None, problem=problem)
            continue
        header = tuple(record)
        if header not in names_of:
            names_of[header] = find_columns(header)
            check_columns(path, number, names_of[header], header, labels_required)
        names = names_of[header]
        row = Row(number, **{field: record[name] for field, name in names.items()})
        yield row._replace(name="") if "name" in names and row.name is None else row


# --- Parquet --------------------------------------------------------------------------------------------------------


def parquet_rows(path: Path, labels_required: bool) -> Iterator[Row]:
    """Rows of a Parquet file. Of its other columns nothing is read.

    Raises:
        UserError: the file is damaged, or a value in it cannot be what its column says.
    """
    import pyarrow
    import pyarrow.parquet

    unreadable = (pyarrow.ArrowException, OSError, ValueError, OverflowError, TypeError, KeyError)
    try:
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        header, schema = file.schema_arrow.names, file.schema_arrow
    except unreadable as error:
        raise UserError(f"{path}: not a whole Parquet file ({one_line(error)})") from error
    names = find_columns(header)
    check_columns(path, 1, names, header, labels_required)
    class_names = _class_names(schema.metadata, names.get("label"))
    begin = 1
    try:
        for batch in file.iter_batches(columns=list(names.values())):
            columns = {field: _values(path, begin, name, batch.column(name)) for field, name in names.items()}
            for number, values in enumerate(zip(*columns.values(), strict=True), start=begin):
                row = Row(number, **dict(zip(columns, values, strict=True)))
                if "name" in names:
                    row = row._replace(name="") if row.name is None else row
                elif class_names is not None:
                    row = _with_class_names(row, class_names)
                yield row
            begin += len(batch)
    except unreadable as error:
        raise UserError(f"{path}: not a whole Parquet file ({one_line(error)})") from error


def _values(path: Path, begin: int, name: str, column) -> list[Any]:
    """A column's values in Python; `begin` is the number of its first row."""
    try:
        return column.to_pylist()
    except Exception:  # whatever a value can fail with: below, it is named, or raised again
        for number, value in enumerate(column, start=begin):
            try:
                value.as_py()
            except (ValueError, OverflowError) as error:
                raise UserError(f"{path}:{number}: column {name!r} cannot be read ({one_line(error)})") from error
        raise


def _class_names(metadata: dict[bytes, bytes] | None, column: str | None) -> list[str] | None:
    """What the library datasets has noted of a column's ids, in their order; None where it has noted nothing."""
    try:
        feature = json.loads(metadata[b"huggingface"])["info"]["features"][column]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    while isinstance(feature, (dict, list)) and "names" not in feature:  # a list of ids
        feature = feature.get("feature") if isinstance(feature, dict) else next(iter(feature), None)
    names = feature["names"] if isinstance(feature, dict) else None
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _with_class_names(row: Row, class_names: list[str]) -> Row:
    several = isinstance(row.label, list)
    ids = row.label if several else [row.label]
    if row.label is None or not all(isinstance(id, int) for id in ids):
        return row
    for id in ids:
        if id not in range(len(class_names)):
            known = f"the file itself names ids 0 to {len(class_names) - 1}"
            return Row(row.line, row.text, problem=f"label id {id}: {known}")
    names = [class_names[id] for id in ids]
    return row._replace(name=names if several else names[0])
