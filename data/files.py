"""The files of a run: what they are called, read, and written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from data.arguments import UserError

TASK_FILE = "task.json"  # what a trained directory promises (data/contract.py)
ARGS_FILE = "args.json"  # flags a run began with
DATA_REPORT_FILE = "data_report.json"  # what is to be known about its data
REJECTED_FILE = "rejected.jsonl"  # rows that --skip_bad_rows left out
STATE_FILE = "trainer_state.json"  # Transformers' log of a run, and of each checkpoint
REWARDS_FILE = "rewards.csv"  # rewards of each logged step of main_grpo.py
TRAIN_RESULTS_FILE = "train_results.json"  # the last that training writes
CALIBRATION_FILE = "calibration.json"  # temperature, thresholds, and what they changed on the validation rows
PREDICTIONS_FILE = "predictions.jsonl"
RESULTS_FILE = "test_results.json"  # scores of the predictions
SUMMARY_FILE = "test_summary.txt"  # the same for people
ADAPTER_FILE = "adapter_config.json"  # PEFT's settings of an adapter; a directory with it is one


def read_json(path: str | os.PathLike, missing_ok: bool = False) -> dict[str, Any]:
    """A JSON object.

    Args:
        path: the file.
        missing_ok: whether it may not be there, and then counts as an empty object.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    path = Path(path)
    if missing_ok and not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{path}: not a JSON object ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object (but a {type(content).__name__})")
    return content


@contextmanager
def atomic_writer(path: str | os.PathLike) -> Iterator[TextIO]:
    """Open a text file for writing that takes its place under `path` only when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
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


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_json_lines(path: str | os.PathLike, rows: Iterable[dict]) -> None:
    """Write one JSON object a line, atomically."""
    with atomic_writer(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
