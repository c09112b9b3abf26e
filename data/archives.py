"""Zip and tar archives, taken apart without trust: what is in them stays below the folder it belongs in. (no torch)"""

import bz2
import gzip
import lzma
import posixpath
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO

from data.arguments import UserError, one_line

_MOST_MEMBERS = 100_000
_MOST_TIMES = 200  # an archive may unpack to so many times its size; text is packed to a tenth or so
_UNPACKERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}  # by how a tar file may begin
# what the two libraries raise over an archive that is broken, locked or packed in a way they do not know
_BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, ValueError)


def check_inside(archive: str, name: str, path: str) -> None:
    """Refuse the member `name` whose path, or whose link's destination, leads out of the folder it belongs in."""
    windows = PureWindowsPath(path)  # knows both separators, and drives
    if windows.drive or windows.root or posixpath.normpath(windows.as_posix()).split("/")[0] == "..":
        raise UserError(f"{archive}: refused, its member {one_line(repr(name))} leads out of the target folder")


def list_archive(path: Path, folder: str) -> list[tuple[str, int]]:
    """Path below `folder` and bytes of each file that the archive has there.

    Raises:
        UserError: any member of the archive, there or elsewhere, leads out of it, there are too many or too large ones,
            or it is broken.
    """
    with _members(path, folder) as members:
        return [(name, size) for name, size, _ in members]


def unpack(path: Path, folder: str, target: Path, wanted: Container[str] | None = None) -> None:
    """Write the archive's files in `folder`, or the `wanted` ones of them, to `target`; see `list_archive`."""
    with _members(path, folder) as members:
        for name, _, opener in members:
            if wanted is not None and name not in wanted:
                continue
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with opener() as packed, open(target / name, "wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)  # no more than the size that the member states


@contextmanager
def _members(path: Path, folder: str) -> Iterator[list[tuple[str, int, Callable]]]:
    """Path below `folder`, size and opener of each file, within the context; all names and sizes have been checked."""
    try:
        with ExitStack() as stack:
            with path.open("rb") as file:
                begin = file.read(8)
            is_zip = begin.startswith(b"PK")
            members = list(_zip_members(path, stack) if is_zip else _tar_members(path, begin, stack))
            yield [
                (name.removeprefix(f"{folder}/"), size, opener)
                for name, size, opener in members
                if name.startswith(f"{folder}/")
            ]
    except (*_BROKEN, OSError) as error:
        if getattr(error, "errno", None) is not None:  # of the system, and not of gzip or bz2
            raise
        raise UserError(f"{path}: is no archive that can be read ({one_line(error)})") from error


def _zip_members(path: Path, stack: ExitStack) -> Iterator[tuple[str, int, Callable]]:
    opened = stack.enter_context(zipfile.ZipFile(path))
    _check_amount(path, len(opened.infolist()), sum(info.file_size for info in opened.infolist()))
    for info in opened.infolist():
        check_inside(path.name, info.filename, info.filename)
        if not info.filename.endswith("/"):  # is_dir() fails where there is no name
            yield info.filename, info.file_size, partial(opened.open, info)


def _tar_members(path: Path, begin: bytes, stack: ExitStack) -> Iterator[tuple[str, int, Callable]]:
    """Links are checked, too, and never unpacked; neither are devices and pipes."""
    opener = next((opener for magic, opener in _UNPACKERS.items() if begin.startswith(magic)), open)
    unpacked = _Bounded(path, stack.enter_context(opener(path, "rb")))
    opened = stack.enter_context(tarfile.TarFile(fileobj=unpacked))
    size = 0
    for count, info in enumerate(opened, start=1):  # before the next is read: what is packed small may go on and on
        size += info.size
        _check_amount(path, count, size)
        check_inside(path.name, info.name, info.name)
        if info.issym() or info.islnk():  # a symbolic link starts at its own folder, a hard link at the archive's
            start = posixpath.dirname(info.name) if info.issym() else ""
            check_inside(path.name, info.name, posixpath.join(start, info.linkname))
        if info.isfile():
            yield info.name, info.size, partial(opened.extractfile, info)


class _Bounded:
    """An unpacked stream, of which nothing is read beyond what an archive of its size may unpack to.

    The headers of a tar file, such as the names of its members, may be long, too, and `tarfile` reads them whole.

    Args:
        path: the archive.
        unpacked: its bytes, unpacked.
    """

    def __init__(self, path: Path, unpacked: IO[bytes]):
        self._path, self._unpacked = path, unpacked

    def read(self, size: int) -> bytes:
        """As a file's."""
        _check_amount(self._path, 0, self.tell() + size)
        return self._unpacked.read(size)

    def seek(self, place: int) -> int:
        """As a file's."""
        _check_amount(self._path, 0, place)
        return self._unpacked.seek(place)

    def tell(self) -> int:
        """As a file's."""
        return self._unpacked.tell()


def _check_amount(path: Path, count: int, size: int) -> None:
    if count > _MOST_MEMBERS:
        raise UserError(f"{path.name}: refused, it has more than {_MOST_MEMBERS:,} members")
    check_unpacked(path, size, path.name)


def check_unpacked(path: Path, size: int, name: str | None = None) -> None:
    """Raise a `UserError`, which calls the file `name` (default: its path), where it unpacks to `size` bytes, and these
    are many times its own."""
    if size > _MOST_TIMES * max(path.stat().st_size, 1 << 16):
        raise UserError(f"{name or path}: refused, it would unpack to more than {_MOST_TIMES} times its size")
