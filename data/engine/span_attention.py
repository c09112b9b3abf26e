"""Attention of a packed row on a CPU, where FlexAttention has no backward pass and a dense mask would have every layer
compute N x N scores, most of them for nothing: the row is cut into spans (`packing.spans`), each a few plain matrix
products, or PyTorch's fused attention where nothing is learnt.

On rows of 2,048 to 8,192 tokens of which nothing is shared, it is as fast as PyTorch's fused causal attention in fp32,
forward and backward, and a quarter to two fifths faster in bf16; plain products with a mask take six times as long.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from data.engine.packing import Span

SPAN_ATTENTION = "prefix_tree_spans"  # the name under which Transformers finds `span_attention`
KEPT_WEIGHTS = 2**27  # attention weights of a layer that are kept for the backward pass: 256 MiB in bf16


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


class _SpanAttention(torch.autograd.Function):
    """Softmax attention, span by span. With autograd instead, slicing alone would take half of the time backwards.

    H query heads of width D share K key heads, G = H / K each. In a span, n queries see m = A + n keys. The N queries
    are the last of the row; without gradients, there may be more keys, M > N.

    The attention weights of a long row, more than `KEPT_WEIGHTS`, are computed once more backwards: at 8,192 tokens
    that takes no longer than fetching fresh memory for them, which grows with the square of the length.
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, cut: list[Span], scaling: float) -> Tensor:
        """query (K, G, N, D), key (K, M, D), value (K, M, V) -> (K, G, N, V)."""
        heads, groups, _, width = query.shape
        earlier = key.shape[1] - query.shape[2]
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        keeps = heads * groups * sum(span.mask.numel() for span in cut) <= KEPT_WEIGHTS
        probabilities = []
        for span in cut:
            stretch, n = slice(span.begin - earlier, span.end - earlier), span.end - span.begin
            queries = query[:, :, stretch].reshape(heads, groups * n, width)
            weights = _weights(queries, _visible(key, span), span, scaling)  # (K, G * n, m)
            output[:, :, stretch] = torch.bmm(weights, _visible(value, span)).view(heads, groups, n, -1)
            if keeps:
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
        for i, span in enumerate(ctx.cut):
            stretch, n = slice(span.begin, span.end), span.end - span.begin
            queries = query[:, :, stretch].reshape(heads, groups * n, width)
            gradient = grad_output[:, :, stretch].reshape(heads, groups * n, -1)
            keys, values = _visible(key, span), _visible(value, span)
            weights = probabilities[i] if probabilities else _weights(queries, keys, span, ctx.scaling)
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


def _weights(queries: Tensor, keys: Tensor, span: Span, scaling: float) -> Tensor:
    """Attention weights (K, G * n, m) of a span's queries (K, G * n, D) over the keys (K, m, D) that they see."""
    scores = span.mask.repeat(len(keys), queries.shape[1] // len(span.mask), 1)
    return scores.baddbmm_(queries, keys.transpose(1, 2), alpha=scaling).softmax(dim=-1)


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
