"""scripts/quickstart.sh as it is called: the commands it gives, noted by a Python that does nothing else; a real run."""

import json
import subprocess
from pathlib import Path

import pytest

from main_SFT import Args as SFTArgs
from scripts.compare import Args as CompareArgs
from tests.conftest import ROOT, programs

ENGLISH = [
    "main_SFT.py", "main_grpo.py", "merge_lora.py", "inference.py", "inference.py", "-m scripts.compare",
    "-m scripts.report",
]  # fmt: skip
CHINESE = ["main_SFT.py", "main_SFT.py", "inference.py", "-m scripts.compare", "-m scripts.report"]


@pytest.fixture
def quickstart(tmp_path, noted):
    """Run the quickstart on a model that is there. Returns how it ended, and the commands that it gave."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")

    def start(*flags: str, **variables: str) -> tuple[subprocess.CompletedProcess, list[list[str]]]:
        return noted("quickstart.sh", *flags, **{"MODEL": str(model), "OUTPUT": str(tmp_path / "out")} | variables)

    return start


def values(command: list[str]) -> dict[str, str]:
    """Flag -> its first value, "" for a switch."""
    pairs = zip(command, [*command[1:], "--"], strict=True)
    return {flag: "" if value.startswith("--") else value for flag, value in pairs if flag.startswith("--")}


@pytest.mark.parametrize("flags", [("--seed", "3", "--cot"), ()])
def test_english(quickstart, tmp_path, flags):
    done, commands = quickstart(*flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert programs(commands) == ENGLISH
    assert commands[0] == [
        "main_SFT.py", "--model_path", str(tmp_path / "model"), "--label_path", "data/sample/labels.txt",
        "--train_data_path", "data/sample/train.tsv", "--dev_data_path", "data/sample/dev.tsv",
        "--test_data_path", "data/sample/test.tsv", "--output_dir", f"{tmp_path}/out/sft",
        "--num_epochs", "1", "--learning_rate", "1e-3", "--batch_size", "8", *flags,
    ]  # fmt: skip
    assert "before and after" in done.stdout
    assert commands[-1][2:] == [
        f"SFT + reinforcement={tmp_path}/out/reinforced", f"SFT={tmp_path}/out/sft", f"untuned={tmp_path}/out/base",
        f"merged={tmp_path}/out/merged/test", "--output_dir", f"{tmp_path}/out",
    ]  # fmt: skip
    assert f"{tmp_path}/out/report.html" in done.stdout


@pytest.mark.parametrize("flags", [("--zh", "--seed", "3", "--compile"), ("--seed", "3", "--zh", "--compile")])
def test_chinese(quickstart, tmp_path, flags):
    done, commands = quickstart(*flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert programs(commands) == CHINESE
    tuned, head = values(commands[0]), values(commands[1])
    assert commands[0][-3:] == ["--seed", "3", "--compile"]
    assert "--seed" not in head
    assert (tuned["--tuning"], head["--tuning"]) == ("full", "head")
    for run, name in ((tuned, "sft"), (head, "head")):
        assert run["--model_path"] == str(tmp_path / "model")
        assert run["--output_dir"] == f"{tmp_path}/out/{name}"
        files = [path for flag, path in run.items() if flag.endswith("_data_path") or flag == "--label_path"]
        assert len(files) == 4
        assert all((ROOT / path).is_file() and Path(path).parent.name == "sample_zh" for path in files)
        assert {flag[2:] for flag in run} <= set(SFTArgs.__dataclass_fields__)
    compared, reported = values(commands[3]), values(commands[4])
    assert compared["--language"] == reported["--language"] == "zh"
    assert {flag[2:] for flag in compared} <= set(CompareArgs.__dataclass_fields__)
    assert f"{tmp_path}/out/sft/predictions.jsonl" in done.stdout


@pytest.mark.parametrize(("flags", "model"), [((), "smollm2-135m-instruct"), (("--zh",), "multilingual-e5-small")])
def test_a_model_that_is_not_there_is_fetched(quickstart, tmp_path, flags, model):
    _, commands = quickstart(*flags, MODEL=f"{tmp_path}/a model")
    assert commands[0] == ["download.py", "--model", model, "--target_dir", f"{tmp_path}/a model"]
    assert commands[1][:3] == ["main_SFT.py", "--model_path", f"{tmp_path}/a model"]


@pytest.mark.parametrize("flags", [(), ("--zh",)])
@pytest.mark.parametrize("failing", ["main_SFT.py", "inference.py"])
def test_it_ends_where_a_stage_fails(quickstart, flags, failing):
    done, commands = quickstart(*flags, FAILING=failing)
    assert done.returncode == 7
    assert commands[-1][0] == failing


@pytest.mark.parametrize("flags", [("--help",), ("--zh", "-h"), ("--seed", "3", "--help")])
def test_help_starts_nothing(quickstart, flags):
    done, commands = quickstart(*flags)
    assert (done.returncode, done.stderr, commands) == (0, "", [])
    assert done.stdout.startswith("usage: bash scripts/quickstart.sh [--zh]")


@pytest.mark.parametrize("flags", [(), ("--zh",)])
def test_folders_that_cannot_be_meant(quickstart, flags):
    done, commands = quickstart(*flags, OUTPUT="~nobody/runs")
    assert (done.returncode, commands) == (2, [])
    assert done.stderr.startswith("quickstart.sh: error: OUTPUT=~nobody/runs: write the folder out")


@pytest.mark.real  # two minutes
def test_the_chinese_one_learns(tmp_path, environment):
    done = subprocess.run(
        ["bash", "scripts/quickstart.sh", "--zh"], cwd=ROOT, env=environment | {"OUTPUT": str(tmp_path)},
        capture_output=True, text=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    tuned, head = (json.loads((tmp_path / name / "test_results.json").read_text()) for name in ("sft", "head"))
    assert tuned["n"] == head["n"] == 48
    assert tuned["accuracy"] >= 0.65  # of 48 rows; formats and processors differ by some of them
    assert tuned["auc"] >= 0.7
    assert tuned["accuracy"] >= head["accuracy"]
    answers = [json.loads(line)["labels"] for line in done.stdout.splitlines() if line.startswith('{"labels"')]
    assert answers == [["负面"], ["正面"]]
    assert (tmp_path / "comparison.md").read_text(encoding="utf-8") in done.stdout
    assert "负面" in (tmp_path / "report.html").read_text(encoding="utf-8")
