"""The runs of a report: their names, and the files that each has left, read and checked. (no torch)

What is not there was not measured, and its section of the report says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.arguments import UserError, one_line
from data.files import (
    ARGS_FILE,
    DATA_REPORT_FILE,
    INFERENCE_FILE,
    RESULTS_FILE,
    REWARDS_FILE,
    STATE_FILE,
    TRAIN_RESULTS_FILE,
)
from data.predicted_runs import PredictedRun, check_same_rows, evaluated, named_folder, read_run, written_task
from data.report.analyses import ATTENTION_FILE, read_attention, read_robustness
from data.report.run_files import read_rewards, read_run_file
from data.robustness import ROBUSTNESS_FILE
from data.tasks import Task

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Source:
    """A run of the report.

    Attributes:
        name: what the report calls it.
        run: its predictions.
        task: what they are about.
        args, state, train_results, data_report: args.json, trainer_state.json, train_results.json and data_report.json
            of its training; empty where they are not there.
        results, inference: test_results.json and inference_args.json, or empty.
        rewards: rewards.csv of a GRPO run.
        robustness, attention: robustness_result.json and attention.json.
    """

    name: str
    run: PredictedRun
    task: Task
    args: dict[str, Any]
    state: dict[str, Any]
    train_results: dict[str, Any]
    data_report: dict[str, Any]
    results: dict[str, Any]
    inference: dict[str, Any]
    rewards: "DataFrame | None"
    robustness: dict[str, Any] | None
    attention: dict[str, Any] | None


def read_sources(specs: Sequence[str]) -> list[Source]:
    """Runs as the command line names them, `name=folder` or a folder, which is its own name; all of their files.

    Raises:
        UserError: a name twice, labels in one and summaries in another, no predictions in a folder, or a file in it
            that is broken.
    """
    pairs = [named_folder(spec) for spec in specs]
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"--runs: two are called {one_line(name, 100)}; the report shows each by itself, so name them "
                "apart, as name=folder (python -m scripts.compare makes one line of several seeds)"
            )
    tasks = [written_task(folder) for _, folder in pairs]
    for (_, folder), task in zip(pairs, tasks, strict=True):
        if (task is None) != (tasks[0] is None):
            kinds = ("summaries", "labels") if task else ("labels", "summaries")
            raise UserError(
                f"--runs: {folder} has {kinds[0]} and {pairs[0][1]} has {kinds[1]}; a report is of one of the two"
            )
    return [_read_source(name, folder, task) for (name, folder), task in zip(pairs, tasks, strict=True)]


def _read_source(name: str, folder: str, written: Task | None) -> Source:
    run = read_run(folder, written is not None)
    trained = run.contract is not None
    args, state, train_results, data_report = (
        read_run_file(run.directory, file, missing_ok=True) if trained else {}
        for file in (ARGS_FILE, STATE_FILE, TRAIN_RESULTS_FILE, DATA_REPORT_FILE)
    )
    analyses = () if written else (ROBUSTNESS_FILE, ATTENTION_FILE)  # of labels
    robustness, attention = (_analysed(run, file) for file in analyses) if analyses else (None, None)
    return Source(
        name, run, written or run.task(), args, state, train_results, data_report,
        results=read_run_file(run.folder, RESULTS_FILE, missing_ok=True),
        inference=read_run_file(run.folder, INFERENCE_FILE, missing_ok=True),
        rewards=read_rewards(run.directory) if trained and (run.directory / REWARDS_FILE).is_file() else None,
        robustness=read_robustness(robustness) if robustness else None,
        attention=read_attention(attention) if attention else None,
    )  # fmt: skip


def _analysed(run: PredictedRun, name: str) -> Path | None:
    """A file that an analysis has written into the folder of the predictions, or into `test` there."""
    path = evaluated(run.folder, name) / name
    return path if path.exists() else None


def same_rows(one: Source, other: Source) -> bool:
    """Whether two runs answered the same rows with the same labels to choose from, so that they can be compared."""
    try:
        check_same_rows([one.run, other.run])
    except UserError:
        return False
    return one.task.labels == other.task.labels
