"""main_grpo.py on real weights: SmolLM2-135M, alone and as two processes; what a killed run does."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, SAMPLE
from tests.test_real import QUICKSTART, finish, model, start  # noqa: F401  (a fixture)

pytestmark = pytest.mark.real


def grpo_command(model: Path, output_dir: Path) -> list[str]:  # noqa: F811
    return [
        "main_grpo.py", "--model_path", str(model), "--label_path", str(SAMPLE / "labels.txt"),
        "--train_data_path", str(SAMPLE / "train.tsv"), "--dev_data_path", str(SAMPLE / "dev.tsv"),
        "--output_dir", str(output_dir), "--max_steps", "4", "--batch_size", "8", "--num_generations", "4",
        "--learning_rate", "1e-3", "--eval_steps", "2", "--eval_samples", "4", "--logging_steps", "1",
    ]  # fmt: skip


def rewards(output_dir: Path) -> list[dict[str, str]]:
    with (output_dir / "rewards.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_killed_run_goes_on_to_the_same_result(model, tmp_path):  # noqa: F811
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(*grpo_command(model, whole))
    process = start(*grpo_command(model, killed))
    deadline = time.monotonic() + 600
    while not (killed / "checkpoint-2" / "trainer_state.json").is_file():
        assert process.poll() is None, process.stdout.read()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finish(*grpo_command(model, killed))
    assert json.loads((killed / "train_results.json").read_text())["resumed_from"].endswith("checkpoint-2")
    assert rewards(killed) == rewards(whole)
    expected, found = (load_file(run / "adapter_model.safetensors") for run in (whole, killed))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0, msg=name)


def test_exact_reinforcement_of_the_quickstarts_model(tmp_path):
    """28 labels, of which far too many answers could be listed: those that matter are found."""
    if not (QUICKSTART / "sft" / "train_results.json").is_file():
        pytest.skip("needs the runs of scripts/quickstart.sh")

    finish(
        "main_grpo.py", "--model_path", str(QUICKSTART / "sft"), "--train_data_path", str(SAMPLE / "train.tsv"),
        "--val_ratio", "0.01", "--eval_samples", "2", "--output_dir", str(tmp_path / "run"), "--expectation", "exact",
        "--accuracy_reward", "f1_macro", "--max_steps", "3", "--batch_size", "4", "--logging_steps", "1",
        "--calibration", "off",
    )  # fmt: skip
    assert len(rewards(tmp_path / "run")) == 3
    for row in rewards(tmp_path / "run"):
        assert 0 < float(row["pruned_mass"]) <= 0.1
        assert float(row["invalid_mass"]) < 0.2
        assert 0 < float(row["f1_macro"]) < 1


def test_the_format_reward_teaches_an_untuned_model_to_answer_in_form(model, tmp_path):  # noqa: F811
    """It writes sentences; what it is rewarded for is a label and nothing else."""
    flags = [
        "--max_steps", "12", "--batch_size", "32", "--num_generations", "32", "--eval_steps", "12", "--eval_samples",
        "32", "--accuracy_weight", "0", "--length_weight", "1", "--learning_rate", "5e-4",
    ]  # fmt: skip
    finish(*grpo_command(model, tmp_path / "run"), *flags)
    lengths = [float(row["length"]) for row in rewards(tmp_path / "run")]
    assert sum(lengths[-3:]) > sum(lengths[:3])


def test_the_launcher_starts_two_processes(model, tmp_path):  # noqa: F811
    """On a machine without a GPU: gloo, each process with its own texts."""
    for name, rows in (("train.tsv", 40), ("dev.tsv", 6)):
        lines = (SAMPLE / name).read_text(encoding="utf-8").splitlines(keepends=True)[:rows]
        (tmp_path / name).write_text("".join(lines), encoding="utf-8")
    (tmp_path / "labels.txt").write_bytes((SAMPLE / "labels.txt").read_bytes())
    settings = {
        "VENV": sys.prefix, "MODEL": str(model), "DATA": str(tmp_path), "BATCH_SIZE": "4", "GPUS": "0",
        "NUM_GENERATIONS": "4",
    }  # fmt: skip
    if not (Path(sys.prefix) / "requirements.stamp").is_file():
        pytest.skip("needs the environment that scripts/test.sh makes")

    def launch(script: str, output: Path, *flags: str) -> str:
        done = subprocess.run(
            ["bash", f"scripts/{script}", "--max_steps", "2", *flags], cwd=ROOT, text=True, timeout=900,
            env=os.environ | settings | {"OUTPUT": str(output)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-4000:]
        return done.stdout

    launch("main_SFT_original_Qwen2_5-7b.sh", tmp_path / "sft")
    assert json.loads((tmp_path / "sft" / "train_results.json").read_text())["steps"] == 2
    settings["MODEL"] = str(tmp_path / "sft")
    launch("main_grpo_original_Qwen2_5-7b.sh", tmp_path / "grpo", "--eval_steps", "2", "--logging_steps", "1")
    assert len(rewards(tmp_path / "grpo")) == 2
    answers = pandas.read_parquet(tmp_path / "grpo" / "completions" / "completions_00001.parquet")
    assert len(answers) == 8
    assert answers["prompt"].nunique() == 2, "each process draws answers to a text of its own"


def test_the_quickstart_reinforced():
    sft, reinforced = (QUICKSTART / run / "test_results.json" for run in ("sft", "reinforced"))
    if not (sft.is_file() and reinforced.is_file()):
        pytest.skip("needs the runs of scripts/quickstart.sh")
    sft, reinforced = json.loads(sft.read_text()), json.loads(reinforced.read_text())
    assert reinforced["n"] == sft["n"]
    assert reinforced["jaccard"] > sft["jaccard"] - 0.03
    assert reinforced["invalid_rate"] <= sft["invalid_rate"] + 0.01
