"""scripts/eval_full.sh as it is called: the commands it gives, and what it refuses."""

from pathlib import Path

import pytest

from tests.conftest import ROOT, programs

ALL = ["inference.py", *(f"-m scripts.{name}" for name in ("confidence", "robustness", "attention", "report"))]


@pytest.fixture
def run(tmp_path) -> Path:
    folder = tmp_path / "a run"
    folder.mkdir()
    (folder / "task.json").write_text('{"cot": false}')
    return folder


def test_a_trained_model(noted, run):
    done, commands = noted("eval_full.sh", str(run), "data/sample/test.tsv", "--device", "cpu", ROBUSTNESS_ROWS="050")
    assert (done.returncode, done.stderr) == (0, "")
    assert programs(commands) == ALL
    output = f"{run}/test"
    common = ["--model_path", str(run), "--test_data_path", "data/sample/test.tsv", "--output_dir", output]
    common += ["--device", "cpu"]
    assert commands == [
        ["inference.py", *common, "--probabilities"],
        ["-m", "scripts.confidence", output],
        ["-m", "scripts.robustness", *common, "--limit", "50"],
        ["-m", "scripts.attention", *common, "--limit", "60"],
        ["-m", "scripts.report", f"a run={output}", "--language", "en"],
    ]


def test_reasoning_has_no_probabilities(noted, run):
    (run / "task.json").write_text('{\n  "cot": true\n}')
    assert "--probabilities" not in noted("eval_full.sh", str(run), "x.tsv")[1][0]


def test_paths_are_those_of_the_caller(noted, run, tmp_path):
    _, commands = noted("eval_full.sh", run.name, "x.tsv", cwd=tmp_path, OUTPUT="out")
    assert commands[0][1:7] == [
        "--model_path", str(run), "--test_data_path", f"{tmp_path}/x.tsv", "--output_dir", f"{tmp_path}/out",
    ]  # fmt: skip
    _, commands = noted("eval_full.sh", "org/model", "/x.tsv", cwd=tmp_path, OUTPUT="/out")
    assert commands[0][1:7] == ["--model_path", "org/model", "--test_data_path", "/x.tsv", "--output_dir", "/out"]


@pytest.mark.parametrize("failing", ["inference.py", "scripts.robustness"])
def test_it_ends_where_a_part_fails(noted, run, failing):
    done, commands = noted("eval_full.sh", str(run), "x.tsv", FAILING=failing)
    assert done.returncode == 7
    assert failing in commands[-1]


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        ((), {}, "no model; usage: eval_full.sh MODEL DATA [flags]"),
        (("--task", "emotion"), {}, "no model; usage"),
        (("outputs/sft",), {}, "no data; usage"),
        (("outputs/sft", "--task"), {}, "no data; usage"),
        (("models/none", "x.tsv"), {}, "OUTPUT is needed for an untuned model"),
        (("models/none", "x.tsv", "--backend", "vllm"), {}, "--backend: not a flag of all programs; those are --task"),
        (("models/none", "x.tsv", "--cot"), {}, "--cot: not a flag of all programs"),
        (("models/none", "x.tsv"), {"ROBUSTNESS_ROWS": "some"}, "ROBUSTNESS_ROWS=some: must be a whole number"),
        (("models/none", "x.tsv"), {"ATTENTION_ROWS": "0"}, "ATTENTION_ROWS=0: must be a whole number from 1"),
        (("models/none", "x.tsv"), {"REPORT_LANGUAGE": "fr"}, "REPORT_LANGUAGE=fr: must be en or zh"),
        (("models/none", "x.tsv"), {"OUTPUT": "~nobody/x"}, "OUTPUT=~nobody/x: write the folder out"),
    ],
)
def test_what_it_refuses(noted, words, variables, message):
    done, commands = noted("eval_full.sh", *words, **variables)
    assert (done.returncode, commands) == (2, [])
    assert done.stderr.startswith(f"eval_full.sh: error: {message}")
    assert done.stderr.count("\n") == 1


def test_help_starts_nothing(noted):
    done, commands = noted("eval_full.sh", "outputs/sft", "--help", cwd=ROOT)
    assert (done.returncode, done.stderr, commands) == (0, "", [])
    assert done.stdout.startswith("usage: bash scripts/eval_full.sh MODEL DATA [flags]")
