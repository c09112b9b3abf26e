"""Zip and tar archives, taken apart without trust: what is in them stays below the folder it belongs in. (no torch)"""

import lzma
import posixpath
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PureWindowsPath

from data.arguments import UserError, one_line

_MOST_MEMBERS = 100_000
_MOST_TIMES = 200  # an archive may unpack to so many times its size; text is packed to a tenth or so
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
        with tarfile.open(path) if tarfile.is_tarfile(path) else zipfile.ZipFile(path) as opened:
            members = list((_tar_members if isinstance(opened, tarfile.TarFile) else _zip_members)(path, opened))
            yield [
                (name.removeprefix(f"{folder}/"), size, opener)
                for name, size, opener in members
                if name.startswith(f"{folder}/")
            ]
    except _BROKEN as error:
        raise UserError(f"{path}: is no archive that can be read ({one_line(error)})") from error


def _zip_members(path: Path, opened: zipfile.ZipFile) -> Iterator[tuple[str, int, Callable]]:
    _check_amount(path, len(opened.infolist()), sum(info.file_size for info in opened.infolist()))
    for info in opened.infolist():
        check_inside(path.name, info.filename, info.filename)
        if not info.is_dir():
            yield info.filename, info.file_size, partial(opened.open, info)


def _tar_members(path: Path, opened: tarfile.TarFile) -> Iterator[tuple[str, int, Callable]]:
    """Links are checked, too, and never unpacked; neither are devices and pipes."""
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


def _check_amount(path: Path, count: int, size: int) -> None:
    if count > _MOST_MEMBERS:
        raise UserError(f"{path.name}: refused, it has more than {_MOST_MEMBERS:,} members")
    if size > _MOST_TIMES * max(path.stat().st_size, 1 << 16):
        raise UserError(f"{path.name}: refused, it would unpack to more than {_MOST_TIMES} times its size")
