"""A run's own files are enough to make it again."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from data.engine.machine import machine
from scripts.reproduce import command, lineage, weights
from tests.conftest import ROOT, SAMPLE


def reproduce(*words) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "scripts.reproduce", *map(str, words)], cwd=ROOT, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


@pytest.fixture(scope="module")
def fine_tuned(tiny_model_dir, tmp_path_factory):
    """A run of four steps in fp32, on a copy of the sample."""
    folder = tmp_path_factory.mktemp("reproduce")
    data = folder / "train.tsv"
    shutil.copy(SAMPLE / "train.tsv", data)
    words = ["main_SFT.py", "--task", "goemotions-original", "--train_data_path", data, "--model_path", tiny_model_dir,
             "--output_dir", folder / "sft", "--max_steps", 4, "--eval_steps", 4, "--eval_samples", 16, "--precision",
             "fp32"]  # fmt: skip
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def test_the_same_command_gives_the_same_weights(fine_tuned):
    done = reproduce(fine_tuned / "sft", "--again", fine_tuned / "again")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "nothing is different now" in done.stdout
    assert f"{fine_tuned / 'again'}: the same weights as {fine_tuned / 'sft'}, bit for bit" in done.stdout
    assert weights(fine_tuned / "again") == weights(fine_tuned / "sft")
    recorded = json.loads((fine_tuned / "sft" / "train_results.json").read_text())["machine"]
    here = machine()
    assert {name: recorded[name] for name in ("processor", "instructions", "python", "commit", "processes")} == {
        name: here[name] for name in ("processor", "instructions", "python", "commit", "processes")
    }
    first = done.stdout.splitlines()[0]
    assert re.fullmatch(r"OMP_NUM_THREADS=\d+ python main_SFT\.py \\", first)


def test_another_seed_is_noticed(fine_tuned):
    other = fine_tuned / "other"
    shutil.copytree(fine_tuned / "sft", other)
    flags = json.loads((other / "args.json").read_text())
    (other / "args.json").write_text(json.dumps(flags | {"seed": 1, "max_steps": 1, "eval_steps": 1}))
    done = reproduce(other, "--again", fine_tuned / "other-again")
    assert done.returncode == 1
    assert f"other weights than {other}; best on the validation rows" in done.stdout


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "train.tsv").write_text("x\t1\t1\n"), "train.tsv: holds something else"),
        (lambda folder: (folder / "train.tsv").unlink(), "train.tsv: is missing"),
    ],
)
def test_what_is_different_is_said(fine_tuned, tmp_path, change, said):
    shutil.copytree(fine_tuned, tmp_path / "copy")
    run = tmp_path / "copy" / "sft"
    flags = json.loads((run / "args.json").read_text())
    (run / "args.json").write_text(json.dumps(flags | {"train_data_path": str(tmp_path / "copy" / "train.tsv")}))
    change(tmp_path / "copy")
    done = reproduce(run)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("different now")]
    assert line.endswith(said)


def test_another_machine_and_other_libraries_are_said(fine_tuned, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(fine_tuned / "sft", run)
    results = json.loads((run / "train_results.json").read_text())
    results["machine"] |= {"processor": "Z80", "commit": "abc", "processes": 2}
    (run / "train_results.json").write_text(json.dumps(results))
    contract = json.loads((run / "task.json").read_text())
    contract["library_versions"]["torch"] = "1.0"
    (run / "task.json").write_text(json.dumps(contract))
    done = reproduce(run)
    assert done.returncode == 1
    said = [line.removeprefix("different now: ") for line in done.stdout.splitlines() if line.startswith("different")]
    assert [line.partition(":")[0] for line in said] == ["torch", "processor", "commit"]
    assert said[1].endswith(", was Z80")
    assert done.stdout.splitlines()[0].endswith(" torchrun --standalone --nproc_per_node 2 main_SFT.py \\")


def test_a_run_that_began_with_another(fine_tuned, tmp_path):
    later = tmp_path / "grpo"
    later.mkdir()
    (later / "args.json").write_text(json.dumps({"model_path": str(fine_tuned / "sft"), "num_generations": 8}))
    assert lineage(str(later)) == [str(fine_tuned / "sft"), str(later)]
    assert command(str(later)).startswith("python main_grpo.py \\\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--run is needed: folder of a run of main_SFT.py or main_grpo.py"),
        (["{folder}/nowhere"], "{folder}/nowhere/args.json: cannot be read"),
        (["{folder}/sft", "--again", "{folder}/sft"], "--again {folder}/sft: is the run itself"),
        (["{folder}/sft", "--again", "{folder}"], "--again {folder}: is not empty"),
    ],
)
def test_wrong_flags(fine_tuned, words, said):
    done = reproduce(*(word.format(folder=fine_tuned) for word in words))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert said.format(folder=fine_tuned) in line
