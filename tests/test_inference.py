import dataclasses
import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from data.arguments import UserError
from data.contract import Contract
from data.encoding import Encoder
from data.engine import generation
from data.engine import predictor as predictor_module
from data.engine.backends import TransformersBackend
from data.engine.generation import generate_greedy, keeps_whole_cache, shared_length
from data.engine.models import check_model_path, load_model, pick_device
from data.loading import Example
from data.tasks import BUILT_IN_TASKS, Task
from inference import Args, Predictor, evaluate, main
from scripts import gather
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
    evaluate(predictor, [Example("1", "hello", ("joy",))], tmp_path)
    results = evaluate(predictor, [Example("1", "hello", ())], tmp_path)  # what an earlier file scored goes
    assert set(results) == {"n", "examples_per_second", "backend", "seed"}
    assert not (tmp_path / "test_results.json").exists()


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
        assert prediction.probabilities is None


def test_constrained_reasoning(tiny_model_dir):
    predictor = Predictor(str(tiny_model_dir), "goemotions-group", cot=True, precision="fp32", device="cpu")
    for prediction in predictor.predict_batch(TEXTS[:3]):
        assert prediction.valid
        assert prediction.labels
        assert prediction.completion.startswith("<think>\n")


def test_written_answers_with_probabilities(tiny_model_dir):
    flags = dict(task="emotion", precision="fp32", device="cpu")
    written = Predictor(str(tiny_model_dir), probabilities=True, **flags).predict_batch(TEXTS)
    compared = Predictor(str(tiny_model_dir), objective="score", **flags).predict_batch(TEXTS)
    plain = Predictor(str(tiny_model_dir), **flags).predict_batch(TEXTS)
    for one, other, bare in zip(written, compared, plain, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
        assert (one.labels, one.completion) == (bare.labels, bare.completion)


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


def test_threads_share_a_predictor(tiny_model_dir):
    with Predictor(str(tiny_model_dir), "emotion", probabilities=True, precision="fp32", device="cpu") as predictor:
        alone = [predictor.predict(text) for text in TEXTS]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(predictor.predict, TEXTS * 4))
    assert [p.labels for p in together] == [p.labels for p in alone] * 4


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
    answers = TransformersBackend.answers

    def stopping(self, prompts):
        asked.extend(prompts)
        if len(asked) > 10:
            raise KeyboardInterrupt
        return answers(self, prompts)

    monkeypatch.setattr(TransformersBackend, "answers", stopping)
    with pytest.raises(KeyboardInterrupt):
        main(file_args)
    assert not (tmp_path / "out" / "predictions.jsonl").exists()
    done = lines(tmp_path / "out" / "predictions.partial.jsonl")
    assert done == whole[:8]

    with pytest.raises(UserError, match=r"--limit 3: .* began with None"):
        main(dataclasses.replace(file_args, limit=3))
    asked.clear()
    monkeypatch.setattr(TransformersBackend, "answers", lambda self, p: asked.extend(p) or answers(self, p))
    main(dataclasses.replace(file_args, batch_size=3))
    assert len(asked) == 12
    assert [json.loads(line)["labels"] for line in lines(tmp_path / "out" / "predictions.jsonl")] == [
        json.loads(line)["labels"] for line in whole
    ]
    again = json.loads((tmp_path / "out" / "test_results.json").read_text())
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


def test_texts_from_a_pipe_and_a_demonstration(file_args, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("first text\n\n  second text\n"))
    main(dataclasses.replace(file_args, test_data_path=None, text="-"))
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 2
    assert set(rows[0]["probabilities"]) == {"ambiguous", "negative", "neutral", "positive"}
    main(dataclasses.replace(file_args, test_data_path=None, demo=True))
    shown = capsys.readouterr().out
    assert all(text in shown for text in predictor_module.DEMO_TEXTS)


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
