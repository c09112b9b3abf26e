"""Real weights: SmolLM2-135M, fetched by download.py where it is not there yet."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inference import Predictor
from tests.conftest import ROOT, SAMPLE

pytestmark = pytest.mark.real
MODEL = ROOT / "models" / "smollm2-135m-instruct"
QUICKSTART = ROOT / "outputs" / "quickstart"


def start(*command: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(*command: str) -> str:
    process = start(*command)
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-4000:]
    return output


@pytest.fixture(scope="module")
def model() -> Path:
    if not (MODEL / "config.json").is_file():
        finish("download.py", "--model", "smollm2-135m-instruct")
    return MODEL


def sft_command(model: Path, output_dir: Path) -> list[str]:
    return [
        "main_SFT.py", "--model_path", str(model), "--label_path", str(SAMPLE / "labels.txt"),
        "--train_data_path", str(SAMPLE / "train.tsv"), "--dev_data_path", str(SAMPLE / "dev.tsv"),
        "--output_dir", str(output_dir), "--max_steps", "6", "--batch_size", "4", "--learning_rate", "1e-3",
        "--lora_dropout", "0.05", "--eval_steps", "2", "--eval_samples", "4", "--logging_steps", "1",
    ]  # fmt: skip


def test_a_run_killed_by_the_system_goes_on_to_the_same_result(model, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(*sft_command(model, whole))
    process = start(*sft_command(model, killed))
    deadline = time.monotonic() + 600
    while not (killed / "checkpoint-4" / "trainer_state.json").is_file():
        assert process.poll() is None, process.stdout.read()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "train_results.json").exists()
    finish(*sft_command(model, killed))
    assert json.loads((killed / "train_results.json").read_text())["resumed_from"].endswith("checkpoint-4")
    expected, found = (load_file(run / "adapter_model.safetensors") for run in (whole, killed))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0, msg=name)
    losses = [e["loss"] for e in json.loads((whole / "trainer_state.json").read_text())["log_history"] if "loss" in e]
    assert losses[-1] < losses[0]


def test_every_answer_has_room(model):
    """A label takes more tokens at the beginning of an answer than after a space: "disappointment" three instead of one."""
    from data.encoding import Encoder
    from data.engine.models import load_tokenizer
    from data.tasks import BUILT_IN_TASKS

    task = BUILT_IN_TASKS["goemotions-original"]
    encoder = Encoder(task, load_tokenizer(str(model)))
    longest = sorted(task.labels, key=lambda label: len(encoder.target_ids([label])))[-4:]
    for first in set(task.labels) - set(longest):
        assert len(encoder.target_ids([first, *longest])) <= encoder.answer_tokens
    assert len(encoder.target_ids(["disappointment", "embarrassment", "fear", "nervousness", "sadness"])) == 12
    assert 12 <= encoder.answer_tokens <= 20


def test_two_processes_train_as_one_that_accumulates(model, tmp_path):
    """Two processes of one batch each (gloo) take the steps that one process takes from two batches each."""
    flags = ["--max_steps", "3", "--batch_size", "2", "--eval_steps", "3", "--precision", "fp32"]
    one, two = tmp_path / "one", tmp_path / "two"
    finish(*sft_command(model, one), *flags, "--lora_dropout", "0", "--gradient_accumulation_steps", "2")
    finish("-m", "torch.distributed.run", "--nproc_per_node=2", *sft_command(model, two), *flags, "--lora_dropout", "0")
    expected, found = (
        [
            entry["loss"]
            for entry in json.loads((run / "trainer_state.json").read_text())["log_history"]
            if "loss" in entry
        ]
        for run in (one, two)
    )
    assert len(found) == 3
    assert found == pytest.approx(expected, abs=1e-4)
    adapters = [load_file(run / "adapter_model.safetensors") for run in (one, two)]
    moved = max(tensor.abs().max() for name, tensor in adapters[0].items() if "lora_B" in name)
    assert max((adapters[0][name] - adapters[1][name]).abs().max() for name in adapters[0]) < moved / 2


def packed_and_plain(model: Path, precision: str, comments: int, compiled: bool = False):
    """Loss and gradients of some comments under a fresh adapter: as one packed row, and padded as ever."""
    from peft import LoraConfig, get_peft_model

    from data.encoding import Encoder
    from data.engine.models import compile_layers, load_model, load_tokenizer
    from data.engine.packing import pack
    from data.engine.span_attention import SPAN_ATTENTION
    from data.engine.tree_attention import target_log_probs
    from data.learning.objectives import AnswerCollator, answer_rows, padded_log_probs
    from data.loading import load_examples
    from data.tasks import BUILT_IN_TASKS

    task = BUILT_IN_TASKS["goemotions-original"]
    encoder = Encoder(task, load_tokenizer(str(model)))
    rows = list(answer_rows(load_examples(SAMPLE / "train.tsv", task)[:comments], encoder))
    network = load_model(str(model), precision, "cpu", attention="eager").train()
    if compiled:
        compile_layers(network)
    torch.manual_seed(0)
    network = get_peft_model(network, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules="all-linear"))
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)

    def gradients(log_probs):
        loss = -log_probs().mean()
        loss.backward()
        found = torch.cat([p.grad.flatten() for p in network.parameters() if p.requires_grad])
        network.zero_grad()
        return loss.item(), found

    batch = AnswerCollator(encoder.tokenizer.pad_token_id)(rows)
    (row,) = pack([r["input_ids"] for r in rows], [[label != -100 for label in r["labels"]] for r in rows])
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        plain = gradients(lambda: padded_log_probs(network, batch)[0])
        network.set_attn_implementation(SPAN_ATTENTION)
        packed = gradients(lambda: target_log_probs(network, row))
    return packed, plain


def test_a_packed_row_in_bf16(model):
    """It rounds no more than padded rows do, by the same step in fp32: how much that is differs by processor."""
    packed, plain = packed_and_plain(model, "bf16", comments=4)
    _, (loss, gradient) = packed_and_plain(model, "fp32", comments=4)
    assert packed[0] == pytest.approx(loss, rel=0.01)
    off, plainly_off = (1 - torch.cosine_similarity(each, gradient, dim=0) for _, each in (packed, plain))
    assert off < max(1.5 * plainly_off, 1e-3)
    assert plainly_off < 0.01


def test_a_packed_row_in_fp32_compiled(model):
    (loss, gradient), (plain_loss, plain_gradient) = packed_and_plain(model, "fp32", comments=4, compiled=True)
    assert loss == pytest.approx(plain_loss, abs=1e-5)
    torch.testing.assert_close(gradient, plain_gradient, atol=1e-5, rtol=1e-4)


def test_prediction_stays_within_two_gigabytes(model):
    code = (
        "import sys; from inference import Predictor; "
        "p = Predictor(sys.argv[1], task='goemotions-original'); p.predict_batch(['thank you so much'] * 32); "
        # not getrusage's ru_maxrss: a child inherits the peak of the process that started it, here pytest's
        "print(open('/proc/self/status').read())"
    )
    output = finish("-c", code, str(model))
    assert int(re.search(r"VmHWM:\s+(\d+) kB", output)[1]) * 1024 < 2 * 2**30


def predict_command(model: Path, rows: Path, output_dir: Path) -> list[str]:
    return [
        "inference.py", "--model_path", str(model), "--task", "goemotions-original", "--test_data_path", str(rows),
        "--output_dir", str(output_dir), "--batch_size", "16",
    ]  # fmt: skip


def children(process: subprocess.Popen) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def test_a_prediction_killed_by_the_system_goes_on(model, tmp_path):
    rows = (SAMPLE / "train.tsv").read_text(encoding="utf-8").splitlines(keepends=True)[:240]
    (tmp_path / "rows.tsv").write_text("".join(rows), encoding="utf-8")
    command = [*predict_command(model, tmp_path / "rows.tsv", tmp_path / "out"), "--workers", "2"]
    partial = tmp_path / "out" / "predictions.partial.jsonl"
    process = start(*command)
    deadline = time.monotonic() + 600
    while not (partial.is_file() and partial.stat().st_size):
        assert process.poll() is None, process.stdout.read()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.1)
    workers = children(process)
    assert len(workers) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = partial.read_bytes()
    while any(Path(f"/proc/{pid}").exists() for pid in workers):  # they end with their batch
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert not (tmp_path / "out" / "predictions.jsonl").exists()
    finish(*command)
    whole = (tmp_path / "out" / "predictions.jsonl").read_bytes()
    assert whole.startswith(done[: done.rindex(b"\n") + 1])
    predicted = [json.loads(line) for line in whole.splitlines()]
    assert [row["id"] for row in predicted] == [row.split("\t")[2].strip() for row in rows]
    assert all(row["valid"] and row["labels"] for row in predicted)
    assert json.loads((tmp_path / "out" / "test_results.json").read_text())["n"] == len(rows)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".predictions.jsonl.lock", "inference_args.json", "predictions.jsonl", "test_results.json", "test_summary.txt",
    ]  # fmt: skip


def test_a_file_may_be_larger_than_memory(tiny_model_dir, tmp_path):
    """Ten times the rows take no more memory (the model is tiny, so that they take half a minute).

    In fp32: for bf16, oneDNN keeps a product for each shape it has seen, up to 1,024 of them, whatever the file.
    """
    comments = [line.split("\t") for line in (SAMPLE / "train.tsv").read_text(encoding="utf-8").splitlines()]
    peaks = []
    for count in (1_000, 10_000):
        with (tmp_path / f"{count}.tsv").open("w", encoding="utf-8") as file:
            for number in range(count):
                text, label, name = comments[number % len(comments)]
                file.write(f"{text} {number}\t{label}\t{name}-{number}\n")
        code = (
            "import sys, runpy; sys.argv = sys.argv[1:]; sys.path.insert(0, '.'); "
            "runpy.run_path(sys.argv[0], run_name='__main__'); print(open('/proc/self/status').read())"
        )
        output = finish(
            "-c",
            code,
            *predict_command(tiny_model_dir, tmp_path / f"{count}.tsv", tmp_path / f"{count}"),
            "--precision",
            "fp32",
        )
        assert json.loads((tmp_path / f"{count}" / "test_results.json").read_text())["n"] == count
        peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", output)[1]) * 1024)
    assert peaks[1] - peaks[0] < 12 * 2**20, peaks


def test_one_text_from_the_command_line(model):
    output = finish("inference.py", "--model_path", str(model), "--task", "emotion", "--text", "so happy today")
    prediction = json.loads(output.strip().splitlines()[-1])
    assert set(prediction) == {
        "labels", "valid", "rationale", "completion", "confidence", "probabilities", "truncated", "pruned_mass",
    }  # fmt: skip
    assert prediction["labels"] == [max(prediction["probabilities"], key=prediction["probabilities"].get)]
    assert 0 < prediction["confidence"] <= 1


def test_the_quickstart_learnt():
    base, tuned = QUICKSTART / "base" / "test_results.json", QUICKSTART / "sft" / "test_results.json"
    if not (base.is_file() and tuned.is_file()):
        pytest.skip("needs the runs of scripts/quickstart.sh")
    base, tuned = json.loads(base.read_text()), json.loads(tuned.read_text())
    assert base["n"] == tuned["n"] >= 168
    assert tuned["f1_macro"] > base["f1_macro"] + 0.15
    assert tuned["invalid_rate"] < 0.05


def test_compiled_answers_are_the_plain_ones(model):
    """In fp32, on real weights: the same answers, as probable."""
    texts = [line.split("\t")[0] for line in (SAMPLE / "test.tsv").read_text(encoding="utf-8").splitlines()][:24]
    flags = dict(task="goemotions-original", precision="fp32", device="cpu", batch_size=8)
    plain = Predictor(str(model), **flags).predict_batch(texts)
    compiled = Predictor(str(model), compile=True, **flags).predict_batch(texts)
    for one, other in zip(plain, compiled, strict=True):
        assert one.labels == other.labels
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)


def test_all_analyses_of_a_model(model, tmp_path, environment):
    rows = (ROOT / "data" / "sample" / "test.tsv").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "rows.tsv").write_text("".join(rows[:12]), encoding="utf-8")
    out = tmp_path / "out"
    done = subprocess.run(
        ["bash", "scripts/eval_full.sh", str(model), str(tmp_path / "rows.tsv"), "--task", "goemotions-original"],
        cwd=ROOT, env=environment | {"OUTPUT": str(out), "ROBUSTNESS_ROWS": "3", "ATTENTION_ROWS": "2"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    found = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in out.glob("*.json")}
    assert found["confidence_analysis.json"]["n"] == found["test_results.json"]["n"] == 12
    assert found["robustness_result.json"]["n"] == 3
    assert len(found["attention.json"]["texts"]) == 2
    page = (out / "report.html").read_text(encoding="utf-8")
    assert f"{found['test_results.json']['accuracy']:.3f}" in page
    assert (out / "attention.html").is_file()


@pytest.mark.parametrize("case", ["lora"])
def test_a_plan_is_what_the_run_then_takes(model, tmp_path, case):
    """Of memory: where each tensor has a mapping of its own, and with what lies between them in the C library's heap."""
    finish(
        "-m", "scripts.benchmark", "plan", "--model_path", str(model), "--cases", case, "--steps", "2",
        "--output_dir", str(tmp_path),
    )  # fmt: skip
    figures = json.loads((tmp_path / "benchmark_plan.json").read_text())[case]
    assert figures["planned"]["bytes"] == pytest.approx(figures["own_mappings"], rel=0.2)
    assert figures["planned"]["with_gaps"] == pytest.approx(figures["measured"], rel=0.2)
