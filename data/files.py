"""The files of a run: what they are called, read, and written whole or not at all."""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import UnionType
from typing import Any, TextIO

from filelock import FileLock, Timeout

from data.arguments import UserError, one_line

TASK_FILE = "task.json"  # what a trained directory promises (data/contract.py)
ARGS_FILE = "args.json"  # flags a run began with
DATA_REPORT_FILE = "data_report.json"  # what is to be known about its data
REJECTED_FILE = "rejected.jsonl"  # rows that --skip_bad_rows left out
STATE_FILE = "trainer_state.json"  # Transformers' log of a run, and of each checkpoint
REWARDS_FILE = "rewards.csv"  # rewards of each logged step of main_grpo.py
TRAIN_RESULTS_FILE = "train_results.json"  # the last that training writes
CALIBRATION_FILE = "calibration.json"  # temperature, thresholds, and what they changed on the validation rows
PREDICTIONS_FILE = "predictions.jsonl"
INFERENCE_FILE = "inference_args.json"  # how inference.py was called for them
RESULTS_FILE = "test_results.json"  # scores of the predictions
SUMMARY_FILE = "test_summary.txt"  # the same for people
ADAPTER_FILE = "adapter_config.json"  # PEFT's settings of an adapter; a directory with it is one


_MOST_JSON = 1 << 28  # bytes: no file of a run is near it, an endless one is over it
_SAMPLES, _SAMPLE_BYTES = 64, 4096  # `sample_hash` reads so many pieces of so many bytes
_NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number", float: "a number",
          bool: "true or false", type(None): "null"}  # fmt: skip


def read_json(
    path: str | os.PathLike, missing_ok: bool = False, fields: Mapping[str, type | UnionType] | None = None
) -> dict[str, Any]:
    """A JSON object.

    Args:
        path: the file.
        missing_ok: whether it may not be there, and then counts as an empty object.
        fields: name -> type of those that matter to the caller; one that is there has to be of its type.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    path = Path(path)
    if missing_ok and not path.is_file():
        return {}
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: cannot be read (not a file)")
        if path.stat().st_size > _MOST_JSON:
            raise UserError(f"{path}: has {path.stat().st_size:,} bytes, too many for a file of a run")
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON object ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object (but {_NAMES[type(content)]})")
    for name, wanted in (fields or {}).items():
        if name in content and not is_of_type(content[name], wanted):
            raise UserError(f"{path}: {name} is {one_line(repr(content[name]), 60)}, expected {type_name(wanted)}")
    return content


def is_of_type(value: Any, wanted: type | UnionType) -> bool:
    """Whether a value read from JSON is of a type; true and false are no numbers, whole numbers do for others.

    >>> is_of_type(True, int), is_of_type(3, float), is_of_type(None, str | None)
    (False, True, True)
    """
    types = wanted.__args__ if isinstance(wanted, UnionType) else (wanted,)
    if isinstance(value, bool):
        return bool in types
    return isinstance(value, types) or (isinstance(value, int) and float in types)


def type_name(wanted: type | UnionType) -> str:
    """A type in words.

    >>> type_name(int | None)
    'a whole number or null'
    """
    types = wanted.__args__ if isinstance(wanted, UnionType) else (wanted,)
    return " or ".join(_NAMES[each] for each in types)


@contextmanager
def atomic_writer(path: str | os.PathLike) -> Iterator[TextIO]:
    """Open a text file for writing that takes its place under `path` only when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        # half a character (a lone surrogate) becomes its escape, which is JSON's own
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes files private; these are meant to be shared
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write `text` atomically."""
    with atomic_writer(path) as file:
        file.write(text)


def as_json(value: Any, where: str | os.PathLike, indent: int | None = None) -> str:
    """`value` as JSON.

    Raises:
        UserError: a number in it is not finite, for which JSON has no word; names `where` it was to be written.
    """
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False)
    except ValueError as error:
        raise UserError(f"{where}: {_not_finite(value)} is not a finite number; nothing is written") from error


def _not_finite(value: Any, name: str = "a value") -> str | None:
    """Name of the first number in `value` that is not finite."""
    if isinstance(value, float):
        return None if math.isfinite(value) else f"{name} ({value})"
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    return next((found for key, item in items if (found := _not_finite(item, str(key)))), None)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically; see `as_json`."""
    write_text(path, as_json(value, path, indent=2) + "\n")


def write_json_lines(path: str | os.PathLike, rows: Iterable[dict]) -> None:
    """Write one JSON object a line, atomically; see `as_json`."""
    with atomic_writer(path) as file:
        for row in rows:
            file.write(as_json(row, path) + "\n")


# --- what is in a file ----------------------------------------------------------------------------------------------


def file_hash(path: str | os.PathLike, algorithm: str = "sha256", start: bytes = b"") -> str:
    """Hex digest of `start` followed by the file's bytes."""
    digest = hashlib.new(algorithm, start)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def sample_hash(path: str | os.PathLike) -> str:
    """16 hex digits that tell a large file from others in milliseconds: SHA-256 of its size and of samples all over it.

    For weights, of which training changes all; a change of a few bytes may be missed.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        digest.update(f"{size} ".encode())
        for i in range(_SAMPLES):
            file.seek(i * max(size - _SAMPLE_BYTES, 0) // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]


def check_free_disk(folder: Path, needed: int) -> None:
    """Raise a `UserError` where `needed` bytes do not fit on the disk that `folder` is, or will be, on."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(f"{folder}: needs {needed / 1e6:,.1f} MB of disk, only {free / 1e6:,.1f} MB are free")


# --- one writer at a time -------------------------------------------------------------------------------------------


@contextmanager
def exclusive(directory: str | os.PathLike, name: str = "run") -> Iterator[None]:
    """Within this context no other process that asks for the same writes in `directory`.

    The lock is the system's own, on `.<name>.lock`: it goes with the process that holds it, however that ends. Folders
    that were made for it go, too, where nothing has been written in them.

    Raises:
        UserError: another process holds it.
    """
    directory = Path(directory)
    made = [folder for folder in (directory, *directory.parents) if not folder.exists()]
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"{directory}: another process is writing here; wait for it, or choose another folder"
        ) from error
    try:
        yield
    finally:
        if made and os.path.isdir(directory) and os.listdir(directory) == [f".{name}.lock"]:
            os.unlink(lock.lock_file)  # still held: who has opened it meanwhile sees that it is gone, and opens another
        lock.release()
        for folder in made:
            with suppress(OSError):  # not empty
                folder.rmdir()
