"""A folder made beside its place that takes it whole, or replaces what stands there, wherever a kill hits. (no torch)

While `target` is in the making, `.<name>.merging/` lies beside it: in `model` what is being made, in `replaced` what
was moved away for it. The last file that is written to a folder is its mark, a JSON object with the sizes of the others
under `files`; the mark is also the first that is removed again. So a folder with a mark is whole.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.arguments import UserError
from data.files import exclusive, read_json

_ENDING = ".merging"


def staging_folder(target: Path) -> Path:
    """Where `target` is made."""
    return target.with_name(f".{target.name}{_ENDING}")


def check_place(target: Path, flag: str = "--output_dir") -> None:
    """Raise a `UserError` where `target`, a resolved path, cannot be moved away or does not last."""
    if Path.cwd().is_relative_to(target):
        raise UserError(f"{flag} {target}: is the folder this was started in, or one above it; choose another")
    if os.path.ismount(target):
        raise UserError(f"{flag} {target}: is a disk of its own, which cannot be replaced; choose a folder on it")
    if made := [part for part in target.parts if part.startswith(".") and part.endswith(_ENDING)]:
        raise UserError(f"{flag} {target}: {made[0]} is where a merged model is made, and does not last")


def file_sizes(folder: Path) -> dict[str, int]:
    """Relative path and bytes of every file in `folder`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


@contextmanager
def alone_beside(target: Path) -> Iterator[Path]:
    """The staging folder of `target`, for this process alone; it is gone when the block has ended.

    Raises:
        UserError: another process makes the same.
    """
    staging = staging_folder(target)
    with exclusive(staging, "lock"):
        try:
            yield staging
        finally:  # what cannot be removed now, the next one to make `target` removes
            shutil.rmtree(staging / "model", ignore_errors=True)
            if not (staging / "replaced").exists():
                shutil.rmtree(staging, ignore_errors=True)


def settle(target: Path, mark: str) -> None:
    """Bring to an end what killed processes left beside `target`: the new folder takes its place, or the old one again.

    Args:
        target: the folder they made.
        mark: name of the file that makes a folder whole.
    """
    for folder in [staging_folder(target), *_former_leftovers(target)]:
        former = folder != staging_folder(target)
        new, old = folder / "model", folder / "replaced"
        if _is_free(target) and is_whole(new, mark):
            _put(new, target)
            print(f"{target}: a merge that was stopped had made it, whole; it is in its place now")
        elif _is_free(target) and (old / mark).is_file():
            _put(old, target)
            print(f"{target}: a merge that was stopped had moved it away; it is back in its place")
        _remove(new, mark)
        # without a mark it is half removed, or from the time when any folder was moved away
        if (target / mark).is_file() if (old / mark).is_file() else not former:
            _remove(old, mark)
        elif old.exists():
            print(f"{old}: was moved away by a merge that was stopped; it is left there")
        if former and not old.exists():
            folder.rmdir()


def take_place(staging: Path, target: Path, mark: str) -> None:
    """Make the folder `model` in `staging` the target; what stands there, if anything, is moved away and removed."""
    new, old = staging / "model", staging / "replaced"
    try:
        if not _is_free(target):
            os.replace(target, old)
        _put(new, target)
    finally:
        settle(target, mark)


def _is_free(target: Path) -> bool:
    return not target.exists() or (target.is_dir() and not any(target.iterdir()))


def is_whole(folder: Path, mark: str) -> bool:
    """Whether `folder` has its mark, and each file that is named there in its size."""
    try:
        sizes = read_json(folder / mark, fields={"files": dict}).get("files", {})
    except UserError:
        return False
    found = file_sizes(folder)
    return all(found.get(name) == size for name, size in sizes.items())


def _put(folder: Path, target: Path) -> None:
    if target.exists():
        target.rmdir()  # it was empty; should it no longer be, this fails and harms nothing
    os.replace(folder, target)


def _remove(folder: Path, mark: str) -> None:
    (folder / mark).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def _former_leftovers(target: Path) -> list[Path]:
    """What was left beside `target` when each merge had a folder of another name."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[a-z0-9_]{{8}}")
    folders = (path for path in target.parent.iterdir() if pattern.fullmatch(path.name) and path.is_dir())
    return sorted(path for path in folders if {inner.name for inner in path.iterdir()} <= {"model", "replaced"})
