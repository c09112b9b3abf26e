"""A data file before it has rows: whether it can be read, whether it is text, and its lines. (no torch)"""

import re
import stat
from collections.abc import Iterator
from pathlib import Path

from data.arguments import UserError

Lines = Iterator[tuple[int, str]]  # line number (1 = first) and line
LONGEST_LINE = 64 << 20  # bytes; of a file without line feeds, all would be read
_HEAD_BYTES = 4096  # enough to tell what a file is
_KINDS = (
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive, as .xlsx and .docx files are", "unpack it, or export it as CSV"),
    (rb"\x1f\x8b", "a gzip archive", "unpack it"),
    (rb"BZh\d1AY&SY", "a bzip2 archive", "unpack it"),
    (rb"\xfd7zXZ\0", "an xz archive", "unpack it"),
    (rb"\x28\xb5\x2f\xfd", "a Zstandard archive", "unpack it"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an Excel or Word file of the old kind", "export it as CSV"),
    (rb"%PDF-", "a PDF file", "export its text"),
    (rb"SQLite format 3\0", "an SQLite database", "export it as CSV"),
    (rb"ARROW1\0\0|\xff\xff\xff\xff", "an Arrow file", "save it as Parquet"),
    (rb"version https://git-lfs\.", "a pointer of Git LFS, not the file itself", "fetch it with: git lfs pull"),
    (rb"(?i)\s*<(!doctype html|html[\s>])", "a web page", "look into it: a download may have failed"),
    (rb"\xff\xfe|\xfe\xff|\0\0\xfe\xff", "UTF-16 or UTF-32", "save it as UTF-8"),
)


def check_readable(path: Path, flag: str) -> None:
    """Raise a `UserError` naming flag and path where there is no file that can be opened.

    Pipes and devices count as none: they end once, or never, and a data file is read more than once.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            path.open("rb").close()
            return
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"{flag} {path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte, or half a character, in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{flag} {path}: cannot be read ({reason})") from error
    kind = "a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device"
    raise UserError(f"{flag} {path}: is {kind}, where a file is expected")


def begin_of(path: Path) -> bytes:
    """The first 4,096 bytes.

    Raises:
        UserError: they are of no text, and of no Parquet file either; names what the file is.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if head.startswith(b"PAR1"):
        return head
    for pattern, kind, remedy in _KINDS:
        if re.match(pattern, head):
            raise UserError(f"{path}: is {kind}; {remedy}")
    if (zero := head.find(b"\0")) >= 0:
        line = head.count(b"\n", 0, zero) + 1
        raise UserError(f"{path}:{line}: holds zero bytes, so it is UTF-16, or no text; save it as UTF-8")
    return head


def lines_of(path: Path, blank: bool = False) -> Lines:
    """The lines of a UTF-8 file; with `blank` also those without a word, and each with its end.

    Only a line feed ends a line: texts hold other characters that are called line ends (U+2028, U+0085, form feed).

    Raises:
        UserError: a byte that is not UTF-8, or a line that would take the memory.
    """
    with path.open("rb") as file:
        for number, raw in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
            if (
                len(raw) > LONGEST_LINE and raw[:64].lstrip(b"\xef\xbb\xbf \t")[:1] == b"["
            ):  # a JSON list, which is read as a whole
                raw += file.readline()
            elif len(raw) > LONGEST_LINE:
                raise UserError(
                    f"{path}:{number}: is longer than {LONGEST_LINE >> 20} MiB; one row is expected on a line"
                )
            try:
                line = raw.decode()
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
                ) from error
            if line[0] == "\ufeff":  # a byte order mark; inside a file where several were joined
                line = line[1:]
            if blank:
                yield number, line
            elif line.strip():
                yield number, line.rstrip("\r\n")
