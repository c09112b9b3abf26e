"""What the numbers of main_SFT.py and main_grpo.py may be, checked before anything is read. (no torch)

A number outside of these bounds learns nothing, leaves the range of the number formats, or fills the memory, and the
run would end as if all were well. They are wide: what is of use lies far within them.

`args` is in each function the stage's own `Args`; flags that both stages have are named, and bounded, alike.
"""

import math
import os
from dataclasses import MISSING, fields

from data.arguments import UserError, check_output_dir, one_line, process_count, spelled
from data.conformal import LEVELS

MANY = 10**8
BOUNDS = {  # flag -> smallest and largest value
    "batch_size": (1, 65_536),
    "gradient_accumulation_steps": (1, 65_536),
    "predict_batch_size": (1, 65_536),
    "max_length": (1, 10_000_000),
    "max_new_tokens": (1, 10_000_000),
    "max_steps": (1, MANY),
    "num_epochs": (0.001, 10_000),
    "val_ratio": (0.001, 0.9),
    "seed": (0, 2**32 - 1),
    "eval_steps": (1, MANY),
    "save_steps": (1, MANY),
    "logging_steps": (1, MANY),
    "eval_samples": (0, MANY),
    "save_total_limit": (1, MANY),
    # below, AdamW's steps are rounded off the weights; above, each one is larger than they are
    "learning_rate": (1e-9, 1),
    "warmup_ratio": (0, 0.9),
    "warmup_steps": (0, MANY),
    "weight_decay": (0, 10),
    "lora_r": (1, 8192),
    "lora_alpha": (1, 65_536),
    "lora_dropout": (0, 0.9),
    # beyond, what is learnt is so little that nothing is: (1 - p) ** gamma, and a target that is nearly uniform
    "focal_gamma": (0, 10),
    "label_smoothing": (0, 0.9),
    "search": (1, 10_000),
    "plan_gpus": (1, 65_536),
    "coverage": LEVELS,
    "num_generations": (2, 4096),
    "max_completion_length": (1, 10_000_000),
    "length_budget": (1, 10_000_000),
    "num_iterations": (1, 1000),
    "steps_per_generation": (1, 65_536),
    "dynamic_sampling_rounds": (1, 1000),
    # nearer to 0, or to one token, all answers to a text are the same, and there is no better one to learn from
    "temperature": (0.01, 100),
    "top_p": (0.1, 1),
    "top_k": (2, 1_000_000),
    "beta": (1e-6, 100),
    "entropy_weight": (0, 100),
    "f1_window": (1, MANY),
    "pruned_mass": (0, 0.5),
    "max_tree_tokens": (1, 1_000_000),
    "epsilon": (1e-6, 100),
    "epsilon_high": (1e-6, 100),
    # below, gradients get lost in AdamW's own epsilon
    "max_grad_norm": (0.001, 1e9),
    "accuracy_weight": (0, 1000),
    "format_weight": (0, 1000),
    "length_weight": (0, 1000),
    "vllm_server_port": (1, 65_535),
    "vllm_gpu_memory_utilization": (0.01, 1),
}
OF_LAUNCHERS = ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")  # what processes need to find each other
OR_ZERO = ("val_ratio", "top_k", "beta")  # 0 turns off what they do
SMALLEST_REWARD = 0.01  # rewards are divided by their deviation + 1e-4


def check_training_flags(args) -> None:
    """Raise a `UserError` naming the first flag of a stage whose value cannot be."""
    for name in ("model_path", "train_data_path"):
        if getattr(args, name) is None:
            raise UserError(f"--{name} is needed")
    for field in fields(args):
        if field.name in BOUNDS:
            _check_bounds(field.name, getattr(args, field.name))
    if args.eval_steps and args.save_steps and args.save_steps % args.eval_steps:
        raise UserError(f"--save_steps {args.save_steps}: must be a multiple of --eval_steps {args.eval_steps}")
    check_output_dir(args.output_dir)
    check_launcher()


def check_launcher() -> None:
    """Raise a `UserError` when the environment has a part of what a launcher (torchrun, accelerate) sets, not all."""
    if process_count() == 1 and "LOCAL_RANK" not in os.environ:
        return
    found = "LOCAL_RANK" if process_count() == 1 else "WORLD_SIZE"
    for name in OF_LAUNCHERS:
        if not os.environ.get(name):
            raise UserError(
                f"{found}={os.environ[found]}: is set, but {name} is not; launchers such as torchrun set both: start "
                f"with one, or unset {found}"
            )
    port = os.environ["MASTER_PORT"]
    if not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(f"MASTER_PORT={one_line(port, 60)}: must be a port, from 1 to {2**16 - 1}")


def _check_bounds(name: str, value: float | None) -> None:
    smallest, largest = BOUNDS[name]
    if value is None or smallest <= value <= largest or (value == 0 and name in OR_ZERO):
        return
    zero = "0, or " if name in OR_ZERO else ""
    raise UserError(f"--{name} {value}: must be {zero}from {smallest} to {largest}")


def check_needed(args, *names: str, needs: str) -> None:
    """Raise a `UserError` naming the first of these flags that was given: without `needs` it does nothing.

    A flag counts as given if it differs from its default.
    """
    defaults = {field.name: field.default for field in fields(args) if field.default is not MISSING}
    for name in names:
        if getattr(args, name) != defaults[name]:
            raise UserError(f"--{name} {spelled(getattr(args, name))}: does nothing without {needs}")


def run_steps(args, rows: int) -> int:
    """Optimizer steps of a run of Transformers' trainer over `rows` training rows."""
    batches = math.ceil(rows / (args.batch_size * process_count()))
    return args.max_steps or math.ceil(args.num_epochs * math.ceil(batches / args.gradient_accumulation_steps))
