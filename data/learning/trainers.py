"""What main_SFT.py and main_grpo.py do alike: read the data, make the adapter, train.

`args` is in each function the stage's own `Args`; the flags it reads are named alike in both.
"""

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.arguments import UserError, is_first_process, process_count
from data.contract import HASHES, PROCESSES
from data.engine.machine import machine
from data.engine.memory import peak_memory
from data.engine.models import pick_device
from data.engine.precision import Choice, pick_precision
from data.files import (
    ARGS_FILE,
    DATA_REPORT_FILE,
    REJECTED_FILE,
    TRAIN_RESULTS_FILE,
    file_hash,
    write_json,
    write_json_lines,
)
from data.learning.checkpoints import start_hashes
from data.loading import TaskRow, data_report, load_examples, split_validation
from data.tasks import BUILT_IN_TASKS, Task

if TYPE_CHECKING:
    from peft import LoraConfig

# --- data -----------------------------------------------------------------------------------------------------------


DATA_FLAGS = ("train_data_path", "dev_data_path", "label_path")  # files that decide what is learnt


@dataclass(frozen=True)
class Data:
    """Everything read from the user's files.

    Attributes:
        task, train, dev, test: labels and rows.
        rejected: bad rows that were left out.
        hashes: what the files hold that decide what is learnt, named as in `check_hashes`.
    """

    task: Task
    train: list[TaskRow]
    dev: list[TaskRow]
    test: list[TaskRow]
    rejected: list[dict[str, Any]]
    hashes: dict[str, str | None]

    @property
    def data_hashes(self) -> dict[str, str]:
        """Those of the data alone, without the model to begin with."""
        return {flag: content for flag, content in self.hashes.items() if flag in DATA_FLAGS and content is not None}


def load_data(args, task: Task, kind_known: bool, rationales: bool = False, most_labels: int | None = None) -> Data:
    """Read and check all files before anything heavy starts.

    Args:
        args: the stage's flags.
        task: the labels.
        kind_known: whether `task.kind` is certain; else one label on every row makes it "single_label".
        rationales: training and validation rows have to bring their reasoning.
        most_labels: that a training or validation row may have; None = any number, and the most that a training row has
            is what an answer may have.

    Raises:
        UserError: a broken file or row, or nothing to validate on where the flags ask for it.
    """
    rejected: list[dict[str, Any]] = []

    def load(flag_name: str) -> list[TaskRow]:
        path = getattr(args, flag_name)
        if path is None:
            return []
        learnt_from = flag_name != "test_data_path"  # the model writes its own reasoning about test rows
        bad_rows = rejected if args.skip_bad_rows else None
        most = most_labels if learnt_from else None
        return load_examples(
            path, task, f"--{flag_name}", cot=rationales and learnt_from, rejected=bad_rows, most_labels=most
        )

    train, dev, test = load("train_data_path"), load("dev_data_path"), load("test_data_path")
    task = task.in_language_of(train)
    kind_known = kind_known or task.allow_none or task in BUILT_IN_TASKS.values()
    if not kind_known and all(len(e.labels) == 1 for e in train + dev + test):
        print(f"task {task.name}: every row has one label, so it is learnt as single_label")
        task = replace(task, kind="single_label")
    if most_labels is None:
        task = task.answered_as_in(train)
    if not dev and args.val_ratio:
        train, dev = split_validation(train, args.val_ratio, args.seed)
    if not dev and args.metric_for_best is not None:
        raise UserError(f"--metric_for_best {args.metric_for_best}: there are no validation rows")
    paths = {flag: getattr(args, flag) for flag in DATA_FLAGS if getattr(args, flag) is not None}
    hashes = {flag: file_hash(path) for flag, path in paths.items()} | start_hashes(args.model_path)
    return Data(task, train, dev, test, rejected, hashes)


def say_what_is_over(data: Data) -> None:
    """A line on the console where validation rows have more labels than a written answer may have.

    Raises:
        UserError: all of them have.
    """
    most, over = data.task.most_labels if data.task.labels else 0, len(data.dev) - len(writable(data.task, data.dev))
    if over and over == len(data.dev):
        raise UserError(f"--dev_data_path: each of its {over} rows has more labels than any training row ({most})")
    if over and is_first_process():
        print(f"{over} of {len(data.dev)} validation rows have more labels than any training row ({most}), so that no "
              "answer can be wholly right; they have no part in the validation loss")  # fmt: skip


def writable(task: Task, examples: Sequence[TaskRow]) -> list[TaskRow]:
    """The rows whose answers have no more labels than an answer may have."""
    return [example for example in examples if not task.labels or len(example.gold) <= task.most_labels]


def subsample(examples: Sequence[TaskRow], size: int, seed: int) -> Sequence[TaskRow]:
    """`size` rows drawn once at random (0 = all), in the file's order."""
    if size == 0 or len(examples) <= size:
        return examples
    return [examples[i] for i in sorted(random.Random(seed).sample(range(len(examples)), size))]


# --- model ----------------------------------------------------------------------------------------------------------


def run_device(args) -> str:
    """The kind of device that a run is for: what there is here, or the GPUs of `--plan_gpus`."""
    return "cuda" if args.plan_gpus is not None else pick_device()


def check_positions(model, longest: int, model_path: str) -> None:
    """Raise a `UserError` when sequences of `longest` tokens are more than the model reads."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for name, module in model.named_modules():
        # RoBERTa and its like count positions from behind that of padding, in a table that is longer by as much
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            positions = module.num_embeddings - module.padding_idx - 1
    if positions and longest > positions:
        raise UserError(f"--max_length: prompt and answer may take {longest} tokens, {model_path} reads {positions}")


def with_precision(args):
    """`args` with a number format in the place of `--precision auto`; with a line on the console that says why.

    The processes of a distributed run all take that of the first one.

    Raises:
        UserError: see `data.engine.precision.pick_precision`.
    """
    if "LOCAL_RANK" not in os.environ:  # before PyTorch looks for GPUs: TRL refuses one process that sees several
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    device = pick_device()
    if process_count() == 1 or device == "cuda":  # GPUs are not measured, and those of a run are alike
        choice = pick_precision(args.precision, args.model_path, device, trains=True)
    else:
        from accelerate import PartialState
        from torch.distributed.distributed_c10d import _get_default_store

        PartialState(cpu=device == "cpu")  # through which the processes find each other
        # by their store: a process that ends right behind a collective is aborted when a thread of Gloo still holds
        # a tensor of Python's (PyTorch 2.13), and a `UserError` may come next
        store = _get_default_store()
        if is_first_process():
            choice = pick_precision(args.precision, args.model_path, device, trains=True)
            store.set("precision", json.dumps(asdict(choice)))
        choice = Choice(**json.loads(store.get("precision")))
    choice.say()
    return replace(args, precision=choice.format)


def lora_config(args, model) -> "LoraConfig | None":
    """PEFT's configuration of the adapter, or None where there is none (`--tuning full` and `head`).

    Raises:
        UserError: `--lora_target_modules` names layers the model does not have.
    """
    if args.tuning in ("full", "head"):
        return None
    from peft import LoraConfig

    from data.engine.classifier import head_names

    classifies = model.get_output_embeddings() is None
    heads = head_names(model) if classifies else []
    layers = [name for name, module in model.named_modules() if hasattr(module, "in_features")]
    # TRL multiplies with the output layer's weight directly, past an adapter; a new head is trained whole
    apart = tuple(f"{name}." for name in ("lm_head", *heads))
    layers = [name for name in layers if not f"{name}.".startswith(apart)]
    modules = args.lora_target_modules
    if modules != ["all-linear"]:
        names = {name.rpartition(".")[2] for name in layers}
        for unknown in sorted(set(modules) - names):
            raise UserError(f"--lora_target_modules {unknown}: the model has {', '.join(sorted(names))}")
    elif classifies:
        modules = layers  # PEFT's own "all-linear" would adapt the layers inside a head
    return LoraConfig(
        task_type="SEQ_CLS" if classifies else "CAUSAL_LM",
        r=args.lora_r or 16,
        lora_alpha=args.lora_alpha or 2 * (args.lora_r or 16),
        lora_dropout=args.lora_dropout,
        target_modules="all-linear" if modules == ["all-linear"] else modules,
        modules_to_save=heads or None,
    )


def unpad(args, model, not_worth: Callable[[str], str | None]) -> bool:
    """Set an encoder up for rows of texts without padding, as `--prefix_sharing` says; see `share_prefixes`.

    One that cannot is given padded batches of like length, so `on` is no promise here, and "auto" needs no warning.
    """
    from data.engine.unpadded import UNPADDED_ATTENTION, attention_side_by_side, enable_unpadding, unpadding_obstacle

    if args.prefix_sharing == "off":
        return False
    say = print if is_first_process() and args.prefix_sharing == "on" else lambda *_: None
    if obstacle := unpadding_obstacle(model):
        say(f"warning: {args.model_path} cannot do without padding, since {obstacle}; batches are of like length")
        return False
    attention = attention_side_by_side(model, run_device(args))
    if args.prefix_sharing == "auto" and attention != UNPADDED_ATTENTION and not_worth(attention):
        return False
    return enable_unpadding(model, run_device(args))


def share_prefixes(args, model, longest: int, not_worth: Callable[[str], str | None] = lambda attention: None) -> bool:
    """Set `model` up for packed rows, as `--prefix_sharing` says; with a line on the console where it says "auto".

    Args:
        args: the stage's flags.
        model: the model, no adapter on it yet.
        longest: tokens of the longest sequence it will be given.
        not_worth: attention code -> why packing would not pay, or None; asked under "auto" only.

    Returns:
        Whether the model takes packed rows now.

    Raises:
        UserError: `--prefix_sharing on` with a model that cannot.
    """
    from data.engine.tree_attention import enable_packing, sharing_attention, sharing_obstacle

    if args.prefix_sharing == "off":
        return False
    say = print if is_first_process() else lambda *_: None
    if obstacle := sharing_obstacle(model, longest):
        if args.prefix_sharing == "on":
            raise UserError(f"--prefix_sharing on: {args.model_path} cannot share prefixes, since {obstacle}")
        say(f"warning: {args.model_path} cannot share prefixes, since {obstacle}; every text is computed whole")
        return False
    if args.prefix_sharing == "auto" and (reason := not_worth(sharing_attention(model, run_device(args)))):
        say(f"prefix sharing off: {reason}")
        return False
    return enable_packing(model, longest, run_device(args))


# --- a run ----------------------------------------------------------------------------------------------------------


def write_run_facts(args, data: Data) -> None:
    """What the run was started with, and what is to be known about its data."""
    output_dir = Path(args.output_dir)
    report = data_report(data.task, data.train, data.dev, data.test)
    write_json(output_dir / ARGS_FILE, asdict(args) | {PROCESSES: process_count(), HASHES: data.hashes})
    write_json(output_dir / DATA_REPORT_FILE, report)
    if data.rejected:
        write_json_lines(output_dir / REJECTED_FILE, data.rejected)
    rows = report.pop("rows")
    print(f"task {data.task.name}: {rows['train']} training, {rows['dev']} validation, {rows['test']} test rows")
    for name, count in report.items():
        if isinstance(count, int) and count:
            print(f"  {name.replace('_', ' ')}: {count}")


def train(trainer, checkpoint: str | None) -> None:
    """Train, keep the best model, and write it and `train_results.json`.

    Raises:
        TerminatedError: a SIGTERM came; a checkpoint is written.
    """
    from peft.helpers import disable_input_dtype_casting

    from data.learning.termination import SaveWhenTerminated

    begin = time.perf_counter()
    trainer.args.eval_on_start &= checkpoint is None  # what was saved had been scored
    termination = SaveWhenTerminated(trainer.accelerator)
    trainer.add_callback(termination)
    # an adapter in fp32 would have every layer's input copied to fp32, and autocast copy it back to bf16
    casts_off = disable_input_dtype_casting(trainer.model, active=trainer.args.bf16 or trainer.args.fp16)
    with casts_off, termination.listening():
        metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
    trainer.save_model()
    trainer.save_state()
    if not trainer.is_world_process_zero():
        return
    # Transformers' own mean divides the loss since the resumption by all steps
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    parameters = [(p.numel(), p.requires_grad) for p in trainer.model.parameters()]
    write_json(
        Path(trainer.args.output_dir) / TRAIN_RESULTS_FILE,
        {
            "steps": trainer.state.global_step,
            "precision": trainer.contract.precision,
            "epochs": metrics["epoch"],
            "train_loss": sum(losses) / len(losses) if losses else None,
            "seconds_since_resumed": round(time.perf_counter() - begin, 1),
            "resumed_from": checkpoint,
            "metric_for_best": trainer.args.metric_for_best_model,
            "best_metric": trainer.state.best_metric,
            "best_step": trainer.state.best_global_step,
            "trainable_parameters": sum(n for n, trained in parameters if trained),
            "all_parameters": sum(n for n, _ in parameters),
            "machine": machine(),
            "peak_memory_mib": peak_memory() // 2**20,  # of the first process, with the loading of the model
        },
    )
