"""Texts side by side give an encoder's logits, losses and gradients of padded batches."""

import random

import pytest
import torch
from torch.nn.functional import cross_entropy

from data.encoding import ENCODERS
from data.engine.classifier import classifier_class
from data.engine.models import compile_layers
from data.engine.padding import LikeLengths
from data.engine.scoring import batch_form, text_batch, text_logits
from data.engine.unpadded import (
    UNPADDED_ATTENTION,
    attention_side_by_side,
    enable_unpadding,
    side_by_side,
    unpadding_obstacle,
)
from data.learning.trainers import lora_config
from main_SFT import Args

PAD = 1
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "embedding_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 40, "initializer_range": 0.2, "pad_token_id": PAD,
    "num_labels": 6, "type_vocab_size": 2, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4,
    "intra_bottleneck_size": 32, "true_hidden_size": 32, "num_key_value_heads": 4,
}  # fmt: skip
SPELT = {
    "eurobert": {"classifier_pooling": "bos"},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
}  # what some need besides
SIDE_BY_SIDE = (
    "albert", "bert", "camembert", "data2vec-text", "distilbert", "electra", "ernie", "eurobert", "roberta",
    "roberta-prelayernorm", "roc_bert", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip
TEXTS = [[5, 6, 7, 8, 2], [9, 3], [5, PAD, 7], [4, 30, 31], [3], [*range(2, 28)]]  # one has the token that pads


def make(kind: str, attention: str = "eager", **config):
    from transformers import AutoConfig

    torch.manual_seed(0)
    settings = AutoConfig.for_model(kind, **SIZES | SPELT.get(kind, {}) | config)
    model = classifier_class(settings, "linear")(settings)
    model.set_attn_implementation(attention)
    for name, parameter in model.named_parameters():  # biases, too, so that a wrong place shows
        torch.nn.init.normal_(parameter, mean=float("norm" in name.lower() and "weight" in name), std=0.1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train()


def logits_and_gradients(model, texts, form: str):
    model.zero_grad()
    logits = text_logits(model, text_batch(texts, form, PAD))
    cross_entropy(logits, torch.arange(len(texts)) % 6).backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_alike(model, texts, padded, atol=1e-5):
    """The row of `texts` gives what the padded batch gave."""
    logits, gradients = logits_and_gradients(model, texts, batch_form(model))
    torch.testing.assert_close(logits, padded[0], atol=atol, rtol=0)
    assert gradients.keys() == padded[1].keys()
    for name, gradient in gradients.items():
        scale = padded[1][name].abs().max().clamp(min=1)
        torch.testing.assert_close(gradient / scale, padded[1][name] / scale, atol=atol, rtol=0, msg=name)


@pytest.mark.parametrize("kind", SIDE_BY_SIDE)
def test_logits_and_gradients_are_those_of_padded_batches(kind):
    model = make(kind)
    if kind == "roberta-prelayernorm":
        model.double()  # its first layers normalise what is close to zero, and magnify how AVX2 rounds to 1.1e-5
    padded = logits_and_gradients(model, TEXTS, "padded")
    assert padded[0].std() > 1e-2  # logits that tell texts apart
    assert batch_form(model) == "padded"
    assert enable_unpadding(model, "cpu")
    assert batch_form(model) == "side by side"
    assert_alike(model, TEXTS, padded)
    with torch.inference_mode():
        logits = text_logits(model.eval(), text_batch(TEXTS, "side by side", PAD))
    torch.testing.assert_close(logits, padded[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("seed", range(12))
def test_any_lengths(seed):
    draw = random.Random(seed)
    texts = [[draw.randrange(2, 64) for _ in range(draw.choice((1, 2, 7, 7, 30)))] for _ in range(draw.randrange(1, 9))]
    model = make(draw.choice(("bert", "roberta", "distilbert")))
    padded = logits_and_gradients(model, texts, "padded")
    enable_unpadding(model)
    assert_alike(model, texts, padded)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_a_dense_mask_gives_the_same(kind, attention):
    """What a GPU computes where FlexAttention cannot be had."""
    model = make(kind)
    padded = logits_and_gradients(model, TEXTS, "padded")
    enable_unpadding(model)
    model.set_attn_implementation(attention)
    assert_alike(model, TEXTS, padded)


@pytest.mark.skipif(
    "AVX512" not in torch.backends.cpu.get_cpu_capability(),
    reason="PyTorch 2.13 compiles FlexAttention to code that gives nan with AVX2; on a CPU no model computes with it",
)
def test_flex_attention_gives_the_same():
    model = make("bert").eval().requires_grad_(False)  # on a CPU it has no backward pass
    padded = text_logits(model, text_batch(TEXTS, "padded", PAD))
    enable_unpadding(model)
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(text_logits(model, text_batch(TEXTS, "side by side", PAD)), padded, atol=1e-5, rtol=0)


def test_the_attention_of_a_device():
    model = make("bert")
    assert attention_side_by_side(model, "cpu") == UNPADDED_ATTENTION
    assert attention_side_by_side(model, "cuda") == "sdpa"  # it drops some of what it sees


def test_checkpointed_layers_and_adapters_give_the_same():
    from peft import get_peft_model

    model = make("bert")
    args = Args(model_path="m", task="emotion", train_data_path="x", lora_r=4, lora_dropout=0.0)
    enable_unpadding(model)
    adapted = get_peft_model(model, lora_config(args, model))
    torch.manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.set_attn_implementation("eager")
    padded = logits_and_gradients(adapted, TEXTS, "padded")
    assert any("lora" in name for name in padded[1])
    enable_unpadding(adapted)
    assert_alike(adapted, TEXTS, padded)
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    assert_alike(adapted, TEXTS, padded)


@pytest.mark.real  # a minute of compiling
def test_compiled_layers_give_the_same():
    model = make("bert")
    padded = logits_and_gradients(model, TEXTS, "padded")
    other = logits_and_gradients(model, TEXTS[::-2], "padded")
    enable_unpadding(model)
    compile_layers(model)
    assert_alike(model, TEXTS, padded)
    assert_alike(model, TEXTS[::-2], other)  # of other lengths


def test_weights_are_dropped():
    """The same share of attention's weights as in padded batches, which the mean over many draws shows."""
    model = make("bert")
    enable_unpadding(model)
    batch = text_batch(TEXTS, "side by side", PAD)
    whole = text_logits(model, batch)
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.1
    torch.manual_seed(0)
    drawn = torch.stack([text_logits(model, batch).detach() for _ in range(100)])
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3
    assert (drawn.mean(0) - whole).abs().max() < (drawn - whole).abs().max() / 2
    torch.testing.assert_close(text_logits(model.eval(), batch), whole)


def test_every_encoder_is_either_tested_or_kept_out():
    """A model that a new version of Transformers makes fit for rows has to be listed above, and so tested."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    found = set()
    for kind in ENCODERS - {"longformer", "funnel"}:  # these two make no tiny model
        try:
            config = AutoConfig.for_model(kind, **SIZES | SPELT.get(kind, {}))
        except ValueError:
            continue  # not in Transformers any more
        if type(config) not in AutoModelForSequenceClassification._model_mapping:
            continue
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config)
        if unpadding_obstacle(model) is None:
            found.add(kind)
    assert found == set(SIDE_BY_SIDE)


@pytest.mark.parametrize(
    ("kind", "config", "reason"),
    [
        ("deberta-v2", {}, "its attention takes no row of several texts"),
        ("modernbert", {"classifier_pooling": "cls"}, "it has layers of kind sliding_attention"),
        ("eurobert", {"classifier_pooling": "mean"}, "its head reads more than the first token"),
        ("bert", {"is_decoder": True}, "its tokens see only those before them"),
        ("mobilebert", {}, "it reads each token with its neighbours (trigram_input)"),
        ("nomic_bert", {}, "it pools where no hook reaches"),
        ("qwen2", {}, "it is no encoder"),
    ],
)
def test_what_is_in_the_way(kind, config, reason):
    model = make(kind, **config)
    assert unpadding_obstacle(model) == reason
    assert not enable_unpadding(model)
    assert batch_form(model) == "padded"


def test_a_padded_batch_in_its_place_is_no_silent_mistake():
    model = make("bert")
    enable_unpadding(model)
    with pytest.raises(TypeError, match="texts"):
        text_logits(model, text_batch(TEXTS, "padded", PAD))


def test_a_row():
    row = side_by_side([[5, 6, 7], [8]])
    assert row.input_ids.tolist() == [5, 6, 7, 8]
    assert row.lengths == (3, 1)
    assert len(row) == 4
    assert row.to("meta").input_ids.is_meta
    with pytest.raises(AssertionError, match="a text without a token"):
        side_by_side([[5], []])


def test_neighbours_are_of_like_length():
    lengths = [random.Random(n).randrange(1, 100) for n in range(400)]
    order = LikeLengths(4, lengths, seed=1)
    drawn = list(order)
    assert len(order) == 400
    assert sorted(drawn) == list(range(400))
    assert drawn == list(order)  # the same for each process, and after a restart
    spread = [max(part) - min(part) for part in ([lengths[i] for i in drawn[k : k + 4]] for k in range(4, 400, 4))]
    assert sum(spread) / len(spread) < 20
    order.set_epoch(1)
    assert list(order) != drawn
