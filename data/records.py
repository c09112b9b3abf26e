"""JSON, JSON Lines and Parquet -> rows, their columns found by name. (no torch)

Where a label column holds ids only, the schema that the library datasets writes into a Parquet file may say what they
are called; see `Row`.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from json import JSONDecodeError, JSONDecoder
from pathlib import Path
from typing import Any

from data.archives import check_unpacked
from data.arguments import UserError, one_line
from data.columns import Columns, Labels, Row
from data.text_files import Lines, begin_of, lines_of

ROWS_A_BATCH = 4096  # of a Parquet file


class Written(str):
    """A number of a JSON file, spelt as it is there: 1.10 is no other label than "1.10", and may have any length."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class _NoRecord(str):
    """Why there is no record, in its place."""


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


def json_rows(path: Path, first: str, lines: Lines, labels_required: bool, labels: Labels = ()) -> Iterator[Row]:
    """Rows of a JSON list, or of JSON Lines; `first` is the first of the lines. See `data.formats.read_rows`."""
    records = _list_records(path) if first.lstrip()[0] == "[" else _line_records(lines)
    return _named_rows(path, records, labels_required, labels)


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


def _named_rows(path: Path, records: Iterable[tuple[int, Any]], labels_required: bool, labels: Labels) -> Iterator[Row]:
    """Rows from objects, by the names of their values."""
    columns_of: dict[tuple[str, ...], Columns] = {}  # records of one file mostly have the same keys
    for number, record in records:
        if not isinstance(record, dict):
            problem = str(record) if isinstance(record, _NoRecord) else "not an object with named values"
            yield Row(number, None, problem=problem)
            continue
        header = tuple(record)
        if header not in columns_of:
            columns_of[header] = Columns(header, labels)
            columns_of[header].check(path, number, labels_required)
        columns = columns_of[header]
        yield columns.row(number, [record[name] for name in columns.read])


# --- Parquet --------------------------------------------------------------------------------------------------------


def parquet_rows(path: Path, labels_required: bool, labels: Labels = ()) -> Iterator[Row]:
    """Rows of a Parquet file; see `data.formats.read_rows`. Of its other columns nothing is read.

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
    columns = Columns(header, labels)
    columns.check(path, 1, labels_required)
    class_names = None if "name" in columns.names else _class_names(schema.metadata, columns.names.get("label"))
    _check_amount(path, file.metadata, columns.read)
    begin = 1
    try:
        words = [name for name in columns.read if pyarrow.types.is_string(schema.field(name).type)]
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True, read_dictionary=words)
        for batch in file.iter_batches(ROWS_A_BATCH, columns=columns.read):
            values = [_values(path, begin, name, batch.column(name)) for name in columns.read]
            for number, of_row in enumerate(zip(*values, strict=True), start=begin):
                row = columns.row(number, of_row)
                yield row if class_names is None else _with_class_names(row, class_names)
            begin += len(batch)
    except unreadable as error:
        raise UserError(f"{path}: not a whole Parquet file ({one_line(error)})") from error
    if begin - 1 != file.metadata.num_rows:
        raise UserError(
            f"{path}: not a whole Parquet file ({begin - 1:,} of {file.metadata.num_rows:,} rows are there)"
        )


def _check_amount(path: Path, metadata: Any, names: list[str]) -> None:
    """Raise a `UserError` where the columns that will be read unpack to many times what the file has."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    chunks = (group.column(i) for group in groups for i in range(metadata.num_columns))
    size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.partition(".")[0] in names)
    check_unpacked(path, size)


def _values(path: Path, begin: int, name: str, column) -> list[Any]:
    """A column's values in Python; `begin` is the number of its first row."""
    try:
        if hasattr(column, "dictionary"):  # each value once, however often it stands there
            words = column.dictionary.to_pylist()
            return [None if place is None else words[place] for place in column.indices.to_pylist()]
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
