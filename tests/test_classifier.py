"""Classifier heads: which token is read, packed rows against plain ones, and what is saved comes back."""

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
)

from data.arguments import UserError
from data.contract import Contract
from data.engine.classifier import MLPHead, classifier_class, init_bias_from_priors
from data.engine.models import load_model
from data.engine.scoring import text_batch, text_logits
from data.engine.span_attention import SPAN_ATTENTION
from data.learning.trainers import lora_config
from data.tasks import BUILT_IN_TASKS
from main_SFT import Args

EMOTION = BUILT_IN_TASKS["emotion"]
PAD = 2
TEXTS = [[5, 6, 7, 8, 2], [5, 6], [9, 2, 2], [5, 6, 7, 1], [3]]  # some end with the token that also pads
SIZES = dict(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.1, pad_token_id=PAD, eos_token_id=PAD,
)  # fmt: skip
DECODERS = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}


def contract(head: str) -> Contract:
    return Contract(EMOTION, objective="classify", head=head)


def made(kind: str, directory):
    """A tiny model with random weights and no head, saved in `directory`."""
    torch.manual_seed(0)
    if kind in DECODERS:
        config_class, model_class = DECODERS[kind]
        model_class(config_class(**SIZES)).save_pretrained(directory)
    else:
        sizes = {name: value for name, value in SIZES.items() if name not in ("num_key_value_heads", "eos_token_id")}
        BertModel(BertConfig(**sizes)).save_pretrained(directory)
    return directory


@pytest.fixture(params=DECODERS)
def decoder_dir(request, tmp_path):
    return made(request.param, tmp_path / "base")


@pytest.fixture(params=["llama", "bert"])
def any_dir(request, tmp_path):
    return made(request.param, tmp_path / "base")


def classifier(directory, head="linear", new_head=True):
    torch.manual_seed(1)
    return load_model(str(directory), "fp32", "cpu", attention="eager", contract=contract(head), new_head=new_head)


def one_by_one(model, texts=TEXTS):
    return torch.cat([model(input_ids=torch.tensor([ids])).logits for ids in texts])


def padded(texts, side):
    longest = max(map(len, texts))
    gaps = [[PAD] * (longest - len(ids)) for ids in texts]
    ids = [gap + t if side == "left" else t + gap for t, gap in zip(texts, gaps, strict=True)]
    mask = [
        [0] * len(gap) + [1] * len(t) if side == "left" else [1] * len(t) + [0] * len(gap)
        for t, gap in zip(texts, gaps, strict=True)
    ]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_head_reads_the_last_real_token(decoder_dir, head, side):
    model = classifier(decoder_dir, head)
    alone = one_by_one(model)
    assert alone.std() > 1e-2  # logits that would tell a wrong token from a right one
    logits = text_logits(model, padded(TEXTS, side))
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)


def test_transformers_own_pooling_reads_another_token(decoder_dir):
    """The reason for ours: a text that ends with the token that pads."""
    model = AutoModelForSequenceClassification.from_pretrained(decoder_dir, num_labels=6).eval()
    own = model(**padded(TEXTS, "right")).logits
    shortened = model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits  # without its last token
    torch.testing.assert_close(own[0], shortened[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_packed_row_gives_the_same_logits_and_gradients(decoder_dir, head):
    model = classifier(decoder_dir, head)
    weights = torch.randn(len(TEXTS), 6)
    (one_by_one(model) * weights).sum().backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters()}
    alone = one_by_one(model).detach()
    model.zero_grad()
    model.set_attn_implementation(SPAN_ATTENTION)
    logits = text_logits(model, text_batch(TEXTS, "packed", PAD))
    (logits * weights).sum().backward()
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=0)
    for name, parameter in model.named_parameters():
        scale = plain[name].abs().max().clamp(min=1)
        torch.testing.assert_close(parameter.grad / scale, plain[name] / scale, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_a_whole_model_comes_back(any_dir, tmp_path, head):
    model = classifier(any_dir, head)
    before = one_by_one(model)
    model.save_pretrained(tmp_path / "run")
    torch.testing.assert_close(
        one_by_one(classifier(tmp_path / "run", head, new_head=False)), before, atol=1e-5, rtol=0
    )


def test_a_linear_head_is_one_that_transformers_loads(decoder_dir, tmp_path):
    model = classifier(decoder_dir)
    model.save_pretrained(tmp_path / "run")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").eval()
    assert plain.config.id2label[2] == "joy"
    texts = [ids for ids in TEXTS if ids[-1] != PAD]
    torch.testing.assert_close(one_by_one(plain, texts), one_by_one(model, texts), atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_an_adapter_and_its_head_survive_saving_and_merging(any_dir, tmp_path, head):
    model = classifier(any_dir, head)
    args = Args(model_path=str(any_dir), task="emotion", train_data_path="x", tuning="lora", lora_r=4, lora_dropout=0.0)
    config = lora_config(args, model)
    config.base_model_name_or_path = str(any_dir)
    adapted = get_peft_model(model, config)
    untuned = one_by_one(adapted.eval())
    torch.manual_seed(2)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert any("modules_to_save" in name for name in trained)
    assert not any("lora" in name and ("score" in name or "classifier" in name) for name in trained)
    tuned = one_by_one(adapted)
    assert (tuned - untuned).abs().max() > 0.1
    adapted.save_pretrained(tmp_path / "run")
    loaded = classifier(tmp_path / "run", head, new_head=False)
    assert isinstance(loaded, PeftModel)
    torch.testing.assert_close(one_by_one(loaded), tuned, atol=1e-5, rtol=0)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(one_by_one(merged), tuned, atol=1e-5, rtol=0)
    merged.save_pretrained(tmp_path / "merged")
    torch.testing.assert_close(
        one_by_one(classifier(tmp_path / "merged", head, new_head=False)), tuned, atol=1e-5, rtol=0
    )


def test_the_mlp_is_the_one_described(decoder_dir):
    head = classifier(decoder_dir, "mlp").score
    assert isinstance(head, MLPHead)
    assert [tuple(layer.weight.shape) for layer in (*head.hidden, head.out)] == [(512, 32), (256, 512), (6, 256)]
    for layer in (*head.hidden, head.out):
        fan_out, fan_in = layer.weight.shape
        bound = (6 / (fan_in + fan_out)) ** 0.5
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)  # uniform
        assert not layer.bias.any()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32])
def test_the_head_stays_in_fp32(decoder_dir, precision):
    model = load_model(
        str(decoder_dir), "bf16" if precision == torch.bfloat16 else "fp32", "cpu", None, contract("mlp"), new_head=True
    )
    assert model.model.layers[0].mlp.up_proj.weight.dtype == precision
    assert {p.dtype for p in model.score.parameters()} == {torch.float32}
    assert one_by_one(model).dtype == torch.float32


@pytest.mark.parametrize("kind", ["bert", "mlp"])
def test_a_new_head_begins_with_the_odds_of_its_labels(decoder_dir, tmp_path, kind):
    model = classifier(made("bert", tmp_path)) if kind == "bert" else classifier(decoder_dir, "mlp")
    priors, weights = [0.5, 0.25, 0.01, 0.0, 0.1, 0.2], [1, 1, 10, 1, 9, 1]
    init_bias_from_priors(model, priors, weights)
    bias = (model.classifier if kind == "bert" else model.score.out).bias
    expected = [0.5, 0.25, 0.1 / 1.09, 1e-4, 0.5, 0.2]  # weighted shares: w p / (w p + 1 - p)
    assert bias.sigmoid().tolist() == pytest.approx(expected, rel=1e-4)
    init_bias_from_priors(model, [0.5] * 6)  # not new any more
    assert bias.sigmoid().tolist() == pytest.approx(expected, rel=1e-4)


def test_a_head_without_a_bias_begins_as_it_is(decoder_dir):
    model = classifier(decoder_dir)
    before = one_by_one(model)
    init_bias_from_priors(model, [0.1] * 6)
    torch.testing.assert_close(one_by_one(model), before)


def test_bert_pads_on_the_right(tmp_path):
    model = classifier(made("bert", tmp_path))
    logits = text_logits(model, text_batch(TEXTS, "padded", PAD))
    torch.testing.assert_close(logits, one_by_one(model), atol=1e-5, rtol=0)


def test_a_head_that_is_no_linear_layer_is_not_replaced():
    sizes = {name: SIZES[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")}
    with pytest.raises(UserError, match="--head mlp: roberta"):
        classifier_class(RobertaConfig(), "mlp")(RobertaConfig(**sizes))
