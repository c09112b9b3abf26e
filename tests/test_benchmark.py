import json
import subprocess
import sys

import pytest

from data.arguments import UserError
from data.encoding import Encoder
from data.loading import load_examples
from data.tasks import BUILT_IN_TASKS
from scripts.benchmark.encoder import EncoderArgs
from scripts.benchmark.encoder import table as encoder_table
from scripts.benchmark.gpu import GpuArgs, longer_texts
from scripts.benchmark.grpo import GrpoArgs
from scripts.benchmark.grpo import table as grpo_table
from scripts.benchmark.memory import MemoryArgs
from scripts.benchmark.memory import table as memory_table
from scripts.benchmark.predict import InferenceArgs
from scripts.benchmark.predict import table as inference_table
from scripts.benchmark.race import CASES, Contestant, train_file
from scripts.benchmark.score import ScoreArgs
from scripts.benchmark.score import table as score_table
from scripts.benchmark.sft import SftArgs, table
from tests.conftest import ROOT, SAMPLE
from tests.test_objective_runs import TEXTS, tiny_bert_dir  # noqa: F401


def echo(turns, word: str) -> None:
    for number in range(2):
        turns.wait()
        turns.done(said=f"{word} {number}")
    turns.wait()
    raise ValueError("no more words")


@pytest.mark.real  # ten seconds of importing torch
def test_contestants_take_turns():
    racers = [Contestant(echo, word="first"), Contestant(echo, word="second")]
    said = [racer.turn() for _ in range(2) for racer in racers]
    assert [entry["said"] for entry in said] == ["first 0", "second 0", "first 1", "second 1"]
    assert all(entry["seconds"] > 0 and entry["peak_bytes"] > 2**20 for entry in said)
    with pytest.raises(RuntimeError, match="ValueError: no more words"):
        racers[0].turn()
    racers[1]._process.kill()  # as the system does when memory runs out
    racers[1]._process.join()
    with pytest.raises(UserError, match="a contestant died"):
        racers[1].turn()
    for racer in racers:
        racer.stop()


@pytest.mark.parametrize("args_class", [SftArgs, GrpoArgs, ScoreArgs, InferenceArgs, EncoderArgs, GpuArgs])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"model_path": None}, "--model_path is needed"),
        ({"contestants": ["ours", "me"]}, "--contestants me: must be of "),
        ({"rounds": 0}, "--rounds 0: must be at least 1"),
        ({"warmup": 0}, "--warmup 0: must be at least 1"),
        ({"output_dir": ""}, "--output_dir: is empty"),
    ],
)
def test_wrong_flags(args_class, flags, message):
    with pytest.raises(UserError, match=message):
        args_class(**{"model_path": "somewhere"} | flags)


@pytest.mark.parametrize(
    ("args_class", "flags", "message"),
    [
        (SftArgs, {"cases": ["28-labels", "27"]}, "--cases 27: must be of 28-labels, 4-labels"),
        (SftArgs, {"lora_r": 0}, "--lora_r 0: must be at least 1"),
        (GrpoArgs, {"num_generations": 1}, "--num_generations 1: must be at least 2"),
        (EncoderArgs, {"predictors": ["ours", "trainer"]}, "--predictors trainer: must be of pipeline, padded, ours"),
        (EncoderArgs, {"max_length": 7}, "--max_length 7: must be at least 8"),
        (InferenceArgs, {"rows": 3, "rounds": 4}, "--rows 3: must be at least 4"),
        (GpuArgs, {"sizes": ["tiny", "gpt"]}, "--sizes gpt: must be of qwen2.5-1.5b, qwen2.5-7b, tiny"),
        (GpuArgs, {"parts": ["score"]}, "--parts score: must be of sft, qlora, grpo, inference"),
        (GpuArgs, {"cases": ["r8"]}, "--cases r8: must be of 28-labels, 4-labels, 512-tokens, 2048-tokens"),
        (GpuArgs, {"batch_size": 0}, "--batch_size 0: must be at least 1"),
        (GpuArgs, {"start_steps": 0}, "--start_steps 0: must be at least 1"),
        (GpuArgs, {"rows": 7}, "--rows 7: must be at least 8"),
        (MemoryArgs, {"model_path": None}, "--model_path is needed"),
        (MemoryArgs, {"contestants": ["ours", "me"]}, "--contestants me: must be of whole, eager, padded, ours"),
        (MemoryArgs, {"tunings": ["head"]}, "--tunings head: must be of lora, qlora, full"),
        (MemoryArgs, {"rounds": 0}, "--rounds 0: must be at least 1"),
        (MemoryArgs, {"tokens": 2000, "answer_tokens": 1001}, "--answer_tokens 1001: must be at most half of --tokens"),
    ],
)
def test_wrong_flags_of_one(args_class, flags, message):
    with pytest.raises(UserError, match=message):
        args_class(**{"model_path": "somewhere"} | flags)


def test_data_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no train file there; get it with: python download"):
        train_file(str(tmp_path), CASES["4-labels"])


def test_the_table():
    figures = {"examples_per_second": 12.0, "tokens_a_step": 900, "peak_gib": 2.5, "times_the_limit": 3.25}
    assert table({"a": {"contestants": {"ours": figures | {"speedup": 12.04}, "alone": figures}}}).splitlines()[2:] == [
        "| a | ours | 12.0 | 12.0× | 900 | 2.5 GiB | 3.2 |",
        "| a | alone | 12.0 | – | 900 | 2.5 GiB | 3.2 |",
    ]


def test_the_table_of_grpo():
    figures = {"seconds": 2.0, "drawing_seconds": 0.5, "learning_seconds": 1.5, "answer_tokens": 4.25, "peak_gib": 2.0}
    trl = figures | {"seconds": 20.0, "drawing_seconds": 10.0, "learning_seconds": 10.0}
    assert grpo_table({"contestants": {"trl": trl, "ours": figures}}).splitlines()[2:] == [
        "| trl | 20.00 (1.0×) | 10.00 (1.0×) | 10.00 (1.0×) | 4.2 | 2.0 GiB |",
        "| ours | 2.00 (10.0×) | 0.50 (20.0×) | 1.50 (6.7×) | 4.2 | 2.0 GiB |",
    ]


def test_the_table_of_score():
    figures = {"seconds": 2.0, "texts_per_second": 4.0, "peak_gib": 1.5}
    each = figures | {"seconds": 25.0}
    lines = score_table({"contestants": {"each": each, "ours": figures}, "largest_difference": 0.012}).splitlines()
    assert lines[3] == "| ours | 2.00 | 4.0 | 12.5× | 1.5 GiB |"
    assert lines[-1] == "largest difference of a score: 1.20e-02"


def test_the_table_of_inference():
    figures = {"texts_per_second": 60.0, "answers": ["joy", "fear"], "peak_gib": 1.5}
    generate = figures | {"texts_per_second": 20.0, "answers": ["joy", "joy"]}
    latency = {"median": 0.0304, "p95": 0.05}
    text = inference_table({"contestants": {"generate": generate, "ours": figures}, "latency": latency})
    assert text.splitlines() == [
        "| answers | texts/s | times generate | labels as ours | peak memory |",
        "|---|---|---|---|---|",
        "| generate | 20.0 | 1.0× | 50.0% | 1.5 GiB |",
        "| ours | 60.0 | 3.0× | 100.0% | 1.5 GiB |",
        "",
        "one text at a time: 30 ms (median), 50 ms (95 %)",
    ]


def test_the_table_of_encoders():
    figures = {"texts_per_second": 30.0, "tokens_a_step": 1184.4, "peak_gib": 1.5}
    trainer = figures | {"texts_per_second": 10.0, "tokens_a_step": 3104.0}
    labels = {"texts_per_second": 90.0, "labels": ["a", "b"], "peak_gib": 0.5}
    results = {"learning": {"trainer": trainer, "ours": figures}, "predicting": {"padded": labels, "ours": labels}}
    assert encoder_table(results).splitlines()[2:] == [
        "| learning | trainer | 10.0 | 1.0× | 3104 | – | 1.5 GiB |",
        "| learning | ours | 30.0 | 3.0× | 1184 | – | 1.5 GiB |",
        "| predicting | padded | 90.0 | – | – | 100.0% | 0.5 GiB |",
        "| predicting | ours | 90.0 | – | – | 100.0% | 0.5 GiB |",
    ]


def test_the_table_of_memory():
    whole = {"seconds": 90.0, "tokens_a_step": 8192, "peak_mib": 6000}
    results = {"tunings": {"qlora": {"whole": whole, "ours": whole | {"seconds": 61.25, "peak_mib": 1500}}}}
    assert memory_table(results).splitlines()[2:] == [
        "| qlora | whole | 8192 | 90.0 | 6000 MiB | 1.00 |",
        "| qlora | ours | 8192 | 61.2 | 1500 MiB | 0.25 |",
    ]


@pytest.mark.real
def test_memory_of_a_tiny_model(tiny_model_dir, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "scripts.benchmark", "memory", "--model_path", str(tiny_model_dir), "--output_dir",
         str(tmp_path), "--tokens", "1024", "--answer_tokens", "40", "--tunings", "lora", "--precision", "fp32"],
        cwd=ROOT, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    figures = json.loads((tmp_path / "benchmark_memory.json").read_text())["tunings"]["lora"]
    assert list(figures) == ["whole", "ours"]
    for each in figures.values():
        assert 900 < each["tokens_a_step"] <= 1024
        assert each["seconds"] > 0


def run_on_the_sample(benchmark: str, model_dir, folder, *flags: str, first: str = "trl") -> dict:
    """Run a benchmark of two contestants on a tiny model and the sample; its JSON."""
    (folder / "goemotions" / "original").mkdir(parents=True)
    (folder / "goemotions" / "original" / "train.tsv").write_bytes((SAMPLE / "train.tsv").read_bytes())
    subprocess.run(
        [sys.executable, "-m", "scripts.benchmark", benchmark, "--model_path", str(model_dir), "--data_dir",
         str(folder), "--output_dir", str(folder / "out"), "--contestants", first, "ours", "--rounds", "2",
         "--warmup", "1", *flags],
        cwd=ROOT, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return json.loads((folder / "out" / f"benchmark_{benchmark}.json").read_text())


@pytest.mark.real
def test_grpo_on_a_tiny_model(tiny_model_dir, tmp_path):
    racers = run_on_the_sample("grpo", tiny_model_dir, tmp_path)["contestants"]
    for figures in racers.values():
        assert 0 < figures["drawing_seconds"] < figures["seconds"]
        assert 0 < figures["learning_seconds"] < figures["seconds"]
    assert racers["trl"]["answer_tokens"] == pytest.approx(racers["ours"]["answer_tokens"], rel=0.2)


@pytest.mark.real
def test_sft_on_a_tiny_model(tiny_model_dir, tmp_path):
    (case,) = run_on_the_sample("sft", tiny_model_dir, tmp_path, "--cases", "28-labels").values()
    trl, ours = case["contestants"]["trl"], case["contestants"]["ours"]
    assert trl["tokens_a_step"] > 3 * ours["tokens_a_step"]
    assert ours["tokens_a_step"] == pytest.approx(case["unique_tokens"], rel=0.3)
    assert trl["speedup"] == 1.0
    assert len(ours["all_seconds"]) == 2


@pytest.mark.real
def test_score_on_a_tiny_model(tiny_model_dir, tmp_path):
    results = run_on_the_sample("score", tiny_model_dir, tmp_path, "--precision", "fp32", first="each")
    assert results["largest_difference"] < 1e-3  # sums of up to six log-probabilities of about -10
    assert results["contestants"]["ours"]["seconds"] > 0


@pytest.mark.real
def test_an_encoder_on_tiny_data(tiny_bert_dir, tmp_path):  # noqa: F811
    (tmp_path / "r8").mkdir()
    rows = [f"{label}\t{text}" for label, texts in zip(("earn", "acq", "ship"), TEXTS.values(), strict=True)
            for text in texts]  # fmt: skip
    (tmp_path / "r8" / "train.txt").write_text("\n".join(rows * 2), encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "scripts.benchmark", "encoder", "--model_path", str(tiny_bert_dir), "--data_dir",
         str(tmp_path), "--output_dir", str(tmp_path / "out"), "--case", "r8", "--max_length", "64", "--rows", "8",
         "--rounds", "2", "--warmup", "1", "--precision", "fp32", "--peer_precision", "fp32"],
        cwd=ROOT, check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    results = json.loads((tmp_path / "out" / f"benchmark_encoder_{tiny_bert_dir.name}_r8.json").read_text())
    learning, predicting = results["learning"], results["predicting"]
    assert learning["trainer"]["tokens_a_step"] == learning["plain"]["tokens_a_step"]
    assert learning["ours"]["tokens_a_step"] < learning["plain"]["tokens_a_step"]
    assert predicting["pipeline"]["labels"] == predicting["padded"]["labels"] == predicting["ours"]["labels"]


@pytest.mark.real
def test_a_tiny_model_goes_through_what_a_gpu_is_asked_for(tiny_model_dir, tmp_path):
    folder = tmp_path / "goemotions" / "group"
    folder.mkdir(parents=True)
    texts = [line.split("\t")[0] for line in (SAMPLE / "train.tsv").read_text(encoding="utf-8").splitlines()]
    rows = "".join(f"{text}\t{i % 4}\t{i}\n" for i, text in enumerate(texts))
    (folder / "train.tsv").write_text(rows, encoding="utf-8")
    flags = [
        "--sizes", "tiny", "--parts", "sft", "grpo", "--contestants", "dense", "spans", "--cases", "4-labels",
        "--batch_size", "8", "--rounds", "1", "--warmup", "1", "--start_steps", "2", "--precision", "fp32",
        "--peer_precision", "fp32",
    ]  # fmt: skip
    subprocess.run(
        [sys.executable, "-m", "scripts.benchmark", "gpu", "--model_path", str(tiny_model_dir), "--data_dir",
         str(tmp_path), "--output_dir", str(tmp_path / "out"), *flags],
        cwd=ROOT, check=True, capture_output=True, timeout=600,
    )  # fmt: skip
    (parts,) = json.loads((tmp_path / "out" / "benchmark_gpu.json").read_text())["sizes"].values()
    assert list(parts) == ["sft short", "grpo 4-labels"]
    dense, spans = parts["sft short"]["4-labels"]["contestants"].values()
    assert dense["tokens_a_step"] == spans["tokens_a_step"] > 0
    assert set(parts["grpo 4-labels"]["contestants"]) == {"trl", "ours", "exact"}


def test_texts_of_a_length(tiny_model_dir, tokenizer, tmp_path):
    folder = tmp_path / "goemotions" / "group"
    folder.mkdir(parents=True)
    (folder / "train.tsv").write_text("".join(f"so it is text {i}\t{i % 4}\t{i}\n" for i in range(50)))
    args = GpuArgs(model_path=str(tiny_model_dir), data_dir=str(tmp_path))
    case = longer_texts(args, "512-tokens", tmp_path / "longer")
    task = BUILT_IN_TASKS[case.task]
    examples = load_examples(train_file(str(tmp_path / "longer"), case), task)
    assert len(examples) == 16 * case.batch_size
    prompts = Encoder(task, tokenizer, max_length=1024).prompt_ids([example.text for example in examples])
    assert 400 < min(map(len, prompts)) <= max(map(len, prompts)) < 524  # cleaned text has a few tokens less
