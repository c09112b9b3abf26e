"""Texts -> a score of every label: a head's logits, or how probable a language model holds each label as the answer.

The score of a candidate is the sum of its tokens' log-probabilities behind the prompt, its end token included, so that
a label is not preferred for being the beginning of another. All candidates of a text, and all texts of a batch, are one
prefix tree (`packing.py`): the instruction is computed once a batch, a text once, and what labels begin alike once.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from data.encoding import is_bidirectional
from data.engine.packing import last_token_row, pack
from data.engine.padding import padded, padded_rows
from data.engine.tree_attention import bare_model, computes_packed_rows, target_log_probs, target_logits
from data.engine.unpadded import TextRow, side_by_side, unpadded_logits

Candidates = Sequence[Sequence[int]]
BatchForm = Literal["padded", "packed", "side by side"]  # tensors; a prefix tree; texts of an encoder


def candidate_batch(
    prompts: Sequence[Sequence[int]], candidates: Candidates, packed: bool, pad_id: int, max_tokens: int | None = None
) -> dict[str, Any]:
    """A batch for `candidate_scores`: B prompts, each continued by K candidates.

    Args:
        prompts: token ids.
        candidates: token ids, end token included.
        packed: whether the model takes packed rows.
        pad_id: the padding token.
        max_tokens: bound of a packed row's length (`pack`); None = one row.

    Returns:
        `rows`, or `input_ids`, `attention_mask` and `is_target`, each (B * K, T), padded on the left.
    """
    return answer_batch([(p, candidate) for p in prompts for candidate in candidates], packed, pad_id, max_tokens)


def answer_batch(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], packed: bool, pad_id: int, max_tokens: int | None = None
) -> dict[str, Any]:
    """A batch for `answer_scores`: S prompts, each with an answer behind it; see `candidate_batch`."""
    sequences = [[*prompt, *answer] for prompt, answer in pairs]
    is_target = [[False] * len(prompt) + [True] * len(answer) for prompt, answer in pairs]
    if packed:
        return {"rows": pack(sequences, is_target, max_tokens)}
    return padded(sequences, pad_id, "left") | {"is_target": padded_rows(is_target, False, "left")}


def candidate_scores(model, batch: dict[str, Any], count: int) -> Tensor:
    """Scores (B, K) in fp32: the summed log-probabilities of each candidate.

    Args:
        model: a causal language model, as the trainer wrapped it.
        batch: see `candidate_batch`, on the model's device.
        count: K, the number of candidates.
    """
    return answer_scores(model, batch).view(-1, count)


def answer_scores(model, batch: dict[str, Any]) -> Tensor:
    """Scores (S,) in fp32 of each answer of an `answer_batch`; see `candidate_scores`."""
    if "rows" not in batch:
        return _padded_scores(model, batch["input_ids"], batch["attention_mask"], batch["is_target"])
    sequences = 1 + max(int(row.sequences[-1]) for row in batch["rows"])
    scores = torch.zeros(sequences, device=batch["rows"][0].input_ids.device)
    for row in batch["rows"]:
        scores = scores.index_add(0, row.target_sequence, target_log_probs(model, row))
    return scores


def _padded_scores(model, input_ids: Tensor, attention_mask: Tensor, is_target: Tensor) -> Tensor:
    """Scores (sequences,) of sequences (sequences, T) padded on the left."""
    longest = int(is_target.sum(dim=1).max())
    logits = model(
        input_ids=input_ids,
        attention_mask=attention_mask,
        position_ids=(attention_mask.cumsum(dim=1) - 1).clamp(min=0),
        logits_to_keep=longest + 1,
        use_cache=False,
    ).logits[:, :-1]  # (sequences, longest, V): each column predicts the next token
    targets, counted = input_ids[:, -longest:], is_target[:, -longest:]
    log_probs = logits.float().log_softmax(dim=-1).gather(-1, targets[..., None])[..., 0]
    return (log_probs * counted).sum(dim=1)


# --- a head's logits ------------------------------------------------------------------------------------------------


def batch_form(model) -> BatchForm:
    """What form of batch a model takes: what `enable_packing` or `enable_unpadding` has set it up for, else padded."""
    if not computes_packed_rows(model):
        return "padded"
    return "side by side" if is_bidirectional(bare_model(model).config.model_type) else "packed"


def text_batch(sequences: Sequence[Sequence[int]], form: BatchForm, pad_id: int) -> dict[str, Any]:
    """A batch for `text_logits`: one `row`, or (B, T) tensors padded on the right."""
    if form == "padded":
        return padded(sequences, pad_id, "right")
    return {"row": last_token_row(sequences) if form == "packed" else side_by_side(sequences)}


def text_logits(model, batch: dict[str, Any]) -> Tensor:
    """Logits (B, C) in fp32, in the order of the texts.

    Args:
        model: a model of `data.engine.classifier.classifier_class`, as the trainer wrapped it.
        batch: see `text_batch`, on the model's device.
    """
    if "row" in batch:
        return (unpadded_logits if isinstance(batch["row"], TextRow) else target_logits)(model, batch["row"])
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
