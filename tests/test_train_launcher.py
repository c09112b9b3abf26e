"""scripts/train*.sh as they are called: what they find, what they miss, and a small grid that is really trained."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.published import LAYOUTS, SPLITS, write_labels
from data.tasks import BUILT_IN_TASKS
from tests.conftest import ROOT

MODELS = {
    "sst2": "Qwen2.5-7B-Instruct", "r8": "Qwen2.5-7B-Instruct", "chnsenticorp": "Qwen2.5-1.5B", "emotion": "Qwen3-0.6B",
}  # fmt: skip


def write_data(folder: Path, name: str, rows: int = 8, splits=None) -> Path:
    """A small data set of our own in the layout of download.py."""
    ending, header, layout, labels = LAYOUTS[name]
    folder.mkdir(parents=True)
    for split in splits or SPLITS[name]:
        texts = [f"{split} text number {i}" for i in range(rows)]
        lines = [layout.format(text=t, id=i % 2, label=labels[i % 2]) + "\n" for i, t in enumerate(texts)]
        (folder / f"{split}.{ending}").write_text(header + "".join(lines), encoding="utf-8")
    write_labels(folder, name)
    return folder


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Settings under which the launchers use this very interpreter, as an environment that is set up already."""
    venv = tmp_path_factory.mktemp("venv")
    for entry in Path(sys.prefix).iterdir():
        if entry.name != "requirements.stamp":
            (venv / entry.name).symlink_to(entry)
    stamp = subprocess.run(["cksum", "requirements.txt"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (venv / "requirements.stamp").write_text(stamp)
    return os.environ | {"VENV": str(venv), "GPUS": "0", "PROCESSES": "1"}


def launch(script: str, environment: dict[str, str], *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", f"scripts/{script}", *flags], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def found(name: str, folder: Path) -> subprocess.CompletedProcess:
    """The flags that the launchers give main_SFT.py for a data set, one a line."""
    script = (
        'source scripts/_launch.sh; source scripts/_train.sh; find_data "$0" "$1"; printf "%s\n" "${data_flags[@]}"'
    )
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script, name, str(folder)], cwd=ROOT, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    ("name", "train", "dev", "test"),
    [
        ("sst2", "train.tsv", "dev.tsv", "test.tsv"),
        ("r8", "train.txt", None, "test.txt"),
        ("chnsenticorp", "train.tsv", "dev.tsv", "test.tsv"),
        ("emotion", "train.txt", "val.txt", "test.txt"),
    ],
)
def test_the_files_of_each_data_set(tmp_path, name, train, dev, test):
    folder = write_data(tmp_path / name, name)
    expected = ["--task", name, "--train_data_path", f"{folder}/{train}", "--test_data_path", f"{folder}/{test}"]
    expected += ["--dev_data_path", f"{folder}/{dev}"] if dev else []
    assert found(name, folder).stdout.splitlines() == expected


def test_labels_name_the_task_of_other_data_sets(tmp_path):
    folder = tmp_path / "goemotions" / "group"
    folder.mkdir(parents=True)
    for split in ("train", "dev", "test"):
        (folder / f"{split}.tsv").write_text("fine\t3\tc1\n")
    assert "no labels.txt there; get it with: python download.py --dataset goemotions --target_dir" in (
        found("goemotions/group", folder).stderr
    )
    write_labels(folder, "goemotions-group")
    assert found("goemotions/group", folder).stdout.splitlines() == [
        "--label_path", f"{folder}/labels.txt", "--train_data_path", f"{folder}/train.tsv", "--test_data_path",
        f"{folder}/test.tsv", "--dev_data_path", f"{folder}/dev.tsv",
    ]  # fmt: skip


def test_rows_that_are_scored_do_not_choose_the_checkpoint(tmp_path):
    folder = write_data(tmp_path / "emotion", "emotion", splits=("train", "val"))
    assert found("emotion", folder).stdout.splitlines()[4:] == ["--test_data_path", f"{folder}/val.txt"]
    only_train = write_data(tmp_path / "r8", "r8", splits=("train",))
    assert f"{only_train}: neither a test nor a dev file there" in found("r8", only_train).stderr


@pytest.mark.parametrize("name", MODELS)
def test_what_is_missing_and_how_to_get_it(tmp_path, environment, name):
    def error(**settings: str) -> str:
        done = launch(f"train_{name}.sh", environment | {"OUTPUT": str(tmp_path / "out")} | settings)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.startswith(f"train_{name}.sh: error: ")
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return done.stderr

    model = MODELS[name]
    line = error(MODEL=f"models/nowhere/{model}")
    assert f"MODEL=models/nowhere/{model}: no such folder; get it with: python download.py --model Qwen/{model}" in line
    assert f"--target_dir models/nowhere/{model}" in line
    line = error(MODEL="Qwen/some-hub-id", DATA=str(tmp_path))
    assert f"{tmp_path}: no train file" in line
    assert f"get it with: python download.py --dataset {name} --target_dir {tmp_path}" in line
    if not (ROOT / "data" / name / "train.tsv").exists() and not (ROOT / "data" / name / "train.txt").exists():
        assert error(MODEL="Qwen/some-hub-id").endswith(f"get it with: python download.py --dataset {name}\n")
    if not (ROOT / "models" / model).exists():
        assert error().endswith(f"get it with: python download.py --model Qwen/{model}\n")


def test_the_grid_looks_for_everything_first(tmp_path, environment, tiny_model_dir):
    write_data(tmp_path / "data" / "sst2", "sst2")
    settings = environment | {
        "MODEL": str(tiny_model_dir), "DATA_DIR": str(tmp_path / "data"), "OUTPUT_DIR": str(tmp_path / "out"),
        "DATASETS": "sst2 goemotions/ekman",
    }  # fmt: skip
    done = launch("train.sh", settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"train.sh: error: {tmp_path}/data/goemotions/ekman: no train file")
    assert done.stderr.endswith(f"python download.py --dataset goemotions --target_dir {tmp_path}/data/goemotions\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.real  # half a minute
def test_a_grid(tmp_path, environment, tiny_model_dir):
    """Two runs were finished before, one fails, one is trained; then the table of those that have results."""
    write_data(tmp_path / "data" / "sst2", "sst2")
    broken = write_data(tmp_path / "data" / "r8", "r8")
    with (broken / "train.txt").open("a") as file:
        file.write("wheat\tno such topic\n")
    outputs = tmp_path / "out"
    before = [outputs / "r8-lora-seed1", outputs / "sst2-lora-seed1"]
    for folder in before:
        folder.mkdir(parents=True)
        (folder / "train_results.json").write_text("{}")
        (folder / "test_results.json").write_text(json.dumps({"n": 8, "accuracy": 0.25, "seed": 1}))
    settings = environment | {
        "MODEL": str(tiny_model_dir), "DATA_DIR": str(tmp_path / "data"), "OUTPUT_DIR": str(outputs),
        "DATASETS": "r8 sst2", "TUNINGS": "lora", "SEEDS": "1 2",
    }  # fmt: skip
    done = launch("train.sh", settings, "--max_steps", "1", "--precision", "fp32")
    assert done.returncode == 1, done.stderr
    for folder in before:
        assert f"== {folder}: finished already, skipped\n" in done.stdout
    assert done.stderr.splitlines()[-2:] == ["== failed runs: 1", f"{outputs}/r8-lora-seed2"], done.stderr
    assert f"main_SFT.py: error: {broken}/train.txt:9: label 'wheat' is not in the label set" in done.stderr

    run = outputs / "sst2-lora-seed2"
    results = json.loads((run / "test_results.json").read_text())
    assert json.loads((run / "train_results.json").read_text())["steps"] == 1
    assert (results["n"], list(results["per_label"])) == (8, list(BUILT_IN_TASKS["sst2"].labels))
    begun = json.loads((run / "args.json").read_text())
    assert (begun["tuning"], begun["seed"], begun["dev_data_path"]) == ("lora", 2, f"{tmp_path}/data/sst2/dev.tsv")

    compared = json.loads((outputs / "baseline_comparison.json").read_text())
    assert {name: content["runs"] for name, content in compared.items()} == {
        "r8-lora": [str(before[0])], "sst2-lora": [str(before[1]), str(run)]
    }  # fmt: skip
    assert compared["sst2-lora"]["mean"]["accuracy"] == pytest.approx((0.25 + results["accuracy"]) / 2)
    table = (outputs / "comparison.md").read_text()
    assert table in done.stdout
    assert [line.split()[1:6:2] for line in table.splitlines()[2:]] == [["r8-lora", "8", "1"], ["sst2-lora", "8", "2"]]
