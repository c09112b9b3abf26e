"""Which checkpoint a run goes on from, whether it is of this very run, and which checkpoints are kept.

`args` is in each function the stage's own `Args`.
"""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory

from data.arguments import UserError, is_first_process, one_line, process_count
from data.contract import PROCESSES, Contract, check_hashes, check_run_settings
from data.engine.fingerprints import is_same_fingerprint
from data.files import (
    ADAPTER_FILE,
    ARGS_FILE,
    STATE_FILE,
    TASK_FILE,
    TRAIN_RESULTS_FILE,
    exclusive,
    read_json,
    sample_hash,
)
from data.learning.checksums import damage, write_checksums
from data.tasks import Task

# of a model to begin with: what decides what is learnt from a text
START_FILES = ("config.json", ADAPTER_FILE, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", TASK_FILE)
WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
FSDP_WEIGHTS, FSDP_OPTIMIZER = "pytorch_model_fsdp.bin", "optimizer.bin"  # as Accelerate names them
PICKLES = ("*.pt", "*.pth", "*.bin")  # what a trainer reads of a checkpoint by torch.load
UNREAD = "training_args.bin"  # a pickle that a trainer writes, and nothing reads


def one_run_in(output_dir: str) -> AbstractContextManager[None]:
    """Within this context, no other process can train, calibrate or score in `output_dir`; see `files.exclusive`.

    The first process of a distributed run stands for all of them.
    """
    return exclusive(output_dir) if is_first_process() else nullcontext()


# --- which checkpoint a run goes on from ------------------------------------------------------------------------------


def find_checkpoint(args, may_change: Sequence[str], hashes: Mapping[str, str | None] | None = None) -> str | None:
    """The checkpoint to go on from, or None to begin anew or where the run is finished.

    Newer checkpoints that are damaged are named on the console and passed over.

    Args:
        args: the stage's flags.
        may_change: flags that may differ from those the run began with.
        hashes: see `check_hashes`.

    Raises:
        UserError: the checkpoint is not whole, or the run in `--output_dir` is another one.
    """
    output_dir = Path(args.output_dir)
    wanted = args.resume_from_checkpoint
    checkpoints = checkpoints_in(output_dir)
    if (output_dir / "config.json").is_file() and not (output_dir / ARGS_FILE).is_file():
        raise UserError(
            f"--output_dir {output_dir}: holds a model that is no run of this script; choose another folder"
        )
    if wanted not in ("auto", "none"):
        checkpoint = Path(wanted)
        if problem := damage(checkpoint):
            raise UserError(f"--resume_from_checkpoint {wanted}: not a whole checkpoint ({problem})")
        folder = checkpoint.resolve().parent
        _check_same_run(folder / ARGS_FILE, args, (*may_change, *_check_rows_of_a_step(folder, args)), hashes)
        if folder != output_dir.resolve() and (checkpoints or is_finished(args)):
            raise UserError(f"--output_dir {output_dir}: holds another run than --resume_from_checkpoint {wanted}")
        check_no_code(checkpoint)
        _check_best(checkpoint)
        return wanted
    if wanted == "none":
        if checkpoints or is_finished(args):
            raise UserError(
                f"--output_dir {output_dir}: holds a run already; choose another, or go on with "
                "--resume_from_checkpoint auto"
            )
        return None
    if is_finished(args):
        _check_same_run(output_dir / ARGS_FILE, args, set(may_change) - {"num_epochs", "max_steps"}, hashes)
        return None
    newest = _newest_whole(checkpoints)
    if newest is not None:
        _check_same_run(output_dir / ARGS_FILE, args, (*may_change, *_check_rows_of_a_step(output_dir, args)), hashes)
        check_no_code(newest)
        _check_best(newest)
        return str(newest)
    return None


def as_begun(args):
    """`args` with the number format that the run they go on with began in, where they leave it open (`auto`)."""
    wanted = args.resume_from_checkpoint
    if args.precision != "auto" or wanted == "none":
        return args
    folder = Path(args.output_dir) if wanted == "auto" else Path(wanted).resolve().parent
    files = [folder / ARGS_FILE, *sorted(folder.glob(f"trial-*/{ARGS_FILE}"))]  # of a search
    begun = (read_json(path, missing_ok=True).get("precision") for path in files)
    return replace(args, precision=next(filter(None, begun), "auto"))


def checkpoints_in(output_dir: str | Path) -> list[Path]:
    """The folders of a run's checkpoints, that of the last step first."""
    folders = [path for path in Path(output_dir).glob("checkpoint-*") if path.is_dir() and _is_number(path.name[11:])]
    return sorted(folders, key=_step, reverse=True)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _newest_whole(checkpoints: Sequence[Path]) -> Path | None:
    say = print if is_first_process() else lambda *_: None
    for checkpoint in checkpoints:
        if (problem := damage(checkpoint)) is None:
            return checkpoint
        say(f"warning: {checkpoint}: passed over, since it is not whole ({problem})")
    if checkpoints:
        say(f"warning: no checkpoint in {checkpoints[0].parent} is whole; the run begins anew")
    return None


def _check_same_run(path: Path, args, may_change, hashes: Mapping[str, str | None] | None) -> None:
    check_run_settings(path, asdict(args), may_change)
    check_hashes(path, asdict(args), hashes or {})


def _check_rows_of_a_step(folder: Path, args) -> tuple[str, ...]:
    """Raise a `UserError` where as many processes as there are now would make other steps than the run began with.

    Returns:
        Flags that may differ, since the number of processes does: a step is of as many rows as before.
    """
    begun = read_json(folder / ARGS_FILE, missing_ok=True)
    before, now = begun.get(PROCESSES), process_count()
    if before in (None, now):  # earlier versions did not note it
        return ()
    rows = [
        run["batch_size"] * run["gradient_accumulation_steps"] * count
        for run, count in ((begun, before), (asdict(args), now))
    ]
    if rows[0] != rows[1]:
        raise UserError(
            f"{now} processes: --batch_size {args.batch_size} and --gradient_accumulation_steps "
            f"{args.gradient_accumulation_steps} make steps of {rows[1]} rows; those of the run in {folder}, which "
            f"began in {before}, have {rows[0]}"
        )
    return ("batch_size", "gradient_accumulation_steps")


def _check_best(checkpoint: Path) -> None:
    """Raise a `UserError` when the best checkpoint of the run that `checkpoint` is of is damaged."""
    step = read_json(checkpoint / STATE_FILE).get("best_global_step")
    best = checkpoint.resolve().parent / f"checkpoint-{step}"
    if step and best.is_dir() and best != checkpoint.resolve():
        check_best(best)


def check_best(best: str | Path) -> None:
    """Raise a `UserError` when the checkpoint of the best model is damaged."""
    if problem := damage(Path(best), of_model=True):
        raise UserError(
            f"{best}: the best model of the run, but not whole ({problem}); put it back, or remove that folder to have "
            "the best chosen from what is left"
        )
    check_no_code(Path(best), of_model=True)


def check_no_code(checkpoint: Path, of_model: bool = False) -> None:
    """Raise a `UserError` where what a checkpoint keeps as pickles names more than tensors and numbers.

    PyTorch would not run such code either, but end with a page of advice on how to have it run.

    Args:
        checkpoint: the folder.
        of_model: look at weights alone, not at what only a run that goes on needs.
    """
    from torch.serialization import get_unsafe_globals_in_checkpoint
    from transformers.trainer_pt_utils import safe_globals

    patterns = PICKLES[-1:] if of_model else PICKLES
    pickles = (path for pattern in patterns for path in checkpoint.glob(pattern) if path.name != UNREAD)
    for path in sorted(pickles):
        try:
            with safe_globals():
                code = sorted(get_unsafe_globals_in_checkpoint(path))
        except (ValueError, RuntimeError, UnpicklingError, IndexError) as error:
            raise UserError(f"{path}: is not what PyTorch writes ({one_line(error, 120)})") from error
        if code:
            raise UserError(
                f"{path}: is no part of a checkpoint, but would run code when it is read ({one_line(code[0], 100)}); "
                "it is not read"
            )


def check_same_task(directory: str | None, task: Task, data_hashes: Mapping[str, str] | None = None) -> None:
    """Raise a `UserError` when what is in `directory` has learnt another task than `task`, or from other data.

    Args:
        directory: a checkpoint to go on from, or a finished run; None = nothing to go on from.
        task: the task.
        data_hashes: flag -> hash of the file it names.
    """
    if directory is None:
        return
    contract = Contract.load(directory)
    if contract.task != task:
        labels = f" {list(contract.task.labels)[:3]}…" if contract.task.labels else ""
        raise UserError(f"{directory}: learns task {contract.task.name}{labels}, not {task.name}")
    for flag, content in (data_hashes or {}).items():
        if (contract.data_hashes or {}).get(flag, content) != content:
            raise UserError(f"--{flag}: has other content than what {directory} learnt from; give the same file again")


def check_same_base(checkpoint: str | None, contract: Contract) -> None:
    """Raise a `UserError` when the checkpoint to go on from is an adapter of another model than `contract` names."""
    if checkpoint is None:
        return
    before, now = Contract.load(checkpoint).base_fingerprint, contract.base_fingerprint
    if None not in (before, now) and not is_same_fingerprint(before, now):
        raise UserError(
            f"--model_path {contract.base_model}: has other weights than the model that {checkpoint} learns on"
        )


def check_trials(args, hashes: Mapping[str, str | None]) -> None:
    """Raise a `UserError` when the runs of an earlier part of a search began with other files; see `check_hashes`."""
    for path in sorted(Path(args.output_dir).glob(f"trial-*/{ARGS_FILE}")):
        check_hashes(path, asdict(args), hashes)


def is_finished(args) -> bool:
    """Whether the run in `--output_dir` has trained to its end (its results are the last thing it writes).

    Raises:
        UserError: its results are there, but cannot be read.
    """
    return bool(read_json(Path(args.output_dir) / TRAIN_RESULTS_FILE, missing_ok=True, fields={"steps": int}))


def start_hashes(model_path: str) -> dict[str, str | None]:
    """Hashes of the files of a model to begin with, named as `check_hashes` does; none of a model on a hub."""
    folder = Path(model_path)
    if not folder.is_dir():
        return {}
    weights = sorted({path.name for pattern in WEIGHTS for path in folder.glob(pattern) if path.name != UNREAD})
    files = ((name, folder / name) for name in (*START_FILES, *weights))
    return {f"model_path/{name}": sample_hash(path) if path.is_file() else None for name, path in files}


# --- which checkpoints are kept ---------------------------------------------------------------------------------------


class WholeCheckpoints:
    """Mixin over a Transformers `Trainer`: checkpoints end with their checksums, the oldest go by their steps, and the
    best one is found again where the run's folder has been moved.
    """

    def _save_checkpoint(self, model, trial) -> None:
        """The trainer's own, then the checksums; only then are old checkpoints removed."""
        # not by the trainer itself: it goes by the clock, which may have been set back
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()  # each process has files of its own in it
        if self.args.should_save:
            checkpoint = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
            write_checksums(checkpoint)
            remove_oldest(checkpoint, self.state.best_model_checkpoint, limit)

    def _init_training_state(
        self, max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
    ) -> tuple[int, int]:
        """The trainer's own, and the best checkpoint where it is now: the state names the folder it was written to."""
        trained = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None:
            return trained
        if self.state.best_global_step:
            self._find_best(Path(resume_from_checkpoint))
        # Transformers would train one more step where a run was killed between its last checkpoint and its end
        return trained if self.state.global_step < max_steps else (num_train_epochs, 0)

    def _find_best(self, taken_up: Path) -> None:
        """Have the state name the best checkpoint where it is now; where it is gone, the one that is taken up."""
        state = self.state
        folders = (Path(self.args.output_dir), taken_up.resolve().parent)
        places = [folder / f"checkpoint-{state.best_global_step}" for folder in folders]
        best = next((str(place) for place in places if place.is_dir()), state.best_model_checkpoint)
        say = print if self.is_world_process_zero() else lambda *_: None
        if best is not None and state.best_model_checkpoint is None:
            say(f"{best}: the best so far")  # Transformers has said that it is not there, having looked elsewhere
        elif best is None:
            say(f"warning: {places[0]}: the best so far is not there any more; the best is chosen from what is left")
            metric = f"eval_{self.args.metric_for_best_model.removeprefix('eval_')}"
            here = [
                entry[metric] for entry in state.log_history if metric in entry and entry["step"] == state.global_step
            ]
            state.best_metric, state.best_global_step = (here[-1], state.global_step) if here else (None, None)
            best = str(taken_up) if here else None
        state.best_model_checkpoint = best

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """The trainer's own, also of what FSDP has saved where the model is whole now.

        Raises:
            UserError: the checkpoint was saved without FSDP, which cannot go on from it.
        """
        checkpoint = Path(resume_from_checkpoint)
        of_fsdp = (checkpoint / FSDP_WEIGHTS).is_file()
        if self.is_fsdp_enabled and not of_fsdp:
            raise UserError(f"{checkpoint}: was saved without FSDP, which cannot go on from it")
        if self.is_fsdp_enabled or not of_fsdp:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        with TemporaryDirectory() as folder:  # Transformers refuses FSDP's file; the plain ones are beside it
            for path in checkpoint.iterdir():
                if path.name != FSDP_WEIGHTS:
                    Path(folder, path.name).symlink_to(path.resolve())
            super()._load_from_checkpoint(folder, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """The trainer's own, also in one of several processes on a CPU, and what FSDP has saved.

        Raises:
            UserError: the optimizer's state is DeepSpeed's, and this is a run without.
        """
        import torch
        from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

        _know_cpus_by_number()
        if checkpoint is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        if next(Path(checkpoint).glob("global_step*"), None):  # the trainer would begin with a new one
            raise UserError(f"{checkpoint}: was saved by DeepSpeed; go on with PARALLEL=zero2 or zero3, as it began")
        if not Path(checkpoint, FSDP_OPTIMIZER).is_file():
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state, schedule = (
            torch.load(Path(checkpoint, name), map_location="cpu", weights_only=True)
            for name in (FSDP_OPTIMIZER, "scheduler.pt")
        )
        whole = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.model, self.optimizer.optimizer, state, options=whole)
        self.lr_scheduler.load_state_dict(schedule)

    def _load_best_model(self) -> None:
        """The trainer's own.

        Raises:
            UserError: the checkpoint of the best model is damaged.
        """
        check_best(self.state.best_model_checkpoint)
        super()._load_best_model()


@cache
def _know_cpus_by_number() -> None:
    """Have PyTorch load tensors to "cpu:0", as a trainer calls the CPU where several processes share it."""
    from torch.serialization import register_package

    register_package(100, lambda storage: None, lambda storage, place: storage if place.startswith("cpu:") else None)


def remove_oldest(written: Path, best: str | None, limit: int | None) -> None:
    """Remove a run's oldest checkpoints until `limit` are left; never the one just written, nor the best.

    Those of later steps than the one just written are what a run that was taken up before them has left behind: they go
    first.

    Args:
        written: the checkpoint just written.
        best: that of the best model so far; None = there is none.
        limit: how many are kept; None = all.
    """
    if limit is None:
        return
    kept = {written.resolve()} | ({Path(best).resolve()} if best is not None else set())
    checkpoints = checkpoints_in(written.parent)
    others = [checkpoint for checkpoint in checkpoints if checkpoint.resolve() not in kept]
    others.sort(key=lambda checkpoint: (_step(checkpoint) < _step(written), _step(checkpoint)))
    for checkpoint in others[: max(len(checkpoints) - limit, 0)]:
        shutil.rmtree(checkpoint, ignore_errors=True)
