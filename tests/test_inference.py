import dataclasses
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from math import exp
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.special import expit, logit

from data.answers import AnswerTrie, label_sets
from data.arguments import UserError
from data.confidence import analyse
from data.contract import Contract
from data.encoding import Encoder
from data.engine import generation
from data.engine import predictor as predictor_module
from data.engine.backends import TransformersBackend
from data.engine.generation import generate_greedy, keeps_whole_cache, shared_length
from data.engine.models import check_model_path, load_model, pick_device
from data.files import exclusive, file_hash
from data.labels import DEMO_TEXTS
from data.loading import Example, load_examples
from data.predicted_runs import read_run
from data.prediction_files import PredictionFile
from data.predictions import Prediction
from data.tasks import BUILT_IN_TASKS, LABEL_TASKS, Task
from inference import Args, Predictor, evaluate, main, prediction_settings, shown
from scripts import gather
from tests.conftest import ROOT, SAMPLE

TEXTS = ["thanks a lot", "no", "what a terrible, terrible day that was for all of us", "ok then", "so proud!! 🎉"]


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return load_model(str(tiny_model_dir), "fp32", "cpu")


@pytest.fixture(scope="module")
def encoder(tokenizer):
    return Encoder(BUILT_IN_TASKS["goemotions-original"], tokenizer)


def greedy_by_hand(model, prompt, stop_ids, max_new_tokens):
    """One row, no cache, no padding: the plain path."""
    ids, log_prob = list(prompt), 0.0
    for _ in range(max_new_tokens):
        log_probs = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        ids.append(int(log_probs.argmax()))
        log_prob += float(log_probs.max())
        if ids[-1] in stop_ids:
            return ids[len(prompt) : -1], log_prob
    return ids[len(prompt) :], log_prob


@pytest.mark.parametrize("share", [True, False])
def test_a_batch_decodes_as_each_row_alone(model, encoder, monkeypatch, share):
    monkeypatch.setattr(generation, "keeps_whole_cache", lambda _: share)
    prompts = encoder.prompt_ids(TEXTS)
    with torch.inference_mode():
        alone = [greedy_by_hand(model, p, [], 6) for p in prompts]
        # a token that some row really produces, so that rows end at different lengths
        stop = [alone[1][0][-1]]
        assert len({tuple(ids) for ids, _ in alone}) == len(alone)
        alone = [greedy_by_hand(model, p, stop, 6) for p in prompts]
    generated, log_probs = generate_greedy(model, prompts, stop, 6, encoder.tokenizer.pad_token_id)
    assert generated == [ids for ids, _ in alone]
    assert len({len(ids) for ids in generated}) > 1
    torch.testing.assert_close(log_probs, torch.tensor([lp for _, lp in alone]), atol=1e-5, rtol=0)


def test_the_models_own_generation_settings_do_not_leak_in(model, encoder, monkeypatch):
    prompts = encoder.prompt_ids(TEXTS[:2])
    before = generate_greedy(model, prompts, [], 6, 0)[0]
    for name, value in {
        "repetition_penalty": 5.0,
        "do_sample": True,
        "temperature": 9.0,
        "no_repeat_ngram_size": 1,
    }.items():
        monkeypatch.setattr(model.generation_config, name, value)
    assert generate_greedy(model, prompts, [], 6, 0)[0] == before


def test_shared_length():
    assert shared_length([[1, 2, 3, 4], [1, 2, 9], [1, 2, 3, 5]]) == 2
    assert shared_length([[1, 2, 3]]) == 2  # a row keeps a token of its own
    assert shared_length([[1, 2], [1, 2, 3]]) == 1
    assert shared_length([[1], [2]]) == 0


def test_sliding_windows_are_not_given_a_prefix(model, monkeypatch):
    assert keeps_whole_cache(model)
    monkeypatch.setattr(model.config, "layer_types", ["full_attention", "sliding_attention"])
    assert not keeps_whole_cache(model)


def test_predictions_come_in_the_order_of_the_texts(model, encoder):
    predictor = Predictor.from_model(model, encoder, Contract(encoder.task), batch_size=2)
    together = predictor.predict_batch(TEXTS)
    alone = [predictor.predict(text) for text in TEXTS]
    assert [p.completion for p in together] == [p.completion for p in alone]
    assert [p.confidence for p in together] == pytest.approx([p.confidence for p in alone], abs=1e-5)
    assert predictor.predict_batch([]) == []
    with pytest.raises(ValueError, match="empty"):
        predictor.predict_batch(["fine", " "])


def test_evaluate_writes_what_it_returns(model, encoder, tmp_path):
    predictor = Predictor.from_model(model, encoder, Contract(encoder.task))
    examples = [Example(f"c{i}", text, ("joy", "love")) for i, text in enumerate(TEXTS)]
    results = evaluate(predictor, examples, tmp_path, seed=5)
    assert json.loads((tmp_path / "test_results.json").read_text()) == results
    assert results["n"] == len(TEXTS)
    assert results["seed"] == 5
    assert results["backend"] == "hf"
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["id"], row["text"], row["gold"]) for row in rows] == [
        (e.id, e.text, ["joy", "love"]) for e in examples
    ]
    assert set(rows[0]) == {
        "id",
        "text",
        "gold",
        "labels",
        "probabilities",
        "confidence",
        "valid",
        "completion",
        "truncated",
        "pruned_mass",
    }
    assert "macro F1" in (tmp_path / "test_summary.txt").read_text()


def test_files_without_labels_are_predicted_but_not_scored(model, encoder, tmp_path):
    predictor = Predictor.from_model(model, encoder, Contract(encoder.task))
    evaluate(predictor, [Example("1", "hello", ("joy",))], tmp_path)
    results = evaluate(predictor, [Example("1", "hello", None)], tmp_path)  # what an earlier file scored goes
    assert set(results) == {"n", "examples_per_second", "backend", "seed"}
    assert not (tmp_path / "test_results.json").exists()


@pytest.mark.parametrize(("probabilities", "decide"), [(False, None), (True, None), (True, "thresholds")])
def test_an_untuned_model_may_answer_that_none_applies(tiny_model_dir, tmp_path, probabilities, decide):
    rows = [{"text": f"{text} {n}", "label": [] if n % 2 else [n % 4]} for n, text in enumerate(TEXTS * 8)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    args = Args(
        model_path=str(tiny_model_dir), task="goemotions-group", test_data_path=str(tmp_path / "rows.jsonl"),
        output_dir=str(tmp_path / "out"), precision="fp32", device="cpu", probabilities=probabilities, decide=decide,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"rows.jsonl:2: no label, which needs --allow_none"):
        main(args)
    main(dataclasses.replace(args, allow_none=True))
    predicted = [json.loads(line) for line in lines(tmp_path / "out" / "predictions.jsonl")]
    assert [row["gold"] for row in predicted[:4]] == [["ambiguous"], [], ["neutral"], []]
    assert all(row["valid"] for row in predicted)
    if decide == "thresholds":
        for row in predicted:
            assert row["labels"] == [label for label, p in row["probabilities"].items() if p >= 0.5]
    else:
        assert {row["completion"] for row in predicted if not row["labels"]} <= {"none"}
    results = json.loads((tmp_path / "out" / "test_results.json").read_text())
    assert results["accuracy"] == sum(row["labels"] == row["gold"] for row in predicted) / len(rows)
    assert ("brier" in results) == probabilities
    run = read_run(tmp_path / "out")
    assert run.task().allow_none  # there is no task.json, but rows that say so
    assert analyse(run)["of_labels"] is None or probabilities


def test_the_answer_that_none_applies_is_weighed_among_the_others(tiny_model_dir):
    flags = dict(task="goemotions-group", pruned_mass=0.0, precision="fp32", device="cpu")
    with Predictor(str(tiny_model_dir), allow_none=True, **flags) as predictor:
        encoder, task = predictor.encoder, predictor.task
        (tree,) = predictor.backend._tree.expand(encoder.prompt_ids(TEXTS[:1]), 0.0, 4096)
        answers = {task.parse(encoder.decode(b.token_ids)).labels: b.probability for b in tree.whole}
        assert len(answers) == 16
        assert answers[()] > 0.001
        assert sum(answers.values()) == pytest.approx(1, abs=1e-5)
        (weighed,) = predictor.backend.weighed(encoder.prompt_ids(TEXTS[:1]))
        for label, probability in weighed.probabilities.items():
            assert probability == pytest.approx(sum(p for held, p in answers.items() if label in held), abs=1e-5)

        contract = predictor.contract
        for least, labels in ((0.0, task.labels), (1.0, ())):
            thresholds = dict.fromkeys(task.labels, least)
            predictor.contract = dataclasses.replace(contract, thresholds=thresholds, decide="thresholds")
            (decided,) = predictor.predict_batch(TEXTS[:1])
            assert (decided.labels, decided.valid, decided.completion) == (labels, True, weighed.completion)
            shares = [p if labels else 1 - p for p in weighed.probabilities.values()]
            assert decided.confidence == pytest.approx(np.prod(shares), abs=1e-5)
    with Predictor(str(tiny_model_dir), decide="thresholds", **flags) as predictor:  # there is always a label
        thresholds = dict.fromkeys(task.labels, 1.0)
        predictor.contract = dataclasses.replace(predictor.contract, thresholds=thresholds)
        assert all(len(each.labels) == 1 for each in predictor.predict_batch(TEXTS))


def test_a_model_directory_loads_as_a_predictor(tiny_model_dir):
    predictor = Predictor(str(tiny_model_dir), task="sst2", precision="fp32", device="cpu")
    assert isinstance(predictor.task, Task)
    prediction = predictor.predict("fine")
    assert prediction.completion == predictor.predict("fine").completion
    assert 0 < prediction.confidence <= 1


# --- constrained, streamed, shared --------------------------------------------------------------------------------


def test_constrained_answers_are_valid_whatever_the_model(tiny_model_dir):
    """The model has random weights: free, it never writes a label."""
    flags = dict(task="goemotions-original", precision="fp32", device="cpu")
    free = Predictor(str(tiny_model_dir), constrained=False, **flags)
    assert not any(prediction.valid for prediction in free.predict_batch(TEXTS))
    bound = Predictor(str(tiny_model_dir), batch_size=2, **flags).predict_batch(TEXTS)
    for prediction in bound:
        assert prediction.valid
        assert prediction.labels
        assert 0 < prediction.confidence <= 1
        assert 0 <= prediction.pruned_mass < 1


def test_constrained_reasoning(tiny_model_dir):
    predictor = Predictor(str(tiny_model_dir), "goemotions-group", cot=True, precision="fp32", device="cpu")
    for prediction in predictor.predict_batch(TEXTS[:3]):
        assert prediction.valid
        assert prediction.labels
        assert prediction.completion.startswith("<think>\n")


def sample_texts(count: int) -> list[str]:
    task = BUILT_IN_TASKS["goemotions-original"]
    return [example.text for example in load_examples(SAMPLE / "test.tsv", task)][:count]


@pytest.mark.parametrize(
    ("name", "allow_none"), [("emotion", None), ("goemotions-group", None), ("goemotions-group", True)]
)
def test_a_label_is_as_probable_as_the_answers_that_hold_it(tiny_model_dir, name, allow_none):
    """Against every answer scored by itself; the labels are those that are written without probabilities."""
    flags = dict(task=name, allow_none=allow_none, precision="fp32", device="cpu", batch_size=7)
    texts = sample_texts(20)
    predictor = Predictor(str(tiny_model_dir), pruned_mass=0.0, **flags)
    pruned = Predictor(str(tiny_model_dir), pruned_mass=0.1, **flags).predict_batch(texts)
    written = Predictor(str(tiny_model_dir), probabilities=False, **flags).predict_batch(texts)
    task, encoder = predictor.task, predictor.encoder
    trie, sets = AnswerTrie(encoder), list(label_sets(task))
    model = load_model(str(tiny_model_dir), "fp32", "cpu")
    for _, one, less, bare in zip(texts, predictor.predict_batch(texts), pruned, written, strict=True):
        assert bare.probabilities is bare.pruned_mass is None
        for way in (one, less):
            assert (way.labels, way.completion, way.valid) == (bare.labels, bare.completion, True)
            assert way.confidence == pytest.approx(bare.confidence, abs=1e-5)
        assert one.pruned_mass == pytest.approx(0, abs=1e-6)
        assert 0 <= less.pruned_mass <= 0.1
        for label, share in one.probabilities.items():
            assert less.probabilities[label] - 1e-5 <= share <= less.probabilities[label] + less.pruned_mass + 1e-5
    (prompt,) = encoder.prompt_ids(texts[-1:])  # the last one by hand
    expected = dict.fromkeys(task.labels, 0.0)
    with torch.inference_mode():
        for labels in sets:
            ids = encoder.answer_ids(labels)
            logits, node, log_prob = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 :], trie.root, 0.0
            for row, token in zip(logits, ids, strict=False):
                tokens = list(node.children)
                log_prob += float(row[tokens].log_softmax(-1)[tokens.index(token)])
                node = node.children[token]
            for label in labels:
                expected[label] += exp(log_prob)
    assert one.probabilities == pytest.approx(expected, abs=1e-5)


def test_thresholds_decide_of_written_labels(tiny_model_dir, tmp_path, tokenizer):
    """From task.json, or --decide; with a temperature; the answer stays what the model writes."""
    task, texts = BUILT_IN_TASKS["goemotions-group"], sample_texts(30)
    flags = dict(precision="fp32", device="cpu")
    plain = Predictor(str(tiny_model_dir), task.name, **flags).predict_batch(texts)
    run = tmp_path / "run"
    shutil.copytree(tiny_model_dir, run)
    thresholds = dict(zip(task.labels, (0.1, 0.2, 0.3, 0.4), strict=True))
    Contract(task, thresholds=thresholds, temperature=2.0, decide="thresholds").save(run)
    decided = Predictor(str(run), **flags).predict_batch(texts)
    answers = Predictor(str(run), decide="answer", **flags).predict_batch(texts)
    for one, by, answer in zip(plain, decided, answers, strict=True):
        shares = np.array(list(one.probabilities.values()))
        warmer = expit(logit(shares.clip(1e-6, 1 - 1e-7)) / 2)
        assert list(by.probabilities.values()) == pytest.approx(warmer.tolist(), abs=1e-4)
        reached = tuple(label for label in task.labels if by.probabilities[label] >= thresholds[label])
        assert by.labels == reached or (not reached and len(by.labels) == 1)
        each = [by.probabilities[x] if x in by.labels else 1 - by.probabilities[x] for x in task.labels]
        assert by.confidence == pytest.approx(np.prod(each))
        assert by.completion == one.completion
        assert (answer.labels, answer.confidence) == (one.labels, pytest.approx(one.confidence, abs=1e-5))
        assert answer.probabilities == pytest.approx(by.probabilities, abs=1e-5)
    assert [p.labels for p in decided] != [p.labels for p in plain]
    half = Predictor(str(tiny_model_dir), task.name, decide="thresholds", **flags).predict_batch(texts)
    for one, by in zip(plain, half, strict=True):
        reached = tuple(label for label in task.labels if one.probabilities[label] >= 0.5)
        assert by.labels == (reached or (max(one.probabilities, key=one.probabilities.get),))
    single = Predictor(str(tiny_model_dir), "emotion", decide="thresholds", **flags).predict_batch(texts)
    for by in single:
        assert by.labels == (max(by.probabilities, key=by.probabilities.get),)
        assert by.confidence == pytest.approx(by.probabilities[by.labels[0]])


@pytest.mark.parametrize(("flags", "message"), [
    (dict(cot=True), "--decide thresholds: is for models that write labels alone; this one reasons"),
    (dict(objective="score"), "--decide thresholds: is for models that write labels alone; this one has objective score"),
    (dict(constrained=False), "--constrained off: there are then no probabilities, but thresholds of them decide"),
    (dict(probabilities=False), "--probabilities off: there are then no probabilities, but thresholds of them decide"),
], ids=str)  # fmt: skip
def test_thresholds_need_probabilities(tiny_model_dir, flags, message):
    with pytest.raises(UserError, match=message):
        Predictor(str(tiny_model_dir), "emotion", decide="thresholds", device="cpu", **flags)


def test_free_answers_have_no_probabilities(tiny_model_dir):
    with pytest.raises(UserError, match="--probabilities: are those of valid answers"):
        Predictor(str(tiny_model_dir), "emotion", probabilities=True, constrained=False, device="cpu")


@pytest.mark.parametrize("flags", [
    {}, {"constrained": False}, {"probabilities": True}, {"objective": "score"}, {"cot": True},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_are_no_predictions(tiny_model_dir, flags, broken):
    predictor = Predictor(str(tiny_model_dir), "goemotions-group", precision="fp32", device="cpu", **flags)
    with torch.no_grad():
        predictor.backend.model.get_output_embeddings().weight[3] = broken
        predictor.backend.model.model.norm.weight[:] = broken
    with pytest.raises(
        UserError, match=r"tiny-qwen2\d*: its score of text 1 \('what a terrible.* is not a finite number"
    ):
        predictor.predict_batch(TEXTS[2:3])


def test_a_head_whose_scores_are_not_finite(tiny_model_dir, tokenizer):
    contract = Contract(BUILT_IN_TASKS["goemotions-group"], objective="classify")
    model = load_model(str(tiny_model_dir), "fp32", "cpu", contract=contract, new_head=True)
    predictor = Predictor.from_model(model, contract.encoder(tokenizer), contract)
    assert predictor.predict_batch(TEXTS)
    with torch.no_grad():
        model.score.weight[2] = float("nan")
    with pytest.raises(UserError, match=r"the model: its score of text \d"):
        predictor.predict_batch(TEXTS)
    with pytest.raises(UserError, match=r"the model: its score of text \d"):
        predictor.label_scores(TEXTS)


@pytest.mark.parametrize("workers", [1, 2])
def test_nothing_is_predicted_after_close(tiny_model_dir, workers):
    flags = dict(task="emotion", precision="fp32", device="cpu", workers=workers)
    with Predictor(str(tiny_model_dir), **flags) as predictor:
        assert predictor.predict("fine").labels
    predictor.close()
    for use in (predictor.predict_batch, lambda texts: list(predictor.predictions(texts)), predictor.label_scores):
        with pytest.raises(RuntimeError, match="this Predictor is closed"):
            use(TEXTS)


def test_what_is_no_text(model, encoder):
    predictor = Predictor.from_model(model, encoder, Contract(encoder.task), constrained=True)
    assert predictor.predict_batch([]) == []
    for texts, message in (
        (["fine", ""], "text 2 is empty"), (["\n"], "text 1 is empty"),
        ([3, "fine"], "text 1 is of type int, expected str"), ([None], "of type NoneType"),
        ([b"fine"], "of type bytes"), (["half \ud83d"], "text 1 holds half a character"),
        ("fine", "one text, expected several"),
    ):  # fmt: skip
        for use in (predictor.predict_batch, predictor.label_scores):
            with pytest.raises(ValueError, match=message):
                use(texts)


def test_a_text_that_is_cut_says_so(tiny_model_dir):
    flags = dict(task="goemotions-group", precision="fp32", device="cpu", max_length=256)
    texts = ["no", "word " * 500, "w" * 3_000]
    for way in ({}, {"probabilities": True}, {"objective": "score"}, {"constrained": False}):
        predictions = Predictor(str(tiny_model_dir), **flags, **way).predict_batch(texts)
        assert [prediction.truncated for prediction in predictions] == [False, True, True]


def test_a_text_is_named_by_its_place_in_the_whole(model, encoder, monkeypatch):
    monkeypatch.setattr(predictor_module, "ROWS_AT_ONCE", 2)
    predictor = Predictor.from_model(model, encoder, Contract(encoder.task), batch_size=2, constrained=True)
    with pytest.raises(ValueError, match=r"^text 4 is empty$"):
        list(predictor.predictions([*TEXTS[:3], ""]))
    with pytest.raises(ValueError, match=r"^text 11 is empty$"):
        list(predictor.predictions([*TEXTS[:3], ""], done=7))


def test_texts_come_one_by_one(model, encoder, monkeypatch):
    monkeypatch.setattr(predictor_module, "ROWS_AT_ONCE", 4)
    predictor = Predictor.from_model(model, encoder, Contract(encoder.task), batch_size=2, constrained=True)
    taken = []

    def texts():
        for number in range(10):
            taken.append(number)
            yield TEXTS[number % len(TEXTS)]

    stream = predictor.predictions(texts())
    assert taken == []
    first = next(stream)
    assert len(taken) == 4
    assert [first, *stream] == predictor.predict_batch([TEXTS[n % len(TEXTS)] for n in range(10)])


@pytest.mark.parametrize("settings", [dict(probabilities=True), dict(constrained=False), dict(objective="score")])
def test_twenty_threads_share_a_predictor(tiny_model_dir, settings):
    """All at once; each is answered as if it were alone, one text or several."""
    texts = [f"{text} {n}" for n in range(4) for text in TEXTS][:20]
    begin = threading.Barrier(20)
    with Predictor(str(tiny_model_dir), "emotion", precision="fp32", device="cpu", **settings) as predictor:

        def ask(text: str):
            begin.wait(60)
            return predictor.predict(text), predictor.predict_batch([text, *TEXTS])

        alone = [(predictor.predict(text), predictor.predict_batch([text, *TEXTS])) for text in texts]
        with ThreadPoolExecutor(20) as pool:
            together = list(pool.map(ask, texts, timeout=300))
    assert together == alone
    assert len({one.confidence for one, _ in alone}) > 10, "whose answer is whose would not show"


@pytest.fixture
def file_args(tiny_model_dir, tmp_path) -> Args:
    rows = [f"{TEXTS[n % len(TEXTS)]} {n}\t{n % 4}\tid{n}\n" for n in range(20)]
    (tmp_path / "rows.tsv").write_text("".join(rows), encoding="utf-8")
    return Args(
        model_path=str(tiny_model_dir), task="goemotions-group", test_data_path=str(tmp_path / "rows.tsv"),
        output_dir=str(tmp_path / "out"), batch_size=2, precision="fp32", device="cpu",
    )  # fmt: skip


def lines(path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_a_stopped_prediction_goes_on(file_args, tmp_path, monkeypatch):
    monkeypatch.setattr(predictor_module, "ROWS_AT_ONCE", 4)
    main(file_args)
    whole = lines(tmp_path / "out" / "predictions.jsonl")
    scores = json.loads((tmp_path / "out" / "test_results.json").read_text())
    shutil.rmtree(tmp_path / "out")

    asked = []
    weighed = TransformersBackend.weighed

    def stopping(self, prompts):
        asked.extend(prompts)
        if len(asked) > 10:
            raise KeyboardInterrupt
        return weighed(self, prompts)

    monkeypatch.setattr(TransformersBackend, "weighed", stopping)
    with pytest.raises(KeyboardInterrupt):
        main(file_args)
    assert not (tmp_path / "out" / "predictions.jsonl").exists()
    done = lines(tmp_path / "out" / "predictions.partial.jsonl")
    assert done == whole[:8]

    with pytest.raises(UserError, match=r"--limit 3: .* began with None"):
        main(dataclasses.replace(file_args, limit=3))
    asked.clear()
    monkeypatch.setattr(TransformersBackend, "weighed", lambda self, p: asked.extend(p) or weighed(self, p))
    main(dataclasses.replace(file_args, batch_size=3))
    assert len(asked) == 12
    assert [json.loads(line)["labels"] for line in lines(tmp_path / "out" / "predictions.jsonl")] == [
        json.loads(line)["labels"] for line in whole
    ]
    again = json.loads((tmp_path / "out" / "test_results.json").read_text())
    for name in ("ece", "brier", "auc", "uncalibrated"):
        assert again.pop(name) == pytest.approx(scores.pop(name), abs=1e-6)
    assert again | {"examples_per_second": 0} == scores | {"examples_per_second": 0}


def test_parts_add_up_to_the_whole(file_args, tmp_path):
    main(file_args)
    for part in ("1/3", "3/3"):
        main(dataclasses.replace(file_args, shard=part, output_dir=str(tmp_path / "parts")))
    assert not (tmp_path / "parts" / "test_results.json").exists()
    gather_args = gather.Args(str(tmp_path / "parts"), file_args.model_path, file_args.task)
    with pytest.raises(UserError, match="part 2 of 3 is not there yet"):
        gather.main(gather_args)
    main(dataclasses.replace(file_args, shard="2/3", output_dir=str(tmp_path / "parts")))
    gather.main(gather_args)
    ids = [json.loads(line)["id"] for line in lines(tmp_path / "parts" / "predictions.jsonl")]
    assert ids == [f"id{n}" for n in range(20)]
    whole, parts = (json.loads((tmp_path / d / "test_results.json").read_text()) for d in ("out", "parts"))
    assert whole["f1_macro"] == pytest.approx(parts["f1_macro"])


@pytest.fixture
def run_args(file_args, tiny_model_dir, tmp_path) -> Args:
    """The flags of a run of our own, so that its files can be changed."""
    shutil.copytree(tiny_model_dir, tmp_path / "run")
    Contract(BUILT_IN_TASKS["goemotions-group"]).save(tmp_path / "run")
    (tmp_path / "labels.txt").write_text("\n".join(BUILT_IN_TASKS["goemotions-group"].labels))
    return dataclasses.replace(
        file_args, model_path=str(tmp_path / "run"), task=None, label_path=str(tmp_path / "labels.txt")
    )


def stop_after(rows: int, args: Args, monkeypatch) -> None:
    """Predict until a kill behind so many rows."""
    append = PredictionFile.append

    def stopping(self, lines):
        append(self, islice(lines, rows))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PredictionFile, "append", stopping)
        with pytest.raises(KeyboardInterrupt):
            main(args)


@pytest.mark.parametrize(("name", "change", "message"), [
    ("rows.tsv", lambda content: content.replace(b"no 1\t", b"ok 1\t"), r"rows.tsv: is not what .* was begun with"),
    ("labels.txt", lambda content: content + b"\n", r"labels.txt: is not what .* was begun with"),
    ("run/task.json", lambda content: content.replace(b'"temperature": 1.0', b'"temperature": 1.5'), r"task.json: is not what"),
    ("run/model.safetensors", lambda content: content[:-4] + b"\1\2\3\4", r"model.safetensors: is not what"),
    ("run/tokenizer_config.json", lambda content: content + b"\n", r"tokenizer_config.json: is not what"),
])  # fmt: skip
def test_a_prediction_does_not_go_on_with_other_files(run_args, tmp_path, monkeypatch, name, change, message):
    """Size and time of the file may be what they were."""
    stop_after(6, run_args, monkeypatch)
    path, unfinished = tmp_path / name, tmp_path / "out" / "predictions.partial.jsonl"
    content, state, rows = path.read_bytes(), path.stat(), unfinished.read_bytes()
    path.write_bytes(change(content))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(UserError, match=message):
        main(run_args)
    assert unfinished.read_bytes() == rows
    path.write_bytes(content)
    main(run_args)
    assert len(lines(tmp_path / "out" / "predictions.jsonl")) == 20


def test_an_adapter_is_known_by_its_base(run_args, tmp_path):
    (tmp_path / "adapter").mkdir()
    shutil.copy(tmp_path / "run" / "task.json", tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(tmp_path / "run"), "peft_type": "LORA", "r": 8, "lora_alpha": 16})
    )
    save_file({}, tmp_path / "adapter" / "adapter_model.safetensors")
    for name in ("args.json", "test_results.json", "README.md"):
        (tmp_path / "adapter" / name).write_text("{}")
    settings = prediction_settings(dataclasses.replace(run_args, model_path=str(tmp_path / "adapter")))
    of_base = [role.removeprefix("--model_path of its base ") for role in settings["files"] if "of its base" in role]
    assert {"config.json", "model.safetensors", "task.json", "tokenizer.json"} <= set(of_base)
    assert sorted(role for role in settings["files"] if "of its base" not in role) == [
        "--label_path", "--model_path adapter_config.json", "--model_path adapter_model.safetensors",
        "--model_path task.json", "--test_data_path",
    ]  # fmt: skip
    assert not {"seed", "batch_size", "model_path"} & set(settings["flags"])


def test_one_process_a_file_of_predictions(file_args, tmp_path):
    with exclusive(tmp_path / "out", "predictions.jsonl"):
        with pytest.raises(UserError, match="out: another process is writing here"):
            main(file_args)
        main(dataclasses.replace(file_args, shard="1/2"))  # a part is a file of its own
        main(dataclasses.replace(file_args, shard="2/2"))
        with pytest.raises(UserError, match="out: another process is writing here"):
            gather.main(gather.Args(str(tmp_path / "out"), file_args.model_path, file_args.task))


class Killed(BaseException):
    pass


@pytest.mark.parametrize("labelled", [True, False])
def test_killed_at_any_moment(model, encoder, tmp_path, monkeypatch, labelled):
    """Rows and scores that lie there without an unfinished file are always of one another."""
    predictor = Predictor.from_model(model, encoder, Contract(encoder.task), constrained=True)
    old = [Example(f"old{i}", text, ("joy",)) for i, text in enumerate(TEXTS[:2])]
    new = [Example(f"new{i}", text, ("love",) * labelled) for i, text in enumerate(TEXTS)]
    settings = {"flags": {}, "files": {}}
    evaluate(predictor, new, tmp_path / "whole", settings=settings)
    whole = contents(tmp_path / "whole")
    steps = {name: getattr(module, name) for module, name in ((os, "replace"), (os, "unlink"), (os, "fsync"))}
    for moment in range(100):
        directory = tmp_path / str(moment)
        evaluate(predictor, old, directory, settings=settings)
        before, left = contents(directory), iter(range(moment))

        def step(name, *values, left=left, **options):
            if next(left, None) is None:
                raise Killed
            return steps[name](*values, **options)

        try:
            with monkeypatch.context() as patch:
                for name in steps:
                    patch.setattr(os, name, partial(step, name))
                evaluate(predictor, new, directory, settings=settings)
            break
        except Killed:
            pass
        after = contents(directory)
        if "predictions.partial.jsonl" not in after:
            finished = {name: after[name] for name in after if name != "predictions.partial.json"}
            assert finished in (before, whole), moment
        evaluate(predictor, new, directory, settings=settings)
        assert contents(directory) == whole, moment
    assert 5 < moment < 99
    assert contents(directory) == whole


def contents(directory) -> dict[str, str]:
    """What lies there, but for what an atomic writer left when it was killed; the time it took does not count."""
    found = {path.name: path.read_text() for path in directory.iterdir() if not path.name.startswith(".")}
    return {name: re.sub(r"examples_per_second.*|texts/s.*", "", text) for name, text in found.items()}


def test_what_fails_at_the_end_takes_no_earlier_scores(model, encoder, tmp_path, monkeypatch):
    predictor = Predictor.from_model(model, encoder, Contract(encoder.task))
    evaluate(predictor, [Example("1", "hello", ("joy",))], tmp_path)
    before = contents(tmp_path)

    def failing(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.prediction_rows.measure", failing)
    with pytest.raises(OSError, match="No space"):
        evaluate(predictor, [Example("2", "bye", ("love",))], tmp_path)
    assert before.items() <= contents(tmp_path).items()


def test_rows_that_vanish_while_they_are_predicted(file_args, tmp_path, monkeypatch):
    rows = tmp_path / "rows.tsv"
    monkeypatch.setattr(
        "inference.prediction_settings",
        lambda *_, **__: rows.write_text("one\t0\tid0\n") and {"flags": {}, "files": {}},
    )
    with pytest.raises(UserError, match=r"partial.jsonl: has 1 rows, expected 20: the file of the texts was changed"):
        main(file_args)
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


@pytest.fixture
def parts(file_args, tmp_path):
    """A folder with three parts, and what puts them together."""
    main(file_args)
    for part in ("1/3", "2/3", "3/3"):
        main(dataclasses.replace(file_args, shard=part, output_dir=str(tmp_path / "parts")))
    return tmp_path / "parts", gather.Args(str(tmp_path / "parts"), file_args.model_path, file_args.task)


def test_a_part_that_is_not_whole(parts, file_args, tmp_path):
    folder, args = parts
    second = folder / "predictions-00002-of-00003.jsonl"
    beside = json.loads(second.with_suffix(".json").read_text())
    assert (beside["first_row"], beside["last_row"], beside["rows"]) == (7, 13, 20)
    content = second.read_bytes()
    gather.main(args)
    assert (folder / "predictions.jsonl").read_bytes() == b"".join(map(Path.read_bytes, gather.find_parts(folder)))
    before = contents(folder)
    rows = content.splitlines(keepends=True)
    for other in (content[:-9], content + rows[0], content + b"\n", b"\xef\xbb\xbf" + content, b"".join(rows[1:]), b""):
        second.write_bytes(other)
        with pytest.raises(
            UserError, match=r"predictions-00002-of-00003.jsonl: is not what was predicted: its SHA-256"
        ):
            gather.main(args)
    second.write_bytes(content)
    assert contents(folder) == before
    main(dataclasses.replace(file_args, shard="2/3", output_dir=str(folder), constrained=False))
    with pytest.raises(
        UserError, match=r"00002-of-00003.jsonl: is of other predictions than .*00001.*: --constrained off"
    ):
        gather.main(args)
    for broken in ("[]", "{", '{"sha256": null}', '{"sha256": "12"}', '{"flags": 3}'):
        second.with_suffix(".json").write_text(broken)
        with pytest.raises(UserError, match=r"predictions-00002-of-00003.json"):
            gather.main(args)


def test_parts_of_another_file(parts, file_args, tmp_path):
    folder, args = parts
    rows = tmp_path / "rows.tsv"
    rows.write_text(rows.read_text().replace("no 1\t", "ok 1\t"))
    main(dataclasses.replace(file_args, shard="3/3", output_dir=str(folder)))
    with pytest.raises(UserError, match=r"00003-of-00003.jsonl: is of other predictions than .*rows.tsv: is not what"):
        gather.main(args)


def test_parts_of_an_earlier_emotune_are_read_and_counted(parts, tmp_path):
    folder, args = parts
    for path in folder.glob("*-of-*.json"):
        path.unlink()
    gather.main(args)
    assert (folder / "predictions.jsonl").read_bytes() == b"".join(map(Path.read_bytes, gather.find_parts(folder)))
    before = contents(folder)
    second = folder / "predictions-00002-of-00003.jsonl"
    rows = second.read_bytes().splitlines(keepends=True)
    for other, message in (
        ([*rows, rows[0]], r"00003.jsonl: has \d rows, but part \d of 3 of 21 rows has 7"),
        (rows[:-2], r"00003.jsonl: has \d rows, but part \d of 3 of 18 rows has 6"),
        ([*rows[:-1], rows[-1][:20]], r"00002-of-00003.jsonl:7: not a JSON object"),
        ([b"{}\n", *rows[1:]], r"00002-of-00003.jsonl:1: id is not there"),
        ([rows[0].replace(b'"valid": true', b'"valid": 1'), *rows[1:]], r"00002-of-00003.jsonl:1: valid is 1"),
    ):
        second.write_bytes(b"".join(other))
        with pytest.raises(UserError, match=message):
            gather.main(args)
    second.write_bytes(b"".join(rows))
    assert contents(folder) == before


def test_how_it_was_called_is_kept_beside_the_predictions(file_args, tmp_path):
    args = dataclasses.replace(file_args, limit=2)
    main(args)
    told = json.loads((tmp_path / "out" / "inference_args.json").read_text())
    assert told["predictions"] == file_hash(tmp_path / "out" / "predictions.jsonl")
    assert Args(**told["flags"]) == args
    assert told["flags"].keys() == {
        "model_path", "task", "test_data_path", "output_dir", "batch_size", "precision", "device", "limit",
    }  # fmt: skip


def test_texts_that_were_cut_are_counted(file_args, tmp_path, capsys):
    rows = tmp_path / "rows.tsv"
    rows.write_text(rows.read_text() + "long " * 300 + "\t1\tid20\n")
    for args in (file_args, dataclasses.replace(file_args, max_length=256)):
        main(dataclasses.replace(args, output_dir=str(tmp_path / str(args.max_length))))
        assert (
            "1 of 21 texts were longer than --max_length 256 allows and lost their end" in capsys.readouterr().out
        ) == (args.max_length == 256)
    assert [json.loads(line)["truncated"] for line in lines(tmp_path / "256" / "predictions.jsonl")] == [False] * 20 + [
        True
    ]


def test_a_conversation(file_args, monkeypatch, capsys):
    said = iter(["so happy", "", "  EXIT "])
    monkeypatch.setattr("builtins.input", lambda _: next(said))
    args = dataclasses.replace(file_args, test_data_path=None, interactive=True)
    main(args)
    assert "%" in capsys.readouterr().out

    def end_of_file(_):
        raise EOFError

    monkeypatch.setattr("builtins.input", end_of_file)
    main(args)


def test_a_set_of_labels_as_a_person_reads_it():
    few = Prediction(("joy",), True, confidence=0.8, probabilities={"joy": 0.8, "fear": 0.2}, label_set=("joy",))
    assert shown(few).splitlines()[:2] == ["  joy  (80%)", "  set: joy"]
    many = dataclasses.replace(few, label_set=("fear", "joy"), abstained=True)
    assert shown(many).splitlines()[1] == "  set: abstains, 2 labels may be right: fear, joy"
    assert len(shown(dataclasses.replace(few, label_set=None)).splitlines()) == 3


TERMINALS_OBEY = "\x1b]0;mine\x07 \x9b2J \u202e\x7f"


def test_a_terminal_is_given_no_orders(file_args, monkeypatch, capsys):
    """By what a model wrote: free text as people read it, and JSON, which still says what it wrote."""
    written = Prediction((), False, completion=f"fine\n{TERMINALS_OBEY}")
    monkeypatch.setattr(Predictor, "predict", lambda self, asked: written)
    main(dataclasses.replace(file_args, test_data_path=None, text="well"))
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["completion"] == written.completion
    for said in (line, shown(written), shown(written, free=True)):
        assert not set(TERMINALS_OBEY) - {"\n"} - set(map(chr, range(32, 127))) & set(said)
        assert "fine" in said


def test_texts_from_a_pipe_and_a_demonstration(file_args, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"first text\n\n  second text\n")))
    main(dataclasses.replace(file_args, test_data_path=None, text="-"))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 2
    assert set(rows[0]["probabilities"]) == {"ambiguous", "negative", "neutral", "positive"}
    main(dataclasses.replace(file_args, test_data_path=None, demo=True))
    shown = capsys.readouterr().out
    assert all(text in shown for text in DEMO_TEXTS)


def test_a_pipe_with_a_broken_line(file_args, monkeypatch, capsys):
    """What stood before it is answered."""
    monkeypatch.setattr(
        "sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbffirst\r\n\nsecond\rthird\ncaf\xe9\nfourth\n"))
    )
    with pytest.raises(UserError, match="standard input:4: byte 0xe9 is not UTF-8"):
        main(dataclasses.replace(file_args, test_data_path=None, text="-"))
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize("flags", [{"text": "-"}, {"interactive": True}])
def test_standard_input_that_is_closed(file_args, monkeypatch, flags):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UserError, match="standard input is closed"):
        main(dataclasses.replace(file_args, test_data_path=None, **flags))


def test_a_conversation_goes_on_after_what_is_no_text(file_args, monkeypatch, capsys):
    def said(_, lines=iter(["half \ud83d", b"caf\xe9", "fine", "quit"])):  # noqa: B008
        line = next(lines)
        return line if isinstance(line, str) else line.decode()

    monkeypatch.setattr("builtins.input", said)
    main(dataclasses.replace(file_args, test_data_path=None, interactive=True))
    shown = capsys.readouterr().out
    assert "half a character" in shown
    assert "not UTF-8" in shown
    assert "%" in shown


def test_a_reader_that_hangs_up_and_a_terminal_without_letters(tiny_model_dir):
    """`| head -1`, under LC_ALL=C, with Chinese labels: no traceback in either."""
    command = [
        sys.executable,
        "inference.py",
        "--model_path",
        str(tiny_model_dir),
        "--task",
        "chnsenticorp",
        "--text",
        "-",
    ]
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdin.write("太好了\n".encode())
    process.stdin.flush()
    first = process.stdout.readline().decode("ascii")
    assert json.loads(first)["labels"][0] in LABEL_TASKS["chnsenticorp"].labels
    process.stdout.close()
    process.stdin.write("太好了\n".encode() * 3)
    process.stdin.close()
    errors = process.stderr.read().decode()
    assert process.wait(60) == 141, errors
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors


def test_a_device_that_is_not_there():
    with pytest.raises(UserError, match="--device cuda:77"):
        pick_device("cuda:77")


@pytest.mark.parametrize("name", ["bert-base-chinese", "Qwen/Qwen3-0.6B"])
def test_hub_ids_are_not_taken_for_missing_folders(name):
    with pytest.raises(UserError, match="no answer from the hub at"):
        check_model_path(name)


@pytest.mark.parametrize("name", ["models/none", "outputs/a/b", "./none", "/none/at/all", "data/none"])
def test_missing_folders_are_not_taken_for_hub_ids(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="no such directory"):
        check_model_path(name)


def test_broken_weights_are_one_clear_error(tiny_model_dir, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"these are not weights")
    with pytest.raises(UserError, match=r"model\.safetensors: Error while deserializing header"):
        load_model(str(tmp_path / "broken"))
