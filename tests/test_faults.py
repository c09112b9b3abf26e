"""A run stops at the first number that is not finite, before it is learnt from, and says where it was."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import main_grpo
import main_SFT
from data.arguments import DivergedError, UserError
from data.learning import flags
from data.learning.faults import StopAtFaults
from data.loading import load_examples
from data.tasks import BUILT_IN_TASKS
from tests.conftest import SAMPLE

ROWS = 24


@pytest.fixture
def args(tiny_model_dir, tmp_path) -> main_SFT.Args:
    for split, rows in (("train", ROWS), ("dev", 4)):
        lines = (SAMPLE / f"{split}.tsv").read_text(encoding="utf-8").splitlines(keepends=True)[:rows]
        (tmp_path / f"{split}.tsv").write_text("".join(lines), encoding="utf-8")
    return main_SFT.Args(
        model_path=str(tiny_model_dir), label_path=str(SAMPLE / "labels.txt"),
        train_data_path=str(tmp_path / "train.tsv"), dev_data_path=str(tmp_path / "dev.tsv"),
        output_dir=str(tmp_path / "run"), precision="fp32", max_steps=6, batch_size=4, learning_rate=1e-3,
        warmup_steps=0, warmup_ratio=0, eval_steps=1, logging_steps=1, tuning="full", eval_samples=1,
    )  # fmt: skip


class Poison(TrainerCallback):
    """Before a step, a weight becomes what only a far too large learning rate makes of it."""

    def __init__(self, step: int, value: float):
        self.step, self.value = step, value

    def on_step_begin(self, args, state, control, model, **kwargs):
        if state.global_step + 1 == self.step:
            for name, weight in model.named_parameters():
                if name.endswith("norm.weight"):
                    weight.data.flatten()[0] = self.value
                    break


def poisoned(monkeypatch, stage, step: int, value: float) -> None:
    build = stage.build_trainer

    def build_and_poison(*arguments):
        trainer = build(*arguments)
        trainer.add_callback(Poison(step, value))
        return trainer

    monkeypatch.setattr(stage, "build_trainer", build_and_poison)


def rows_named(message: str) -> list[str]:
    return message.partition("training rows ")[2].partition(";")[0].split(" and ")[0].split(", ")


def check_stopped(args, message: str, last: int) -> None:
    """No result, no card, no JSON with a number that is none; the checkpoint of step `last` is there and finite."""
    output_dir = Path(args.output_dir)
    assert not any((output_dir / name).exists() for name in ("train_results.json", "README.md", "task.json"))
    assert not list(output_dir.glob("*.safetensors"))
    checkpoints = {path.name for path in output_dir.glob("checkpoint-*")}
    assert (f"checkpoint-{last}" in checkpoints) is bool(last)
    assert f"checkpoint-{last + 1}" not in checkpoints
    assert ("no checkpoint was written" in message) is not bool(last)
    assert (f"checkpoint-{last} stays as it is" in message) is bool(last)
    for weights in output_dir.glob("checkpoint-*/*.safetensors"):
        assert all(tensor.isfinite().all() for tensor in load_file(weights).values())
    for path in output_dir.rglob("*.json"):
        json.loads(
            path.read_text(encoding="utf-8"), parse_constant=lambda name, path=path: pytest.fail(f"{path}: {name}")
        )


@pytest.mark.parametrize("objective", ["generate", "classify", "score"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(args, monkeypatch, objective, value):
    args = dataclasses.replace(args, objective=objective)
    poisoned(monkeypatch, main_SFT, step=3, value=value)
    with pytest.raises(DivergedError, match=r"^step 3: the loss is nan on the training rows ") as stopped:
        main_SFT.main(args)
    check_stopped(args, str(stopped.value), last=2)
    ids = {example.id for example in load_examples(args.train_data_path, BUILT_IN_TASKS["goemotions-original"])}
    rows = rows_named(str(stopped.value))
    assert len(rows) == 4
    assert set(rows) <= ids
    assert "--learning_rate" in str(stopped.value)
    with pytest.raises(UserError, match=r"^step 3: the loss is nan"):  # the same again from the last checkpoint
        main_SFT.main(args)


@pytest.mark.parametrize("objective", ["generate", "classify"])
def test_a_learning_rate_of_1000(args, monkeypatch, objective):
    monkeypatch.setitem(flags.BOUNDS, "learning_rate", (0, math.inf))
    args = dataclasses.replace(args, objective=objective, learning_rate=1e38, weight_decay=0.0)
    with pytest.raises(UserError, match=r"^step \d: .*(is nan|is inf|is not finite)"):
        main_SFT.main(args)
    assert not (Path(args.output_dir) / "train_results.json").exists()
    assert not (Path(args.output_dir) / "README.md").exists()


def test_reinforcement_stops_too(args, monkeypatch):
    args = main_grpo.Args(
        model_path=args.model_path, label_path=args.label_path, train_data_path=args.train_data_path,
        dev_data_path=args.dev_data_path, output_dir=args.output_dir, precision="fp32", batch_size=4, num_generations=2,
        max_steps=4, eval_steps=1, logging_steps=1, max_completion_length=16, max_length=1024, tuning="full",
        eval_samples=1, beta=0.1, dynamic_sampling=True,
    )  # fmt: skip
    poisoned(monkeypatch, main_grpo, step=2, value=math.nan)
    with pytest.raises(UserError, match=r"^step 2: the loss is nan on the training rows ") as stopped:
        main_grpo.main(args)
    check_stopped(args, str(stopped.value), last=1)
    ids = {example.id for example in load_examples(args.train_data_path, BUILT_IN_TASKS["goemotions-original"])}
    rows = rows_named(str(stopped.value))
    assert len(rows) == 2  # texts, of two answers each
    assert set(rows) <= ids


def test_weights_that_are_not_finite_are_not_saved(args, monkeypatch):
    class PoisonAtTheEnd(TrainerCallback):
        def on_step_end(self, args, state, control, model, **kwargs):
            if state.global_step == 6:
                model.lm_head.weight.data[0, 0] = math.inf

    build = main_SFT.build_trainer

    def build_and_poison(*arguments):
        trainer = build(*arguments)
        trainer.add_callback(PoisonAtTheEnd())
        monkeypatch.setattr(trainer, "_evaluate", lambda *a, **k: {"eval_f1_macro": 1.0})
        return trainer

    monkeypatch.setattr(main_SFT, "build_trainer", build_and_poison)
    with pytest.raises(UserError, match=r"^step 6: lm_head\.weight is not finite; .*checkpoint-\d stays as it is"):
        main_SFT.main(args)
    assert not (Path(args.output_dir) / "checkpoint-6").exists()


def test_scores_that_are_not_finite(args, monkeypatch):
    monkeypatch.setattr("data.labels.LabelTask.score", lambda *_: {"f1_macro": math.nan})
    with pytest.raises(UserError, match=r"^step 1: eval_f1_macro is nan; .*no checkpoint was"):
        main_SFT.main(args)
    assert not list(Path(args.output_dir).glob("checkpoint-*"))


# --- fp16's loss scaling --------------------------------------------------------------------------------------------


class _Norm:
    """The part of a trainer that measures the gradient."""

    norm = 1.0

    def _get_grad_norm(self, model, grad_norm=None):
        return torch.tensor(self.norm)


class _Trainer(StopAtFaults, _Norm):
    def __init__(self, norm: float, loss: float, scale: float | None, output_dir):
        self.norm = norm
        scaler = None if scale is None else SimpleNamespace(is_enabled=lambda: True, get_scale=lambda: scale)
        self.accelerator = SimpleNamespace(reduce=lambda tensor, _: tensor, scaler=scaler)
        self.args = SimpleNamespace(output_dir=str(output_dir))
        self.state = SimpleNamespace(global_step=4)
        self._batches = ((["a"], torch.tensor(0.5)), (["b", "c"], torch.tensor(loss)))


@pytest.mark.parametrize("norm", [math.inf, math.nan])
def test_a_step_that_fp16s_scaling_skips_is_no_fault(tmp_path, norm):
    trainer = _Trainer(norm, 1.0, 65536.0, tmp_path)
    assert trainer._get_grad_norm(None) is None, "so that the log has no number that is none"
    assert trainer._batches == ()


@pytest.mark.parametrize(
    ("norm", "loss", "scale", "message"),
    [
        (math.inf, 1.0, None, r"step 5: the norm of the gradient is inf on the training rows a, b, c; "),
        (math.nan, 1.0, 1.0, r"step 5: the norm of the gradient is nan on the training rows a, b, c; "),
        (math.nan, math.inf, 65536.0, r"step 5: the loss is inf on the training rows b, c; "),
    ],
)
def test_what_the_scaling_does_not_explain_is_one(tmp_path, norm, loss, scale, message):
    with pytest.raises(UserError, match=message):
        _Trainer(norm, loss, scale, tmp_path)._get_grad_norm(None)


def test_a_finite_step_goes_on(tmp_path):
    trainer = _Trainer(2.0, 1.0, None, tmp_path)
    assert trainer._get_grad_norm(None).item() == 2.0


# --- the environment ------------------------------------------------------------------------------------------------

WHOLE = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2: is set, but RANK is not"),
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK=3: is set, but WORLD_SIZE is not"),
        ({"LOCAL_RANK": "0", "WORLD_SIZE": "1", "RANK": "7"}, "LOCAL_RANK=0: is set, but MASTER_ADDR is not"),
        (WHOLE | {"MASTER_PORT": "99999"}, "MASTER_PORT=99999: must be a port"),
        (WHOLE | {"MASTER_PORT": "1;ls"}, "MASTER_PORT=1;ls: must be a port"),
        (WHOLE | {"WORLD_SIZE": "a[0]"}, r"WORLD_SIZE=a\[0\]: must be a whole number"),
    ],
)
def test_a_part_of_what_a_launcher_sets(args, monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        dataclasses.replace(args)


@pytest.mark.parametrize("environment", [{}, {"RANK": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}, WHOLE])
def test_what_a_launcher_sets(args, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    dataclasses.replace(args)
