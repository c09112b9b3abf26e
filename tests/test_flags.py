"""The bounds of numbers on the command lines of main_SFT.py and main_grpo.py."""

import dataclasses
import math
import typing
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import main_grpo
import main_SFT
from data.arguments import UserError
from data.learning.flags import BOUNDS, OR_ZERO, run_steps

STAGES = {"sft": main_SFT.Args, "grpo": main_grpo.Args}
# what else has to be so that the flag alone is looked at
BESIDE = {
    "focal_gamma": dict(loss="focal"), "label_smoothing": dict(objective="classify"),
    "dynamic_sampling_rounds": dict(dynamic_sampling=True), "vllm_server_port": dict(use_vllm="server"),
    "vllm_gpu_memory_utilization": dict(use_vllm="colocate"), "batch_size": dict(num_generations=2, gradient_accumulation_steps=2),
    "f1_window": dict(accuracy_reward="f1_macro"), "plan_gpus": dict(plan=True),
    **{name: dict(expectation="exact") for name in ("entropy_weight", "pruned_mass", "max_tree_tokens")},
    "num_generations": dict(batch_size=65_536), "save_steps": dict(eval_steps=1), "eval_steps": dict(save_steps=None),
}  # fmt: skip


def args_of(stage: str, **flags):
    needed = dict(model_path="x", train_data_path="x", label_path="x", output_dir="nowhere")
    if stage == "sft":
        flags.pop("num_generations", None)
    return STAGES[stage](**needed | flags)


def numbers_of(stage: str) -> list[str]:
    """Flags that take a number."""
    kinds = typing.get_type_hints(STAGES[stage])
    return [name for name, kind in kinds.items() if {int, float} & {kind, *typing.get_args(kind)}]


FLAGS = [(stage, name) for stage in STAGES for name in numbers_of(stage)]


def test_every_number_has_bounds():
    assert {name for _, name in FLAGS} == set(BOUNDS)
    assert max(Counter(FLAGS).values()) == 1


@pytest.mark.parametrize(("stage", "name"), FLAGS)
def test_numbers_beyond_their_bounds(stage, name):
    smallest, largest = BOUNDS[name]
    whole = isinstance(smallest, int) and isinstance(largest, int) and float not in kinds_of(stage, name)
    below, above = (smallest - 1, largest + 1) if whole else (smallest * (1 - 1e-9) - 1e-300, largest * (1 + 1e-9))
    if name in OR_ZERO and below == 0:
        below = -1
    beside = BESIDE.get(name, {})
    for value in (below, above, -1, *(() if whole else (1e308, -1e-300, 1e-300 if smallest else -1.0, math.nan))):
        with pytest.raises(UserError, match=rf"--{name} {value}: must be (0, or )?from ".replace("+", r"\+")):
            args_of(stage, **beside | {name: value})


def kinds_of(stage: str, name: str) -> tuple[type, ...]:
    kind = typing.get_type_hints(STAGES[stage])[name]
    return (kind, *typing.get_args(kind))


@pytest.mark.parametrize(("stage", "name"), FLAGS)
def test_numbers_at_their_bounds(stage, name):
    beside = BESIDE.get(name, {})
    for value in (*BOUNDS[name], *((0,) if name in OR_ZERO else ())):
        assert getattr(args_of(stage, **beside | {name: value}), name) == value


@pytest.mark.parametrize(
    ("stage", "flags", "message"),
    [
        ("sft", dict(focal_gamma=3.0), "--focal_gamma 3.0: does nothing without --loss focal"),
        ("sft", dict(freeze_embeddings=True), "--freeze_embeddings on: does nothing without --tuning full"),
        ("grpo", dict(freeze_embeddings=True), "--freeze_embeddings on: does nothing without --tuning full"),
        ("grpo", dict(dynamic_sampling_rounds=5), "--dynamic_sampling_rounds 5: does nothing without --dynamic_sampl"),
        ("grpo", dict(vllm_server_port=9), "--vllm_server_port 9: does nothing without --use_vllm server"),
        ("grpo", dict(vllm_server_host="a", use_vllm="colocate"), "--vllm_server_host a: does nothing without"),
        ("grpo", dict(vllm_gpu_memory_utilization=0.9, use_vllm="server"), "0.9: does nothing without --use_vllm colo"),
        ("grpo", dict(lr_scheduler_type="constant", warmup_ratio=0.1), "--warmup_ratio 0.1: does nothing without anot"),
        ("grpo", dict(f1_window=5), "--f1_window 5: does nothing without --accuracy_reward f1_macro or f1_micro"),
        ("grpo", dict(entropy_weight=0.1), "--entropy_weight 0.1: does nothing without --expectation exact"),
        ("grpo", dict(max_tree_tokens=64), "--max_tree_tokens 64: does nothing without --expectation exact"),
        ("grpo", dict(expectation="exact", top_k=5), "--top_k 5: does nothing without --expectation sampled"),
        ("grpo", dict(accuracy_weight=1e-3, format_weight=0.0, length_weight=9e-3), "all are below 0.01, so there is"),
    ],
)
def test_flags_that_would_do_nothing(stage, flags, message):
    with pytest.raises(UserError, match=message):
        args_of(stage, **flags)


@settings(deadline=None)  # the first one imports a library
@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 5), st.one_of(st.floats(0.01, 4.0), st.integers(1, 4)))
def test_the_steps_of_a_run_are_those_of_transformers(rows, batch_size, accumulated, epochs):
    from torch.utils.data import DataLoader
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        output_dir="nowhere", use_cpu=True, per_device_train_batch_size=batch_size, num_train_epochs=epochs,
        gradient_accumulation_steps=accumulated,
    )  # fmt: skip
    trainer = Trainer.__new__(Trainer)  # no more of a trainer than what counts the steps
    trainer.args, trainer.model, trainer._train_batch_size = arguments, SimpleNamespace(_tp_size=1), batch_size
    trainer.accelerator = SimpleNamespace(parallelism_config=None)
    found = trainer.set_initial_training_values(arguments, DataLoader(range(rows), batch_size=batch_size))
    args = args_of("sft", batch_size=batch_size, gradient_accumulation_steps=accumulated, num_epochs=float(epochs))
    assert run_steps(args, rows) == found[-1]
    assert run_steps(dataclasses.replace(args, max_steps=7), rows) == 7


def test_fewer_texts_than_answers_are_drawn_for():
    args = args_of("grpo", batch_size=16, num_generations=4, gradient_accumulation_steps=2)
    main_grpo.check_texts(args, 8)
    with pytest.raises(
        UserError,
        match="--batch_size 16 x 2 batches: with --num_generations 4, these are answers to 8 texts at once, and x",
    ):
        main_grpo.check_texts(args, 7)
