"""Files -> rows, by looking at the file: JSON, JSON Lines, Parquet, TSV, CSV, `text;label`. (no torch)

Columns are found by name. A table without a header must be in one of the layouts `text, label[, id]` or `label, text`.
Rows come one by one, so a file may be larger than memory; only a JSON list is read whole.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

from data.arguments import UserError, one_line
from data.columns import ID_COLUMNS, LABEL_COLUMNS, NAME_COLUMNS, TEXT_COLUMNS, Columns, Labels, Row
from data.records import is_json, json_rows, parquet_rows
from data.text_files import Lines, begin_of, lines_of

_ROWS_LOOKED_AT = 200  # to tell the label column of a file without a header
_TABLE_SUFFIXES = (".tsv", ".csv", ".txt")  # a comment may begin with "[" without being JSON
_KNOWN_COLUMNS = {*TEXT_COLUMNS, *LABEL_COLUMNS, *NAME_COLUMNS, *ID_COLUMNS}
_Table = Iterator[tuple[int, list[str]]]  # line number and cells of each row
_IsGold = Callable[[str], bool]  # whether a cell could be the gold of the task at hand


class _NoCells(list):
    """In the place of a row's cells: why it has none."""

    def __init__(self, problem: str):
        super().__init__()
        self.problem = problem


def read_rows(
    path: Path, is_gold: _IsGold, labels_required: bool, header_allowed: bool = True, labels: Labels = ()
) -> Iterator[Row]:
    """Read a data file.

    Args:
        path: the file.
        is_gold: tells the label column of a table without a header.
        labels_required: False also takes files with a text column only.
        header_allowed: False refuses a table that has one with a label column.
        labels: those of the task, which may be columns (`Columns`).

    Raises:
        UserError: the file is empty, not UTF-8, broken, or has no text (or label) column, or labels in two ways.
    """
    if begin_of(path).startswith(b"PAR1"):
        return parquet_rows(path, labels_required, labels)
    lines = lines_of(path)
    looked_at = list(islice(lines, _ROWS_LOOKED_AT))
    if not looked_at:
        raise UserError(f"{path}: the file is empty")
    lines, first = chain(looked_at, lines), looked_at[0][1]
    if is_json(path, first, path.suffix.lower() in _TABLE_SUFFIXES):
        return json_rows(path, first, lines, labels_required, labels)
    table = _split(path, [line for _, line in looked_at], lines, is_gold, labels_required)
    return _table_rows(path, table, is_gold, labels_required, header_allowed, labels)


# --- lines to cells -------------------------------------------------------------------------------------------------


def _split(path: Path, looked_at: list[str], lines: Lines, is_gold: _IsGold, labels_required: bool) -> _Table:
    """Line number and cells of each row, by the separator the first line has: TAB, else `;` or `,`.

    Where no labels are needed, `;` separates only if gold stands behind it in half of the lines: others are sentences.
    """
    first = looked_at[0]
    if "\t" in first:
        return _split_rows(lines, [line.split("\t") for line in looked_at], "\t")
    if path.suffix.lower() == ".csv":
        return _csv_rows(path, first)
    gold = sum(is_gold(line.rpartition(";")[2]) for line in looked_at if ";" in line)
    if (labels_required and ";" in first) or 2 * gold >= len(looked_at):
        # text;label: the last semicolon is the one that counts
        return _split_rows(lines, [line.rsplit(";", 1) for line in looked_at], ";")
    return _split_rows(lines, [[line] for line in looked_at], "")


def _split_rows(lines: Lines, looked_at: list[list[str]], separator: str) -> _Table:
    """Cells of each line; a quote is a character like others, unless the file's cells are quoted as CSV quotes them.

    The published files of GoEmotions are so: each of their cells with a quote in it is like `"He said ""hi"" to me"`.
    """
    quoted = _are_quoted(looked_at, separator)
    for number, line in lines:
        cells = line.split("\t") if separator == "\t" else line.rsplit(separator, 1) if separator else [line]
        if quoted is not False and '"' in line:
            quoted = _are_quoted([cells], separator) if quoted is None else True
            cells = _unquoted(cells) if quoted else cells
        if "\r" in line:
            cells = _NoCells("a carriage return inside the line; a line must end with a line feed")
        elif not separator and "\t" in line:
            cells = _NoCells("a tab in the line, while the first line has none")
        yield number, cells


def _are_quoted(rows: list[list[str]], separator: str) -> bool | None:
    """Whether these rows are quoted as CSV quotes them; None where no quote is in them.

    They are if all cells with a quote in it could be, and one can be nothing else, or none is without.
    """
    with_quotes = [cell for cells in rows for cell in cells if '"' in cell]
    if not with_quotes:
        return None
    if not all(map(_is_quoted, with_quotes)):
        return False
    if any('"' in cell[1:-1] or (separator and separator in cell) for cell in with_quotes):
        return True
    return len(rows) > 1 and all('"' in "".join(cells) for cells in rows[1:])  # the first may be a header


def _is_quoted(cell: str) -> bool:
    return len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")


def _unquoted(cells: list[str]) -> list[str]:
    if not all(_is_quoted(cell) for cell in cells if '"' in cell):
        return _NoCells("quotes that are not doubled, or a cell of several lines, where others are quoted as in CSV")
    return [cell[1:-1].replace('""', '"') if cell[:1] == '"' else cell for cell in cells]


def _csv_rows(path: Path, first: str) -> _Table:
    csv.field_size_limit(2**31 - 1)  # a text may be long
    unquoted = re.sub('"[^"]*"', "", first)
    separator = ";" if unquoted.count(";") > unquoted.count(",") else ","
    lines = (line for _, line in lines_of(path, blank=True))
    reader = csv.reader(lines, delimiter=separator, strict=True, skipinitialspace=True)
    begin = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield begin, cells
            begin = reader.line_num + 1
    except csv.Error as error:
        reason = "a carriage return inside the line" if "new-line character" in str(error) else error
        raise UserError(f"{path}:{reader.line_num}: not CSV: {reason}") from error


# --- cells to rows --------------------------------------------------------------------------------------------------


def _table_rows(
    path: Path, table: _Table, is_gold: _IsGold, labels_required: bool, header_allowed: bool, labels: Labels
) -> Iterator[Row]:
    looked_at = list(islice(table, _ROWS_LOOKED_AT))
    rows = chain(looked_at, table)
    whole = [(line, cells) for line, cells in looked_at if not isinstance(cells, _NoCells)]
    if not whole:
        raise UserError(_nothing_in(path, looked_at))
    line, first = whole[0]
    columns = Columns(first, labels)
    if "text" in columns.names and (columns.has_labels or columns.is_incomplete or not labels_required):
        columns.check(path, line, labels_required)
        if not header_allowed and "label" in columns.names:
            raise UserError(
                f"{path}:{line}: a header ({one_line(', '.join(first))}), but the GoEmotions layout has none: "
                "text<TAB>id[,id]<TAB>comment id from the first line on"
            )
        return _header_rows(rows, line, columns)
    if not labels_required and all(len(cells) == 1 for _, cells in whole):
        _check_no_header(path, line, [cells[0] for _, cells in whole])
        return _sentence_rows(rows)
    return _headerless_rows(path, whole, rows, is_gold)


def _nothing_in(path: Path, looked_at: list[tuple[int, list[str]]]) -> str:
    return next((f"{path}:{line}: {cells.problem}" for line, cells in looked_at), f"{path}: no rows in it")


def _check_no_header(path: Path, line: int, sentences: list[str]) -> None:
    """Raise a `UserError` where the first of the sentences is a column's name rather than one of them.

    One word in small letters, or with `_` in it, is taken for a name where no other sentence is one word.
    """
    first, others = sentences[0].strip(), sentences[1:]
    cells = [cell.strip().strip('"').casefold() for cell in re.split("[,;|]", first)]
    is_word = re.compile(r"\w+", re.ASCII).fullmatch
    is_name = is_word(first) and (first.islower() or "_" in first) and others and not any(map(is_word, others))
    if is_name or (len(cells) > 1 and any(cell in _KNOWN_COLUMNS for cell in cells) and all(map(is_word, cells))):
        raise UserError(
            f"{path}:{line}: {one_line(first, 60)!r} looks like a header, but none that is known; name the column of "
            f"texts {', '.join(TEXT_COLUMNS)}; if it is a text, put a line 'text' before it"
        )


def _wrong_width(cells: list[str], expected: str) -> str:
    """Why a row has not the cells that it should have."""
    if isinstance(cells, _NoCells):
        return cells.problem
    hint = "; in such a file, a quoted cell ends on its line" if any(cell[:1] == '"' for cell in cells) else ""
    return f"{len(cells)} columns, but {expected}{hint}"


def _sentence_rows(rows: _Table) -> Iterator[Row]:
    for line, cells in rows:
        if len(cells) == 1:
            yield Row(line, cells[0])
        else:
            yield Row(line, None, problem=_wrong_width(cells, "the rows before it have one"))


def _header_rows(rows: _Table, header_line: int, columns: Columns) -> Iterator[Row]:
    width, places = len(columns.header), [columns.header.index(name) for name in columns.read]
    for line, cells in rows:
        if line == header_line:
            continue
        if len(cells) != width:
            yield Row(line, None, problem=_wrong_width(cells, f"the header has {width}"))
        else:
            yield columns.row(line, [cells[place] for place in places])


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
            f"{path}:{line}: looks like a header ({one_line(', '.join(first))}), where a first row is expected; "
            f"remove it, or name the columns text and label"
        )
    for line, cells in rows:
        if len(cells) != width:
            yield Row(line, None, problem=_wrong_width(cells, f"the file has {width}"))
        else:
            yield Row(line, **dict(zip(fields, cells, strict=True)))


def _headerless_fields(looked_at: list[list[str]], is_gold: _IsGold) -> tuple[str, ...]:
    """`label, text` when the first column holds labels more often than the second; else `text, label[, id]`."""
    if len(looked_at[0]) == 3:
        return ("text", "label", "id")
    first, second = (sum(is_gold(cells[place]) for cells in looked_at) for place in (0, 1))
    return ("label", "text") if first > second else ("text", "label")


def _looks_like_header(cells: Sequence[str]) -> bool:
    return any(cell.strip().casefold() in _KNOWN_COLUMNS for cell in cells) or all(
        len(cell.split()) <= 2 and not any(c.isdigit() for c in cell) for cell in cells
    )
