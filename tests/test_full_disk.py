"""A disk that is full in the middle: one clear line, what was written before stays, and the same command goes on."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.files import file_hash
from tests.conftest import ROOT
from tests.test_exact import moods_dir  # noqa: F401

FLAGS = {
    "main_SFT.py": ["--task", "multi_label", "--batch_size", "8"],
    "main_grpo.py": ["--expectation", "exact", "--batch_size", "4"],
}


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A disk of its own; `size` sets how much it holds."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def size(disk: Path, used: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={used}", disk], check=True)


def words(stage: str, model: Path, output_dir: Path) -> list[str]:
    data = model.parent
    flags = {
        "--model_path": model, "--train_data_path": data / "train.tsv", "--dev_data_path": data / "dev.tsv",
        "--output_dir": output_dir, "--max_steps": 4, "--eval_steps": 2, "--eval_samples": 8, "--precision": "fp32",
        "--calibration": "off",
    }  # fmt: skip
    if stage == "main_SFT.py":
        flags["--label_path"] = data / "labels.txt"
    return [sys.executable, stage, *FLAGS[stage], *(str(word) for pair in flags.items() for word in pair)]


def run(command: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*"))


@pytest.mark.parametrize("stage", FLAGS)
def test_training(moods_dir, disk, tmp_path, stage):  # noqa: F811
    whole = tmp_path / "whole"
    done = run(words(stage, moods_dir, whole))
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (bytes_of(whole / f"checkpoint-{step}") for step in (2, 4))
    size(disk, first + second // 2 + 40_000)
    command = words(stage, moods_dir, disk / "run")
    full = run(command)
    assert full.returncode == 2, full.stdout[-2000:] + full.stderr[-2000:]
    (said,) = (line for line in full.stderr.splitlines() if line.startswith(f"{stage}: error: "))
    assert "No space left on device" in said or "the disk may be full" in said, said
    assert "Traceback" not in full.stderr
    assert (disk / "run" / "checkpoint-2" / "checksums.json").is_file()
    size(disk, 100_000_000)
    done = run(command)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    weights = "adapter_model.safetensors"
    assert file_hash(disk / "run" / weights) == file_hash(whole / weights)
