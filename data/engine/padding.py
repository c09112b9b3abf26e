"""Rows of unequal length -> tensors, for models and passes that take no packed row."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

Side = Literal["left", "right"]


def padded(sequences: Sequence[Sequence[int]], pad_id: int, side: Side) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` (1 where a token is one of the sequence's own), (B, T) each.

    >>> padded([[5, 6, 7], [8]], pad_id=0, side="left")["input_ids"].tolist()
    [[5, 6, 7], [0, 0, 8]]
    """
    return {
        "input_ids": padded_rows(sequences, pad_id, side),
        "attention_mask": padded_rows([[1] * len(ids) for ids in sequences], 0, side),
    }


def padded_rows(rows: Sequence[Sequence[Any]], value: Any, side: Side) -> Tensor:
    """Rows of unequal length -> (B, T), filled up with `value`."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value, padding_side=side)
