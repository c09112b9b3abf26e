"""Attention, rollout, gradient × input and deletion on tiny random models; words of texts; what is written and drawn."""

import html
import json
import re
from functools import cache

import numpy
import pytest
import torch
from peft import LoraConfig, get_peft_model

from data.arguments import UserError
from data.contract import Contract
from data.encoding import Encoder
from data.engine.attention import (
    METHODS,
    decisions,
    explain,
    read_text,
    rollout_rows,
    score_and_attention,
    weights_of,
    weights_shown,
)
from data.engine.models import load_model
from data.engine.predictor import Predictor
from data.engine.scoring import answer_batch, answer_scores
from data.engine.span_attention import SPAN_ATTENTION
from data.engine.tree_attention import enable_packing
from data.engine.unpadded import UNPADDED_ATTENTION, enable_unpadding
from data.labels import LabelTask
from data.predictions import Prediction
from data.report.analyses import read_attention
from data.report.heat_map import NOTE, TITLES, heat_map_page, static_rows
from data.spelling import Spelling
from data.tasks import BUILT_IN_TASKS
from data.words import word_shares, word_spans
from scripts import attention as script
from tests.conftest import make_tokenizer

MANY = BUILT_IN_TASKS["goemotions-original"]
ONE = BUILT_IN_TASKS["chnsenticorp"]
TEXT = "  Thanks a lot, that wasn't so bad!!! 酒店很好。 "
KINDS = ("generate", "score", "classify", "encoder")
HOSTILE = "so <img src=x onerror=alert(1)> </script><script>alert(2)</script> good {{ 7 * 7 }}"


@cache
def encoder_dir(directory):
    """A two-layer BERT with random weights, without a head."""
    from transformers import BertConfig, BertModel

    tokenizer = make_tokenizer(chat=False)
    torch.manual_seed(0)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    BertModel(BertConfig(vocab_size=len(tokenizer), initializer_range=0.3, **sizes)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def predictors(tiny_model_dir, tmp_path_factory):
    """Kind -> predictor of a tiny model that is set up for packed rows, as ordinary prediction has it."""
    found = {}
    for kind in KINDS:
        directory = encoder_dir(tmp_path_factory.mktemp("bert")) if kind == "encoder" else tiny_model_dir
        task, objective = (MANY, kind) if kind in ("generate", "score") else (ONE, "classify")
        contract = Contract(task, objective=objective, head="linear" if objective == "classify" else None)
        torch.manual_seed(1)
        model = load_model(str(directory), "fp32", "cpu", contract=contract, new_head=objective == "classify")
        encoder = contract.encoder(make_tokenizer(chat=kind != "encoder"))
        assert enable_unpadding(model) if kind == "encoder" else enable_packing(model, 512)
        found[kind] = Predictor.from_model(model, encoder, contract, constrained=True)
    return found


@pytest.fixture(params=KINDS)
def predictor(request, predictors):
    return predictors[request.param]


@pytest.fixture
def explained(predictor):
    prediction = predictor.predict(TEXT)
    return prediction, *explain(predictor, TEXT, prediction)


def of(predictor, text=TEXT, prediction=None):
    """The model, and where it decides on each predicted label."""
    model, encoder = predictor.backend.model, predictor.encoder
    [prompt] = encoder.prompt_ids([text])
    return model, decisions(model, encoder, prompt, prediction or predictor.predict(text))


def attention_of(model, decision):
    with weights_shown(model):
        return weights_of(model, decision)[0]


def score_of(model, decision):
    return score_and_attention(model, decision, torch.tensor([decision.token_ids]))[0]


# --- words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("I don't know, really...", ["I", "don't", "know", ",", "really", "..."]),
        ("这家酒店 OK吗？！", ["这", "家", "酒", "店", "OK", "吗", "？", "！"]),
        ("3.5% of 1,000!!", ["3.5", "%", "of", "1,000", "!!"]),
        ("cafe\u0301 👍🏽👍🏽 हिन्दी", ["cafe\u0301", "👍🏽👍🏽", "हिन्दी"]),
        (" \n ", []),
    ],
)
def test_words_are_as_people_count_them(text, words):
    assert [text[begin:end] for begin, end in word_spans(text)] == words
    assert "".join(words) == re.sub(r"\s", "", text)


def test_a_token_is_shared_by_the_words_it_stands_in():
    words = word_spans("很好 ok!")  # 很, 好, ok, !
    tokens = [(0, 2), (2, 4), (4, 5), (4, 5), (5, 5), (2, 6)]
    expected = [[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 2 / 3, 1 / 3]]
    numpy.testing.assert_allclose(word_shares(tokens, words), expected)
    assert word_shares([], []).shape == (0, 0)


def test_the_tokens_of_a_text_are_found_in_its_prompt(tokenizer):
    encoder = Encoder(MANY, tokenizer)
    read = read_text(encoder, TEXT)
    ids = read.prompt[read.begin : read.begin + len(read.shares)]
    assert encoder.tokenizer.decode(ids) == TEXT.strip()
    assert read.prompt == encoder.prompt_ids([TEXT])[0]
    assert "".join(TEXT[begin:end] for begin, end in read.words) == re.sub(r"\s", "", TEXT)
    weights = numpy.zeros(len(read.prompt))
    weights[read.begin :][: len(read.shares)] = 1  # so that a word weighs as much as it has tokens
    by_word = dict(zip((TEXT[b:e] for b, e in read.words), read.of_words(weights), strict=True))
    assert len(tokenizer("酒", add_special_tokens=False)["input_ids"]) == by_word["酒"] == 3  # bytes of one character
    assert by_word["wasn't"] > 1
    assert read.share(weights) == 1


def test_markup_in_a_text_is_found_as_the_characters_it_is_read_as(tokenizer):
    text = "so <|im_end|> <think>good</think>"
    for stubborn in (False, True):
        if stubborn:
            tokenizer = make_tokenizer()
            tokenizer.add_tokens(["<think>", "</think>"])
        spelling = Spelling(tokenizer)
        spans = spelling.plain_spans(text)
        assert len(spans) == len(spelling.plain_ids([text])[0])
        assert "".join(text[b:e] for b, e in spans).replace(" ", "") == text.replace(" ", "")


def test_words_that_are_cut_off_are_left_out(tokenizer):
    encoder = Encoder(MANY, tokenizer, max_length=len(Encoder(MANY, tokenizer).prompt_ids(["good"])[0]) + 60)
    text = "good " * 100 + "never read"
    read = read_text(encoder, text)
    assert 0 < len(read.words) < 100
    assert read.of_words(numpy.ones(len(read.prompt))).shape == (len(read.words),)


def test_a_tokenizer_without_places_is_refused(tokenizer):
    class Slow:
        is_fast = False

    with pytest.raises(UserError, match="does not say where"):
        Spelling(Slow()).plain_spans("hi")


# --- where a label is decided ----------------------------------------------------------------------------------------


def test_each_label_of_an_answer_is_explained_where_its_first_token_is_predicted(predictors):
    predictor = predictors["generate"]
    labels = ("admiration", "gratitude", "joy")
    _, found = of(predictor, prediction=Prediction(labels, True))
    tokenizer = predictor.encoder.tokenizer
    [prompt] = predictor.encoder.prompt_ids([TEXT])
    assert found["admiration"].rows == [len(prompt) - 1]
    for place, label in enumerate(labels):
        [row] = found[label].rows
        ids = found[label].token_ids
        assert tokenizer.decode(ids[row + 1 :]).strip() == label
        assert tokenizer.decode(ids[len(prompt) : row + 1]).strip(" ,") == ", ".join(labels[:place])
        assert found[label].kept == list(range(row, len(ids) - 1))


def test_behind_reasoning_a_label_is_explained_behind_the_tag(tokenizer, predictors):
    encoder = Encoder(MANY, tokenizer, cot=True, max_length=1024)
    [prompt] = encoder.prompt_ids([TEXT])
    found = decisions(None, encoder, prompt, Prediction(("joy", "love"), True, "they are glad"))
    for label in ("joy", "love"):
        [row] = found[label].rows
        assert tokenizer.decode(found[label].token_ids[row + 1 :]).strip() == label
    assert tokenizer.decode(found["joy"].token_ids[: found["joy"].rows[0] + 1]).endswith(
        "they are glad\n</think>\n<answer>"
    )


def test_a_head_reads_the_last_token_or_the_first(predictors):
    for kind in ("classify", "encoder"):
        _, found = of(predictors[kind])
        [decision] = found.values()
        assert decision.rows == ([0] if kind == "encoder" else [len(decision.token_ids) - 1])
    model = predictors["encoder"].backend.model
    model.config.classifier_pooling = "mean"
    try:
        [decision] = of(predictors["encoder"])[1].values()
        assert decision.rows == list(range(len(decision.token_ids)))
    finally:
        del model.config.classifier_pooling


# --- weights ---------------------------------------------------------------------------------------------------------


def test_the_score_is_that_of_ordinary_prediction(predictor):
    """With attention that shows its weights against packed rows and trees."""
    model, encoder = predictor.backend.model, predictor.encoder
    prediction = Prediction(("gratitude", "joy"), True) if encoder.objective == "generate" else predictor.predict(TEXT)
    _, found = of(predictor, prediction=prediction)
    with weights_shown(model), torch.no_grad():
        scores = {label: float(score_of(model, decision)) for label, decision in found.items()}
    if encoder.objective != "generate":
        [ordinary] = predictor.label_scores([TEXT])
        for label, score in scores.items():
            assert score == pytest.approx(ordinary[encoder.task.ids[label]], abs=1e-5)
        return
    [prompt] = encoder.prompt_ids([TEXT])
    first = encoder.pieces.first[encoder.task.ids["gratitude"]]
    later = encoder.pieces.later[encoder.task.ids["joy"]]
    separator = next(k for k in range(len(later)) if encoder.decode(later[k:]) == "joy")
    pairs = [(prompt, first), ([*prompt, *first, *later[:separator]], later[separator:])]
    with torch.no_grad():
        ordinary = answer_scores(model, answer_batch(pairs, True, 0))
    torch.testing.assert_close(torch.tensor(list(scores.values())), ordinary, atol=1e-5, rtol=0)


def test_what_was_predicted_is_explained_and_the_model_left_as_it_was(predictor, explained):
    prediction, read, explanations = explained
    assert tuple(explanations) == prediction.labels
    assert predictor.backend.model.config._attn_implementation in (SPAN_ATTENTION, UNPADDED_ATTENTION)
    assert predictor.predict(TEXT) == prediction
    for explanation in explanations.values():
        assert explanation.by_head.shape == (2, 4, len(read.words))
        numpy.testing.assert_allclose(explanation.by_head.mean(axis=(0, 1)), explanation.attention, atol=1e-7)
        for method in METHODS:
            assert getattr(explanation, method).shape == (len(read.words),)
        for method in ("attention", "rollout"):
            # spaces that are tokens of their own belong to no word
            assert 0 < getattr(explanation, method).sum() <= explanation.share_on_text[method] + 1e-6 < 1


def test_attention_adds_up_to_one_over_the_tokens_that_are_seen(predictor):
    model, found = of(predictor)
    for decision in found.values():
        weights = attention_of(model, decision)
        count = len(decision.token_ids)
        assert weights.shape == (2, 4, count, count)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, count))
        later = weights.triu(1)
        assert later.any() if predictor.encoder.task == ONE and decision.rows == [0] else not later.any()


def test_rollout_is_the_product_of_the_layers():
    torch.manual_seed(0)
    attention = torch.rand(3, 5, 5).softmax(dim=-1)
    whole = torch.eye(5)
    for layer in attention:
        mixed = 0.5 * layer + 0.5 * torch.eye(5)
        whole = (mixed / mixed.sum(dim=-1, keepdim=True)) @ whole
    torch.testing.assert_close(rollout_rows(attention, [4, 1]), whole[[4, 1]])
    torch.testing.assert_close(rollout_rows(attention, range(5)).sum(dim=-1), torch.ones(5))
    assert torch.equal(rollout_rows(torch.eye(5).expand(3, 5, 5), [2]), torch.eye(5)[[2]])  # nobody looks elsewhere


def test_rollout_rows_of_a_model_add_up_to_one(predictor):
    model, found = of(predictor)
    for decision in found.values():
        rows = rollout_rows(attention_of(model, decision).mean(dim=1), range(len(decision.token_ids)))
        torch.testing.assert_close(rows.sum(dim=-1), torch.ones(len(rows)))


@pytest.mark.parametrize("adapted", [False, True])
def test_gradient_x_input_is_what_autograd_gives(predictors, adapted, tiny_model_dir):
    """Under an adapter no weight asks for a gradient."""
    for kind in KINDS[:1] if adapted else KINDS:
        predictor = predictors[kind]
        model, found = of(predictor)
        if adapted:
            model = load_model(str(tiny_model_dir), "fp32", "cpu")
            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False)).eval()
            model.requires_grad_(False)
        for decision in found.values():
            with weights_shown(model):
                _, attributed = weights_of(model, decision)
                kept = []
                hook = model.get_input_embeddings().register_forward_hook(
                    lambda _, __, output, kept=kept: kept.append(output.detach().requires_grad_()) or kept[0]
                )
                score_of(model.get_base_model() if adapted else model, decision).backward()
                hook.remove()
            plain = (kept[0] * kept[0].grad)[0].sum(dim=-1)
            assert attributed.abs().max() > 1e-3
            torch.testing.assert_close(attributed, plain, atol=1e-6, rtol=1e-5)


def test_gradient_x_input_is_the_slope_of_the_score_as_the_embeddings_shrink(predictors):
    """The sum over all tokens is d score / d scale at 1, here by differences."""
    model, found = of(predictors["classify"])
    [decision] = found.values()

    def score_at(scale):
        hook = model.get_input_embeddings().register_forward_hook(lambda _, __, output: output * scale)
        with torch.no_grad():
            score = float(score_of(model, decision))
        hook.remove()
        return score

    model.double()
    try:
        with weights_shown(model):
            slope = (score_at(1 + 1e-3) - score_at(1 - 1e-3)) / 2e-3
            assert float(weights_of(model, decision)[1].sum()) == pytest.approx(slope, rel=1e-2, abs=1e-4)
    finally:
        model.float()


def test_deletion_is_how_far_a_label_s_score_falls(predictor, explained):
    _, read, explanations = explained
    whole, *without = predictor.label_scores([TEXT, *(TEXT[:begin] + TEXT[end:] for begin, end in read.words)])
    for label, explanation in explanations.items():
        falls = [(whole - scores)[predictor.task.ids[label]] for scores in without]
        assert numpy.abs(falls).max() > 1e-3
        numpy.testing.assert_allclose(explanation.deletion, falls, atol=1e-5)


def test_deletion_is_left_out_where_it_is_not_asked_for(predictors, capsys, tmp_path, tiny_model_dir):
    predictor = predictors["score"]
    _, explanations = explain(predictor, TEXT, predictor.predict(TEXT), delete=False)
    assert [each.deletion for each in explanations.values()] == [None]
    flags = ("--task", "goemotions-original", "--output_dir", tmp_path, "--deletion", "off")
    run_script(capsys, "--model_path", tiny_model_dir, "--text", "fine, thanks", *flags)
    content = read_attention(tmp_path / "attention.json")
    assert content["methods"] == ["attention", "rollout", "gradient_x_input"]
    assert all("deletion" not in explanation for explanation in content["texts"][0]["explanations"].values())
    assert all("deletion" not in methods for methods in content["top_words"].values())
    page = (tmp_path / "attention.html").read_text(encoding="utf-8")
    assert '<option value="rollout">' in page
    assert '<option value="deletion">' not in page


def test_the_only_word_can_be_left_out(predictors):
    predictor = predictors["classify"]
    _, explanations = explain(predictor, "good", predictor.predict("good"))
    [explanation] = explanations.values()
    assert explanation.deletion.shape == (1,)
    assert numpy.isfinite(explanation.deletion).all()


def test_a_model_without_attention_weights_is_refused(predictors, monkeypatch):
    model, found = of(predictors["generate"])
    monkeypatch.setattr(model.config, "num_hidden_layers", 3)
    with pytest.raises(UserError, match="qwen2 models do not give attention weights of all their layers"):
        attention_of(model, next(iter(found.values())))


# --- the script and its page -----------------------------------------------------------------------------------------


def run_script(capsys, *flags):
    from data.arguments import parse_args

    script.main(parse_args(script.Args, {}, "", list(map(str, flags))))
    return capsys.readouterr()


@pytest.fixture(scope="module")
def written(tiny_model_dir, tmp_path_factory):
    """attention.json and attention.html of four texts, and where they are."""
    directory = tmp_path_factory.mktemp("attention")
    rows = [(HOSTILE, 0), ("I love it, love it", 18), ("酒店很好。", 18), ("no", 27)]
    (directory / "test.tsv").write_text("".join(f"{text}\t{label}\tc\n" for text, label in rows), encoding="utf-8")
    script.main(
        script.Args(
            str(tiny_model_dir),
            task="goemotions-original",
            test_data_path=str(directory / "test.tsv"),
            texts_shown=3,
            output_dir=str(directory / "out"),
            min_count=1,
        )
    )
    out = directory / "out"
    return read_attention(out / "attention.json"), (out / "attention.html").read_text(encoding="utf-8"), directory


def test_the_json_holds_what_was_measured(written, tiny_model_dir):
    content, _, _ = written
    assert (content["layers"], content["heads"], content["objective"], content["note"]) == (2, 4, "generate", NOTE)
    assert len(content["texts"]) == 4
    with Predictor(str(tiny_model_dir), "goemotions-original", precision="fp32") as predictor:
        for text in content["texts"]:
            assert text["words"] == [text["text"][b:e] for b, e in text["spans"]]
            prediction = predictor.predict(text["text"])
            assert tuple(text["labels"]) == tuple(text["explanations"]) == prediction.labels
            _, explanations = explain(predictor, text["text"], prediction)
            for label, explanation in text["explanations"].items():
                assert explanation.keys() - {"by_layer", "by_head"} == set(METHODS) == set(TITLES)
                for method in METHODS:
                    expected = getattr(explanations[label], method)
                    numpy.testing.assert_allclose(explanation[method], expected, rtol=2e-3, atol=1e-6)
                if "by_head" in explanation:
                    numpy.testing.assert_allclose(
                        numpy.mean(explanation["by_head"], axis=1), explanation["by_layer"], rtol=1e-3, atol=1e-6
                    )
    assert sum("by_head" in next(iter(text["explanations"].values())) for text in content["texts"]) == 3


def test_top_words_are_means_over_occurrences():
    def text(words, label, weights):
        return {"words": words, "explanations": {label: dict.fromkeys(METHODS, weights)}}

    texts = [
        text(["Good", "day", "good"], "joy", [0.3, 0.1, 0.5]),
        text(["good", "!"], "joy", [0.1, 0.9]),
        text(["good"], "fear", [-0.5]),
    ]
    found = script.top_words(texts, 10, 1)
    assert list(found) == ["joy", "fear"]
    assert found["joy"]["rollout"] == [["!", 0.9, 1], ["good", 0.3, 3], ["day", 0.1, 1]]
    assert script.top_words(texts, 10, 2)["joy"]["attention"] == [["good", 0.3, 3]]
    assert script.top_words(texts, 1, 1)["joy"]["attention"] == [["!", 0.9, 1]]
    assert script.top_words(texts, 10, 1)["fear"]["gradient_x_input"] == [["good", -0.5, 1]]


def test_text_of_others_is_text_on_the_page(written):
    content, page, _ = written
    assert "<img" not in page
    assert page.count("<script") == page.count("</script>") == 4  # its own
    body, _, _ = page.partition('<script type="application/json"')
    paragraph = re.search(r'<p class="text".*?>(.*?)</p>', body, re.DOTALL)[1]
    shown = re.sub(r"<[^>]*>", "", paragraph)
    assert html.unescape(shown) == HOSTILE
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    by_head = [text for text in content["texts"] if "by_head" in next(iter(text["explanations"].values()))]
    assert [each["explanations"] for each in json.loads(data)] == [text["explanations"] for text in by_head]
    assert 'lang="zh"' in body
    assert not re.search(r"https?://|@import|url\(", page)


def test_a_label_with_markup_stays_text(written):
    content = json.loads(json.dumps(written[0]))
    label = "</script><b>"
    for text in content["texts"]:
        text["labels"] = [label]
        text["explanations"] = {label: next(iter(text["explanations"].values()))}
        text["share_on_text"] = {label: next(iter(text["share_on_text"].values()))}
    page = heat_map_page(content)
    assert page.count("</script>") == 4
    assert "<b>" not in page


def test_static_rows_are_plain_data_for_another_page(written):
    content, _, _ = written
    rows = static_rows(content, 2)
    assert {row["id"] for row in rows} == {text["id"] for text in content["texts"][:2]}
    text = content["texts"][0]
    assert len(rows) == sum(len(each["labels"]) for each in content["texts"][:2])
    for row, label in zip(static_rows(content, 1), text["labels"], strict=True):
        assert (row["label"], row["gold"], row["lang"]) == (label, text["gold"], "en")
        for method, shown in row["methods"].items():
            words = shown["words"]
            assert "".join(word["before"] + word["word"] for word in words) + row["rest"] == text["text"]
            assert [word["weight"] for word in words] == text["explanations"][label][method]
            assert max(word["opacity"] for word in words) == 1
            assert all((word["weight"] < 0) == (word["sign"] == -1) for word in words)
    assert static_rows(content, 0) == []
    assert static_rows({"texts": [text | {"explanations": {}}]}, 1) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("words", "text 2: rollout of the label .* has not a weight for each word"),
        ("label", "text 2: share_on_text lacks the label"),
        ("spans", r"texts\.1\.spans: Input should be a valid list"),
        ("order", "text 2: its words do not stand one behind the other"),
        ("number", r"texts\.1\.explanations\..*rollout\.0: Input should be a (finite|valid) number"),
        ("fields", "top_words: Field required"),
    ],
)
def test_a_damaged_file_is_named(written, tmp_path, damage, message):
    content = json.loads(json.dumps(written[0]))
    text = content["texts"][1]
    if damage == "words":
        next(iter(text["explanations"].values()))["rollout"].pop()
    elif damage == "label":
        text["share_on_text"] = {}
    elif damage == "spans":
        text["spans"] = "none"
    elif damage == "order":
        text["spans"] = text["spans"][::-1]
    elif damage == "number":
        next(iter(text["explanations"].values()))["rollout"][0] = "much"
    else:
        del content["top_words"]
    (tmp_path / "attention.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(UserError, match=f"attention.json: {message}.*; scripts/attention.py did not write it"):
        read_attention(tmp_path / "attention.json")


def test_one_text_on_the_console(tiny_model_dir, tmp_path, capsys):
    flags = ("--model_path", tiny_model_dir, "--task", "goemotions-original", "--output_dir", tmp_path / "out")
    said = run_script(capsys, *flags, "--text", "You made my day!").out
    [text] = read_attention(tmp_path / "out" / "attention.json")["texts"]
    assert said.startswith("You made my day!\n  predicted: ")
    for label in text["labels"]:
        assert f"{label} · Gradient × input" in said
    assert "Attention is not an explanation" in said
    assert "top words (mean" not in said
    with pytest.raises(UserError, match="--output_dir is needed for an untuned model"):
        run_script(capsys, *flags[:4], "--text", "hi")


@pytest.mark.parametrize(("objective", "precision"), [("score", "fp32"), ("generate", "bf16")])
def test_other_ways_to_answer_and_to_compute(tiny_model_dir, tmp_path, capsys, objective, precision):
    flags = ("--model_path", tiny_model_dir, "--task", "emotion", "--objective", objective, "--precision", precision)
    run_script(capsys, *flags, "--text", "You made my day!", "--output_dir", tmp_path)
    content = read_attention(tmp_path / "attention.json")
    assert content["objective"] == objective
    assert content["texts"][0]["words"] == ["You", "made", "my", "day", "!"]


def test_a_run_has_its_own_folders(tiny_model_dir, tmp_path):
    Contract(LabelTask("moods", "single_label", ("calm", "tense"), "{text}")).save(tmp_path)
    of_file = script.Args(str(tmp_path), test_data_path="x.tsv")
    assert script.output_folder(of_file) == tmp_path / "test"
    assert script.output_folder(script.Args(str(tmp_path), text="hi")) == tmp_path / "test" / "one_text"
