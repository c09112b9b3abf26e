"""Files -> rows, by looking at the file: JSON, JSON Lines, Parquet, TSV, CSV, `text;label`. (no torch)

Columns are found by name. A table without a header must be in one of the layouts `text, label[, id]` or `label, text`.
Rows come one by one, so a file may be larger than memory; only a JSON list is read whole.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from data.arguments import UserError

TEXT_COLUMNS = ("text", "text_a", "sentence", "content", "review", "comment", "question")
LABEL_COLUMNS = ("label", "labels", "emotion", "emotions", "sentiment", "category", "class")
ID_COLUMNS = ("id", "comment_id", "comment id", "idx", "index")
RATIONALE_COLUMNS = ("rationale", "reasoning", "explanation")
_ROWS_LOOKED_AT = 200  # to tell the label column of a file without a header
_TABLE_SUFFIXES = (".tsv", ".csv", ".txt")  # a comment may begin with "[" without being JSON
_Lines = Iterator[tuple[int, str]]  # line number and line, without its end; blank ones are left out
_Table = Iterator[tuple[int, list[str]]]  # line number and cells of each row
_IsGold = Callable[[str], bool]  # whether a cell could be the gold of the task at hand


@dataclass(frozen=True)
class Row:
    """One row as it was found: line number (1 = first), its values under canonical names, or why it is none."""

    line: int
    text: Any
    label: Any = None
    id: Any = None
    rationale: Any = None
    problem: str | None = None


class _NotJson(str):
    """Why a line is no JSON, in the place of its record."""


def read_rows(path: Path, is_gold: _IsGold, labels_required: bool, header_allowed: bool = True) -> Iterator[Row]:
    """Read a data file.

    Args:
        path: the file.
        is_gold: tells the label column of a table without a header.
        labels_required: False also takes files with a text column only.
        header_allowed: False refuses a table that has one.

    Raises:
        UserError: the file is empty, not UTF-8, broken, or has no text (or label) column.
    """
    with path.open("rb") as file:
        begin = file.read(4)
    if begin == b"PAR1":
        return _parquet_rows(path, labels_required)
    lines = _lines(path)
    first = next(lines, None)
    if first is None:
        raise UserError(f"{path}: the file is empty")
    lines = chain([first], lines)
    begin_of_text = first[1].lstrip()[0]
    if path.suffix.lower() in _TABLE_SUFFIXES or begin_of_text not in "[{":
        return _table_rows(path, first[1], lines, is_gold, labels_required, header_allowed)
    return (_json_rows if begin_of_text == "[" else _json_lines_rows)(path, lines, labels_required)


def _lines(path: Path, blank: bool = False) -> _Lines:
    """The lines of a UTF-8 file; with `blank` also those without a word, and each with its end."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
                ) from error
            if blank:
                yield number, line
            elif line.strip():
                yield number, line.rstrip("\n").rstrip("\r")


def _parquet_rows(path: Path, labels_required: bool) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    def records() -> Iterator[dict]:
        try:
            for batch in table.iter_batches():
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})") from error

    try:
        table = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a whole Parquet file ({str(error).splitlines()[0]})") from error
    return _named_rows(path, enumerate(records(), start=1), table.schema_arrow.names, labels_required)


def _json_rows(path: Path, lines: _Lines, labels_required: bool) -> Iterator[Row]:
    try:
        records = json.loads("".join(line for _, line in _lines(path, blank=True)))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{getattr(error, 'lineno', 1)}: not JSON ({error})") from error
    return _named_rows(path, enumerate(records, start=1), None, labels_required)


def _json_lines_rows(path: Path, lines: _Lines, labels_required: bool) -> Iterator[Row]:
    def records() -> Iterator[tuple[int, Any]]:
        for number, line in lines:
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, _NotJson(f"not JSON ({error}); expected an object a line, or a list of objects")

    return _named_rows(path, records(), None, labels_required)


def _named_rows(
    path: Path, records: Iterable[tuple[int, Any]], columns: Sequence[str] | None, labels_required: bool
) -> Iterator[Row]:
    """Rows from mappings, by the names of their values."""
    names_of: dict[tuple[str, ...], dict[str, str]] = {}  # records of one file mostly have the same keys
    for number, record in records:
        if not isinstance(record, dict):
            problem = str(record) if isinstance(record, _NotJson) else "not an object with named values"
            yield Row(number, None, problem=problem)
            continue
        header = tuple(columns or record)
        if header not in names_of:
            names_of[header] = _find_columns(header)
            _require_columns(path, number, names_of[header], header, labels_required)
        names = names_of[header]
        yield Row(number, **{field: record.get(name) for field, name in names.items()})


def _find_columns(header: Sequence[str]) -> dict[str, str]:
    """Which column holds what: `["Review", "label"]` -> `{"text": "Review", "label": "label"}`."""
    folded = {name.strip().casefold(): name for name in header}
    wanted = {"text": TEXT_COLUMNS, "label": LABEL_COLUMNS, "id": ID_COLUMNS, "rationale": RATIONALE_COLUMNS}
    return {
        field: folded[next(name for name in names if name in folded)]
        for field, names in wanted.items()
        if any(name in folded for name in names)
    }


def _require_columns(path: Path, line: int, names: dict, header: Sequence[str], labels_required: bool) -> None:
    for field, known in (("text", TEXT_COLUMNS), ("label", LABEL_COLUMNS)):
        if field not in names and (field == "text" or labels_required):
            raise UserError(
                f"{path}:{line}: no {field} column among {', '.join(map(repr, header))}; "
                f"known names are {', '.join(known)}"
            )


def _table_rows(
    path: Path, first: str, lines: _Lines, is_gold: _IsGold, labels_required: bool, header_allowed: bool
) -> Iterator[Row]:
    rows = _split(path, first, lines, is_gold if not labels_required else None)
    looked_at = list(islice(rows, _ROWS_LOOKED_AT))
    rows = chain(looked_at, rows)
    header = _find_columns(looked_at[0][1])
    if "text" in header and ("label" in header or not labels_required):
        if not header_allowed and "label" in header:
            raise UserError(
                f"{path}:1: a header ({', '.join(looked_at[0][1])}), but the GoEmotions layout has none: "
                "text<TAB>id[,id]<TAB>comment id from the first line on"
            )
        return _header_rows(rows, header)
    if not labels_required and all(len(cells) == 1 for _, cells in looked_at):
        return _sentence_rows(rows)
    return _headerless_rows(path, looked_at, rows, is_gold)


def _split(path: Path, first: str, lines: _Lines, is_gold: _IsGold | None) -> _Table:
    """Line number and cells of each row, by the separator the first line has: TAB, else `;` or `,`.

    With `is_gold`, a `;` separates only if what stands behind it is gold: the file may be plain sentences.
    """
    if "\t" in first:  # quotes mean nothing in a TSV: GoEmotions has thousands of them
        return ((number, line.split("\t")) for number, line in lines)
    behind = first.rpartition(";")[2]
    if (
        path.suffix.lower() != ".csv" and ";" in first and (is_gold is None or is_gold(behind))
    ):  # text;label: the last semicolon is the one that counts
        return ((number, line.rsplit(";", 1)) for number, line in lines)
    if path.suffix.lower() == ".csv":
        csv.field_size_limit(2**31 - 1)  # a text may be long
        separator = ";" if first.count(";") > first.count(",") else ","
        reader = csv.reader((line for _, line in _lines(path, blank=True)), delimiter=separator, strict=True)
        return _csv_rows(path, reader)
    return ((number, [line]) for number, line in lines)


def _csv_rows(path: Path, reader) -> _Table:
    begin = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield begin, cells
            begin = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not CSV: {error}") from error


def _sentence_rows(rows: _Table) -> Iterator[Row]:
    for line, cells in rows:
        problem = None if len(cells) == 1 else f"{len(cells)} columns, but the rows before it have one"
        yield Row(line, cells[0] if problem is None else None, problem=problem)


def _header_rows(rows: _Table, names: dict[str, str]) -> Iterator[Row]:
    _, header = next(rows)
    places = {field: header.index(name) for field, name in names.items()}
    for line, cells in rows:
        if len(cells) != len(header):
            yield Row(line, None, problem=f"{len(cells)} columns, but the header has {len(header)}")
        else:
            yield Row(line, **{field: cells[place] for field, place in places.items()})


def _headerless_rows(
    path: Path, looked_at: list[tuple[int, list[str]]], rows: _Table, is_gold: _IsGold
) -> Iterator[Row]:
    """Rows of a table without a header; what is in its columns is told from the first rows, `looked_at`."""
    (line, first), counts = looked_at[0], Counter(len(cells) for _, cells in looked_at)
    width = counts.most_common(1)[0][0]
    if width not in (2, 3):
        raise UserError(
            f"{path}:{line}: {width} columns; expected text, label[, id], or label, text, or a header that names "
            f"a text column ({', '.join(TEXT_COLUMNS)}) and a label column ({', '.join(LABEL_COLUMNS)})"
        )
    fields = _headerless_fields([cells for _, cells in looked_at if len(cells) == width], is_gold)
    label_place = fields.index("label")
    first_fits = len(first) == width and is_gold(first[label_place])
    if len(looked_at) > 1 and not first_fits and _looks_like_header(first):
        raise UserError(
            f"{path}:{line}: looks like a header ({', '.join(first)}), where a first row is expected; "
            f"remove it, or name the columns text and label"
        )
    for line, cells in rows:
        if len(cells) != width:
            yield Row(line, None, problem=f"{len(cells)} columns, but the file has {width}")
        else:
            yield Row(line, **dict(zip(fields, cells, strict=True)))


def _headerless_fields(looked_at: list[list[str]], is_gold: _IsGold) -> tuple[str, ...]:
    """`label, text` when the first column holds labels more often than the second; else `text, label[, id]`."""
    if len(looked_at[0]) == 3:
        return ("text", "label", "id")
    first, second = (sum(is_gold(cells[place]) for cells in looked_at) for place in (0, 1))
    return ("label", "text") if first > second else ("text", "label")


def _looks_like_header(cells: Sequence[str]) -> bool:
    known = {*TEXT_COLUMNS, *LABEL_COLUMNS, *ID_COLUMNS}
    return any(cell.strip().casefold() in known for cell in cells) or all(
        len(cell.split()) <= 2 and not any(c.isdigit() for c in cell) for cell in cells
    )
