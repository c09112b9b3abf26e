"""Rows of unequal length -> tensors, for models and passes that take no packed row."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler

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


class LikeLengths(Sampler):
    """Rows in a random order in which neighbours are of like length.

    Transformers' own `LengthGroupedSampler` draws from PyTorch's general state: with several processes each would have
    an order of its own, and a run that goes on another one than it began with.

    Args:
        batch_size: rows of a step.
        lengths: of all rows.
        seed: of the order, which each epoch has another of.
    """

    def __init__(self, batch_size: int, lengths: Sequence[int], seed: int):
        self.batch_size, self.lengths, self.seed, self.epoch = batch_size, lengths, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """What the trainer calls at the beginning of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        from transformers.trainer_pt_utils import get_length_grouped_indices

        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))
