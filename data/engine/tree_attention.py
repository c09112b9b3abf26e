"""Language models on packed rows: which models may be given one, how attention computes it, and what comes out.

On a GPU, FlexAttention skips the blocks of the mask in which nothing is to be seen. On a CPU it has no backward pass,
and a dense mask would have 30 layers compute N x N scores, most of them for nothing; so here a row is cut into spans
(`packing.spans`), each a few plain matrix products, or PyTorch's fused attention where nothing is learnt.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._triton import has_triton
from transformers import AttentionInterface

from data.engine.packing import PackedRow, Span, block_mask, dense_mask, spans

SPAN_ATTENTION = "prefix_tree_spans"  # the name under which Transformers finds `span_attention`


NOT_PLAIN_ATTENTION = {  # settings of a model's config
    "attn_logit_softcapping": "caps its scores",
    "attention_chunk_size": "sees chunks only",
    "alibi": "takes its positions from the distance in the row",
    "keep_window_size": "chooses what it sees",
}
DROPOUT = ("attention_dropout", "attn_pdrop", "attention_probs_dropout_prob")


# --- which models ---------------------------------------------------------------------------------------------------


def sharing_obstacle(model, longest: int) -> str | None:
    """Why packed rows would not give what a model gives row by row, or None where they do.

    A model qualifies if each token sees exactly the tokens before it, through an attention that takes its mask from
    outside, and knows its position from `position_ids` alone.

    Args:
        model: a causal language model, as it was loaded (no adapter on it yet).
        longest: tokens of the longest sequence it will be given.
    """
    config = model.config.get_text_config()
    accepted = inspect.signature(model.forward).parameters
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        return f"it has layers of kind {', '.join(sorted(kinds))}"
    if getattr(model, "_is_stateful", False):
        return "it carries a state from token to token"
    if missing := [name for name in ("position_ids", "logits_to_keep") if name not in accepted]:
        return f"its forward takes no {missing[0]}"
    if not model._supports_attention_backend:
        return "its attention takes no mask from outside"
    bidirectional = any(getattr(module, "is_causal", True) is False for module in model.modules())
    if bidirectional or getattr(config, "use_bidirectional_attention", None):
        return "its attention is not causal"
    if any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules()):
        return "it counts positions in its own way"
    if window := _sliding_window(config, longest):
        return f"its sliding window of {window} tokens is shorter than a sequence of {longest}"
    for name, what in NOT_PLAIN_ATTENTION.items():
        if getattr(config, name, None):
            return f"its attention {what} ({name})"
    if any(name.rpartition(".")[2] == "sinks" for name, _ in model.named_parameters()):
        return "its attention has sinks"
    return None


def _sliding_window(config, longest: int) -> int | None:
    """The model's sliding window, if it has one in use that is shorter than `longest`."""
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    in_use = "sliding_attention" in layers if layers else getattr(config, "use_sliding_window", True)
    return window if window and in_use and window < longest else None


def sharing_attention(model, device: str) -> str:
    """The attention code to compute packed rows with on `device`, as `set_attn_implementation` takes it.

    Spans on a CPU; on a GPU FlexAttention, or a dense mask where that cannot be.
    """
    on_cpu = torch.device(device).type == "cpu"
    config = model.config.get_text_config()
    if any(getattr(config, name, 0.0) for name in DROPOUT):
        return "eager" if on_cpu else "sdpa"  # neither of the other two drops anything
    if on_cpu:
        return SPAN_ATTENTION
    # fp32 weights under autocast give queries and keys in fp32 and values in bf16, which FlexAttention refuses
    mixed = model.dtype == torch.float32
    flex = torch.device(device).type == "cuda" and model._supports_flex_attn and not mixed and has_triton()
    return "flex_attention" if flex else "sdpa"


def enable_packing(model, longest: int, device: str | None = None) -> bool:
    """Set a model up for packed rows, if it qualifies (`sharing_obstacle`).

    Args:
        model: a causal language model or a classifier on one, with or without an adapter.
        longest: tokens of the longest sequence it will be given.
        device: where it will compute; None = where it is.

    Returns:
        Whether it is.
    """
    bare = bare_model(model)
    if sharing_obstacle(bare, longest):
        return False
    bare.set_attn_implementation(sharing_attention(bare, device or str(bare.device)))
    bare.computes_packed_rows = True
    return True


def computes_packed_rows(model) -> bool:
    """Whether `enable_packing` has set this model up, however it has been wrapped since."""
    return getattr(bare_model(model), "computes_packed_rows", False)


def computes_spans(model) -> bool:
    """Whether a model is set up for packed rows with attention in spans."""
    return model.config._attn_implementation == SPAN_ATTENTION


def bare_model(model) -> torch.nn.Module:
    """The model itself, out of what distributes it and under its adapter."""
    model = extract_model_from_parallel(model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def ordinary_attention(model) -> Iterator[None]:
    """Within this context, a model set up for packed rows takes ordinary batches, as generation does."""
    attention = model.config._attn_implementation
    if attention not in (SPAN_ATTENTION, "flex_attention"):
        yield
        return
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(attention)


# --- a row through a model ------------------------------------------------------------------------------------------


def row_inputs(model, row: PackedRow) -> dict[str, Any]:
    """What a model's forward takes to compute `row` with the attention code its config names.

    Args:
        model: the model as the trainer wrapped it; under autocast, if it will compute under it.
        row: the row, on the model's device.
    """
    bare = bare_model(model)
    attention, device = bare.config._attn_implementation, row.input_ids.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else bare.dtype
    inputs = {
        "input_ids": row.input_ids[None],  # (1, N)
        "position_ids": row.position_ids[None],  # (1, N)
        "logits_to_keep": row.logit_index,
        "use_cache": False,
    }
    # never without a mask: Transformers would take repeating positions for sequences of their own
    if attention == SPAN_ATTENTION:
        return inputs | {"spans": CutRow(spans(row.subtree_end, dtype))}
    if attention == "flex_attention":
        return inputs | {"attention_mask": block_mask(row.subtree_end)}
    return inputs | {"attention_mask": dense_mask(row.subtree_end, dtype)}


def target_log_probs(model, row: PackedRow) -> Tensor:
    """Log-probability of each target of `row`, (T,) in fp32, in the order of `row.target_ids`.

    Args:
        model: the model as the trainer wrapped it, so that DDP, FSDP and autocast see the call.
        row: the row, on the model's device.
    """
    return _log_probs(model, row)[row.target_logit, row.target_ids]


def target_logits(model, row: PackedRow) -> Tensor:
    """Logits (T, V) in fp32 from which each target of `row` is predicted, in the order of `row.target_ids`.

    Args:
        model, row: see `target_log_probs`.
    """
    return model(**row_inputs(model, row)).logits[0].float()[row.target_logit]


def target_log_probs_and_entropies(model, row: PackedRow, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of each target of `row`, and the entropy of the distribution it is drawn from.

    Args:
        model, row: see `target_log_probs`.
        temperature: divides the logits.

    Returns:
        Log-probabilities (T,) in fp32, in the order of `row.target_ids`, and entropies (T,) in nats, without gradient.
    """
    log_probs = _log_probs(model, row, temperature)  # (K, V)
    with torch.no_grad():
        entropies = -(log_probs.exp() * log_probs).sum(dim=-1)  # (K,)
    return log_probs[row.target_logit, row.target_ids], entropies[row.target_logit]


def _log_probs(model, row: PackedRow, temperature: float = 1.0) -> Tensor:
    """Log-probabilities of the whole vocabulary at the row's K positions that predict a target, (K, V) in fp32."""
    logits = model(**row_inputs(model, row)).logits[0].float()
    return (logits if temperature == 1 else logits / temperature).log_softmax(dim=-1)


# --- attention in spans ---------------------------------------------------------------------------------------------


class KeptRow:
    """Keys and values of a row that is computed piece by piece, of each attention layer."""

    def __init__(self):
        self._layers: dict[torch.nn.Module, tuple[Tensor, Tensor]] = {}

    def copy(self) -> "KeptRow":
        """The same row, to go on with in another way; what is computed already is shared."""
        other = KeptRow()
        other._layers = dict(self._layers)
        return other

    def extend(self, layer: torch.nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Put keys (K, n, D) and values (K, n, V) behind those of `layer`; returns all of them."""
        if layer in self._layers:
            keys, values = self._layers[layer]
            key, value = torch.cat([keys, key], dim=1), torch.cat([values, value], dim=1)
        self._layers[layer] = key, value
        return key, value


@dataclass(frozen=True)
class CutRow:
    """A row's spans, in an object torch.compile does not look into: lists of another length would be compiled anew.

    Attributes:
        spans: the stretches of the row that are computed.
        kept: the pieces computed before, which these stand behind; they are added to it. None = the row is whole.
    """

    spans: list[Span]
    kept: KeptRow | None = None


def read_on(
    model, kept: KeptRow, input_ids: Tensor, position_ids: Tensor, logit_index: Tensor, cut: list[Span]
) -> Tensor:
    """Compute the next piece of a row, without gradients; the model's attention has to be that in spans.

    Args:
        model: a causal language model.
        kept: the pieces before; this one is added.
        input_ids, position_ids: (n,) the piece.
        logit_index: (K,) which of its tokens logits are needed of.
        cut: the piece's spans in the whole row.

    Returns:
        Logits (K, V) in fp32.
    """
    # compiled layers would be compiled anew for a single token, which takes longer than it saves
    plainly = torch.compiler.set_stance("force_eager") if len(input_ids) == 1 else nullcontext()
    with plainly:
        output = model(
            input_ids=input_ids[None], position_ids=position_ids[None], logits_to_keep=logit_index, use_cache=False,
            spans=CutRow(cut, kept),
        )  # fmt: skip
    return output.logits[0].float()


class _SpanAttention(torch.autograd.Function):
    """Softmax attention, span by span. With autograd instead, slicing alone would take half of the time backwards.

    H query heads of width D share K key heads, G = H / K each. In a span, n queries see m = A + n keys. The N queries
    are the last of the row; without gradients, there may be more keys, M > N.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, cut: list[Span], scaling: float) -> Tensor:
        """query (K, G, N, D), key (K, M, D), value (K, M, V) -> (K, G, N, V)."""
        heads, groups, _, width = query.shape
        earlier = key.shape[1] - query.shape[2]
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        probabilities = []
        for span in cut:
            stretch, n = slice(span.begin - earlier, span.end - earlier), span.end - span.begin
            queries = query[:, :, stretch].reshape(heads, groups * n, width)
            keys, values = _visible(key, span), _visible(value, span)  # (K, m, D)
            scores = span.mask.repeat(heads, groups, 1)  # (K, G * n, m)
            weights = scores.baddbmm_(queries, keys.transpose(1, 2), alpha=scaling).softmax(dim=-1)  # (K, G * n, m)
            output[:, :, stretch] = torch.bmm(weights, values).view(heads, groups, n, -1)
            probabilities.append(weights)
        ctx.save_for_backward(query, key, value, *probabilities)
        ctx.cut, ctx.scaling = cut, scaling
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        query, key, value, *probabilities = ctx.saved_tensors
        heads, groups, _, width = query.shape
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for span, weights in zip(ctx.cut, probabilities, strict=True):
            stretch, n = slice(span.begin, span.end), span.end - span.begin
            queries = query[:, :, stretch].reshape(heads, groups * n, width)
            gradient = grad_output[:, :, stretch].reshape(heads, groups * n, -1)
            keys, values = _visible(key, span), _visible(value, span)
            grad_weights = torch.bmm(gradient, values.transpose(1, 2))
            grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, weights.dtype).mul_(ctx.scaling)
            grad_query[:, :, stretch] = torch.bmm(grad_scores, keys).view(heads, groups, n, width)
            _add_visible(grad_key, span, torch.bmm(grad_scores.transpose(1, 2), queries))
            _add_visible(grad_value, span, torch.bmm(weights.transpose(1, 2), gradient))
        return grad_query, grad_key, grad_value, None, None


def _fused_span_attention(query: Tensor, key: Tensor, value: Tensor, cut: list[Span], scaling: float) -> Tensor:
    """`_SpanAttention` in inference mode: PyTorch's fused attention, up to 4 times faster, but slower backwards.

    query (H, N, D), key (K, M, D), value (K, M, V) -> (H, N, V).
    """
    earlier = key.shape[1] - query.shape[1]
    outputs = [
        scaled_dot_product_attention(
            query[None, :, span.begin - earlier : span.end - earlier], _visible(key, span)[None],
            _visible(value, span)[None], attn_mask=span.mask, scale=scaling, enable_gqa=True,
        )
        for span in cut
    ]  # fmt: skip
    return torch.cat(outputs, dim=2)[0]


def _visible(tensor: Tensor, span: Span) -> Tensor:
    """What a span's queries see of keys or values (K, N, D): (K, m, D)."""
    return torch.cat([tensor.index_select(1, span.above), tensor[:, span.begin : span.end]], dim=1)


def _add_visible(total: Tensor, span: Span, gradient: Tensor) -> None:
    """Add the gradient (K, m, D) of `_visible` to where it was taken from, in place."""
    above = len(span.above)
    total.index_add_(1, span.above, gradient[:, :above])
    total[:, span.begin : span.end] += gradient[:, above:]


@torch.compiler.disable
def span_attention(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    spans: CutRow,
    dropout: float = 0.0,
    **other: Any,
) -> tuple[Tensor, None]:
    """Attention of one packed row in the form Transformers calls it.

    Args:
        module: the attention layer, by which a row's earlier pieces are found.
        query: (1, H, N, D).
        key: (1, K, N, D).
        value: (1, K, N, V).
        attention_mask: None; the spans bring their own.
        scaling: factor of the scores.
        spans: the row, cut up.
        dropout: 0; nothing is dropped here.
        other: what Transformers hands on besides; nothing that would change the scores.

    Returns:
        (1, N, H, V), and None where other attentions may give their weights.
    """
    assert not dropout, "sharing_attention chooses another attention for a model that drops"
    assert attention_mask is None, "the spans bring their own mask"
    changed = [name for name in ("s_aux", "softcap", "position_bias") if other.get(name) is not None]
    assert not changed, f"sharing_obstacle lets no model with {changed} pass"
    device = query.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else value.dtype
    with torch.autocast(device, enabled=False):
        queries, keys, values = query[0].to(dtype), key[0].to(dtype), value[0].to(dtype)
        if spans.kept is not None:
            keys, values = spans.kept.extend(module, keys, values)
        if torch.is_inference_mode_enabled():
            output = _fused_span_attention(queries, keys, values, spans.spans, scaling)
        else:  # without gradients, too: GRPO compares log-probabilities with and without, and rounds both alike
            grouped = queries.unflatten(0, (len(keys), -1))
            output = _SpanAttention.apply(grouped, keys, values, spans.spans, scaling).flatten(0, 1)
    return output.transpose(0, 1)[None].contiguous(), None


AttentionInterface.register(SPAN_ATTENTION, span_attention)
