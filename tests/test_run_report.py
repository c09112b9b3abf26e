import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

from data.arguments import UserError
from data.contract import Contract
from data.files import write_json
from data.labels import LabelTask
from data.metrics import label_metrics
from data.predictions import Prediction
from data.report.model_card import (
    hub_id,
    write_inference_example,
    write_model_card,
    write_run_report,
)
from data.report.tables import is_number, markdown_table
from data.sampling import Sampling
from data.tasks import BUILT_IN_TASKS

GROUPS = BUILT_IN_TASKS["goemotions-group"]
ARGS = {
    "model_path": "Qwen/Qwen2.5-7B-Instruct", "tuning": "lora", "learning_rate": 2e-4, "batch_size": 8,
    "gradient_accumulation_steps": 2, "label_path": None,
}  # fmt: skip
TRAINED = {
    "steps": 1357, "epochs": 0.4321, "train_loss": 0.47645, "seconds_since_resumed": 3485.5, "resumed_from": None,
    "metric_for_best": "f1_macro", "best_metric": 0.70812, "best_step": 20, "trainable_parameters": 9768960,
    "all_parameters": 144283968,
}  # fmt: skip
DATA = {
    "rows": {"train": 43410, "dev": 5426, "test": 5427}, "train_label_counts": {"positive": 17410, "neutral": 14219},
    "train_repeated_rows": 221, "train_texts_with_different_labels": 33, "dev_rows_also_in_train": 49,
    "test_rows_also_in_train": 51,
}  # fmt: skip
HISTORY = [
    {"step": 10, "loss": 2.5, "learning_rate": 1e-4},
    {"step": 10, "eval_loss": 2.25},
    {"step": 10, "eval_f1_macro": 0.5, "eval_f1_micro": 0.55, "eval_accuracy": 0.4, "eval_jaccard": 0.45},
    {"step": 20, "loss": 1.5, "learning_rate": 2e-4},
    {"step": 20, "eval_loss": 1.75},
    {"step": 20, "eval_f1_macro": 0.70812, "eval_f1_micro": 0.71, "eval_accuracy": 0.61, "eval_jaccard": 0.66},
    {"step": 30, "loss": float("nan"), "learning_rate": 0.0},
    {"step": 30, "eval_f1_macro": 0.6, "eval_f1_micro": 0.65, "eval_accuracy": 0.5, "eval_jaccard": 0.55},
    {"step": 30, "train_loss": 0.47645},
]
TEST = {
    "n": 5427, "accuracy": 0.64449, "f1_macro": 0.6535, "f1_micro": 0.68451, "jaccard": 0.67794, "invalid_rate": 0.0125,
    "ece": 0.03125, "auc": None, "backend": "hf",
    "per_label": {label: {"precision": 0.5 + i / 64, "recall": 0.25, "f1": 0.3125, "support": 1200 + i} for i, label in enumerate(GROUPS.labels)},
}  # fmt: skip


@pytest.fixture
def run_dir(tmp_path):
    """A finished run of SFT, not scored on a test file."""
    Contract(GROUPS, base_model="Qwen/Qwen2.5-7B-Instruct", seed=7).save(tmp_path)
    write_json(tmp_path / "args.json", ARGS)
    write_json(tmp_path / "train_results.json", TRAINED)
    write_json(tmp_path / "data_report.json", DATA)
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY, "best_global_step": 20}))
    write_json(tmp_path / "adapter_config.json", {"r": 32, "lora_alpha": 64})
    return tmp_path


def test_tables():
    rows = [["one", "0.5"], ["", "12"]]
    assert markdown_table(["", "F1"], rows) == "|  | F1 |\n|---|---|\n| one | 0.5 |\n|  | 12 |"
    assert markdown_table(["", "F1"], rows, padded=True).splitlines() == [
        "|     | F1  |",
        "|-----|-----|",
        "| one | 0.5 |",
        "|     | 12  |",
    ]
    assert [is_number(value) for value in (1, 0.5, True, None, "1", float("nan"), float("inf"))] == [True] * 2 + [
        False
    ] * 5


def read_card(directory):
    """The card's header and a dictionary of its tables: first cell -> the others (a later table's rows win)."""
    from huggingface_hub import ModelCard

    card = ModelCard.load(directory / "README.md")
    assert not re.search(r"\b(None|nan|inf)\b|[{}]", card.text), card.text
    cells = [line.strip("| ").split(" | ") for line in card.text.splitlines() if line.startswith("| ")]
    return card, {first: rest for first, *rest in cells}


@pytest.mark.parametrize(("name", "change", "message"), [
    ("args.json", {"learning_rate": "fast"}, "learning_rate is 'fast', expected a number or null"),
    ("args.json", {"batch_size": True}, "batch_size is True, expected a whole number or null"),
    ("train_results.json", {"steps": []}, r"steps is \[\], expected a whole number or null"),
    ("train_results.json", {"steps": 10**400}, "steps is 1000.*, which is out of range"),
    ("train_results.json", {"best_metric": {}}, r"best_metric is \{\}, expected a number"),
    ("data_report.json", {"rows": None}, "rows is None, expected an object"),
    ("data_report.json", {"rows": {"train": "many"}}, "train in rows is 'many', expected a whole number"),
    ("data_report.json", {"train_label_counts": {"joy": [1]}}, r"joy in train_label_counts is \[1\]"),
    ("test_results.json", {"accuracy": "high"}, "accuracy is 'high', expected a number or null"),
    ("test_results.json", {"n": 10**30}, "n is 1000.*, which is out of range"),
    ("test_results.json", {"per_label": []}, r"per_label is \[\], expected an object"),
    ("test_results.json", {"per_label": {"joy": 3}}, "per_label of joy is 3, expected an object"),
    ("test_results.json", {"per_label": {"joy": {"f1": "x"}}}, "f1 in per_label of joy is 'x', expected a number"),
    ("trainer_state.json", {"log_history": {}}, r"log_history is \{\}, expected a list"),
    ("trainer_state.json", {"log_history": [3]}, "entry 1 of log_history is 3, expected an object"),
    ("trainer_state.json", {"log_history": [{"loss": 1}]}, "step in entry 1 of log_history is None, expected a whole number"),
    ("trainer_state.json", {"best_global_step": [1]}, r"best_global_step is \[1\], expected a whole number"),
    ("adapter_config.json", {"r": "32"}, "r is '32', expected a whole number"),
])  # fmt: skip
def test_files_of_a_run_with_other_types(run_dir, name, change, message):
    before = json.loads((run_dir / name).read_text()) if (run_dir / name).exists() else TEST
    (run_dir / name).write_text(json.dumps(before | change))
    with pytest.raises(UserError, match=f"{name}: {message}") as raised:
        write_run_report(run_dir)
    assert len(str(raised.value)) < 300
    assert not (run_dir / "README.md").exists()


@pytest.mark.parametrize("name", [
    "args.json", "train_results.json", "data_report.json", "test_results.json", "trainer_state.json",
    "adapter_config.json", "task.json",
])  # fmt: skip
@pytest.mark.parametrize(
    "content", ["null", "[1]", "[" * 100_000, '{"n": ' + "9" * 10_000 + "}", "{", '{"n": "\xff"}'], ids=len
)
def test_files_of_a_run_that_are_no_objects(run_dir, name, content):
    (run_dir / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError, match=f"{name}: not a JSON object") as raised:
        write_run_report(run_dir)
    assert len(str(raised.value)) < 400


@pytest.mark.filterwarnings("error")
def test_numbers_of_every_size_make_a_card(run_dir):
    odd = dict.fromkeys(("learning_rate", "epochs", "best_metric", "accuracy", "f1_macro", "ece"), 1.7e308)
    for name in ("args.json", "train_results.json", "test_results.json"):
        before = json.loads((run_dir / name).read_text()) if (run_dir / name).exists() else TEST
        (run_dir / name).write_text(json.dumps(before | odd).replace("0.47645", "1e999"))
    history = [*HISTORY, {"step": 40, "loss": 1.7e308, "eval_f1_macro": -1.7e308, "learning_rate": 10**30}]
    (run_dir / "trainer_state.json").write_text(json.dumps({"log_history": history, "best_global_step": 40}))
    write_run_report(run_dir)
    assert (run_dir / "README.md").exists()


def test_the_card_of_a_scored_run(run_dir):
    write_json(run_dir / "test_results.json", TEST)
    write_run_report(run_dir)
    card, rows = read_card(run_dir)
    assert card.data.to_dict() == {
        "base_model": "Qwen/Qwen2.5-7B-Instruct",
        "library_name": "peft",
        "pipeline_tag": "text-classification",
        "tags": ["emotune", "goemotions-group", "generate"],
    }
    assert rows["4 labels"] == ["ambiguous, negative, neutral, positive"]
    assert rows["kind"] == ["one or more labels a text"]
    assert (rows["method"], rows["tuning"]) == (["supervised fine-tuning (SFT)"], ["lora, rank 32, alpha 64"])
    assert (rows["learning rate"], rows["batches a step"], rows["seed"]) == (["0.0002"], ["2"], ["7"])
    assert (rows["steps"], rows["epochs"], rows["seconds"]) == (["1,357"], ["0.4321"], ["3,485.5"])
    assert rows["trained parameters"] == ["9,768,960 of 144,283,968"]
    assert (rows["best validation score"], rows["found at step"]) == (["f1_macro 0.7081"], ["20"])
    assert (rows["train rows"], rows["train repeated rows"]) == (["43,410"], ["221"])
    assert (rows["train texts with different labels"], rows["test rows also in train"]) == (["33"], ["51"])
    assert (rows["texts"], rows["accuracy"], rows["macro F1"]) == (["5,427"], ["0.6445"], ["0.6535"])
    assert (rows["micro F1"], rows["Jaccard"], rows["invalid answers"]) == (["0.6845"], ["0.6779"], ["0.0125"])
    assert rows["calibration error (ECE)"] == ["0.0312"]
    assert "AUC" not in rows, "it was not measured"
    assert rows["positive"] == ["0.5469", "0.2500", "0.3125", "1,203", "17,410"]
    assert rows["ambiguous"][-1] == "0", "no training row has it"
    assert "![Training curves](training_curves.png)" in card.text
    assert 'python inference_example.py "a text"' in card.text
    assert "No test file" not in card.text
    assert "confidence" not in card.text


def test_a_run_without_test_results(run_dir):
    write_run_report(run_dir)
    card, rows = read_card(run_dir)
    assert "| validation rows | step 20 |" in card.text
    assert (rows["macro F1"], rows["Jaccard"]) == (["0.7081"], ["0.6600"])
    assert rows["positive"] == ["17,410"]
    for limit in ("No test file was scored.", "chosen by its validation scores", "confidence can be trusted was not"):
        assert limit in card.text


def test_scores_and_training_rows_of_different_files(run_dir):
    write_json(run_dir / "test_results.json", TEST)
    rows_read = {"train": 43410, "dev": 5426, "test": 0}
    write_json(run_dir / "data_report.json", DATA | {"rows": rows_read, "test_rows_also_in_train": 0})
    write_model_card(run_dir)
    card, rows = read_card(run_dir)
    assert "also stand in the training file was not checked" in card.text
    assert rows["dev rows also in train"] == ["49"]
    assert "test rows also in train" not in rows, "0 would look like a result"


def test_task_json_alone(tmp_path):
    """Nothing is said about what no file says; the names of labels and folders do not break the Markdown."""
    labels = ("a|b", "<c>", "*d*")
    Contract(LabelTask("own", "single_label", labels, "{text}"), base_model="/somewhere/my_model").save(tmp_path)
    write_run_report(tmp_path)
    card, rows = read_card(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "inference_example.py", "task.json"]
    assert card.data.to_dict()["library_name"] == "transformers"
    assert card.data.base_model is None
    assert card.text.startswith("\n# my_model for own\n")
    assert rows["3 labels"] == [r"a\|b, \<c>, \*d\*"]
    assert set(rows) & {"learning rate", "steps", "train rows", "accuracy", "label"} == set()
    assert [line for line in card.text.splitlines() if line.startswith("## ")] == [
        "## What it reads",
        "## How it was trained",
        "## How to use it",
        "## Limits",
    ]


def test_scores_as_they_are_computed(run_dir):
    """What `label_metrics` returns is what the card reads."""
    predictions = [Prediction(("positive",), valid=True), Prediction(("neutral",), valid=False)]
    scores = label_metrics([("positive",), ("negative", "neutral")], predictions, GROUPS)
    write_json(run_dir / "test_results.json", scores)
    write_model_card(run_dir)
    _, rows = read_card(run_dir)
    assert rows["texts"] == ["2"]
    assert rows["invalid answers"] == ["0.5000"]
    assert rows["Jaccard"] == ["0.7500"]
    assert rows["positive"][:4] == ["1.0000", "1.0000", "1.0000", "1"]


def test_a_grpo_run(run_dir):
    (run_dir / "rewards.csv").write_text("step,reward,jaccard\n5,0.9,0.4\n10,,0.5\n")
    write_json(run_dir / "args.json", ARGS | {"model_path": "outputs/sft", "batch_size": 32})
    start = {"step": 0, "eval_f1_macro": 0.125, "eval_jaccard": 0.1875}
    state = {"log_history": [start, *HISTORY], "best_global_step": 20}
    (run_dir / "trainer_state.json").write_text(json.dumps(state))
    write_run_report(run_dir)
    card, rows = read_card(run_dir)
    assert rows["method"] == ["reinforcement learning (GRPO)"]
    assert (rows["started from"], rows["batch on each device"]) == (["outputs/sft"], ["32 answers"])
    assert card.data.base_model == "Qwen/Qwen2.5-7B-Instruct"
    assert "| validation rows | step 0 | step 20 |" in card.text
    assert rows["Jaccard"] == ["0.1875", "0.6600"]
    (run_dir / "rewards.csv").unlink()
    write_json(run_dir / "args.json", ARGS | {"num_generations": 8})
    write_model_card(run_dir)
    assert read_card(run_dir)[1]["method"] == ["reinforcement learning (GRPO)"]


def test_again_is_the_same_and_after_scoring_is_not(run_dir):
    names = ("README.md", "inference_example.py", "training_curves.png")

    def written():
        write_run_report(run_dir)
        return [(run_dir / name).read_bytes() for name in names]

    first = written()
    assert written() == first
    write_json(run_dir / "test_results.json", TEST)
    assert [a == b for a, b in zip(written(), first, strict=True)] == [False, True, True]
    assert not [path.name for path in run_dir.iterdir() if path.name.startswith(".")], "an unfinished file was left"


def test_what_is_no_run(run_dir, tmp_path_factory):
    with pytest.raises(UserError, match=r"task\.json"):
        write_model_card(tmp_path_factory.mktemp("empty"))
    (run_dir / "data_report.json").write_text("{")
    with pytest.raises(UserError, match=r"data_report\.json: not a JSON object"):
        write_model_card(run_dir)


def test_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("Qwen/Qwen2.5-7B-Instruct", "gpt2"):
        assert hub_id(name) == name
    for name in ("", "models/x", "outputs/sft", "./x", "/a/b", "~/x", "a/b/c", "mine", "mine/x", "data/x", "C:\\x"):
        assert hub_id(name) is None, name


def run_example(directory, *texts, cwd, **environment):
    return subprocess.run(
        [sys.executable, str(directory / "inference_example.py"), *texts],
        cwd=cwd, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


def test_the_example_predicts_from_anywhere(tiny_model_dir, tmp_path):
    run_dir = tmp_path / 'a run\'s "folder"'
    shutil.copytree(tiny_model_dir, run_dir)
    Contract(GROUPS, base_model="x").save(run_dir)
    write_inference_example(run_dir)
    done = run_example(run_dir, "one text", "another, with {braces}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if not line.startswith("  ")] == ["one text", "another, with {braces}"]
    assert sum(line.startswith("  labels: ") for line in lines) == 2
    assert all(0 <= float(line.split()[1]) <= 1 for line in lines if line.startswith("  confidence: "))


def test_the_example_without_its_checkout(run_dir, tmp_path):
    write_inference_example(run_dir)
    done = run_example(run_dir, cwd=tmp_path, EMOTUNE_HOME=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path} holds no inference.py; set EMOTUNE_HOME to the EmoTune checkout\n"


def test_the_example_finds_the_checkout(run_dir, tmp_path, monkeypatch):
    """A run inside the checkout knows the way to it, one elsewhere the place."""
    write_inference_example(run_dir)
    assert f"HERE / {json.dumps(ROOT.as_posix())})" in (run_dir / "inference_example.py").read_text()
    monkeypatch.setattr("data.report.model_card.CHECKOUT", tmp_path.resolve())
    inside = tmp_path / "outputs" / "sft"
    inside.mkdir(parents=True)
    shutil.copy(run_dir / "task.json", inside)
    write_inference_example(inside)
    moved = tmp_path / "moved"
    shutil.copytree(inside, moved / "outputs" / "sft")
    (moved / "inference.py").write_text("class Predictor:\n    def __init__(self, path): exit(path)\n")
    (moved / "data").mkdir()
    (moved / "data" / "arguments.py").write_text("class UserError(Exception): pass\n")
    done = run_example(moved / "outputs" / "sft", cwd="/")
    assert done.stderr.strip() == str((moved / "outputs" / "sft").resolve())


WRITTEN = {
    "n": 20, "empty_rate": 0.0, "words_mean": 210.5, "rouge1_f1": 0.3125, "rouge2_f1": 0.0625, "rougeL_f1": 0.15625,
    "bleu": 0.03125, "truncation_rate": 0.25, "unfinished_rate": 0.125, "distinct_1": None,
    "reference": {"words_mean": 300.0}, "per_case": [{"id": "1", "rougeL_f1": 0.15625}],
}  # fmt: skip


@pytest.fixture
def summary_run(run_dir):
    """A finished run of summaries, not scored."""
    task = BUILT_IN_TASKS["emotion-summary-en"]
    drawn = Sampling(max_new_tokens=700, temperature=0.6)
    Contract(task, base_model="Qwen/Qwen2-7B-Instruct", max_length=8192, sampling=drawn).save(run_dir)
    write_json(run_dir / "data_report.json", {"rows": {"train": 85, "dev": 15}, "train_cases": 80})
    write_json(run_dir / "train_results.json", TRAINED | {"metric_for_best": "loss"})
    return run_dir


def test_the_card_of_a_run_of_summaries(summary_run):
    write_run_report(summary_run)
    card, rows = read_card(summary_run)
    assert (card.data.pipeline_tag, card.data.tags[1]) == ("summarization", "emotion-summary-en")
    assert rows["objective"] == ["generate: the model writes a summary"]
    assert rows["answer"] == ["at most 700 tokens; temperature 0.6, top-p 0.8, top-k 20; repetition penalty 1.05"]
    assert rows["length"][0].endswith("longer cases lose turns from the middle of their consultation")
    assert (rows["batch on each device"], rows["train cases"]) == (["8 cases"], ["80"])
    assert "generate_summary(case_description=" in card.text
    assert "python inference_example.py cases.jsonl" in card.text
    assert "label" not in card.text.replace("text-classification", "")
    write_json(summary_run / "test_results.json", WRITTEN)
    write_model_card(summary_run)
    card, rows = read_card(summary_run)
    assert (rows["cases"], rows["ROUGE-L"], rows["BLEU"]) == (["20"], ["0.1562"], ["0.0312"])
    assert (rows["cases not seen whole"], rows["unfinished summaries"]) == (["0.2500"], ["0.1250"])
    assert "no counsellor has checked it" in card.text


def test_the_example_of_a_run_of_summaries(tiny_model_dir, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(tiny_model_dir, run_dir)
    drawn = Sampling(max_new_tokens=3)
    Contract(BUILT_IN_TASKS["emotion-summary-en"], base_model="x", max_length=1024, sampling=drawn).save(run_dir)
    write_inference_example(run_dir)
    done = run_example(run_dir, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("case ")] == ["case demo-en", "case demo-zh"]
    cases = tmp_path / "cases.jsonl"
    cases.write_text('{"id": "mine", "case_description": ["Sleeps badly."], "consultation_process": ["Talked."]}\n')
    done = run_example(run_dir, "cases.jsonl", cwd=tmp_path)
    assert done.stdout.startswith("case mine\n"), done.stderr
    done = run_example(run_dir, "missing.jsonl", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"error: cases {tmp_path}/missing.jsonl: no such file\n")
