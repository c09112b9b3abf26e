"""Rows of unequal length -> tensors, for models and passes that take no packed row; and orders to draw rows in."""

import random
from collections import defaultdict, deque
from collections.abc import Hashable, Iterator, Sequence
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


class KeptTogether(Sampler):
    """Rows in a random order in which those that begin alike stand side by side, and in as few batches as can be.

    As `LikeLengths`, the same in every process, and again in a run that goes on.

    Args:
        batch_size: rows that are packed into one.
        beginnings: of all rows; those of equal ones are kept together.
        seed: of the order, which each epoch has another of.
    """

    def __init__(self, batch_size: int, beginnings: Sequence[Hashable], seed: int):
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        together = defaultdict(list)
        for row, beginning in enumerate(beginnings):
            together[beginning].append(row)
        self.groups, self.rows = list(together.values()), len(beginnings)

    def set_epoch(self, epoch: int) -> None:
        """What the trainer calls at the beginning of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        draw, size = random.Random(f"{self.seed} {self.epoch}"), self.batch_size
        # by the room in a batch that a group needs so as not to be cut once more than it must: of four rows in batches
        # of three, one; places in the shuffled order, and the groups
        waiting: list[deque[tuple[int, list[int]]]] = [deque() for _ in range(size)]
        for place, group in enumerate(draw.sample(self.groups, len(self.groups))):
            waiting[(len(group) - 1) % size].append((place, draw.sample(group, len(group))))
        done = 0
        while any(waiting):
            room = size - done % size
            fitting = [queue[0] for queue in waiting[:room] if queue] or [queue[0] for queue in waiting if queue]
            _, group = min(fitting)
            waiting[(len(group) - 1) % size].popleft()
            done += len(group)
            yield from group
