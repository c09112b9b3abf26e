"""Real weights: SmolLM2-135M, fetched by download.py where it is not there yet."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, SAMPLE

pytestmark = pytest.mark.real
MODEL = ROOT / "models" / "smollm2-135m-instruct"
QUICKSTART = ROOT / "outputs" / "quickstart"


def start(*command: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(*command: str) -> str:
    process = start(*command)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope="module")
def model() -> Path:
    if not (MODEL / "config.json").is_file():
        finish("download.py", "--model", "smollm2-135m-instruct")
    return MODEL


def sft_command(model: Path, output_dir: Path) -> list[str]:
    return [
        "main_SFT.py", "--model_path", str(model), "--label_path", str(SAMPLE / "labels.txt"),
        "--train_data_path", str(SAMPLE / "train.tsv"), "--dev_data_path", str(SAMPLE / "dev.tsv"),
        "--output_dir", str(output_dir), "--max_steps", "6", "--batch_size", "4", "--learning_rate", "1e-3",
        "--lora_dropout", "0.05", "--eval_steps", "2", "--eval_samples", "4", "--logging_steps", "1",
    ]  # fmt: skip


def test_a_run_killed_by_the_system_goes_on_to_the_same_result(model, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(*sft_command(model, whole))
    process = start(*sft_command(model, killed))
    deadline = time.monotonic() + 600
    while not (killed / "checkpoint-4" / "trainer_state.json").is_file():
        assert process.poll() is None, process.stdout.read()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "train_results.json").exists()
    finish(*sft_command(model, killed))
    assert json.loads((killed / "train_results.json").read_text())["resumed_from"].endswith("checkpoint-4")
    expected, found = (load_file(run / "adapter_model.safetensors") for run in (whole, killed))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0, msg=name)
    losses = [e["loss"] for e in json.loads((whole / "trainer_state.json").read_text())["log_history"] if "loss" in e]
    assert losses[-1] < losses[0]


def test_prediction_stays_within_two_gigabytes(model):
    code = (
        "import resource, sys; from inference import Predictor; "
        "p = Predictor(sys.argv[1], task='goemotions-original'); p.predict_batch(['thank you so much'] * 32); "
        "print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
    )
    output = finish("-c", code, str(model))
    assert int(output.rsplit("peak ", 1)[1]) < 2 * 2**30


def test_one_text_from_the_command_line(model):
    output = finish("inference.py", "--model_path", str(model), "--task", "emotion", "--text", "so happy today")
    prediction = json.loads(output.strip().splitlines()[-1])
    assert set(prediction) == {"labels", "valid", "rationale", "completion", "confidence", "probabilities"}
    assert 0 < prediction["confidence"] <= 1


def test_the_quickstart_learnt():
    base, tuned = QUICKSTART / "base" / "test_results.json", QUICKSTART / "sft" / "test_results.json"
    if not (base.is_file() and tuned.is_file()):
        pytest.skip("needs the runs of scripts/quickstart.sh")
    base, tuned = json.loads(base.read_text()), json.loads(tuned.read_text())
    assert base["n"] == tuned["n"] >= 168
    assert tuned["f1_macro"] > base["f1_macro"] + 0.15
    assert tuned["invalid_rate"] < 0.05
