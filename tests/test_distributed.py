"""Two processes over gloo, the whole model in each (DDP) or a part of it (FSDP2), learn what one process learns."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.test_exact import moods_dir  # noqa: F401

STEPS, SAVED = 4, 2
DEV = 5  # validation rows, answered two at a time: in two batches by one process, in one by the other
FLAGS = {
    "sft": {"--batch_size": 2, "--predict_batch_size": 2},
    "exact": {"--expectation": "exact", "--batch_size": 2, "--accuracy_reward": "f1_macro"},
}
# F1 is that of a batch, which one process has as a whole
ALONE = {"sft": {"--gradient_accumulation_steps": 2}, "exact": {"--batch_size": 4}}
LOGGED = {"sft": ("loss", "eval_loss", "eval_jaccard"), "exact": ("eval_jaccard",)}  # of all processes
# what scripts/accelerate/fsdp.yaml comes to; tests/test_train_launcher.py has Accelerate itself read it
FSDP = {
    "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}  # fmt: skip


def run(what: str, model: Path, output_dir: Path, spread: str = "one") -> Path:
    """A run of STEPS steps over four rows, in one process or in two."""
    stage = "main_SFT.py" if what == "sft" else "main_grpo.py"
    data = model.parent
    flags = {
        "--model_path": model, "--train_data_path": data / "train.tsv", "--dev_data_path": data / "dev.tsv",
        "--output_dir": output_dir, "--max_steps": STEPS, "--eval_steps": SAVED, "--eval_samples": DEV,
        "--logging_steps": 1, "--precision": "fp32", "--calibration": "off", "--lora_dropout": 0,
    } | FLAGS[what] | (ALONE[what] if spread == "one" else {})  # fmt: skip
    if stage == "main_SFT.py":
        flags |= {"--label_path": data / "labels.txt", "--task": "multi_label"}
    launcher = [] if spread == "one" else ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    driver = ["tests/fsdp_on_cpu.py"] if spread == "fsdp" else []
    words = [*launcher, *driver, stage, *(word for pair in flags.items() for word in pair)]
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | (FSDP if spread == "fsdp" else {}),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return output_dir


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter_model.safetensors")


def logged(run: Path, name: str) -> list[float]:
    history = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in history if name in entry]


def rewards(run: Path) -> list[dict[str, str]]:
    with (run / "rewards.csv").open() as file:
        return list(csv.DictReader(file))


def same(what: str, found: Path, expected: Path) -> None:
    for name in LOGGED[what]:
        assert logged(found, name) == pytest.approx(logged(expected, name), abs=1e-4), name  # logged with four digits
    for name, tensor in weights(expected).items():
        torch.testing.assert_close(weights(found)[name], tensor, atol=1e-5, rtol=0, msg=name)


def cut_off_behind_the_checkpoint(run: Path) -> None:
    """As a run is that was killed between its first checkpoint and the next."""
    shutil.rmtree(run / f"checkpoint-{STEPS}")
    (run / "train_results.json").unlink()


@pytest.fixture(scope="module")
def alone(moods_dir, tmp_path_factory):  # noqa: F811
    """One process's runs, each made once."""
    made = {}

    def of(what: str) -> Path:
        if what not in made:
            made[what] = run(what, moods_dir, tmp_path_factory.mktemp("alone") / "run")
        return made[what]

    return of


@pytest.mark.parametrize(("what", "spread"), [("sft", "ddp"), ("sft", "fsdp"), ("exact", "ddp")])
def test_two_processes_learn_what_one_does(moods_dir, alone, tmp_path, what, spread):  # noqa: F811
    """The same steps; one process goes on from the checkpoint of the two, to the same weights, and what was in parts is
    merged."""
    two = run(what, moods_dir, tmp_path / "run", spread)
    same(what, two, alone(what))
    if what == "exact":  # the expected F1 of all texts of a step, not of a process's
        assert [float(row["f1_macro"]) for row in rewards(two)] == pytest.approx(
            [float(row["f1_macro"]) for row in rewards(alone(what))], abs=1e-5
        )
    cut_off_behind_the_checkpoint(two)
    run(what, moods_dir, two)
    same(what, two, alone(what))
    if spread == "fsdp":
        words = ["merge_lora.py", "--training_output_dir", str(two)]
        subprocess.run([sys.executable, *words], cwd=ROOT, check=True, capture_output=True)
        assert (tmp_path / "run-merged" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("spread", "change", "said"),
    [
        (
            "one",
            {"processes": 3},
            "1 processes: --batch_size 2 and --gradient_accumulation_steps 2 make steps of 4 rows",
        ),
        ("fsdp", {}, "checkpoint-2: was saved without FSDP, which cannot go on from it"),
    ],
)
def test_steps_that_cannot_be_gone_on_with(moods_dir, alone, tmp_path, spread, change, said):  # noqa: F811
    begun = tmp_path / "run"
    shutil.copytree(alone("sft"), begun)
    cut_off_behind_the_checkpoint(begun)
    path = begun / "args.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AssertionError, match=said):
        run("sft", moods_dir, begun, spread)


def test_reinforcement_is_not_for_fsdp(moods_dir, tmp_path):  # noqa: F811
    with pytest.raises(
        AssertionError, match=r"PARALLEL=fsdp: is for main_SFT\.py; reinforcement needs the whole model"
    ):
        run("exact", moods_dir, tmp_path / "run", "fsdp")
