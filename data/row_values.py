"""One value of a row: whether it is there, a text that can be read, an id; and what is said of a bad row. (no torch)"""

from pathlib import Path
from typing import Any

from data.arguments import one_line

MOST_CHARACTERS = 10_000_000  # of a text; a tokenizer takes a gigabyte or so for them
# spaces, and what takes no ink: zero widths, marks of direction, fillers, selectors of variants, control characters
_INVISIBLE = "".join(map(chr, (
    *range(0x21), *range(0x7F, 0xA1), 0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, *range(0x180B, 0x180F),
    *range(0x2000, 0x2010), *range(0x2028, 0x2030), *range(0x205F, 0x2070), 0x2800, 0x3000, 0x3164,
    *range(0xFE00, 0xFE10), 0xFEFF, 0xFFA0,
)))  # fmt: skip


class RowError(Exception):
    """What is wrong with one row; the loader adds file and line."""


def missing(value: Any) -> bool:
    """Whether there is no value: none, or NaN, which pandas puts in its place."""
    return value is None or value != value


def shown(value: Any) -> str:
    """A value in an error line."""
    try:
        return one_line(repr(value), 60)
    except RecursionError:
        return f"a {type(value).__name__}"


def checked_text(name: str, value: Any) -> str:
    """`value` without the spaces around it; "" where nothing else is in it.

    Raises:
        RowError: it is no text, is longer than any model reads, or holds half a character or a zero byte; calls it
            `name`.
    """
    if type(value) is not str:  # a number of a JSON file is a `Written`
        raise RowError(f"empty {name}" if value is None else f"{name} is {shown(value)}, where words are expected")
    if len(value) > MOST_CHARACTERS:
        raise RowError(f"{name} has {len(value):,} characters, at most {MOST_CHARACTERS:,} are read")
    if not value.isprintable():
        _check_characters(name, value)
    return value.strip()


def seen_text(name: str, value: Any) -> str:
    """`value` as `checked_text` has it, with something in it that can be seen.

    Raises:
        RowError: there is nothing, or see `checked_text`.
    """
    text = checked_text(name, value)
    if not text.strip(_INVISIBLE):
        raise RowError(f"empty {name}: nothing in it can be seen" if text else f"empty {name}")
    return text


def checked_id(value: Any) -> str:
    """An id as a text.

    Raises:
        RowError: it is neither a word nor a number, or holds half a character or a zero byte.
    """
    if not isinstance(value, (str, int, float)):
        raise RowError(f"id is {shown(value)}, where a number or a word is expected")
    _check_characters("id", str(value))
    return str(value)


def _check_characters(name: str, value: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise RowError(f"the {name} holds half a character (a lone surrogate)")
    if "\0" in value:
        raise RowError(f"the {name} holds a zero byte")


def rejection(path: Path, line: int, error: RowError, text: Any) -> dict[str, Any]:
    """A bad row in rejected.jsonl: file, line, error, and its text where it is one."""
    found = {"file": str(path), "line": line, "error": str(error), "text": text if isinstance(text, str) else ""}
    return {name: _writable(value) for name, value in found.items()}


def _writable(value: Any) -> Any:
    """`value`, what UTF-8 has not spelt out: half a character, or a byte of a file's name."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
