"""Packed rows give what row-by-row computation gives: log-probabilities, loss and every gradient."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from data.engine.packing import dense_mask, pack, spans
from data.engine.span_attention import SPAN_ATTENTION, CutRow, span_attention
from data.engine.tree_attention import (
    ordinary_attention,
    row_inputs,
    sharing_attention,
    sharing_obstacle,
    target_log_probs,
)

HEAD, TAIL = [7, 8, 9, 10, 11, 12], [3, 4]
SEQUENCES = [
    [*HEAD, 20, 21, 22, 23, *TAIL, 40, 2],
    [*HEAD, 20, 21, *TAIL, 41, 42, 2],
    [*HEAD, 20, 21, *TAIL, 41, 42, 2],  # twice the same
    [*HEAD, 20, 21, *TAIL, 41, 2],
    [*HEAD, 30, *TAIL, 43, 44, 45, 2],
    [50, 51, 52, 53],  # shares nothing
]
TARGETS = [[False] * (len(s) - 3) + [True] * 3 for s in SEQUENCES]
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2,
}  # fmt: skip


def make_model(kind: str, attention: str = "eager", **config):
    import transformers

    torch.manual_seed(0)
    config |= {"attn_pdrop": 0, "resid_pdrop": 0, "embd_pdrop": 0} if kind == "gpt2" else {}
    settings = transformers.AutoConfig.for_model(kind, **SIZES | config)
    model = transformers.AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
    model.set_attn_implementation(attention)
    return model


def row_by_row(model) -> torch.Tensor:
    """Log-probabilities of the targets, every sequence by itself, through the model's ordinary call."""
    found = []
    for sequence, flags in zip(SEQUENCES, TARGETS, strict=True):
        logits = model(input_ids=torch.tensor([sequence])).logits[0, :-1]
        nll = cross_entropy(logits, torch.tensor(sequence[1:]), reduction="none")
        found.append(-nll[torch.tensor(flags[1:])])
    return torch.cat(found)


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return found


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager", SPAN_ATTENTION])
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "gpt2"])
def test_a_packed_row_gives_what_each_sequence_gives_alone(kind, attention, adapter):
    model = make_model(kind)
    if adapter:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    expected = row_by_row(model)
    expected.mean().backward()
    expected_gradients = gradients(model)

    model.set_attn_implementation(attention)
    (row,) = pack(SEQUENCES, TARGETS)
    assert len(row) < sum(map(len, SEQUENCES)) / 2
    found = target_log_probs(model, row)
    found.mean().backward()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-5, rtol=0, msg=name)
        assert gradient.abs().max() > 0, name
    with torch.inference_mode():
        found = target_log_probs(model, row)
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", ["sdpa", SPAN_ATTENTION])
def test_gradient_checkpointing_changes_nothing(attention):
    model = make_model("qwen2", attention).train()
    (row,) = pack(SEQUENCES, TARGETS)
    target_log_probs(model, row).mean().backward()
    plain = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    calls = []
    model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    target_log_probs(model, row).mean().backward()
    assert len(calls) == 2  # once forward, once again in the backward pass
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-6, rtol=0, msg=name)


def test_rows_under_a_budget_give_the_same_together():
    model = make_model("qwen2", SPAN_ATTENTION)
    found = {}
    for row in pack(SEQUENCES, TARGETS, max_tokens=16):
        log_probs = target_log_probs(model, row)
        for sequence in row.sequences.tolist():
            found[sequence] = log_probs[row.target_sequence == sequence]
    with ordinary_attention(model):
        torch.testing.assert_close(torch.cat([found[i] for i in sorted(found)]), row_by_row(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kept", [0, 2**27])
@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize(("heads", "key_heads"), [(4, 2), (3, 3), (4, 1)])
def test_span_attention_and_its_gradient_by_definition(heads, key_heads, size, kept, monkeypatch):
    monkeypatch.setattr("data.engine.span_attention.KEPT_WEIGHTS", kept)  # else they are computed once more
    (row,) = pack(SEQUENCES, TARGETS)
    n, width, scaling = len(row), 5, 0.3
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(1, h, n, width, dtype=torch.float64, requires_grad=True) for h in (heads, key_heads, key_heads)
    )
    cut = CutRow(spans(row.subtree_end, torch.float64, size))

    def fast(query, key, value):
        return span_attention(None, query, key, value, None, scaling=scaling, spans=cut)[0]

    repeated_key, repeated_value = (t.repeat_interleave(heads // key_heads, dim=1) for t in (key, value))
    scores = query @ repeated_key.transpose(-1, -2) * scaling + dense_mask(row.subtree_end, torch.float64)
    expected = (scores.softmax(-1) @ repeated_value).transpose(1, 2)
    torch.testing.assert_close(fast(query, key, value), expected)
    with torch.inference_mode():
        torch.testing.assert_close(fast(query, key, value), expected.detach())
    weights = torch.randn(expected.shape, dtype=torch.float64)
    found = torch.autograd.grad((fast(query, key, value) * weights).sum(), (query, key, value))
    for gradient, wanted in zip(
        found, torch.autograd.grad((expected * weights).sum(), (query, key, value)), strict=True
    ):
        torch.testing.assert_close(gradient, wanted)


def test_never_without_a_mask():
    """Transformers takes repeating positions without a mask for independent sequences: the prompt would be lost."""
    model = make_model("qwen2", "sdpa")
    (row,) = pack(SEQUENCES, TARGETS)
    inputs = row_inputs(model, row)
    right = model(**inputs).logits
    lost = model(**{name: value for name, value in inputs.items() if name != "attention_mask"}).logits
    assert (right - lost).abs().max() > 0.1


@pytest.mark.parametrize(
    ("kind", "config", "obstacle"),
    [
        ("qwen2", {}, None),
        ("qwen3", {}, None),
        ("llama", {}, None),
        ("mistral", {"sliding_window": 4096}, None),  # wider than any sequence
        ("mistral", {"sliding_window": 8}, "sliding window of 8 tokens is shorter than a sequence of 100"),
        ("mistral", {"sliding_window": None}, None),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "sliding window of 8"),
        ("gemma2", {"head_dim": 8}, "attn_logit_softcapping"),
        ("qwen3_next", {"head_dim": 8}, "layers of kind linear_attention"),
        ("mamba", {}, "layers of kind linear_attention"),
        ("recurrent_gemma", {}, "carries a state"),
        ("falcon", {}, "takes no mask from outside"),
        ("gpt_oss", {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}, "has sinks"),
        ("bloom", {}, "forward takes no position_ids"),
        ("bert", {}, "not causal"),
        ("roberta", {"is_decoder": True}, "counts positions in its own way"),
        ("doge", {"keep_window_size": 8}, "chooses what it sees"),
    ],
)
def test_which_models_share(kind, config, obstacle):
    found = sharing_obstacle(make_model(kind, **config), longest=100)
    assert (obstacle is None and found is None) or obstacle in found


def test_a_window_wider_than_the_sequences_is_exact():
    model = make_model("mistral", sliding_window=20)
    assert sharing_obstacle(model, longest=20) is None
    expected = row_by_row(model)
    (row,) = pack(SEQUENCES, TARGETS)
    assert len(row) > 20
    for attention in ("sdpa", SPAN_ATTENTION):
        model.set_attn_implementation(attention)
        found = target_log_probs(model, row)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_attention_by_device(monkeypatch):
    model = make_model("llama")
    assert sharing_attention(model, "cpu") == SPAN_ATTENTION
    assert sharing_attention(model, "mps") == "sdpa"
    assert sharing_attention(model, "cuda:1") == "sdpa"  # fp32 weights: mixed number formats under autocast
    monkeypatch.setattr("data.engine.tree_attention.has_triton", lambda: False)
    assert sharing_attention(model.bfloat16(), "cuda:1") == "sdpa"  # FlexAttention is compiled with Triton
    monkeypatch.setattr("data.engine.tree_attention.has_triton", lambda: True)
    assert sharing_attention(model, "cuda:1") == "sdpa"  # heads of 8 are too narrow for FlexAttention
    wide = make_model("llama", hidden_size=64).bfloat16()
    assert sharing_attention(wide, "cuda:1") == "flex_attention"
    model.config.attention_dropout = 0.1
    assert (sharing_attention(model, "cpu"), sharing_attention(model, "cuda")) == ("eager", "sdpa")
    model.config.attention_dropout, model.config.attn_pdrop = 0.0, 0.1  # as gpt2 calls it
    assert sharing_attention(model, "cpu") == "eager"


def test_generation_has_its_ordinary_attention():
    model = make_model("qwen2", SPAN_ATTENTION)
    with ordinary_attention(model):
        assert model.config._attn_implementation == "sdpa"
        model.generate(torch.tensor([[5, 6], [7, 8]]), max_new_tokens=2, pad_token_id=0)
    assert model.config._attn_implementation == SPAN_ATTENTION
    model.set_attn_implementation("eager")
    with ordinary_attention(model):
        assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["s_aux", "softcap", "position_bias"])
def test_spans_take_nothing_that_changes_the_scores(name):
    (row,) = pack(SEQUENCES, TARGETS)
    states = torch.zeros(1, 1, len(row), 4)
    cut = CutRow(spans(row.subtree_end, torch.float32))
    with pytest.raises(AssertionError, match=name):
        span_attention(None, states, states, states, None, scaling=1.0, spans=cut, **{name: 1.0})


@pytest.mark.real  # FlexAttention is compiled first
def test_flex_attention_gives_the_same_log_probs():
    """On a CPU it has a forward pass only."""
    sequences = [[7, 8, 9] * 60 + [20 + i] * (60 + i) + [2] for i in range(4)]
    model = make_model("qwen2", "sdpa", max_position_embeddings=512)
    (row,) = pack(sequences, [[False] * (len(s) - 3) + [True] * 3 for s in sequences])
    with torch.no_grad():
        expected = target_log_probs(model, row)
        model.set_attn_implementation("flex_attention")
        found = target_log_probs(model, row)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
