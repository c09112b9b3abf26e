"""`--plan`: what a run needs, counted on a model without contents."""

import dataclasses
import os
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

import main_grpo
import main_SFT
from data.arguments import UserError
from data.contract import contract_for
from data.engine.live_memory import LiveMemory
from data.engine.weightless import weightless
from data.learning.memory_plan import (
    ACTIVATIONS,
    COPIES,
    FROZEN,
    GAPS,
    GATHERED,
    GRADIENTS,
    KEYS,
    LEARNING,
    LIBRARIES,
    REFERENCE,
    STATES,
    Machine,
    in_a_process,
    longest_batch,
    peaks,
    planned_machine,
    spread_over,
    verdict,
)
from data.tasks import resolve_task, with_prompt
from tests.test_objective_runs import tiny_bert_dir  # noqa: F401  (a fixture)
from tests.test_sft import args  # noqa: F401  (a fixture)

# the tiny model: two layers of width 32, 64 inside, four heads of width 8 and two of keys; bias of q, k and v
LAYER = 32 * 32 + 32 + 2 * (16 * 32 + 16) + 32 * 32 + 3 * 64 * 32 + 2 * 32
SIDES = 2 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 64) * 3)  # inputs and outputs of the layers that get an adapter
LAYERS = 7 * 2


@pytest.fixture
def bare_dir(args, tmp_path) -> Path:  # noqa: F811
    """The tiny model's configuration and tokenizer, without weights."""
    folder = tmp_path / "bare"
    shutil.copytree(args.model_path, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    assert not list(folder.glob("*.safetensors"))
    return folder


def planned(args, **flags):  # noqa: F811
    """Bytes by phase and kind of an SFT run, and its trainer."""
    settings = dataclasses.replace(args, plan=True, **flags)
    task = resolve_task(settings.task, settings.label_path)
    settings = main_SFT.with_defaults(settings, task)
    data = main_SFT.load_data(settings, task, kind_known=False)
    data = dataclasses.replace(data, task=with_prompt(data.task, settings.prompt))
    trainer = main_SFT.prepare(settings, data)
    return *peaks(settings, trainer), trainer


def vocabulary(directory) -> int:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(directory).vocab_size


# --- counting ---------------------------------------------------------------------------------------------------------


def test_bytes_are_counted_from_the_operation_to_the_last_reference():
    memory = LiveMemory(lambda tensor: "wide" if tensor.shape[-1] == 8 else "other")
    weight = weightless(torch.zeros(4, 8))
    memory.count_as("weight", [weight])
    with memory.watched() as peak:
        one = weight + 1  # 128 bytes, beside those of the weight
        two = one.sum(dim=1)  # 16
        view = one[:2]
        del one  # its storage is still there
        assert memory.now == {"weight": 128, "wide": 128, "other": 16}
        del view
        assert memory.now["wide"] == 0
        two = two * 2  # for a moment beside what it is made of
    assert peak == {"weight": 128, "wide": 128, "other": 16}
    with memory.watched() as peak:
        pass
    assert peak.total() == 144, "what is there counts, whatever is done"


def test_numbers_without_contents_are_one():
    memory = LiveMemory(lambda tensor: "")
    tensor = weightless(torch.zeros(3))
    with memory:
        assert (float(tensor.sum()), bool(tensor.any()), tensor.tolist()) == (1.0, True, [1.0] * 3)
        with torch.inference_mode():
            assert bool(weightless(torch.zeros(2)).max() == 0)
        assert torch.tensor([5, 6])[1].item() == 6, "whole numbers keep their contents"


# --- plans ------------------------------------------------------------------------------------------------------------


def test_an_adapters_bytes_are_those_counted_by_hand(args, bare_dir):  # noqa: F811
    found, tokens, trainer = planned(args, model_path=str(bare_dir), lora_r=4)
    size = vocabulary(bare_dir)
    adapter = 4 * 4 * SIDES
    for phase in ("update", "learning"):
        assert found[phase][FROZEN] - buffers(trainer.model) == 4 * (2 * LAYER + 32 + 2 * size * 32)
        assert found[phase][LEARNING] == adapter
        assert found[phase][STATES] == 2 * adapter + 4 * 2 * LAYERS  # AdamW's two, and the step of each matrix
    assert found["update"][GRADIENTS] == adapter
    assert tokens == len(longest_batch(trainer)["row"])
    assert found["learning"][ACTIVATIONS] > 4 * 2 * tokens * (3 * 64 + 6 * 32)


def buffers(model) -> int:
    return sum(buffer.untyped_storage().nbytes() for buffer in model.buffers())


def test_all_weights_and_accumulated_gradients(args, bare_dir):  # noqa: F811
    flags = dict(model_path=str(bare_dir), tuning="full", gradient_accumulation_steps=2)
    found, _, trainer = planned(args, **flags)
    weights = 4 * (2 * LAYER + 32 + 2 * vocabulary(bare_dir) * 32)
    assert found["learning"][LEARNING] == found["update"][GRADIENTS] == found["learning"][GRADIENTS] == weights
    assert found["update"][STATES] == 2 * weights + 4 * sum(1 for _ in trainer.model.parameters())
    assert found["update"][FROZEN] == buffers(trainer.model)


def test_four_bits(args, bare_dir):  # noqa: F811
    found, _, trainer = planned(args, model_path=str(bare_dir), tuning="qlora", lora_r=4)
    weights = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32)  # of linear layers; all sizes are multiples of 64
    scales = weights // 64 + 4 * LAYERS + LAYERS * 4 * (256 + 16 + 1)  # one outer scale each, and the tables
    others = 4 * (2 * (LAYER - weights // 2) + 32 + 2 * vocabulary(bare_dir) * 32)
    assert found["update"][FROZEN] - buffers(trainer.model) == weights // 2 + scales + others


def test_checkpointing_and_padding(args, bare_dir):  # noqa: F811
    flags = dict(model_path=str(bare_dir), batch_size=8)
    plain, _, _ = planned(args, **flags)
    checkpointed, _, _ = planned(args, gradient_checkpointing=True, **flags)
    padded, tokens, _ = planned(args, prefix_sharing="off", **flags)
    assert checkpointed["learning"][ACTIVATIONS] < 0.8 * plain["learning"][ACTIVATIONS]
    assert padded["learning"][ACTIVATIONS] > 2 * plain["learning"][ACTIVATIONS]
    assert tokens % 8 == 0


@pytest.mark.parametrize("flags", [dict(), dict(tuning="full", gradient_checkpointing=True), dict(precision="bf16")])
def test_the_same_step_with_contents_takes_as_much(args, flags, monkeypatch):  # noqa: F811
    """To a kilobyte, where the same tensors have contents, and are counted as they come and go."""
    flags = dict(batch_size=2, max_length=1024) | flags
    expected, tokens, _ = planned(args, **flags)
    monkeypatch.setattr("data.engine.live_memory._weightless_if_real", lambda tensor: tensor)
    monkeypatch.setattr("data.engine.weightless.without_contents", lambda model: None)
    settings = dataclasses.replace(args, **flags)
    task = resolve_task(None, settings.label_path)
    settings = main_SFT.with_defaults(settings, task)
    trainer = main_SFT.prepare(settings, main_SFT.load_data(settings, task, kind_known=False))
    assert not any(isinstance(p, FakeTensor) for p in trainer.model.parameters())
    found, found_tokens = peaks(settings, trainer)
    assert found_tokens == tokens
    for phase in ("update", "learning"):
        assert found[phase].total() == pytest.approx(expected[phase].total(), abs=1024)


def test_a_head_alone(args, bare_dir):  # noqa: F811
    found, _, _ = planned(args, model_path=str(bare_dir), tuning="head", objective="classify")
    assert found["update"][LEARNING] == found["update"][GRADIENTS] == 4 * 28 * 32


@pytest.mark.parametrize(
    ("flags", "learning"),
    [
        (dict(objective="score", score_loss="contrastive"), 16 * 4 * SIDES),
        (dict(objective="classify", head="mlp", tuning="head"), 4 * (33 * 512 + 513 * 256 + 257 * 28)),
    ],
)
def test_other_objectives(args, bare_dir, flags, learning):  # noqa: F811
    found, tokens, _ = planned(args, model_path=str(bare_dir), **flags)
    assert found["learning"][LEARNING] == learning
    assert tokens > 100
    assert found["learning"][ACTIVATIONS] > 0


def test_an_encoder_elsewhere(args, tiny_bert_dir):  # noqa: F811
    flags = dict(model_path=str(tiny_bert_dir), tuning="full", objective="classify", max_length=64)
    here, tokens, _ = planned(args, **flags)
    there, tokens_there, _ = planned(args, plan_gpus=1, **flags)
    assert max(tokens, tokens_there) < 4 * 64
    assert here["update"] == there["update"]


def reinforced(args, folder, **flags):  # noqa: F811
    settings = main_grpo.Args(
        model_path=str(folder), label_path=args.label_path, train_data_path=args.train_data_path,
        output_dir=args.output_dir, precision="fp32", plan=True, **flags,
    )  # fmt: skip
    started = contract_for(settings.model_path, settings.task, settings.label_path)
    data = main_grpo.load_data(settings, started.task, kind_known=False)
    build = partial(main_grpo.prepare, data=data, started=started)
    return settings, build


def test_answers_that_are_drawn(args, bare_dir):  # noqa: F811
    settings, build = reinforced(args, bare_dir, batch_size=8, num_generations=4, max_completion_length=24)
    trainer = build(settings)
    found, _ = peaks(settings, trainer)
    assert list(found) == ["update", "drawing", "learning"]
    prompt = max(len(ids) for row in longest_batch(trainer) for ids in trainer.encoder.prompt_ids([row["prompt"]]))
    kept = 2 * 2 * 8 * 2 * 8 * 4  # keys and values, layers, answers, heads, their width, bytes
    assert kept * (prompt + 22) <= found["drawing"][KEYS] <= 2 * kept * (prompt + 24)
    assert found["learning"][REFERENCE] == 0


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_all_answers_weighed(args, bare_dir, beta):  # noqa: F811
    settings, build = reinforced(
        args, bare_dir, expectation="exact", batch_size=2, max_tree_tokens=64, beta=beta, lora_r=4
    )
    trainer = build(dataclasses.replace(settings, beta=0.0))
    found, _ = peaks(settings, trainer)
    assert len(trainer.answers.most()) > 1
    assert found["learning"][REFERENCE] == (4 * 4 * SIDES if beta else 0)
    assert found["learning"][ACTIVATIONS] > 0


# --- several devices, and words ---------------------------------------------------------------------------------------


def test_what_lies_where(args, bare_dir):  # noqa: F811
    found, _, trainer = planned(args, model_path=str(bare_dir), tuning="full")
    one, weights = found["update"], 4 * (2 * LAYER + 32 + 2 * vocabulary(bare_dir) * 32)

    def over(parallel, processes=4, precision="fp32") -> Counter[str]:
        return spread_over(Machine(processes, parallel, True, None), one, trainer.model, precision)

    assert over("ddp", processes=1) == one
    assert over("ddp") - one == {COPIES: weights}
    assert over("fsdp")[LEARNING] == over("zero3")[GRADIENTS] == weights // 4
    assert over("fsdp")[GATHERED] == weights, "two layers of two, and the rest"
    assert over("fsdp", precision="bf16")[GATHERED] == weights // 2
    assert over("zero2")[LEARNING] == weights
    assert over("zero2", precision="bf16")[LEARNING] == weights // 2
    assert over("zero2", precision="bf16")[STATES] == -(-(one[STATES] + weights) // 4)


def test_a_launcher_says_what_is_planned(args, monkeypatch):  # noqa: F811
    launched = {"WORLD_SIZE": "8", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in (launched | {"ACCELERATE_USE_FSDP": "true"}).items():
        monkeypatch.setenv(name, value)
    assert (planned_machine(args).processes, planned_machine(args).parallel) == (8, "fsdp")
    assert planned_machine(dataclasses.replace(args, plan=True, plan_gpus=2)) == Machine(2, "ddp", True, None)


def test_a_process_is_more_than_its_tensors():
    found = in_a_process(Counter({LEARNING: 800, ACTIVATIONS: 800}), resident=500)
    assert found == {LEARNING: 800, ACTIVATIONS: 800, GAPS: 600, LIBRARIES: 500}


def test_the_verdict():
    here = Machine(2, "ddp", False, 8 * 2**30)
    assert verdict(here, 3 * 2**30) == "6.0 GiB fits into the 8.0 GiB of this machine"
    assert verdict(here, 5 * 2**30) == "10.0 GiB does NOT fit into the 8.0 GiB of this machine"
    assert verdict(Machine(2, "ddp", True, 8 * 2**30), 5 * 2**30).startswith("5.0 GiB fits into")
    assert verdict(Machine(2, "ddp", True, None), 5 * 2**30).startswith("needs GPUs of more than 5.0 GiB each")


@pytest.mark.parametrize("flags", [{}, dict(plan_gpus=2, plan_parallel="fsdp", precision="auto")])
def test_a_plan_leaves_nothing_behind(args, bare_dir, capsys, flags):  # noqa: F811
    main_SFT.main(dataclasses.replace(args, model_path=str(bare_dir), plan=True, **flags))
    written = capsys.readouterr().out
    assert ("on 2 GPUs (fsdp): lora in bf16" if flags else "on 1 process: lora in fp32") in written
    assert "together" in written
    assert ("Python, libraries" in written) == (not flags)
    assert not Path(args.output_dir).exists()
    assert "WORLD_SIZE" not in os.environ


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (dict(plan_gpus=8), "--plan_gpus 8: does nothing without --plan"),
        (dict(plan_parallel="ddp"), "--plan_parallel ddp: does nothing without --plan"),
        (dict(plan=True, plan_gpus=1, plan_parallel="fsdp"), "--plan_parallel fsdp: .* needs --plan_gpus 2 or more"),
        (dict(plan=True, plan_gpus=0), "--plan_gpus 0: must be from 1"),
    ],
)
def test_flags_that_cannot_be(args, flags, message):  # noqa: F811
    with pytest.raises(UserError, match=message):
        dataclasses.replace(args, **flags)
