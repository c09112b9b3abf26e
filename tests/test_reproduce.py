"""A run's own files are enough to make it again."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from data.arguments import UserError
from data.engine.machine import machine
from scripts.reproduce import Args, command, lineage, main, weights
from tests.conftest import ROOT, SAMPLE


def reproduce(*words) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "scripts.reproduce", *map(str, words)], cwd=ROOT, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip


@pytest.fixture
def said(capsys):
    """What the program says of a run, line by line, and whether it found no difference."""

    def of(run, **flags) -> tuple[list[str], bool]:
        same = True
        try:
            main(Args(run=str(run), **flags))
        except SystemExit as end:
            same = end.code == 0
        return capsys.readouterr().out.splitlines(), same

    return of


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
    ("change", "what"),
    [
        (lambda folder: (folder / "train.tsv").write_text("x\t1\t1\n"), "train.tsv: holds something else"),
        (lambda folder: (folder / "train.tsv").unlink(), "train.tsv: is missing"),
    ],
)
def test_what_is_different_is_said(fine_tuned, tmp_path, said, change, what):
    shutil.copytree(fine_tuned, tmp_path / "copy")
    run = tmp_path / "copy" / "sft"
    flags = json.loads((run / "args.json").read_text())
    (run / "args.json").write_text(json.dumps(flags | {"train_data_path": str(tmp_path / "copy" / "train.tsv")}))
    change(tmp_path / "copy")
    lines, same = said(run)
    assert not same
    (line,) = [line for line in lines if line.startswith("different now")]
    assert line.endswith(what)


def test_another_machine_and_other_libraries_are_said(fine_tuned, tmp_path, said):
    run = tmp_path / "run"
    shutil.copytree(fine_tuned / "sft", run)
    results = json.loads((run / "train_results.json").read_text())
    results["machine"] |= {"processor": "Z80", "commit": "abc", "processes": 2}
    (run / "train_results.json").write_text(json.dumps(results))
    contract = json.loads((run / "task.json").read_text())
    contract["library_versions"]["torch"] = "1.0"
    (run / "task.json").write_text(json.dumps(contract))
    lines, same = said(run)
    assert not same
    different = [line.removeprefix("different now: ") for line in lines if line.startswith("different")]
    assert [line.partition(":")[0] for line in different] == ["torch", "processor", "commit"]
    assert different[1].endswith(", was Z80")
    assert lines[0].endswith(" torchrun --standalone --nproc_per_node 2 main_SFT.py \\")


def test_a_run_that_began_with_another(fine_tuned, tmp_path):
    later = tmp_path / "grpo"
    later.mkdir()
    (later / "args.json").write_text(json.dumps({"model_path": str(fine_tuned / "sft"), "num_generations": 8}))
    assert lineage(str(later)) == [str(fine_tuned / "sft"), str(later)]
    assert command(str(later)).startswith("python main_grpo.py \\\n")


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ({}, "--run is needed: folder of a run of main_SFT.py or main_grpo.py"),
        ({"run": "{folder}/nowhere"}, "{folder}/nowhere/args.json: cannot be read"),
        ({"run": "{folder}/sft", "again": "{folder}/sft"}, "--again {folder}/sft: is the run itself"),
        ({"run": "{folder}/sft", "again": "{folder}"}, "--again {folder}: is not empty"),
    ],
)
def test_wrong_flags(fine_tuned, flags, complaint):
    with pytest.raises(UserError) as error:
        main(Args(**{name: value.format(folder=fine_tuned) for name, value in flags.items()}))
    assert complaint.format(folder=fine_tuned) in str(error.value)
