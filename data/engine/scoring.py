"""Label scoring: how probable a language model holds each of some candidate answers to a prompt.

The score of a candidate is the sum of its tokens' log-probabilities behind the prompt, its end token included, so that
a label is not preferred for being the beginning of another. All candidates of a text, and all texts of a batch, are one
prefix tree (`packing.py`): the instruction is computed once a batch, a text once, and what labels begin alike once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data.engine.packing import pack
from data.engine.tree_attention import target_log_probs

Candidates = Sequence[Sequence[int]]


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
    sequences = [[*prompt, *answer] for prompt in prompts for answer in candidates]
    is_target = [[False] * len(prompt) + [True] * len(answer) for prompt in prompts for answer in candidates]
    if packed:
        return {"rows": pack(sequences, is_target, max_tokens)}
    from trl.trainer.utils import pad

    ids = [torch.tensor(sequence) for sequence in sequences]
    return {
        "input_ids": pad(ids, pad_id, padding_side="left"),
        "attention_mask": pad([torch.ones_like(i) for i in ids], 0, padding_side="left"),
        "is_target": pad([torch.tensor(flags) for flags in is_target], False, padding_side="left"),
    }


def candidate_scores(model, batch: dict[str, Any], count: int, attention: str, dtype: torch.dtype) -> Tensor:
    """Scores (B, K) in fp32: the summed log-probabilities of each candidate.

    Args:
        model: a causal language model, as the trainer wrapped it.
        batch: see `candidate_batch`, on the model's device.
        count: K, the number of candidates.
        attention, dtype: see `data.engine.tree_attention.row_inputs`; used for packed rows.
    """
    if "rows" not in batch:
        return _padded_scores(model, batch["input_ids"], batch["attention_mask"], batch["is_target"]).view(-1, count)
    sequences = 1 + max(int(row.sequences[-1]) for row in batch["rows"])
    scores = torch.zeros(sequences, device=batch["rows"][0].input_ids.device)
    for row in batch["rows"]:
        scores = scores.index_add(0, row.target_sequence, target_log_probs(model, row, attention, dtype))
    return scores.view(-1, count)


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
