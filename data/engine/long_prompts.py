"""Free text behind long prompts on a CPU: each prompt is read by itself, and all texts are written together.

Prompts of a batch are of unlike length, and padded ones need a mask, with which PyTorch's attention on a CPU computes
all pairs of positions. One by one, they are causal, and nothing is padded. When a token is read, what its query heads
see of keys and values is shared by groups of them (grouped-query attention; Ainslie et al., 2023); Transformers would
copy these for each head, with every token anew.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from data.engine.tree_attention import bare_model, sharing_obstacle

GROUPED_ATTENTION = "grouped_when_writing"  # the name under which Transformers finds `grouped_attention`


def reads_one_by_one(model, longest: int) -> bool:
    """Whether prompts may be read and written behind in this way: on a CPU, by plain causal attention alone.

    Args:
        model: a causal language model, with or without an adapter.
        longest: tokens of the longest prompt and text together.
    """
    return model.device.type == "cpu" and sharing_obstacle(bare_model(model), longest) is None


def prompt_cache(model, prompts: Sequence[Sequence[int]]) -> Cache:
    """Keys and values of all but the last token of B prompts, padded on the left to those of the longest."""
    caches = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt[:-1])], device=model.device)
        caches.append(model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values)
    longest = max(map(len, prompts)) - 1
    together = caches[0]
    for i, layer in enumerate(together.layers):
        for name in ("keys", "values"):
            rows = [getattr(cache.layers[i], name) for cache in caches]  # (1, heads, tokens, width) each
            padded = [pad(row, (0, 0, longest - row.shape[2], 0)) for row in rows]
            setattr(layer, name, torch.cat(padded))
    return together


@contextmanager
def grouped(model) -> Iterator[None]:
    """Within this context, attention is computed by `grouped_attention`."""
    attention = model.config._attn_implementation
    model.set_attn_implementation(GROUPED_ATTENTION)
    try:
        yield
    finally:
        model.set_attn_implementation(attention)


def grouped_attention(
    module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **other: Any
) -> tuple[Tensor, None]:
    """Attention of one token of each row over all before it, in the form Transformers calls it; of more, PyTorch's.

    Args:
        module: the attention layer.
        query: (B, H, 1, D).
        key: (B, K, T, D).
        value: (B, K, T, V).
        attention_mask: (B, 1, 1, T), true where a row may look; None = everywhere.
        scaling: factor of the scores.
        other: what Transformers hands on besides.

    Returns:
        (B, 1, H, V), and None where other attentions may give their weights.
    """
    if query.shape[2] != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **other)
    rows, heads = key.shape[:2]
    queries = query.reshape(rows * heads, -1, query.shape[-1])  # (B * K, G, D)
    scores = torch.bmm(queries, key.flatten(0, 1).transpose(1, 2)).float() * scaling  # (B * K, G, T)
    if attention_mask is not None:
        hidden = ~attention_mask[:, 0].repeat_interleave(heads, dim=0)  # (B * K, 1, T)
        scores = scores.masked_fill(hidden, torch.finfo(scores.dtype).min)
    output = torch.bmm(scores.softmax(dim=-1).to(value.dtype), value.flatten(0, 1))  # (B * K, G, V)
    return output.reshape(rows, 1, -1, value.shape[-1]), None


AttentionInterface.register(GROUPED_ATTENTION, grouped_attention)
AttentionMaskInterface.register(GROUPED_ATTENTION, sdpa_mask)
