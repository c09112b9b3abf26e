import json
import shutil

import pytest
import torch

from data import generation
from data.arguments import UserError
from data.contract import Contract
from data.encoding import Encoder
from data.generation import generate_greedy, keeps_whole_cache, shared_length
from data.loading import Example
from data.tasks import BUILT_IN_TASKS, Task
from inference import Predictor, check_model_path, evaluate, load_model, pick_device
from tests.conftest import ROOT

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
    assert set(rows[0]) == {"id", "text", "gold", "labels", "probabilities", "confidence", "valid", "completion"}
    assert "macro F1" in (tmp_path / "test_summary.txt").read_text()


def test_files_without_labels_are_predicted_but_not_scored(model, encoder, tmp_path):
    predictor = Predictor.from_model(model, encoder, Contract(encoder.task))
    results = evaluate(predictor, [Example("1", "hello", ())], tmp_path)
    assert set(results) == {"n", "examples_per_second", "backend", "seed"}
    assert not (tmp_path / "test_results.json").exists()


def test_a_model_directory_loads_as_a_predictor(tiny_model_dir):
    predictor = Predictor(str(tiny_model_dir), task="sst2", precision="fp32", device="cpu")
    assert isinstance(predictor.task, Task)
    prediction = predictor.predict("fine")
    assert prediction.completion == predictor.predict("fine").completion
    assert 0 < prediction.confidence <= 1


def test_a_device_that_is_not_there():
    with pytest.raises(UserError, match="--device cuda:77"):
        pick_device("cuda:77")


@pytest.mark.parametrize("name", ["bert-base-chinese", "Qwen/Qwen3-0.6B"])
def test_hub_ids_are_not_taken_for_missing_folders(name):
    check_model_path(name)


@pytest.mark.parametrize("name", ["models/none", "outputs/a/b", "./none", "/none/at/all", "data/none"])
def test_missing_folders_are_not_taken_for_hub_ids(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match="no such directory"):
        check_model_path(name)


def test_broken_weights_are_one_clear_error(tiny_model_dir, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "broken")
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"these are not weights")
    with pytest.raises(UserError, match="broken: does not load"):
        load_model(str(tmp_path / "broken"))
