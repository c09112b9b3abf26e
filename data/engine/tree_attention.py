"""Language models on packed rows: which models may be given one, how attention computes it, and what comes out.

On a GPU, FlexAttention skips the blocks of the mask in which nothing is to be seen; on a CPU, attention is computed in
spans (`span_attention.py`).
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor
from torch.utils._triton import has_triton

from data.engine.packing import PackedRow, Span, block_mask, dense_mask, spans
from data.engine.span_attention import SPAN_ATTENTION, CutRow, KeptRow

NOT_PLAIN_ATTENTION = {  # settings of a model's config
    "attn_logit_softcapping": "caps its scores",
    "attention_chunk_size": "sees chunks only",
    "alibi": "takes its positions from the distance in the row",
    "keep_window_size": "chooses what it sees",
}
NARROWEST_FLEX = 16  # width of a head; FlexAttention's kernels multiply tiles of at least as many columns
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
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    wide = width >= NARROWEST_FLEX
    compiles = has_triton() or not torch.cuda.is_available()  # for a GPU elsewhere (`--plan_gpus`)
    flex = torch.device(device).type == "cuda" and model._supports_flex_attn and not mixed and wide and compiles
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
    attention, dtype = bare.config._attn_implementation, computed_in(bare)
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


def computed_in(model) -> torch.dtype:
    """The number format a model computes its attention in: that of autocast, or of its weights."""
    device = model.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else model.dtype


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
