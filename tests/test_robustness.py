"""scripts/robustness.py and its numbers: recomputed by hand and with scikit-learn from the predicted rows."""

import json
import random
from dataclasses import replace

import numpy
import pytest
from sklearn.metrics import accuracy_score, f1_score

from data.arguments import UserError
from data.contract import Contract
from data.engine.predictor import Predictor
from data.labels import LabelTask
from data.loading import Example
from data.perturbing.perturbations import PERTURBATIONS, fitting
from data.predictions import Prediction
from data.report.charts import robustness_figure, save
from data.robustness import (
    ROBUSTNESS_FILE,
    SCORE_IS,
    Copy,
    distinct_texts,
    measure,
    perturbed_copies,
    robustness_score,
)
from data.tasks import BUILT_IN_TASKS
from scripts.robustness import PREDICTED_FILE, Args, main, summary

SINGLE = LabelTask("moods", "single_label", ("calm", "tense", "glad"), "{text}")
MULTI = LabelTask("moods", "multi_label", ("calm", "tense", "glad"), "{text}")
TEXTS = [f"This movie was really great, number {i}, and I don't regret it." for i in range(40)]


def answers_to(texts, task, seed=0):
    """Some prediction for each text, the same for the same text."""
    generator = random.Random(seed)
    answers = {}
    for text in texts:
        count = 1 if task is SINGLE else generator.randint(1, 2)
        labels = task.in_order(generator.sample(task.labels, count))
        answers[text] = Prediction(labels, True, confidence=generator.random())
    return answers


def measured(task, seed=0, **settings):
    examples = [Example(str(i), text, task.labels[i % 3 : i % 3 + 1]) for i, text in enumerate(TEXTS)]
    copies = perturbed_copies(TEXTS, fitting("en"), [0.3, 0.1], seed=7)
    predicted = answers_to(distinct_texts(TEXTS, copies), task, seed)
    return examples, copies, predicted, measure(examples, copies, predicted, task, seed=3, **settings)


def indicators(label_sets, task):
    return numpy.array([[label in labels for label in task.labels] for labels in label_sets], dtype=int)


@pytest.mark.parametrize("task", [SINGLE, MULTI], ids=["single", "multi"])
def test_numbers_are_those_of_scikit_learn(task):
    examples, copies, predicted, result = measured(task)
    gold = indicators([example.labels for example in examples], task)
    clean = indicators([predicted[example.text].labels for example in examples], task)
    assert result["n"] == 40
    assert result["clean"]["accuracy"] == pytest.approx(accuracy_score(gold, clean))
    assert result["clean"]["f1_macro"] == pytest.approx(f1_score(gold, clean, average="macro", zero_division=0))
    ratios = []
    for copy in copies:
        found = next(
            each
            for each in result["perturbations"][copy.perturbation]["strengths"]
            if each["strength"] == copy.strength
        )
        guess = indicators([predicted[text].labels for text in copy.texts], task)
        assert found["accuracy"] == pytest.approx(accuracy_score(gold, guess))
        assert found["f1_macro"] == pytest.approx(f1_score(gold, guess, average="macro", zero_division=0))
        assert found["changed"] == pytest.approx(numpy.mean([a != b for a, b in zip(copy.texts, TEXTS, strict=True)]))
        assert found["flips"] == pytest.approx((guess != clean).any(axis=1).mean())
        for metric in ("accuracy", "f1_macro"):
            low, high = found[f"{metric}_interval"]
            assert low <= found[metric] <= high
        ratios.append(found["accuracy"] / result["clean"]["accuracy"])
    assert len(ratios) == 2 * len(fitting("en"))
    assert result["robustness_score"] == pytest.approx(min(1, numpy.mean(ratios)))
    low, high = result["robustness_score_interval"]
    assert 0 <= low <= result["robustness_score"] <= high <= 1
    assert result["robustness_score_is"] == SCORE_IS


def test_the_interval_of_the_score_draws_the_same_rows_for_all():
    """Copies that are answered as the texts are: nothing is lost in any round, whichever rows it draws."""
    examples, copies, predicted, _ = measured(SINGLE)
    unmoved = {text: predicted[TEXTS[i]] for copy in copies for i, text in enumerate(copy.texts)}
    result = measure(examples, copies, predicted | unmoved, SINGLE)
    assert (result["robustness_score"], result["robustness_score_interval"]) == (1, [1, 1])
    assert all(numbers["flips"] == 0 for entry in result["perturbations"].values() for numbers in entry["strengths"])
    assert all(numbers["examples"] == [] for e in result["perturbations"].values() for numbers in e["strengths"])


def test_the_score_by_hand():
    accuracies = numpy.array([[0.8, 0.4, 0.6]])
    drawn = numpy.array([[0.5, 0.25, 0.25], [0.5, 0.5, 0.5], [0, 0.5, 0.5], [0.4, 0.8, 0.8]])
    score, interval = robustness_score(accuracies, drawn)
    assert score == pytest.approx(0.625)
    assert interval == pytest.approx(numpy.quantile([0.5, 1, 1], [0.025, 0.975]).tolist())
    assert robustness_score(numpy.array([[0.0, 0.5]]), drawn) == (None, None)


def test_examples_that_tell_most_come_first():
    _, _, predicted, _ = measured(SINGLE)
    texts = ("a", "b", "c", "d", "e")
    examples = [Example(text, text, ("calm",)) for text in texts]
    before = {"a": ("tense",), "b": ("calm",), "c": ("calm",), "d": ("tense",), "e": ("calm",)}
    after = {"a": ("calm",), "b": ("tense",), "c": ("glad",), "d": ("glad",), "e": ("calm",)}
    sure = {"a": 0.9, "b": 0.6, "c": 0.8, "d": 0.9, "e": 0.9}
    predicted = {text: Prediction(before[text], True, confidence=sure[text]) for text in texts}
    predicted |= {f"{text}!": Prediction(after[text], True) for text in texts}
    copy = Copy("punctuation", 0.5, tuple(f"{text}!" for text in texts))
    found = measure(examples, [copy], predicted, SINGLE)["perturbations"]["punctuation"]["strengths"][0]
    assert [row["id"] for row in found["examples"]] == ["c", "b", "d", "a"]
    assert found["examples"][0] == {
        "id": "c", "text": "c", "perturbed": "c!", "gold": ["calm"], "before": ["calm"], "after": ["glad"],
    }  # fmt: skip
    assert found["flips"] == 0.8


def test_each_text_is_predicted_once():
    texts = ["plain", "Two words, twice.", "Two words, twice."]
    copies = perturbed_copies(texts, ["punctuation", "same_sound"], [0.1, 0.2], seed=1)
    found = distinct_texts(texts, copies)
    assert len(found) == len(set(found))
    assert found[:2] == texts[:2]
    assert len(found) == 4  # both once as they are and once changed: the weakest strength has one place, as the other
    assert [copy.texts for copy in copies if copy.perturbation == "same_sound"] == [tuple(texts)] * 2


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def run_dir(tmp_path, tiny_model_dir):
    """An untuned tiny model with a task.json, and a labelled file."""
    import shutil

    from transformers import AutoTokenizer

    directory = tmp_path / "run"
    shutil.copytree(tiny_model_dir, directory)
    contract = Contract(BUILT_IN_TASKS["goemotions-group"], objective="score")
    encoder = contract.encoder(AutoTokenizer.from_pretrained(directory))
    replace(contract.frozen(encoder), base_model=str(directory)).save(directory)
    rows = [f"I really like this great movie, number {i}!\t{i % 4}\t{i}" for i in range(6)]
    (tmp_path / "test.tsv").write_text("\n".join([*rows, "ok\t3\tlast"]) + "\n", encoding="utf-8")
    return directory


def counted(monkeypatch) -> list[str]:
    """A list that the texts which are predicted are put in."""
    asked = []
    plain = Predictor._predict

    def counting(self, texts, *rest):
        asked.extend(texts)
        return plain(self, texts, *rest)

    monkeypatch.setattr(Predictor, "_predict", counting)
    return asked


def test_it_goes_on_where_it_was_stopped(run_dir, tmp_path, monkeypatch, capsys):
    flags = {"perturbations": ["typos", "case"], "precision": "fp32"}
    main(Args(str(run_dir), str(tmp_path / "test.tsv"), **flags))
    whole = (run_dir / "test" / ROBUSTNESS_FILE).read_text(encoding="utf-8")
    rows = (run_dir / "test" / PREDICTED_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(rows) == json.loads(whole)["texts_predicted"] > 10
    for name in (ROBUSTNESS_FILE, PREDICTED_FILE):
        (run_dir / "test" / name).unlink()
    # as a kill leaves it: some rows, and half of one
    partial = run_dir / "test" / "robustness_predictions.partial.jsonl"
    partial.write_text("".join(rows[:8]) + rows[8][:20], encoding="utf-8")
    settings = json.loads((run_dir / "test" / "robustness_predictions.json").read_text())
    partial.with_suffix(".json").write_text(json.dumps({name: settings[name] for name in ("flags", "files")}))
    asked = counted(monkeypatch)
    main(Args(str(run_dir), str(tmp_path / "test.tsv"), **flags, examples=5))
    assert len(asked) == len(rows) - 8
    assert (run_dir / "test" / ROBUSTNESS_FILE).read_text(encoding="utf-8") == whole
    after = (run_dir / "test" / PREDICTED_FILE).read_text(encoding="utf-8").splitlines(keepends=True)
    assert after[:8] == rows[:8]
    told = [[(row["id"], row["text"], row["labels"]) for row in map(json.loads, each)] for each in (after, rows)]
    assert told[0] == told[1]  # other batches may change the last digits of the probabilities
    partial.write_text(rows[0], encoding="utf-8")
    partial.with_suffix(".json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"--perturbations case: .*partial\.jsonl began with typos case; remove it"):
        main(Args(str(run_dir), str(tmp_path / "test.tsv"), **flags | {"perturbations": ["case"]}))


def test_the_command(run_dir, tmp_path, monkeypatch, capsys):
    asked = counted(monkeypatch)
    names = ["synonyms", "typos", "paraphrase"]
    main(Args(str(run_dir), str(tmp_path / "test.tsv"), perturbations=names, strengths=[0.5, 0.2], precision="fp32"))
    result = json.loads((run_dir / "test" / ROBUSTNESS_FILE).read_text(encoding="utf-8"))
    assert list(result["perturbations"]) == names
    assert (result["n"], result["language"], result["task"]) == (7, "en", "goemotions-group")
    assert len(asked) == len(set(asked)) == result["texts_predicted"]
    # nothing in these texts can be put in other words, and one is too short for anything
    assert [numbers["changed"] for numbers in result["perturbations"]["paraphrase"]["strengths"]] == [0, 0]
    for numbers in result["perturbations"]["paraphrase"]["strengths"]:
        assert {name: numbers[name] for name in result["clean"]} == result["clean"]
    assert [numbers["strength"] for numbers in result["perturbations"]["typos"]["strengths"]] == [0.2, 0.5]
    assert result["perturbations"]["typos"]["strengths"][0]["changed"] == pytest.approx(6 / 7)
    printed = capsys.readouterr().out
    assert "| typos        | 0.2      | 85.7%" in printed
    assert summary(result) in printed
    assert summary(result | {"robustness_score": None}).endswith("there is no robustness score.")


def test_looking_at_texts_needs_no_model(tmp_path, capsys):
    (tmp_path / "test.tsv").write_text("这家酒店的早餐很好\t1\nfine\t0\n房间非常干净\t1\n", encoding="utf-8")
    main(Args(None, str(tmp_path / "test.tsv"), task="sst2", show=1, strengths=[0.2]))
    printed = capsys.readouterr().out
    assert "synonyms, strength 0.2: 2 of 3 texts change\n  - 这家酒店的早餐很好\n  + " in printed
    assert "房间非常干净" not in printed.split("synonyms")[1].split("paraphrase")[0]
    assert all(name in printed for name in fitting("zh"))
    assert "typos" not in printed


def test_a_kind_that_does_nothing_in_this_language(tmp_path):
    (tmp_path / "test.tsv").write_text("fine\t0\n", encoding="utf-8")
    with pytest.raises(UserError, match="--perturbations look_alike: not for texts in 'en'; these have synonyms"):
        main(Args(None, str(tmp_path / "test.tsv"), task="sst2", show=1, perturbations=["look_alike"]))


# --- the figure -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["accuracy", "f1_macro"])
def test_figure(metric, tmp_path):
    result = measured(SINGLE)[-1]
    figure = robustness_figure(result, metric)
    (axes,) = figure.axes
    drawn = {patch.get_width() for container in axes.containers if hasattr(container, "patches") for patch in container}
    values = {n[metric] for entry in result["perturbations"].values() for n in entry["strengths"]}
    assert drawn == values
    assert axes.lines[-1].get_xdata()[0] == result["clean"][metric] or any(
        line.get_xdata()[0] == result["clean"][metric] for line in axes.lines
    )
    assert {text.get_text() for text in axes.texts} == {PERTURBATIONS[name].title["en"] for name in fitting("en")}
    save(figure, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").stat().st_size > 1000
