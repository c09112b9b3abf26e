"""Hyperparameter search over whole runs, with Optuna: learning rate, rank of the adapter, epochs. (no torch)

Each trial is a run of its own in `<output_dir>/trial-<n>`; what was tried stands in `<output_dir>/search.db`. A search
that was stopped goes on where it was, the trial it was in included, when the same command is given again; it draws what
it would have drawn. A run that diverges counts as one that failed, and the search goes on.
"""

import math
import random
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import Any

from data.arguments import DivergedError, UserError, check_output_dir, process_count, spelled
from data.contract import EARLIER_SETTINGS, same_setting
from data.files import ARGS_FILE, TRAIN_RESULTS_FILE, read_json, write_json
from data.learning.flags import BOUNDS

LEARNING_RATE_SPAN = 4.0  # tried: from a quarter of --learning_rate to four times as much
RANKS = (4, 8, 16, 32, 64)
SETTLED = ("COMPLETE", "PRUNED")  # Optuna's names for trials that count: with a result, or failed for good
NOT_OF_THE_RESULT = ("checkpoint-*", "runs", ARGS_FILE, ".*")  # a trial's files that are not copied


def search(args, default_metric: str, train: Callable[[Any], Any]) -> None:
    """Train `args.search` runs and copy the best one's model into `args.output_dir`.

    Args:
        args: the stage's flags; `metric_for_best` on the validation rows is what counts.
        default_metric: what counts where that is not given: the task's own.
        train: trains one run, with the flags it is given, in their `output_dir`.

    Raises:
        UserError: no Optuna, several processes, another search in `output_dir`, or all runs diverged.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("--search: needs Optuna (pip install -r requirements.txt)") from error
    if process_count() > 1:
        raise UserError("--search: runs its trials one after the other in one process; start it without a launcher")
    metric = args.metric_for_best or default_metric
    output_dir = Path(args.output_dir)
    check_output_dir(args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    if (output_dir / ARGS_FILE).is_file() and not (output_dir / "search.db").is_file():
        raise UserError(f"--output_dir {output_dir}: holds a run, not a search; choose another folder")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="search",
        storage=f"sqlite:///{output_dir / 'search.db'}",
        direction="minimize" if metric == "loss" else "maximize",
        load_if_exists=True,
    )
    _check_same_search(study, args)
    _go_on_with_unfinished(study)
    if not _trials(study, *SETTLED, "WAITING") and args.search > 1:
        study.enqueue_trial(_start(args))

    def run_trial(trial) -> float:
        chosen = _suggested(trial, args)
        folder = trial.user_attrs.get("folder") or _new_folder(study)
        trial.set_user_attr("folder", folder)  # the last of what is drawn
        print(f"{folder} of {args.search}: {trial.params}")
        try:
            train(replace(args, search=None, output_dir=str(output_dir / folder), **chosen))
        except DivergedError as error:
            print(f"{folder}: failed: {error}")
            trial.set_user_attr("failed", str(error))
            raise optuna.TrialPruned from error  # counts, is not tried again, and the sampler keeps away from it
        results = output_dir / folder / TRAIN_RESULTS_FILE
        result = read_json(results, fields={"best_metric": float}).get("best_metric")
        if result is None:
            raise UserError(
                f"{results}: has no best_metric, so the search cannot go on; remove {folder} to train it anew"
            )
        print(f"{folder}: {metric} {result:.4f}")
        return result

    while (number := len(_trials(study, *SETTLED))) < args.search:
        # a seed for each trial, so that a search that was killed draws what it would have drawn
        seed = random.Random(f"{args.seed} {number}").getrandbits(32)
        study.sampler = optuna.samplers.TPESampler(seed=seed)
        study.optimize(run_trial, n_trials=1)
    complete, failed = _trials(study, "COMPLETE"), _trials(study, "PRUNED")
    if not complete:
        raise UserError(f"--search: all {len(failed)} runs failed; the last: {failed[-1].user_attrs['failed']}")
    best = output_dir / _folder(study.best_trial)
    write_json(output_dir / ARGS_FILE, asdict(args))
    shutil.copytree(best, output_dir, dirs_exist_ok=True, ignore=shutil.ignore_patterns(*NOT_OF_THE_RESULT))
    tried = [{"folder": _folder(t), metric: t.value, **t.params} for t in complete]
    tried += [{"folder": _folder(t), metric: None, **t.params, "failed": t.user_attrs["failed"]} for t in failed]
    write_json(output_dir / "search_results.json", {"metric": metric, "best": best.name, "trials": tried})
    print(f"best of {len(tried)}: {best.name} with {metric} {study.best_value:.4f}: {study.best_params}")


def _go_on_with_unfinished(study) -> None:
    """Put trials that a kill or an error left half-way in the queue again, each in its own folder."""
    from optuna.trial import TrialState

    for trial in _trials(study, "RUNNING"):
        study.tell(trial.number, state=TrialState.FAIL)
    settled = {_folder(trial) for trial in _trials(study, *SETTLED, "WAITING")}
    for trial in _trials(study, "FAIL"):
        if (folder := _folder(trial)) is not None and folder not in settled:
            settled.add(folder)
            study.enqueue_trial(trial.params, user_attrs={"folder": folder})


def _trials(study, *states: str) -> list:
    return [trial for trial in study.trials if trial.state.name in states]


def _folder(trial) -> str | None:
    """Where a trial's run is; one that goes on after a kill keeps its folder. None as long as it is being drawn."""
    return trial.user_attrs.get("folder")


def _new_folder(study) -> str:
    taken = {_folder(trial) for trial in study.trials}
    return next(name for number in count() if (name := f"trial-{number}") not in taken)


def _suggested(trial, args) -> dict[str, Any]:
    smallest, largest = BOUNDS["learning_rate"]
    low, high = args.learning_rate / LEARNING_RATE_SPAN, args.learning_rate * LEARNING_RATE_SPAN
    rate = trial.suggest_float("learning_rate", max(low, smallest), min(high, largest), log=True)
    chosen = {"learning_rate": rate}
    if args.tuning in ("lora", "qlora"):
        chosen["lora_r"] = trial.suggest_categorical("lora_r", RANKS)
    if args.max_steps is None and args.num_epochs > 1:
        chosen["num_epochs"] = float(trial.suggest_int("num_epochs", 1, math.ceil(args.num_epochs)))
    return chosen


def _start(args) -> dict[str, Any]:
    """The settings as they were given, as far as they can be drawn: the first trial."""
    start: dict[str, Any] = {"learning_rate": args.learning_rate}
    if args.tuning in ("lora", "qlora") and args.lora_r in RANKS:
        start["lora_r"] = args.lora_r
    if args.max_steps is None and args.num_epochs > 1:
        start["num_epochs"] = math.ceil(args.num_epochs)
    return start


def _check_same_search(study, args) -> None:
    """Raise a `UserError` naming the first flag in which the search in `--output_dir` differs from this one."""
    same = {name: value for name, value in asdict(args).items() if name not in ("search", "resume_from_checkpoint")}
    before = study.user_attrs.get("args")
    if before is None:
        study.set_user_attr("args", same)
        return
    before = EARLIER_SETTINGS | before
    for name, value in same.items():
        if not same_setting(before.get(name), value):
            raise UserError(
                f"--{name} {spelled(value)}: the search in {args.output_dir} began with {spelled(before.get(name))}; "
                "give that to continue it, or choose another --output_dir"
            )
