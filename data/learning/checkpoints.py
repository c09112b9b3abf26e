"""Where a run goes on: its newest whole checkpoint, and whether that is a checkpoint of this very run.

`args` is in each function the stage's own `Args`.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from data.arguments import UserError
from data.contract import Contract, check_run_settings
from data.files import ARGS_FILE, STATE_FILE, TRAIN_RESULTS_FILE
from data.tasks import Task


def find_checkpoint(args, may_change: Sequence[str]) -> str | None:
    """The checkpoint to go on from, or None to begin anew.

    Args:
        args: the stage's flags.
        may_change: flags that may differ from those the run began with.

    Raises:
        UserError: the checkpoint is not there, or the run in `--output_dir` is another one.
    """
    output_dir = Path(args.output_dir)
    wanted = args.resume_from_checkpoint
    folders = [path for path in output_dir.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    checkpoints = sorted(folders, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    if (output_dir / "config.json").is_file() and not (output_dir / ARGS_FILE).is_file():
        raise UserError(
            f"--output_dir {output_dir}: holds a model that is no run of this script; choose another folder"
        )
    if wanted not in ("auto", "none"):
        if not _is_whole(Path(wanted)):
            raise UserError(f"--resume_from_checkpoint {wanted}: not a whole checkpoint (no trainer_state.json in it)")
        check_run_settings(Path(wanted).parent / ARGS_FILE, asdict(args), may_change)
        if Path(wanted).resolve().parent != output_dir.resolve() and (checkpoints or is_finished(args)):
            raise UserError(f"--output_dir {output_dir}: holds another run than --resume_from_checkpoint {wanted}")
        return wanted
    if wanted == "none":
        if checkpoints or is_finished(args):
            raise UserError(
                f"--output_dir {output_dir}: holds a run already; choose another, or go on with "
                "--resume_from_checkpoint auto"
            )
        return None
    newest = next((str(path) for path in checkpoints if _is_whole(path)), None)
    if newest or is_finished(args):
        lengths = {"num_epochs", "max_steps"} if is_finished(args) else set()
        check_run_settings(output_dir / ARGS_FILE, asdict(args), set(may_change) - lengths)
    return newest


def _is_whole(checkpoint: Path) -> bool:
    """Transformers writes trainer_state.json last: a checkpoint cut off by a kill lacks it or has half of it."""
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return "global_step" in state


def check_same_task(checkpoint: str | None, task: Task) -> None:
    """Raise a `UserError` when the checkpoint to go on from learns another task than `task`."""
    if checkpoint is not None and (trained := Contract.load(checkpoint).task) != task:
        raise UserError(f"{checkpoint}: learns task {trained.name} {list(trained.labels)[:3]}…, not {task.name}")


def is_finished(args) -> bool:
    """Whether the run in `--output_dir` has trained to its end (its results are the last thing it writes)."""
    return (Path(args.output_dir) / TRAIN_RESULTS_FILE).is_file()
