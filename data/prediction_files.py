"""predictions.jsonl: written as rows are predicted, continued after a kill, replaced whole, put together. (no torch)

What lies in a directory at any moment: `predictions.jsonl` with its scores, both whole and of one another; while others
are made, `predictions.partial.jsonl` and in `predictions.partial.json` what decides them. When the last row is there,
the new scores are written, and then the rows take their place. Killed in between, the same command finds the partial
file whole and does these last steps again.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.arguments import UserError, one_line, spelled
from data.files import (
    PREDICTIONS_FILE,
    RESULTS_FILE,
    SUMMARY_FILE,
    as_json,
    atomic_writer,
    file_hash,
    read_json,
    write_json,
    write_text,
)
from data.loading import TaskRow
from data.prediction_rows import MAY_LACK, row_in
from data.predictions import Prediction
from data.tasks import Task

PART_NAME = "predictions-{i}-of-{n}.jsonl"  # of a file that several machines share
Settings = dict[str, Any]
"""What decides predictions: `flags` (name -> value) and `files` (role -> path and hash); and which rows they are of:
`first_row` and `last_row`, from 1, of `rows`."""


class PredictionFile:
    """A file of predictions in the making: `predictions.partial.jsonl` until it is whole.

    Args:
        directory: where it goes.
        examples: what is predicted; the rows of a file that is continued are compared with them.
        task: theirs.
        settings: what decides the predictions; a file begun with the same is continued, with others it is an error.
            None = begin anew.
        name: its name when it is whole.

    Attributes:
        done: rows that were in it already.
        rows: rows that are in it.
        unfinished: the file until it is whole.

    Raises:
        UserError: a file begun with other settings, or by an EmoTune that kept no hashes.
    """

    def __init__(
        self, directory: str | Path, examples: Iterable[TaskRow], task: Task, settings: Settings | None = None,
        name: str = PREDICTIONS_FILE,
    ):  # fmt: skip
        self.path = Path(directory) / name
        self.unfinished, self._settings_path = _unfinished(self.path)
        self._settings = settings
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if settings is None:
            self.unfinished.unlink(missing_ok=True)
            self._settings_path.unlink(missing_ok=True)
        elif self.unfinished.is_file() and self.unfinished.stat().st_size:
            self._check_settings(settings)
        else:
            write_json(self._settings_path, settings)
        self._file = self.unfinished.open("a+b")
        self.done = self.rows = self._right_rows(examples, task)

    def _check_settings(self, settings: Settings) -> None:
        choice = "remove it to begin anew, or choose another --output_dir"
        before = read_json(self._settings_path, missing_ok=True, fields={"flags": dict, "files": dict})
        if not {"flags", "files"} <= before.keys():
            raise UserError(
                f"{self.unfinished}: nothing says what is in the files it was begun with, as with an earlier EmoTune; "
                f"{choice}"
            )
        if difference := different_settings(before, settings, str(self.unfinished)):
            raise UserError(f"{difference}; {choice}")

    def _right_rows(self, examples: Iterable[TaskRow], task: Task) -> int:
        """How many rows are right; the file is cut behind the last of them, as after half a row that a kill left."""
        rows = end = 0
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        for line, example in zip(self._file, examples if size else (), strict=False):
            if not _is_row_of(line, example, task):
                break
            rows, end = rows + 1, end + len(line)
        self._file.truncate(end)
        if end < size:
            print(f"{self.unfinished}: {rows:,} rows are right; what stands behind them is predicted anew")
        return rows

    def append(self, rows: Iterable[dict[str, Any]]) -> None:
        """Write rows behind those that are there, each as it comes; they outlive this process."""
        for row in rows:
            self._file.write(f"{as_json(row, self.unfinished)}\n".encode(errors="backslashreplace"))
            self._file.flush()
            self.rows += 1

    def close(self) -> None:
        """Write no more; what is there can be continued."""
        self._file.close()

    def finish(self) -> None:
        """Put the file in its place, and beside a part what it is a part of."""
        with self.unfinished.open("rb") as file:
            os.fsync(file.fileno())
        if self.path.name != PREDICTIONS_FILE:
            write_json(self.path.with_suffix(".json"), {**(self._settings or {}), "sha256": file_hash(self.unfinished)})
        os.replace(self.unfinished, self.path)
        self._settings_path.unlink(missing_ok=True)


def _is_row_of(line: bytes, example: TaskRow, task: Task) -> bool:
    """Whether this is a whole line, and what EmoTune would write of this text."""
    if not line.endswith(b"\n"):
        return False
    try:
        row = row_in(line, "", task)
    except UserError:
        return False
    expected = task.result_row(example, Prediction((), valid=False))
    return row.keys() ^ expected.keys() <= MAY_LACK and task.given(example).items() <= row.items()


def _unfinished(path: Path) -> tuple[Path, Path]:
    """The file of predictions until it is whole, and what decides them."""
    return path.with_suffix(".partial.jsonl"), path.with_suffix(".partial.json")


def begun_with(path: Path, flag: str) -> Any:
    """The value of a flag with which the predictions that are to go to `path` were begun; None where none are."""
    rows, settings = _unfinished(path)
    if not rows.is_file() or not rows.stat().st_size:
        return None
    return read_json(settings, missing_ok=True, fields={"flags": dict}).get("flags", {}).get(flag)


def different_settings(before: Settings, now: Settings, place: str) -> str | None:
    """In words, the first flag or file in which the settings of `place` differ from those of now."""
    for name, value in now["flags"].items():
        if before["flags"].get(name) != value:  # a flag of None is as one that earlier versions had not
            found = spelled(before["flags"].get(name))
            return f"--{name} {spelled(value)}: {place} began with {one_line(found, 100)}"
    for role, file in now["files"].items():
        known = before["files"].get(role)
        if not isinstance(known, dict) or known.get("hash") != file["hash"]:
            return f"{file['path']}: is not what {place} was begun with: its content differs"
    for role in before["files"]:
        if role not in now["files"]:
            return f"{role}: is not there any more, but was when {place} was begun"
    return None


@contextmanager
def new_predictions(directory: str | Path, rows: Iterable[dict[str, Any]]) -> Iterator[Iterator[dict[str, Any]]]:
    """Within this context the rows are to be gone through, which writes them; they become predictions.jsonl at its end,
    which is no sooner than their scores are there, too."""
    path = Path(directory) / PREDICTIONS_FILE
    with atomic_writer(path) as file:
        yield (file.write(as_json(row, path) + "\n") and row for row in rows)


def write_results(directory: str | Path, results: dict[str, Any], title: str, task: Task) -> str:
    """`test_results.json`, and the same for people in `test_summary.txt`; returns the latter's text."""
    summary = task.summary_of(results, title)
    write_json(Path(directory) / RESULTS_FILE, results)
    write_text(Path(directory) / SUMMARY_FILE, summary)
    return summary


def remove_results(directory: str | Path) -> None:
    """Remove the scores of earlier predictions, which others without any are about to replace."""
    for name in (RESULTS_FILE, SUMMARY_FILE):
        (Path(directory) / name).unlink(missing_ok=True)
