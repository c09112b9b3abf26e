"""Encoders on batches without padding: texts side by side in one row, each of which attends to itself alone.

    texts        padded batch        row
    a b c d      a b c d             token         a b c d e f g
    e            e . . .             position_ids  0 1 2 3 0 0 1
    f g          f g . .             lengths       4 1 2

The tokens of an encoder see each other both ways, so texts share nothing, and what a row saves is the padding: more
than half of a random batch of reviews or news. All layers but attention take each token by itself. Attention takes the
row apart, and a hook behind the last layer leaves each text's first token, which is what the model's own head reads.

ModernBERT calls this unpadding (Warner et al., 2024, "Smarter, Better, Faster, Longer").
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import dropout as drop
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from data.encoding import is_bidirectional
from data.engine.tree_attention import bare_model, sharing_attention

UNPADDED_ATTENTION = "texts_side_by_side"  # the name under which Transformers finds `unpadded_attention`


@dataclass(frozen=True)
class TextRow:
    """B texts side by side, N tokens. Not a tuple of tensors, so torch.compile does not look into it.

    Attributes:
        input_ids: (N,) token ids.
        lengths: tokens of each text, B numbers.
    """

    input_ids: Tensor
    lengths: tuple[int, ...]

    def __post_init__(self):
        assert min(self.lengths) > 0, "a text without a token"
        assert sum(self.lengths) == len(self.input_ids), "every token is in one text"

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device) -> "TextRow":
        """The same row on another device."""
        return replace(self, input_ids=self.input_ids.to(device))


def side_by_side(texts: Sequence[Sequence[int]]) -> TextRow:
    """Token ids of B texts -> their row, in the order of the texts.

    >>> side_by_side([[5, 6, 7], [8]])
    TextRow(input_ids=tensor([5, 6, 7, 8]), lengths=(3, 1))
    """
    return TextRow(torch.tensor([token for text in texts for token in text]), tuple(map(len, texts)))


# --- which models ---------------------------------------------------------------------------------------------------


def unpadding_obstacle(model) -> str | None:
    """Why a row of texts would not give what a model gives for each text, or None where it does.

    Args:
        model: a sequence classifier, as it was loaded (no adapter on it yet).
    """
    config = model.config
    if not is_bidirectional(config.model_type):
        return "it is no encoder"
    if not model._supports_attention_backend:
        return "its attention takes no row of several texts"
    if kinds := set(getattr(config, "layer_types", None) or ()) - {"full_attention"}:
        return f"it has layers of kind {', '.join(sorted(kinds))}"
    if getattr(config, "is_decoder", False):
        return "its tokens see only those before them"
    if getattr(config, "trigram_input", False):
        return "it reads each token with its neighbours (trigram_input)"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "its forward takes no position_ids"
    if getattr(config, "classifier_pooling", "cls") not in ("cls", "bos"):
        return "its head reads more than the first token"
    if _last_layer(model) is None:
        return "it pools where no hook reaches"
    return None


def _last_layer(model) -> torch.nn.Module | None:
    """The module whose output is read by the pooler and the head, if it stands apart from them."""
    base = model.base_model
    return getattr(base, "encoder", base if getattr(base, "pooler", None) is None else None)


def enable_unpadding(model, device: str | None = None) -> bool:
    """Set an encoder up for rows of texts, if it qualifies (`unpadding_obstacle`).

    Args:
        model: a sequence classifier, with or without an adapter.
        device: where it will compute; None = where it is.

    Returns:
        Whether it is.
    """
    bare = bare_model(model)
    if unpadding_obstacle(bare):
        return False
    bare.set_attn_implementation(attention_side_by_side(bare, device or str(bare.device)))
    if not getattr(bare, "computes_packed_rows", False):
        _last_layer(bare).register_forward_hook(_first_tokens, with_kwargs=True)
    bare.computes_packed_rows = True
    return True


def attention_side_by_side(model, device: str) -> str:
    """The attention code to compute rows of texts with on `device`, as `set_attn_implementation` takes it.

    On a CPU text by text; on a GPU, where that would be many small kernels, what decoders take.
    """
    return UNPADDED_ATTENTION if torch.device(device).type == "cpu" else sharing_attention(model, device)


def _first_tokens(module, args, kwargs, output) -> None:
    """Hook: hidden states (1, N, H) of a row -> those of each text's first token, (B, 1, H)."""
    if (row := kwargs.get("texts")) is not None:
        begins = torch.tensor([0, *row.lengths[:-1]], device=row.input_ids.device).cumsum(0)
        output.last_hidden_state = output.last_hidden_state[0, begins, None]


# --- a row through a model ------------------------------------------------------------------------------------------


def unpadded_logits(model, row: TextRow) -> Tensor:
    """Logits (B, C) in fp32 of the texts of a row.

    Args:
        model: an encoder that `enable_unpadding` has set up, as the trainer wrapped it; under autocast, if it will
            compute under it.
        row: the texts, on the model's device.
    """
    return model(**text_row_inputs(model, row)).logits.float()


def text_row_inputs(model, row: TextRow) -> dict[str, Any]:
    """What a model's forward takes to compute `row` with the attention code its config names."""
    bare = bare_model(model)
    attention, device = bare.config._attn_implementation, row.input_ids.device.type
    positions = torch.cat([_positions(bare, text) for text in row.input_ids.split(row.lengths)])
    inputs = {"input_ids": row.input_ids[None], "position_ids": positions[None], "texts": row}  # (1, N)
    if "token_type_ids" in inspect.signature(bare.forward).parameters:
        # most make zeros themselves, but some only as many as a text may have
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
    if attention == UNPADDED_ATTENTION:
        return inputs
    text = torch.arange(len(row.lengths), device=row.input_ids.device).repeat_interleave(
        torch.tensor(row.lengths, device=row.input_ids.device)
    )  # (N,) which text each token is of
    if attention == "flex_attention":
        from torch.nn.attention.flex_attention import create_block_mask

        def same_text(batch, head, query, key) -> Tensor:
            return text[query] == text[key]

        return inputs | {
            "attention_mask": create_block_mask(same_text, None, None, len(row), len(row), device=str(text.device))
        }
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else bare.dtype
    hidden = torch.finfo(dtype).min  # a summand, since eager attention adds its mask
    mask = torch.zeros(len(row), len(row), dtype=dtype, device=text.device)
    return inputs | {"attention_mask": mask.masked_fill(text[:, None] != text, hidden)[None, None]}


def _positions(model, text: Tensor) -> Tensor:
    """Positions (n,) of a text's tokens (n,), as the model itself counts them."""
    for module in model.modules():
        if hasattr(module, "create_position_ids_from_input_ids"):  # RoBERTa and its like: from behind the padding's
            return module.create_position_ids_from_input_ids(text[None], module.padding_idx)[0]
    return torch.arange(len(text), device=text.device)


@torch.compiler.disable
def unpadded_attention(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float,
    texts: TextRow,
    dropout: float = 0.0,
    **other: Any,
) -> tuple[Tensor, None]:
    """Attention of a row of texts in the form Transformers calls it: each run of texts of equal length by itself.

    Args:
        module: the attention layer.
        query, key: (1, H, N, D).
        value: (1, H, N, V).
        attention_mask: None; nothing is padded.
        scaling: factor of the scores.
        texts: the row.
        dropout: share of the weights that is dropped.
        other: what Transformers hands on besides; nothing that would change the scores.

    Returns:
        (1, N, H, V), and None where other attentions may give their weights.
    """
    assert attention_mask is None, "a row of texts has no padding to be hidden"
    runs = [(length, len(list(run))) for length, run in groupby(texts.lengths)]
    tokens = [length * count for length, count in runs]
    attend = _plain if torch.is_grad_enabled() else _fused
    pieces = zip(runs, query[0].split(tokens, 1), key[0].split(tokens, 1), value[0].split(tokens, 1), strict=True)
    outputs = []
    for (length, count), *qkv in pieces:
        q, k, v = (piece.unflatten(1, (count, length)) for piece in qkv)  # (H, count, length, D)
        outputs.append(attend(q, k, v, scaling, dropout).flatten(1, 2).transpose(0, 1))
    return torch.cat(outputs)[None], None


def _plain(query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
    """Matrix products and a softmax, which on a CPU are faster backwards than the fused attention."""
    weights = torch.matmul(query * scaling, key.transpose(-1, -2)).softmax(dim=-1)
    return torch.matmul(drop(weights, dropout) if dropout else weights, value)


def _fused(query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
    """PyTorch's own, for passes without gradients."""
    return scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling)


AttentionInterface.register(UNPADDED_ATTENTION, unpadded_attention)
