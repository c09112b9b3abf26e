"""The files of a run that its card, curves and comparisons are made of, read and checked. (no torch)

A file that is there holds what EmoTune, Transformers or PEFT writes into it, or the first field that does not is named.
What is not there was not measured.
"""

from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any

from data.arguments import LARGEST_NUMBER, UserError, one_line
from data.files import (
    ADAPTER_FILE,
    ARGS_FILE,
    DATA_REPORT_FILE,
    INFERENCE_FILE,
    RESULTS_FILE,
    REWARDS_FILE,
    STATE_FILE,
    TRAIN_RESULTS_FILE,
    is_of_type,
    read_json,
    type_name,
)
from data.metrics import LABEL_METRICS, PROBABILITY_METRICS
from data.summaries.task import SummaryTask

if TYPE_CHECKING:
    from pandas import DataFrame

NUMBER, COUNT, NAME = float | None, int | None, str | None
FIELDS: dict[str, dict[str, type | UnionType]] = {
    ARGS_FILE: {
        "model_path": NAME, "tuning": NAME, "learning_rate": NUMBER, "batch_size": COUNT,
        "gradient_accumulation_steps": COUNT,
    },
    TRAIN_RESULTS_FILE: {
        "steps": COUNT, "epochs": NUMBER, "metric_for_best": NAME, "best_metric": NUMBER, "best_step": COUNT,
        "trainable_parameters": COUNT, "all_parameters": COUNT, "seconds": NUMBER, "seconds_since_resumed": NUMBER,
        "resumed_from": NAME, "precision": NAME, "peak_memory_mib": COUNT, "machine": dict,
    },
    DATA_REPORT_FILE: {"rows": dict, "train_label_counts": dict},
    RESULTS_FILE: {
        "n": COUNT, "examples_per_second": NUMBER, "invalid_rate": NUMBER, "per_label": dict,
        **dict.fromkeys((*LABEL_METRICS, *PROBABILITY_METRICS, *SummaryTask.metrics), NUMBER),
    },
    INFERENCE_FILE: {"flags": dict, "predictions": NAME},
    STATE_FILE: {"log_history": list, "best_global_step": COUNT},
    ADAPTER_FILE: {"r": COUNT, "lora_alpha": NUMBER},
}  # fmt: skip


def read_run_file(folder: str | Path, name: str, missing_ok: bool = False) -> dict[str, Any]:
    """One of the files in `FIELDS`.

    Args:
        folder: the run.
        name: the file's name.
        missing_ok: see `read_json`.

    Raises:
        UserError: it cannot be read, or a field in it is of another type than it is written with.
    """
    path = Path(folder) / name
    content = read_json(path, missing_ok, FIELDS[name])
    for field in FIELDS[name].keys() & content.keys():
        _check_size(path, field, content[field])
    if name == DATA_REPORT_FILE:
        for table in ("rows", "train_label_counts"):
            _check_values(path, content.get(table, {}), table, int)
        _check_type(path, "train_cases", content.get("train_cases", 0), int)
    if name == RESULTS_FILE:
        for label, scores in content.get("per_label", {}).items():
            _check_type(path, f"per_label of {one_line(label, 60)}", scores, dict)
            _check_values(path, scores, f"per_label of {one_line(label, 60)}", NUMBER)
    if name == STATE_FILE:
        for number, entry in enumerate(content.get("log_history", []), start=1):
            _check_type(path, f"entry {number} of log_history", entry, dict)
            _check_type(path, f"step in entry {number} of log_history", entry.get("step"), int)
    return content


def _check_values(path: Path, table: dict[str, Any], name: str, wanted: type | UnionType) -> None:
    for key, value in table.items():
        _check_type(path, f"{one_line(key, 60)} in {name}", value, wanted)


def _check_type(path: Path, name: str, value: Any, wanted: type | UnionType) -> None:
    if not is_of_type(value, wanted):
        raise UserError(f"{path}: {name} is {one_line(repr(value), 60)}, expected {type_name(wanted)}")
    _check_size(path, name, value)


def _check_size(path: Path, name: str, value: Any) -> None:
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise UserError(f"{path}: {name} is {one_line(value, 60)}, which is out of range")


def is_grpo(folder: str | Path, args: dict[str, Any]) -> bool:
    """Whether a run, with such an args.json, is one of reinforcement; a short one may have no rewards.csv yet."""
    return (Path(folder) / REWARDS_FILE).is_file() or "num_generations" in args


def read_rewards(folder: str | Path) -> "DataFrame":
    """`rewards.csv` of a GRPO run as a pandas table, one row a logged step.

    Raises:
        UserError: it cannot be read, a cell is no number, or a step is no whole number or stands there twice.
    """
    import pandas

    path = Path(folder) / REWARDS_FILE
    try:
        table = pandas.read_csv(path, index_col="step", encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)})") from error
    if not len(table):
        raise UserError(f"{path}: no steps in it")
    for name, column in (("step", table.index), *table.items()):
        if not pandas.api.types.is_numeric_dtype(column) or pandas.api.types.is_bool_dtype(column):
            raise UserError(f"{path}: {one_line(name, 60)} holds something else than numbers")
    if not pandas.api.types.is_integer_dtype(table.index) or not table.index.is_unique:
        raise UserError(f"{path}: step is not a whole number in each row, or the same in two")
    return table
