"""Objectives and tunings on real weights: 4-bit SmolLM2, MiniLM."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.contract import Contract
from data.engine.models import load_model
from data.engine.tree_attention import computes_packed_rows
from data.tasks import BUILT_IN_TASKS
from inference import Predictor
from main_SFT import Args, main
from tests.conftest import ROOT
from tests.test_objective_runs import TEXTS

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def smollm2() -> str:
    return fetched("smollm2-135m-instruct")


def fetched(name: str) -> str:
    """The directory of one of download.py's models, got where it is not there."""
    directory = ROOT / "models" / name
    if not (directory / "config.json").is_file():
        subprocess.run([sys.executable, "download.py", "--model", name], cwd=ROOT, check=True, timeout=600)
    return str(directory)


@pytest.fixture
def args(smollm2, tmp_path) -> Args:
    rows = [f"{text};{label}" for label, texts in TEXTS.items() for text in texts]
    for name in ("train", "dev"):
        (tmp_path / f"{name}.txt").write_text("\n".join(rows), encoding="utf-8")
    return Args(
        model_path=smollm2, task="emotion", train_data_path=str(tmp_path / "train.txt"),
        dev_data_path=str(tmp_path / "dev.txt"), test_data_path=str(tmp_path / "dev.txt"),
        output_dir=str(tmp_path / "run"), max_steps=12, batch_size=12, learning_rate=1e-3, warmup_steps=0,
        logging_steps=1,
    )  # fmt: skip


@pytest.mark.parametrize("objective", ["classify", "score"])
def test_four_bits_but_for_the_output(smollm2, objective):
    from bitsandbytes.nn import Linear4bit

    contract = Contract(BUILT_IN_TASKS["emotion"], objective=objective, head="mlp" if objective == "classify" else None)
    model = load_model(smollm2, "bf16", "cpu", contract=contract, load_in_4bit=True, new_head=True)
    kinds = {name: type(module) for name, module in model.named_modules() if hasattr(module, "weight")}
    assert kinds["model.layers.0.self_attn.q_proj"] is kinds["model.layers.29.mlp.down_proj"] is Linear4bit
    weight = model.model.layers[0].mlp.up_proj.weight
    assert (weight.quant_state.quant_type, weight.quant_state.nested) == ("nf4", True)  # nested: double quantisation
    output = "score.out" if objective == "classify" else "lm_head"
    assert issubclass(kinds[output], torch.nn.Linear)
    assert kinds[output] is not Linear4bit


def test_qlora_learns_over_four_bits(args):
    args = dataclasses.replace(args, tuning="qlora", objective="classify", max_steps=8, calibration=False)
    main(args)
    history = json.loads((Path(args.output_dir) / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0] / 2
    scores = json.loads((Path(args.output_dir) / "test_results.json").read_text())
    assert scores["accuracy"] > 0.6  # over the base's own bf16 weights; chance is one in six


def test_label_scores_of_the_real_model_in_fp32(smollm2):
    """28 labels of a text in one tree, and one forward pass for each."""
    predictor = Predictor(smollm2, "goemotions-original", objective="score", precision="fp32")
    assert computes_packed_rows(predictor.backend.model)
    text = "Thank you so much, you made my day!"
    scores = predictor.label_scores([text])[0]
    (prompt,) = predictor.encoder.prompt_ids([text])
    predictor.backend.model.set_attn_implementation("sdpa")
    for score, answer in zip(scores, predictor.encoder.candidate_ids(), strict=True):
        with torch.no_grad():
            logits = predictor.backend.model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(-1, torch.tensor(answer)[:, None])
        assert score == pytest.approx(log_probs.sum().item(), abs=1e-4)  # sums of log-probabilities of about -10


def test_an_encoder_learns(args):
    args = dataclasses.replace(args, model_path=fetched("minilm-l6"), tuning="full", learning_rate=1e-3, max_steps=20)
    main(args)
    results = json.loads((Path(args.output_dir) / "test_results.json").read_text())
    assert results["accuracy"] >= 0.9
    assert Contract.load(args.output_dir).objective == "classify"
