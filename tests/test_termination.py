"""A run that is told to end saves what the same command goes on from, to the same result."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.files import file_hash
from tests.conftest import ROOT, SAMPLE

STEPS = 24
# of reinforcement, whose steps take longer: enough of them for the word to come before they are over
REINFORCED = {
    "sampled": ["--expectation", "sampled", "--num_generations", "4", "--max_steps", "16", "--eval_steps", "16"],
    "exact": ["--expectation", "exact", "--batch_size", "2", "--max_steps", "12", "--eval_steps", "12"],
}


def command(model, output_dir: Path, stage: str = "main_SFT.py", processes: int = 1) -> list[str]:
    launcher = [] if processes == 1 else ["-m", "scripts._distributed", "torchrun"]
    launcher += [] if processes == 1 else ["--standalone", "--nproc_per_node", processes]
    flags = {
        "--train_data_path": SAMPLE / "train.tsv", "--model_path": model, "--output_dir": output_dir, "--max_steps": STEPS,
        "--eval_steps": STEPS, "--eval_samples": 8, "--precision": "fp32", "--calibration": "off", "--logging_steps": 1,
        "--batch_size": 8,
    }  # fmt: skip
    if stage == "main_SFT.py":
        flags["--task"] = "goemotions-original"
    words = [sys.executable, *launcher, stage, *(word for pair in flags.items() for word in pair)]
    return list(map(str, words))


def run_to_the_end(words: list[str]) -> str:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def tell_to_end(words: list[str], log: Path, who=lambda process: process.pid) -> int:
    """Start a run, send it a SIGTERM behind its third step, and return its exit code."""
    with log.open("w") as file:
        process = subprocess.Popen(
            words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"PYTHONUNBUFFERED": "1"}
        )
        deadline = time.monotonic() + 200
        while log.read_text().count("'loss'") < 3:
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.02)
        os.kill(who(process), signal.SIGTERM)
        return process.wait(120)


def weights(folder: Path) -> str:
    return file_hash(folder / "adapter_model.safetensors")


def resumed_from(folder: Path) -> str:
    return json.loads((folder / "train_results.json").read_text())["resumed_from"]


@pytest.fixture(scope="module")
def undisturbed(tiny_model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed") / "sft"
    run_to_the_end(command(tiny_model_dir, folder))
    return folder


def test_a_run_that_was_told_to_end_goes_on_to_the_same_weights(tiny_model_dir, undisturbed, tmp_path):
    words, log = command(tiny_model_dir, tmp_path / "sft"), tmp_path / "log"
    assert tell_to_end(words, log) == 143
    (saved,) = (tmp_path / "sft").glob("checkpoint-*")
    assert 3 <= int(saved.name.removeprefix("checkpoint-")) < STEPS
    said = f"main_SFT.py: told to end (SIGTERM); the same command goes on from {saved}"
    assert said in log.read_text().splitlines()
    assert "Traceback" not in log.read_text()
    run_to_the_end(words)
    assert resumed_from(tmp_path / "sft") == str(saved)
    assert weights(tmp_path / "sft") == weights(undisturbed)


@pytest.mark.parametrize("expectation", REINFORCED)
def test_reinforcement_that_was_told_to_end(undisturbed, tmp_path, expectation):
    folders = [tmp_path / "whole", tmp_path / "told"]
    flags = REINFORCED[expectation]
    whole, told = ([*command(undisturbed, folder, "main_grpo.py"), *flags] for folder in folders)
    run_to_the_end(whole)
    assert tell_to_end(told, tmp_path / "log") == 143
    assert not (tmp_path / "told" / "train_results.json").exists()
    run_to_the_end(told)
    assert weights(folders[0]) == weights(folders[1])


def second(process) -> int:
    """The second process that a launcher has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(children[-1])


@pytest.mark.parametrize("who", [second, lambda launcher: launcher.pid])
def test_of_two_processes_one_is_told_and_both_end(tiny_model_dir, tmp_path, who):
    words, log = command(tiny_model_dir, tmp_path / "sft", processes=2), tmp_path / "log"
    assert tell_to_end(words, log, who) == 143
    assert "Traceback" not in log.read_text()
    (saved,) = (tmp_path / "sft").glob("checkpoint-*")
    assert log.read_text().count("told to end (SIGTERM); the same command goes on from") == 1
    if who is second:
        run_to_the_end(words)
        assert resumed_from(tmp_path / "sft") == str(saved)
