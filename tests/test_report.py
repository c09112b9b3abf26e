"""report.html: every number is recomputed here from predictions.jsonl, and read back from the page."""

import base64
import dataclasses
import hashlib
import json
import random
import re
import string
import subprocess
import sys
from collections import Counter
from datetime import datetime
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    jaccard_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

from data.arguments import UserError, visible
from data.conformal import Promise
from data.contract import Contract
from data.files import file_hash
from data.labels import CUSTOM_TEMPLATE, LabelTask
from data.report import charts, summary, written
from data.report.commands import command_line
from data.report.inline_svg import inline_panels
from data.report.page import render
from data.report.sections import cooccurrence, report_data
from data.report.sources import Source, read_sources
from data.report.words import TEMPLATES, Words, figure_words, messages
from data.sampling import Sampling
from data.tasks import BUILT_IN_TASKS
from scripts.report import Args, main
from tests.conftest import ROOT

EMOTION, GROUP = BUILT_IN_TASKS["emotion"], BUILT_IN_TASKS["goemotions-group"]
IMAGE = "<img src=x onerror=alert(1)>"
EN = Words("en")


# --- runs to report on ----------------------------------------------------------------------------------------------


def made_rows(task: LabelTask, count: int, seed: int, right: float = 0.6) -> list[dict]:
    """Predicted rows as inference.py writes them; gold and texts are the same for every seed."""
    fixed, free = random.Random(1), random.Random(seed)
    rows = []
    for number in range(count):
        several = 2 if task.kind == "multi_label" and fixed.random() < 0.3 else 1
        gold = task.in_order(fixed.sample(task.labels, several))
        labels = gold if free.random() < right else task.in_order(free.sample(task.labels, several))
        weights = {label: free.random() + 2 * (label in labels) for label in task.labels}
        total = sum(weights.values())
        rows.append(
            {
                "id": f"r{number}", "text": f"text number {number}", "gold": list(gold), "labels": list(labels),
                "probabilities": {label: weight / total for label, weight in weights.items()},
                "confidence": round(free.random(), 3), "valid": True, "completion": "", "truncated": False,
            }
        )  # fmt: skip
    return rows


def write_run(folder, task: LabelTask, rows: list[dict], **files) -> str:
    """A run's folder; `files` are contents of JSON files, "__" in a name stands for the dot."""
    folder.mkdir(parents=True)
    Contract(task, base_model="models/smollm2-135m-instruct", library_versions={"torch": "2.13.0"}).save(folder)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return str(folder)


def robustness_of(task: str) -> dict:
    ends = {"accuracy_interval": [0.7, 0.9], "f1_macro_interval": [0.6, 0.8]}
    flip = {"id": "r1", "text": "so good", "perturbed": "so god", "gold": ["joy"], "before": ["joy"], "after": ["love"]}
    weak = {"strength": 0.1, "changed": 0.5, "accuracy": 0.79, "f1_macro": 0.69, "flips": 0.02, "examples": [], **ends}
    strong = weak | {"strength": 0.3, "accuracy": 0.654, "flips": 0.173, "examples": [flip]}
    return {
        "model_path": "outputs/sft", "test_data_path": "test.tsv", "task": task, "n": 50,
        "clean": {"accuracy": 0.8, "f1_macro": 0.7, **ends},
        "perturbations": {"typos": {"title": {"en": "typing errors", "zh": "键盘误触"}, "strengths": [weak, strong]}},
        "robustness_score": 0.9, "robustness_score_interval": [0.85, 0.95], "robustness_score_is": "what is left",
    }  # fmt: skip


def attention_of(text: str) -> dict:
    word = {"attention": [0.02, 0.01], "rollout": [0.1, 0.2], "gradient_x_input": [-0.5, 0.25]}
    word |= {"deletion": [1.5, -0.5]}
    first, second = text.split()
    return {
        "model_path": "outputs/sft", "task": "emotion", "objective": "generate", "layers": 2, "heads": 2, "note": "",
        "methods": list(word), "texts": [
            {
                "id": "t1", "text": text, "gold": ["joy"], "labels": ["joy"], "truncated": False,
                "spans": [[0, len(first)], [len(first) + 1, len(text)]],
                "share_on_text": {"joy": dict.fromkeys(word, 0.1)}, "explanations": {"joy": word},
            }
        ],
        "top_words": {"joy": {method: [[second, 0.5, 3]] for method in word}},
    }  # fmt: skip


HISTORY = [
    {"step": 10, "loss": 2.0, "learning_rate": 1e-4},
    {"step": 20, "loss": 1.0, "learning_rate": 5e-5},
    {"step": 20, "eval_loss": 1.5, "eval_accuracy": 0.5, "eval_f1_macro": 0.4, "eval_f1_micro": 0.5},
]
DATA_REPORT = {
    "rows": {"train": 1000, "dev": 100, "test": 80}, "train_label_counts": {"joy": 900, "anger": 60, "fear": 40},
    "train_repeated_rows": 7, "train_texts_with_different_labels": 3, "dev_rows_also_in_train": 4,
    "test_rows_also_in_train": 2,
}  # fmt: skip


def report_of(*specs: str, worst: int = 200) -> dict:
    return report_data(read_sources(specs), worst, now=datetime(2026, 1, 2, 3, 4))


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> tuple[dict, list[dict]]:
    """The report of a run of one label a text with all that a run can have, and its rows."""
    rows = made_rows(EMOTION, 80, seed=2)
    rows[3]["labels"], rows[3]["valid"] = [], False
    folder = write_run(
        tmp_path_factory.mktemp("single") / "run", EMOTION, rows,
        args={"model_path": "models/my model", "num_epochs": 3.0, "cot": False, "head": None},
        trainer_state={"log_history": HISTORY, "best_global_step": 20}, data_report=DATA_REPORT,
        train_results={"steps": 20, "seconds": 61, "best_metric": 0.5, "best_step": 20, "metric_for_best": "accuracy",
                       "trainable_parameters": 1_000, "all_parameters": 135_000_000},
        test_results={"examples_per_second": 41.25},
        robustness_result=robustness_of("emotion"), attention=attention_of("so good"),
    )  # fmt: skip
    return report_of(f"sft={folder}"), rows


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> tuple[dict, list[dict], list[dict]]:
    """The report of two runs of several labels a text on the same rows, and the rows of both."""
    place = tmp_path_factory.mktemp("several")
    first, second = made_rows(GROUP, 300, seed=2, right=0.4), made_rows(GROUP, 300, seed=3, right=0.8)
    runs = (f"{name}={write_run(place / name, GROUP, rows)}" for name, rows in (("old", first), ("new", second)))
    return report_of(*runs), first, second


def indicators(rows: list[dict], field: str, task: LabelTask) -> numpy.ndarray:
    return numpy.array([[label in row[field] for label in task.labels] for row in rows], dtype=int)


# --- numbers, from the rows -----------------------------------------------------------------------------------------


def test_scores_are_those_of_scikit_learn(single, several):
    for run, rows, task in (
        (single[0]["runs"][0], single[1], EMOTION),
        (several[0]["runs"][0], several[1], GROUP),
        (several[0]["runs"][1], several[2], GROUP),
    ):
        truth, guess = indicators(rows, "gold", task), indicators(rows, "labels", task)
        scores = run["scores"]
        assert scores["accuracy"] == pytest.approx(accuracy_score(truth, guess))
        assert scores["f1_macro"] == pytest.approx(f1_score(truth, guess, average="macro", zero_division=0))
        assert scores["f1_micro"] == pytest.approx(f1_score(truth, guess, average="micro"))
        assert scores["jaccard"] == pytest.approx(jaccard_score(truth, guess, average="samples", zero_division=0))
        shares = numpy.array([[row["probabilities"][label] for label in task.labels] for row in rows])
        assert scores["auc"] == pytest.approx(roc_auc_score(truth, shares))
        squares = (shares - truth) ** 2
        assert scores["brier"] == pytest.approx(squares.sum(1).mean() if task is EMOTION else squares.mean())
        assert scores["invalid_rate"] == pytest.approx(sum(not row["valid"] for row in rows) / len(rows))
        columns = zip(*precision_recall_fscore_support(truth, guess, zero_division=0), strict=True)
        by_label = dict(zip(task.labels, columns, strict=True))
        for row in run["per_label"]:
            found = [row[name] for name in ("precision", "recall", "f1", "support")]
            assert found == pytest.approx(by_label[row["label"]])
            assert row["predicted"] == guess[:, task.labels.index(row["label"])].sum()
        assert [row["f1"] for row in run["per_label"]] == sorted((row["f1"] for row in run["per_label"]), reverse=True)
        assert (run["n"], run["n_scored"]) == (len(rows), len(rows))


def test_the_constant_answer_and_the_mistakes(single, several):
    rows, run = single[1], single[0]["runs"][0]
    (label, count), *_ = Counter(row["gold"][0] for row in rows).most_common()
    assert run["most_frequent"] == {"labels": [label], "share": count / 80}
    wrong = Counter((r["gold"][0], r["labels"][0]) for r in rows if r["labels"] and r["labels"] != r["gold"])
    for mistake in run["mistakes"]["swapped"]:
        pair = mistake["gold"], mistake["given"]
        assert mistake["count"] == wrong[pair]
        assert mistake["of"] == sum(row["gold"] == [pair[0]] for row in rows)
    assert run["mistakes"]["swapped"][0]["count"] == max(wrong.values())
    rows, run = several[1], several[0]["runs"][0]
    for name, have, lack in (("missed", "gold", "labels"), ("added", "labels", "gold")):
        counts = {label: sum(label in r[have] and label not in r[lack] for r in rows) for label in GROUP.labels}
        totals = {label: sum(label in r[have] for r in rows) for label in GROUP.labels}
        assert [m["count"] for m in run["mistakes"][name]] == sorted(counts.values(), reverse=True)
        assert all((m["count"], m["of"]) == (counts[m["label"]], totals[m["label"]]) for m in run["mistakes"][name])


def test_confusion(single):
    rows, run = single[1], single[0]["runs"][0]
    read = [row for row in rows if row["labels"]]
    expected = confusion_matrix([r["gold"][0] for r in read], [r["labels"][0] for r in read], labels=EMOTION.labels)
    counts = numpy.array(run["confusion"]["counts"])
    assert (counts[:, :-1] == expected).all()
    assert counts[:, -1].sum() == run["confusion"]["unread"] == 1
    assert numpy.allclose(run["confusion"]["shares"], counts / counts.sum(axis=1, keepdims=True))
    assert run["cooccurrence"] is None


def test_cooccurrence_by_hand():
    """Labels 0 to 3: one found and one swapped; one only missed; one only added; all right."""
    names = GROUP.labels
    rows = [
        {"gold": [names[0], names[1]], "labels": [names[0], names[2]]},
        {"gold": [names[0], names[3]], "labels": [names[0]]},
        {"gold": [names[2]], "labels": [names[2], names[3]]},
        {"gold": [names[1]], "labels": [names[1]]},
    ]
    found = cooccurrence(rows, Source("", None, GROUP, {}, {}, {}, {}, {}, {}, None, None, None))
    assert found["counts"] == [
        [2, 0, 0, 0, 0],
        [0, 1, 1, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1],
        [0, 0, 0, 1, 0],
    ]
    assert found["totals"] == [2, 2, 1, 1, 0]
    assert found["shares"][1] == [0, 0.5, 0.5, 0, 0]
    assert (found["missed"], found["added"]) == ([0, 1, 0, 1], [0, 0, 1, 1])


def test_confidence_by_hand(single, several):
    for run, rows in ((single[0]["runs"][0], single[1]), (several[0]["runs"][1], several[2])):
        sure = numpy.array([row["confidence"] for row in rows])
        right = numpy.array([set(row["labels"]) == set(row["gold"]) for row in rows], dtype=float)
        found = run["confidence"]
        assert found["mean_confidence"] == pytest.approx(sure.mean())
        assert found["share_above_0.9"] == pytest.approx((sure > 0.9).mean())
        assert found["brier"] == pytest.approx(((sure - right) ** 2).mean())
        gaps = []
        for place in range(15):
            inside = ((sure > place / 15) | (place == 0)) & (sure <= (place + 1) / 15)
            if inside.any():
                gaps.append((inside.mean(), abs(sure[inside].mean() - right[inside].mean())))
        assert found["ece"] == pytest.approx(sum(share * gap for share, gap in gaps))
        assert found["mce"] == pytest.approx(max(gap for _, gap in gaps))
        risks = [1 - right[sure >= each].mean() for each in sure]
        assert found["risk_coverage"]["area"] == pytest.approx(numpy.mean(risks))
        for row in found["at_coverage"]:
            if row["accuracy"] is not None:
                kept = sure >= row["least_confidence"]
                assert kept.mean() == pytest.approx(row["coverage"])
                assert row["coverage"] <= row["at_most"]
                assert right[kept].mean() == pytest.approx(row["accuracy"])


def plain_error(sure, right, bins: int = 15) -> float:
    """Expected calibration error, an interval at a time."""
    places = [((sure > place / bins) | (place == 0)) & (sure <= (place + 1) / bins) for place in range(bins)]
    return sum(p.mean() * abs(sure[p].mean() - right[p].mean()) for p in places if p.any())


def test_calibration_of_the_labels(single, several):
    """One label a text: of the most probable one. Several: of all labels together, and of each."""
    for run, rows, task in ((single[0]["runs"][0], single[1], EMOTION), (several[0]["runs"][1], several[2], GROUP)):
        shares = numpy.array([[row["probabilities"][label] for label in task.labels] for row in rows])
        truth = indicators(rows, "gold", task).astype(float)
        if task is EMOTION:
            top = shares.argmax(axis=1)
            expected = plain_error(shares.max(axis=1), truth[numpy.arange(len(rows)), top])
            assert run["confidence"]["per_label"] is None
        else:
            expected = plain_error(shares.ravel(), truth.ravel())
            for label, found in run["confidence"]["per_label"].items():
                sure, right = (table[:, task.labels.index(label)] for table in (shares, truth))
                assert found["ece"] == pytest.approx(plain_error(sure, right))
                assert found["auc"] == pytest.approx(roc_auc_score(right, sure))
                assert found["brier"] == pytest.approx(((sure - right) ** 2).mean())
                assert found["mean_probability"] == pytest.approx(sure.mean())
                assert found["support"] == right.sum()
        assert run["scores"]["ece"] == pytest.approx(expected, abs=1e-6)


def test_the_curves_are_those_of_the_rows(several):
    rows, found = several[1], several[0]["runs"][0]["confidence"]
    sure = numpy.array([row["confidence"] for row in rows])
    right = numpy.array([set(row["labels"]) == set(row["gold"]) for row in rows], dtype=float)
    counts, _ = numpy.histogram(sure, bins=numpy.linspace(0, 1, 11))
    assert [each["n"] for each in found["histogram"]] == pytest.approx(counts, abs=1)  # an edge belongs to its left
    for each in found["histogram"]:
        inside = (sure > each["from"]) & (sure <= each["to"])
        assert each["n"] == inside.sum()
        assert each["accuracy"] == pytest.approx(right[inside].mean())
    for coverage, accuracy in zip(*(found["risk_coverage"][name] for name in ("coverage", "accuracy")), strict=True):
        kept = numpy.argsort(-sure)[: round(coverage * len(sure))]
        assert accuracy == pytest.approx(right[sure >= sure[kept].min()].mean())
    for each in found["reliability"]:
        inside = (sure > each["from"]) & (sure <= each["to"])
        assert (each["n"], each["confidence"]) == (inside.sum(), pytest.approx(sure[inside].mean()))
        assert each["accuracy"] == pytest.approx(right[inside].mean())


def test_macro_f1_by_a_plain_bootstrap(several):
    """Ends and p of other draws: they agree to about two hundredths."""
    report, *runs = several
    truth = indicators(runs[0], "gold", GROUP)
    guesses = [indicators(rows, "labels", GROUP) for rows in runs]
    generator = numpy.random.default_rng(0)
    drawn = []
    for _ in range(1000):
        rows = generator.integers(len(truth), size=len(truth))
        found = [2 * (truth[rows] * g[rows]).sum(0) / (truth[rows].sum(0) + g[rows].sum(0)) for g in guesses]
        drawn.append([each.mean() for each in found])
    drawn = numpy.array(drawn)
    for run, column in zip(report["runs"], drawn.T, strict=True):
        assert run["intervals"]["f1_macro"] == pytest.approx(numpy.quantile(column, [0.025, 0.975]), abs=0.02)
    found = report["comparison"]["differences"][1]["f1_macro"]
    first, second = (f1_score(truth, guess, average="macro") for guess in guesses)
    assert found["difference"] == pytest.approx(second - first)
    differences = drawn[:, 1] - drawn[:, 0]
    assert found["interval"] == pytest.approx(numpy.quantile(differences, [0.025, 0.975]), abs=0.02)
    chance = (abs(differences - found["difference"]) >= abs(found["difference"])).mean()
    assert found["p"] == pytest.approx(chance, abs=0.02)


def test_intervals_and_differences_by_a_plain_bootstrap(several):
    """Rows drawn anew here, with other draws: ends agree to about a hundredth."""
    report, first, second = several
    right = numpy.array([[set(r["labels"]) == set(r["gold"]) for r in rows] for rows in (first, second)], dtype=float)
    generator = numpy.random.default_rng(0)
    drawn = numpy.array([right[:, generator.integers(300, size=300)].mean(axis=1) for _ in range(4000)])
    for run, column in zip(report["runs"], drawn.T, strict=True):
        assert run["intervals"]["accuracy"] == pytest.approx(numpy.quantile(column, [0.025, 0.975]), abs=0.012)
    difference = report["comparison"]["differences"][1]
    assert difference["accuracy"]["difference"] == pytest.approx(right[1].mean() - right[0].mean())
    ends = numpy.quantile(drawn[:, 1] - drawn[:, 0], [0.025, 0.975])
    assert difference["accuracy"]["interval"] == pytest.approx(ends, abs=0.012)
    assert difference["mcnemar"]["better"] == ((right[1] == 1) & (right[0] == 0)).sum()
    assert difference["mcnemar"]["worse"] == ((right[1] == 0) & (right[0] == 1)).sum()
    assert difference["mcnemar"]["p"] < 0.001
    assert report["comparison"]["differences"][0] is None


def test_the_best_is_named_only_on_the_same_rows(several, tmp_path):
    best = several[0]["comparison"]["best"]
    scores = [run["scores"] for run in several[0]["runs"]]
    for column in ("accuracy", "f1_macro", "auc"):
        assert best[column] == [int(numpy.argmax([score[column] for score in scores]))]
    for column in ("ece", "brier"):
        assert best[column] == [int(numpy.argmin([score[column] for score in scores]))]
    assert best["invalid_rate"] == [], "all are equal"
    a = write_run(tmp_path / "a", EMOTION, made_rows(EMOTION, 20, seed=2))
    b = write_run(tmp_path / "b", EMOTION, made_rows(EMOTION, 30, seed=3))
    report = report_of(a, b)
    assert report["comparison"]["best"] == {}
    assert report["comparison"]["differences"] == [None, None]
    assert EN("other_rows") in render(report, EN)


def test_errors_are_the_surest_wrong_rows(single, tmp_path):
    rows = single[1]
    wrong = sorted((r for r in rows if r["gold"] != r["labels"]), key=lambda row: -row["confidence"])
    errors = single[0]["runs"][0]["errors"]
    assert errors["total"] == len(errors["rows"]) == len(wrong)
    assert [row["id"] for row in errors["rows"]] == [row["id"] for row in wrong]
    assert "completion" not in errors["rows"][0]
    folder = write_run(tmp_path / "run", EMOTION, rows)
    few = report_of(folder, worst=3)["runs"][0]["errors"]
    assert (few["total"], [row["id"] for row in few["rows"]]) == (len(wrong), [row["id"] for row in wrong[:3]])


def test_warnings(tmp_path):
    rows = made_rows(EMOTION, 6, seed=2)
    rows[1]["text"] = rows[0]["text"] = "the same"
    rows[0]["gold"], rows[1]["gold"] = ["joy"], ["fear"]
    rows[2]["truncated"], rows[3]["valid"], rows[4]["gold"] = True, False, None
    folder = write_run(tmp_path / "run", EMOTION, rows, data_report=DATA_REPORT)
    run = report_of(folder)["runs"][0]
    assert run["test_rows"] == {"repeated": 1, "conflicting": 1, "cut": 1, "invalid": 1, "without_gold": 1}
    assert run["imbalance"] == {"most": "joy", "most_rows": 900, "least": "love", "least_rows": 0, "ratio": None}
    assert summary.training_warnings(run, EN) == [
        "2 of 80 test rows also stand in the training file, which flatters the scores.",
        "4 of 100 validation rows also stand in the training file, so the choice of the checkpoint is flattered.",
        "3 texts of the training file carry different labels in different rows.",
        "7 rows of the training file repeat an earlier text.",
        "The training rows have none with “love”, which so cannot be learnt (“joy” has 900).",
    ]
    assert len(summary.row_warnings(run, EN)) == 6, "the five, and that there are few rows"


def test_a_warning_stands_once_in_the_summary(tmp_path):
    """With the names of the runs that it is of, unless it is of all."""
    rows = made_rows(EMOTION, 6, seed=2)
    rows[1]["text"] = rows[0]["text"]
    runs = [write_run(tmp_path / name, EMOTION, rows, data_report=DATA_REPORT) for name in ("a", "b")]
    runs.append(write_run(tmp_path / "c", EMOTION, rows))
    report = report_of(*(f"{Path(run).name}={run}" for run in runs))
    found = summary.warnings(report["runs"], EN)
    assert "1 of the predicted rows repeat an earlier text." in found
    assert "a, b: 7 rows of the training file repeat an earlier text." in found
    assert len(found) == len(set(found))
    assert Page(render(report, EN)).said("summary").count("repeat an earlier text") == 2


# --- the page -------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a browser would see: elements, attributes, texts, and the tables of each section."""

    VOID = ("meta", "br", "input")

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.attributes, self.open, self.section = Counter(), [], [], None
        self.texts, self.tables, self.ids = {}, {}, []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "section":
            self.section = dict(attrs)["id"]
        tables = self.tables.setdefault(self.section, [])
        if tag == "table":
            tables.append([])
        elif tag == "tr":
            tables[-1].append([])
        elif tag in ("td", "th"):
            tables[-1][-1].append("")
        elif tag == "small" and {"td"} & set(self.open):
            tables[-1][-1][-1] += "|"

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts[self.section] = self.texts.get(self.section, "") + data
        if {"td", "th"} & set(self.open):
            self.tables[self.section][-1][-1][-1] += data.strip()

    def said(self, section: str) -> str:
        return " ".join(self.texts[section].split())


def test_what_sets_of_labels_promised(tmp_path):
    rows = [
        row
        | {"label_set": sorted({*row["labels"], "joy"}, key=EMOTION.ids.get), "abstained": "joy" not in row["labels"]}
        for row in made_rows(EMOTION, 40, seed=2)
    ]
    run = write_run(tmp_path / "run", EMOTION, rows)
    covered = numpy.mean([row["gold"][0] in row["label_set"] for row in rows])
    size = numpy.mean([len(row["label_set"]) for row in rows])
    answered = [row["gold"] == row["labels"] for row in rows if not row["abstained"]]
    report = report_of(run)
    expected = (
        f"sets of labels hold {100 * covered:.1f}\xa0% of the right labels, with {size:.2f} labels in a set. "
        f"It abstains from {100 * (1 - len(answered) / 40):.1f}\xa0% of the texts; of its answers to the others, "
        f"{100 * numpy.mean(answered):.1f}\xa0% are right."
    )
    assert expected in " ".join(summary.paragraphs(report["runs"][0], EN))
    contract = Contract.load(run)
    dataclasses.replace(contract, coverage=Promise(0.9, 0.2, 99)).save(run)
    said = " ".join(summary.paragraphs(report_of(run)["runs"][0], EN))
    assert f"promise 90.0\xa0% of the right labels; on these texts they hold {100 * covered:.1f}\xa0%" in said
    assert "承诺覆盖 90.0%" in " ".join(summary.paragraphs(report_of(run)["runs"][0], Words("zh")))


def test_metrics_on_the_page(several):
    report, first, second = several
    page = Page(render(report, EN))
    table, differences = page.tables["metrics"]
    assert table[0] == ["run", "texts", "accuracy", "macro F1", "micro F1", "Jaccard", "AUC", "ECE", "Brier",
                        "invalid", "texts/s"]  # fmt: skip
    for number, (line, rows, name) in enumerate(zip(table[1:], (first, second), ("old", "new"), strict=True)):
        truth, guess = indicators(rows, "gold", GROUP), indicators(rows, "labels", GROUP)
        macro = f1_score(truth, guess, average="macro", zero_division=0)
        run = report["runs"][number]
        ends = {metric: f"|{low:.3f} – {high:.3f}" for metric, (low, high) in run["intervals"].items()}
        star = "★ " if number else ""
        assert line[:2] == [name, "300"]
        assert line[2] == f"{star}{accuracy_score(truth, guess):.3f}{ends['accuracy']}"
        assert line[3] == f"{star}{macro:.3f}{ends['f1_macro']}"
        assert line[9:] == ["0.000", "–"]
    found = report["comparison"]["differences"][1]
    low, high = found["accuracy"]["interval"]
    assert differences[1][:3] == [
        "new", f"+{found['accuracy']['difference']:.3f}|{low:.3f} – {high:.3f}", "< 0.001",
    ]  # fmt: skip
    assert differences[1][5:] == [f"{found['mcnemar']['better']} / {found['mcnemar']['worse']}", "< 0.001"]


def test_labels_and_confusion_on_the_page(single, several):
    page = Page(render(single[0], EN))
    rows = single[1]
    (matrix,) = page.tables["confusion"]
    for label, line in zip(EMOTION.labels, matrix[1:], strict=True):
        of_label = [row["labels"] for row in rows if row["gold"] == [label]]
        counts = [sum(given == [other] for given in of_label) for other in EMOTION.labels]
        counts.append(sum(not given for given in of_label))
        shown = [f"{c}|{100 * c / len(of_label):.1f}\xa0%" if c else "0" for c in counts]
        assert line == [label, *shown, str(len(of_label))]
    truth, guess = indicators(rows, "gold", EMOTION), indicators(rows, "labels", EMOTION)
    columns = zip(*precision_recall_fscore_support(truth, guess, zero_division=0), strict=True)
    by_label = dict(zip(EMOTION.labels, columns, strict=True))
    (labels,) = page.tables["labels"]
    for line in labels[1:]:
        p, r, f, s = by_label[line[0]]
        assert line[1:] == [f"{f:.3f}", f"{p:.3f}", f"{r:.3f}", str(s)]
    page = Page(render(several[0], EN))
    old, _ = page.tables["confusion"]
    counts = several[0]["runs"][0]["cooccurrence"]["counts"]
    assert [[cell.split("|")[0] for cell in line[1:-1]] for line in old[1:]] == [[str(c) for c in r] for r in counts]


def test_confidence_errors_and_data_on_the_page(single):
    report, rows = single
    page = Page(render(report, EN))
    sure = numpy.array([row["confidence"] for row in rows])
    right = numpy.array([row["labels"] == row["gold"] for row in rows])
    line = page.tables["confidence"][0][1]
    assert line[:4] == ["sft", f"{sure.mean():.3f}", f"{100 * (sure > 0.9).mean():.1f}\xa0%", f"{right.mean():.3f}"]
    assert line[6] == f"{((sure - right) ** 2).mean():.3f}"
    (errors,) = page.tables["errors"]
    wrong = sorted((r for r in rows if r["gold"] != r["labels"]), key=lambda row: -row["confidence"])
    assert errors[1:] == [[r["text"], r["gold"][0], (r["labels"] or ["–"])[0], f"{r['confidence']:.3f}"] for r in wrong]
    assert f"{len(wrong)} of 80 answers are wrong; {len(wrong)} are shown" in page.said("errors")
    assert "Rows: 1,000 to train, 100 to validate, 80 to test." in page.said("data")
    assert page.tables["data"][0][1:] == [["joy", "900"], ["anger", "60"], ["fear", "40"]]
    given = [json.loads(v) for tag, name, v in page.attributes if (tag, name) == ("tr", "data-given")]
    assert given == [row["labels"] for row in wrong]


def test_the_summary_says_what_the_numbers_say(single):
    report, rows = single
    said = Page(render(report, EN)).said("summary").replace("\xa0", " ")
    run = report["runs"][0]
    low, high = run["intervals"]["accuracy"]
    accuracy = accuracy_score(indicators(rows, "gold", EMOTION), indicators(rows, "labels", EMOTION))
    assert (
        "smollm2-135m-instruct was fine-tuned for emotion (6 labels, one label a text). It answered 80 texts." in said
    )
    expected = (
        f"It is right about {100 * accuracy:.1f} % of them; other texts of this kind would give {100 * low:.1f} %"
    )
    assert f"{expected} to {100 * high:.1f} %." in said
    best, worst = run["per_label"][0], run["per_label"][-1]
    assert f"It reads “{best['label']}” best (F1 {best['f1']:.3f}, {best['support']} texts)" in said
    assert f"and “{worst['label']}” worst (F1 {worst['f1']:.3f}, {worst['support']} texts)." in said
    assert (
        "accuracy falls from 80.0 % to 65.4 % at worst (typing errors, strength 0.3). Robustness score: 0.900." in said
    )
    assert "There are only 80 rows: the intervals are wide." in said


def test_robustness_and_attention_on_the_page(single):
    page = Page(render(single[0], EN))
    table, flips = page.tables["robustness"]
    assert table[1] == ["typing errors", "0.1", "50.0\xa0%", "0.790|0.700 – 0.900", "0.690|0.600 – 0.800", "2.0\xa0%"]
    assert table[2][:4] == ["", "0.3", "50.0\xa0%", "0.654|0.700 – 0.900"]
    assert flips[1] == ["typing errors, 0.3", "so goodso god", "joy", "joy", "love"]
    assert "Robustness score: 0.900 (0.850 to 0.950). what is left" in page.said("robustness")
    assert page.tables["attention"][0][1] == ["joy", "good", "good", "good", "good"]
    opacities = [value for tag, name, value in page.attributes if (tag, name) == ("span", "style")]
    assert opacities == [
        "--o: 1.0",
        "--o: 0.5",
        "--o: 0.5",
        "--o: 1.0",
        "--o: 1.0",
        "--o: 0.5",
        "--o: 1.0",
        "--o: 0.333",
    ]


def test_commands_can_be_pasted(single):
    page = Page(render(single[0], EN, command="python -m scripts.report outputs/sft"))
    expected = "python main_SFT.py \\\n    --model_path 'models/my model' \\\n    --num_epochs 3.0 \\\n    --cot off"
    assert expected in page.texts["commands"]
    assert "python -m scripts.report outputs/sft" in page.texts["commands"]
    assert "torch 2.13.0" in page.texts["commands"]
    assert command_line("x", {"text": "$(rm -rf /)", "list": ["a b", "c"]}) == (
        "x \\\n    --text '$(rm -rf /)' \\\n    --list 'a b' c"
    )


def test_what_is_missing_can_be_measured_by_a_whole_command(tmp_path):
    """Of an untuned model, too: inference.py has told how it was called."""
    rows = [one | {"probabilities": None} for one in made_rows(EMOTION, 5, seed=2)]
    folder = Path(write_run(tmp_path / "run", EMOTION, rows))
    (folder / "task.json").unlink()
    scores = {"per_label": {label: {} for label in EMOTION.labels}, "confusion_matrix": []}
    (folder / "test_results.json").write_text(json.dumps(scores))
    assert "--model_path MODEL" in report_of(str(folder))["runs"][0]["remedies"]["probabilities"]
    flags = {
        "model_path": "models/base",
        "test_data_path": "my test.tsv",
        "label_path": "labels.txt",
        "output_dir": "out",
    }
    told = {"flags": flags, "predictions": file_hash(folder / "predictions.jsonl")}
    (folder / "inference_args.json").write_text(json.dumps(told))
    found = report_of(str(folder))["runs"][0]["remedies"]["robustness"]
    assert found == (
        "python -m scripts.robustness \\\n    --model_path models/base \\\n    --test_data_path 'my test.tsv' \\\n"
        f"    --label_path labels.txt \\\n    --output_dir {folder}"
    )


def test_the_command_of_the_predictions_is_theirs(tmp_path):
    """Not that of an earlier call whose predictions have been replaced since."""
    folder = write_run(tmp_path / "run", EMOTION, made_rows(EMOTION, 5, seed=2))
    told = tmp_path / "run" / "inference_args.json"
    told.write_text(
        json.dumps({"flags": {"model_path": "my run"}, "predictions": file_hash(f"{folder}/predictions.jsonl")})
    )
    report = report_of(folder)
    assert report["runs"][0]["commands"] == [
        {"what": "inference", "line": "python inference.py \\\n    --model_path 'my run'"}
    ]
    said = Page(render(report, EN)).said("commands")
    assert "Prediction" in said
    assert "The training command is not known" in said
    told.write_text(json.dumps({"flags": {"model_path": "my run"}, "predictions": "0" * 64}))
    assert report_of(folder)["runs"][0]["commands"] == []


def test_each_figure_has_an_alternative_and_ids_of_its_own(single, several):
    for report in (single[0], several[0]):
        html = render(report, EN)
        page = Page(html)
        assert len(page.ids) == len(set(page.ids))
        used = set(re.findall(r"url\(#([^)]+)\)", html)) | set(re.findall(r'href="#([^"]+)"', html))
        assert used <= set(page.ids)
        alternatives = [v for tag, name, v in page.attributes if (tag, name) == ("div", "aria-label") and v]
        assert len(alternatives) == page.tags["figure"] == page.tags["figcaption"] >= 3
    assert page.tags["svg"] > page.tags["figure"], "panels stand by themselves"


def test_a_figure_in_parts():
    figure = charts.training_figure({"log_history": HISTORY, "best_global_step": 20})
    panels = inline_panels(figure, "a", Words("zh").in_figure)
    assert len(panels) == 3
    assert "损失" in panels[0]
    assert "验证集" in panels[1]
    assert "最佳（第 20 步）" in panels[1]
    for panel in panels:
        assert not re.search(r"http|<style|metadata|#000000|#1f77b4|font-family|DejaVu", panel)
        assert "currentColor" in panel


def test_a_figure_with_texts_that_matplotlib_has_no_letters_for(recwarn):
    analysis = {"risk_coverage": {"coverage": [0.5, 1.0], "accuracy": [1.0, 0.5], "area": 0.25}}
    (panel, legend) = inline_panels(charts.risk_coverage_figure({f"负面 $x$ {IMAGE}": analysis}), "b")
    assert "负面 $x$ &lt;img src=x onerror=alert(1)&gt; (area 0.250)" in legend
    assert "clipPath" in panel
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


# --- what is missing ------------------------------------------------------------------------------------------------


def test_what_was_not_measured_is_named_with_its_command(tmp_path):
    rows = [row | {"confidence": None, "probabilities": None} for row in made_rows(EMOTION, 10, seed=2)]
    folder = write_run(tmp_path / "my run", EMOTION, rows)
    run = report_of(folder)["runs"][0]
    for name in ("confidence", "training", "rewards", "robustness", "attention", "data", "imbalance"):
        assert run[name] is None, name
    page = Page(render(report_of(folder), EN))
    assert "no row says how sure the model is" in page.said("confidence")
    assert "AUC and the calibration of single labels: left out" in page.said("metrics")
    assert "Training curves: left out" in page.said("training")
    assert "Reward curves: left out" in page.said("training")
    assert "no data_report.json" in page.said("data")
    assert "no args.json" in page.said("commands")
    quoted = f"'{folder}'"
    for section, script in (("robustness", "scripts.robustness"), ("attention", "scripts.attention")):
        assert f"{EN(section)}: not measured." in page.said(section)
        command = f"python -m {script} \\ --model_path {quoted} \\ --test_data_path FILE"
        assert page.said(section).endswith(command)
    assert page.tags["figure"] == 0


def test_rows_without_gold(tmp_path):
    rows = [row | {"gold": None} for row in made_rows(GROUP, 12, seed=2)]
    report = report_of(write_run(tmp_path / "run", GROUP, rows))
    run = report["runs"][0]
    assert (run["scores"], run["intervals"], run["cooccurrence"]) == (None, None, None)
    page = Page(render(report, EN))
    (labels,) = page.tables["labels"]
    counts = Counter(label for row in rows for label in row["labels"])
    assert {line[0]: line[1] for line in labels[1:]} == {label: str(counts[label]) for label in GROUP.labels}
    for section in ("metrics", "confusion", "errors"):
        assert "no row has gold labels" in page.said(section)
    assert "On average it is" in page.said("summary")


def test_a_run_that_is_always_right_or_always_the_same(tmp_path):
    rows = made_rows(EMOTION, 10, seed=2, right=1.0)
    same = [row | {"labels": ["joy"], "confidence": 1.0} for row in rows]
    report = report_of(write_run(tmp_path / "a", EMOTION, rows), write_run(tmp_path / "b", EMOTION, same))
    page = Page(render(report, EN))
    assert "No wrong answers." in page.said("errors")
    assert "the model is no better than that" in page.said("summary")


def test_an_untuned_model_that_left_only_scores(tmp_path):
    """Without a task.json the labels come from test_results.json, and the commands name what they do not know."""
    folder = tmp_path / "base"
    write_run(
        folder, EMOTION, made_rows(EMOTION, 10, seed=2), test_results={"per_label": {x: {} for x in EMOTION.labels}}
    )
    (folder / "task.json").unlink()
    page = Page(render(report_of(str(folder)), EN))
    assert "A model without a task.json" in page.said("summary")
    assert f"--model_path MODEL \\ --test_data_path FILE \\ --task TASK \\ --output_dir {folder}" in page.said(
        "robustness"
    )


def test_rewards(tmp_path):
    folder = write_run(tmp_path / "run", EMOTION, made_rows(EMOTION, 10, seed=2), args={"num_generations": 8})
    (tmp_path / "run" / "rewards.csv").write_text("step,reward,jaccard\n1,0.25,0.1\n2,0.75,0.6\n")
    page = Page(render(report_of(folder), EN))
    assert "was trained by reinforcement" in page.said("summary")
    assert "python main_grpo.py" in page.said("commands")
    said = [value for _, name, value in page.attributes if name == "aria-label"]
    assert f"Reward curves of “{folder}”: weighted reward 0.250 at first, 0.750 at the end." in said


# --- strangers' words -----------------------------------------------------------------------------------------------


def test_markup_in_texts_labels_names_and_paths_is_text(tmp_path):
    task = LabelTask(f"task {IMAGE}", "single_label", (f"joy {IMAGE}", "</script><script>alert(1)"), CUSTOM_TEMPLATE)
    rows = made_rows(task, 20, seed=2)
    for row in rows:
        row["text"] = f"{IMAGE} {row['id']} </textarea></script>"
        row["id"] = f'"><b onclick=alert(1)>{row["id"]}'
    place = tmp_path / "<b onclick>"
    folder = write_run(
        place, task, rows, robustness_result=robustness_of(IMAGE), attention=attention_of(f"so {IMAGE.replace(' ', '/')}"),
        args={"model_path": IMAGE}, data_report=DATA_REPORT | {"train_label_counts": {IMAGE: 3}},
    )  # fmt: skip
    report = report_of(f"{IMAGE}={folder}")
    html = render(report, EN, title=IMAGE, command=IMAGE)
    page = Page(html)
    assert page.tags["img"] == page.tags["b"] == page.tags["textarea"] == 0
    assert page.tags["script"] == 1
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    for section in ("summary", "errors", "commands", "confusion", "labels"):
        assert "<img" in page.texts[section]
    assert "onerror=alert(1)" in page.said("errors")


def test_the_page_asks_for_nothing(single):
    html = render(single[0], EN)
    page = Page(html)
    addresses = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href", "data", "action")]
    assert addresses
    assert all(address.startswith("#") for address in addresses)
    assert not re.search(r"https?:|@import|@font-face", html)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(value for tag, name, value in page.attributes if name == "content" and "default-src" in value)
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_characters_that_cannot_be_seen_are_shown(tmp_path):
    assert visible("a\u202eb\x1b\ud800\n负面\u200d") == "a⟨U+202E⟩b⟨U+001B⟩⟨U+D800⟩\n负面\u200d"
    rows = made_rows(EMOTION, 10, seed=2, right=0.0)
    rows[0]["text"] = "turned \u202e round \x00 \ud83d"
    folder = write_run(tmp_path / "run", EMOTION, rows)
    main(Args(runs=[f"\u202ename\x1b={folder}"]))
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069]", html)
    assert "turned ⟨U+202E⟩ round ⟨U+0000⟩ ⟨U+D83D⟩" in Page(html).texts["errors"]


def test_a_long_text_is_cut(tmp_path):
    rows = [row | {"text": "long " * 1000} for row in made_rows(EMOTION, 10, seed=2)]
    page = Page(render(report_of(write_run(tmp_path / "run", EMOTION, rows)), EN))
    assert "… (4,400 more characters)" in page.said("errors")


# --- words ----------------------------------------------------------------------------------------------------------


def gaps(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name}


def test_each_message_is_said_in_both_languages_and_used():
    code = "".join(
        path.read_text(encoding="utf-8")
        for path in sorted((ROOT / "data" / "report").rglob("*.*"))
        if path.suffix in (".py", ".j2")
    )
    for name, message in messages().items():
        assert message.keys() == {"en", "zh"}, name
        assert gaps(message["en"]) == gaps(message["zh"]), name
        parts = name.removesuffix("_method").removeprefix("about_").removeprefix("wrote_")
        assert re.search(rf"""["']{re.escape(parts)}["']""", code), f"{name} is not used"


def test_a_page_in_chinese(single, several):
    """Nothing of ours is left in English, figures included."""
    for report in (single[0], several[0]):
        html = render(report, Words("zh"))
        page = Page(html)
        assert ("html", "lang", "zh-CN") in page.attributes
        headings = re.findall(r"<h2>(.*?)</h2>", html)
        assert len(headings) == 11
        assert not re.search("[A-Za-z]", "".join(headings))
        drawn = [text for text in re.findall(r"<text[^>]*>([^<]*)</text>", html) if re.search("[A-Za-z]", text)]
        assert {text.split("（")[0] for text in drawn} <= {"sft", "old", "new", "Jaccard", *figure_words().values()}
    assert "键盘误触" in Page(render(single[0], Words("zh"))).said("robustness")


def test_words_of_figures_are_those_that_are_drawn():
    source = (ROOT / "data" / "report" / "charts.py").read_text() + (ROOT / "data" / "report" / "tables.py").read_text()
    for text in figure_words():
        assert all(part in source for part in text.split(", ")), text
    assert (TEMPLATES / "figures_zh.toml").is_file()


# --- the script -----------------------------------------------------------------------------------------------------


def test_the_command_line(tmp_path):
    rows = made_rows(EMOTION, 10, seed=2)
    one, two = (write_run(tmp_path / name, EMOTION, rows) for name in ("one", "two"))
    (tmp_path / "one" / "test").mkdir()
    (tmp_path / "one" / "predictions.jsonl").rename(tmp_path / "one" / "test" / "predictions.jsonl")
    command = [sys.executable, "-m", "scripts.report"]
    done = subprocess.run([*command, one], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"written to {one}/test/report.html\n"
    assert done.stderr == ""
    done = subprocess.run(
        [*command, f"a={one}", f"b={two}", "--output_dir", str(tmp_path / "out"), "--language", "zh", "--title", "标题"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "<title>标题</title>" in html
    assert f"python -m scripts.report a={one} b={two}" in html


# --- runs that write summaries --------------------------------------------------------------------------------------

WRITING = BUILT_IN_TASKS["emotion-summary-en"]


def written_rows(words: str) -> list[dict]:
    """Three written summaries, as inference.py writes them, with markup in all of their texts."""
    return [
        {
            "id": f"c{number} {IMAGE}", "case_description": [f"Case {number} {IMAGE}"],
            "consultation_process": [f"turn one {IMAGE}", "turn two"],
            "experience_and_reflection": f"sleep came back slowly {IMAGE}", "summary": f"{words} slowly {IMAGE}" * number,
            "truncated": number == 1, "finished": number != 2, "confidence": 0.5,
        }
        for number in range(3)
    ]  # fmt: skip


def write_written(folder, rows: list[dict], **files) -> str:
    write_run(folder, GROUP, [], **files)
    Contract(WRITING, base_model="models/base", max_length=2048, sampling=Sampling(max_new_tokens=77)).save(folder)
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


@pytest.fixture(scope="module")
def writing(tmp_path_factory) -> dict:
    """The report of a tuned run of summaries, and of an untuned one without a task.json, on the same cases."""
    place = tmp_path_factory.mktemp("writing")
    tuned = write_written(
        place / "tuned", written_rows("sleep came back"), args={"model_path": "models/base"},
        trainer_state={"log_history": [*HISTORY[:2], {"step": 20, "eval_loss": 1.5}]},
        data_report={"rows": {"train": 8, "dev": 2, "test": 3}, "train_cases": 7, "train_repeated_rows": 1},
    )  # fmt: skip
    untuned = Path(write_written(place / "untuned", written_rows("nobody")))
    (untuned / "task.json").unlink()
    return report_of(f"sft={tuned}", f"base={untuned}")


def test_numbers_of_summaries(writing):
    tuned, untuned = writing["runs"]
    assert writing["written"]
    assert tuned["scores"] == WRITING.measure(written_rows("sleep came back"), None)
    assert tuned["scores"]["rougeL_f1"] > untuned["scores"]["rougeL_f1"]
    assert [case["rougeL_f1"] for case in tuned["cases"]] == sorted(case["rougeL_f1"] for case in tuned["cases"])
    assert tuned["test_rows"] == {"repeated": 0, "cut_cases": 1, "unfinished": 1, "without_reference": 0}
    assert writing["comparison"]["same_rows"]
    assert writing["comparison"]["reference"]["words_mean"] == tuned["scores"]["reference"]["words_mean"]
    assert (untuned["base_model"], untuned["task"]) == (None, "emotion-summary")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_page_of_summaries(writing, language):
    say = Words(language)
    html = render(writing, say, title="t")
    assert "<img" not in html
    assert html.count("&lt;img src=x onerror=alert(1)&gt;") >= 3 * 4
    html = unescape(html)
    assert tuple(re.findall(r'<section class="card" id="(\w+)"', html)) == written.SECTIONS
    for said in ("of_counsellor", "not_whole", "not_finished", "nobody_read", "wrote_unknown"):
        assert say(said, n=3) in html
    assert say("train_cases", n=7) in html
    assert say("repeated_rows", count=1) in html
    assert say("cut_cases", count=1) in html
    assert say.number(writing["runs"][0]["scores"]["rougeL_f1"]) in html
    assert re.search(r"\b77\b", html), "tokens that a summary may have"
    assert "training-0" in html
    assert "rewards.csv" not in html


def test_summaries_without_references_and_few_of_them(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "experience_and_reflection"} for row in written_rows("so")]
    folder = write_written(tmp_path / "run", rows)
    report = report_of(folder, worst=2)
    html = unescape(render(report, EN))
    assert EN("no_reference") in html
    assert html.count('<details class="case"') == len(report["runs"][0]["cases"]) == 2
    assert "ROUGE-L" not in re.sub(r"<p class=.note.>.*?</p>", "", html)


def test_labels_and_summaries_are_two_reports(tmp_path):
    labels = write_run(tmp_path / "labels", GROUP, made_rows(GROUP, 3, 1))
    summaries = write_written(tmp_path / "summaries", written_rows("so"))
    with pytest.raises(
        UserError, match=r"--runs: .*summaries has summaries and .*labels has labels; a report is of one"
    ):
        read_sources([labels, summaries])
    with pytest.raises(UserError, match="finished is not true or false"):
        read_sources([write_written(tmp_path / "odd", [row | {"finished": 3} for row in written_rows("so")])])
