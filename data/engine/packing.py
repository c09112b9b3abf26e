"""Prefix-tree packing: sequences that begin alike become one row in which every shared token stands once.

Sort the sequences and neighbours begin alike; what each adds to the one before it spells a trie, depth first:

    sequences            trie                    row
    a b c d              a ─ b ─ c ─ d           index         0  1  2  3  4  5
    a b c e                      └─ e            token         a  b  c  d  e  f
    a f                  └─ f                    position_ids  0  1  2  3  3  1
                                                 subtree_end   6  5  5  4  5  6

`position_ids` is a token's depth in its own sequence. `subtree_end[k]` is the index just past the last token below k.
Token k stands in the prefix of token q exactly if q lies in the subtree of k, and that is the whole attention mask:

    q attends to k  iff  k <= q < subtree_end[k]

A language model that computes the row under this mask computes every token as if its own sequence stood alone, and a
token that many sequences share only once: same log-probabilities, same gradients. With nothing shared, the row is the
sequences one behind the other, without padding.

Hydragen (Juravsky et al., 2024) and "Prefix Grouper" (Liu et al., 2025) share one prefix; the trie shares all of them.
"""

import random
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True)
class PackedRow:
    """Sequences packed into one row of N tokens; S sequences, T targets, K positions whose logits are needed.

    Attributes:
        input_ids: (N,) tokens, each node of the trie once.
        position_ids: (N,) depth of each token in its sequence, from 0.
        subtree_end: (N,) index just past the last token below each token.
        sequences: (S,) which of the sequences given to `pack` are in this row, ascending.
        last_index: (S,) where in the row each of them ends.
        logit_index: (K,) row positions that predict a target, ascending and each once.
        target_ids: (T,) target tokens, by sequence, then by position.
        target_logit: (T,) which of the K positions predicts each target.
        target_sequence: (T,) which of the given sequences each target belongs to.
    """

    input_ids: Tensor
    position_ids: Tensor
    subtree_end: Tensor
    sequences: Tensor
    last_index: Tensor
    logit_index: Tensor
    target_ids: Tensor
    target_logit: Tensor
    target_sequence: Tensor

    def __post_init__(self):
        n, depth, end = len(self.input_ids), self.position_ids, self.subtree_end
        assert n > 0, "an empty row"
        assert depth.shape == end.shape == (n,), "one depth and one subtree a token"
        assert depth[0] == 0, "a row begins with a root"
        assert bool((depth.diff() <= 1).all()), "a child is one deeper than its parent"
        assert bool((end > torch.arange(n, device=end.device)).all() and (end <= n).all()), "a token is in its subtree"
        closed = torch.bincount(end, minlength=n + 1)[:n].cumsum(0)  # subtrees that ended at or before each token
        assert torch.equal(torch.arange(1, n + 1) - closed, depth + 1), "a token sees more or less than its own path"
        assert bool((self.logit_index.diff() > 0).all()), "a position is projected once"
        assert len(self.sequences) == len(self.last_index), "one end a sequence"
        assert len(self.target_ids) == len(self.target_logit) == len(self.target_sequence), "one gather a target"

    def __len__(self) -> int:
        return len(self.input_ids)

    def to(self, device) -> "PackedRow":
        """The same row on another device."""
        moved = copy(self)  # not made anew: on a GPU, each check would wait for it
        for field in fields(self):
            object.__setattr__(moved, field.name, getattr(self, field.name).to(device))
        return moved


def pack(
    sequences: Sequence[Sequence[int]], is_target: Sequence[Sequence[bool]], max_tokens: int | None = None
) -> list[PackedRow]:
    """Pack sequences into rows, each a prefix tree.

    What stands behind a sequence's last target is left out, and so is that target itself: it is predicted, but nothing
    is predicted from it. A first token cannot be a target; a flag there is ignored, as language models do.

    Args:
        sequences: token ids of each sequence.
        is_target: for each of them, which tokens are to be predicted (have their log-probability computed).
        max_tokens: upper bound of a row's length; None = everything in one row. A sequence longer than that gets a row
            of its own. Rows are made about equally long.

    Returns:
        The rows. A sequence without a target is in none of them.

    Raises:
        ValueError: `sequences` and `is_target` differ in shape.
    """
    if [len(s) for s in sequences] != [len(t) for t in is_target]:
        raise ValueError("sequences and is_target differ in shape")
    targets = [[d for d in range(1, len(flags)) if flags[d]] for flags in is_target]
    read = [tuple(s[: t[-1]]) if t else () for s, t in zip(sequences, targets, strict=True)]
    order = sorted((i for i in range(len(read)) if read[i]), key=read.__getitem__)
    shared = [0, *(common_prefix_length(read[a], read[b]) for a, b in pairwise(order))]
    begins = _row_begins([len(read[i]) for i in order], shared, max_tokens)
    return [_packed_row(order[a:b], shared[a:b], sequences, read, targets) for a, b in pairwise([*begins, len(order)])]


def last_token_row(sequences: Sequence[Sequence[int]]) -> PackedRow:
    """One packed row of the sequences, whose targets stand for each sequence's last token.

    `pack` computes what stands before a target: behind each sequence comes one that is never read.
    """
    (row,) = pack([[*ids, 0] for ids in sequences], [[False] * len(ids) + [True] for ids in sequences])
    return row


def common_prefix_length(first: Sequence[int], second: Sequence[int]) -> int:
    """With how many equal tokens two sequences begin.

    >>> common_prefix_length([5, 6, 7], [5, 6, 9, 9])
    2
    """
    shorter = min(len(first), len(second))
    return next((i for i in range(shorter) if first[i] != second[i]), shorter)


def _row_begins(lengths: Sequence[int], shared: Sequence[int], max_tokens: int | None) -> list[int]:
    """Where in the sorted order each row begins: as few rows as `max_tokens` allows, the longest as short as can be."""

    def begins(limit: int) -> list[int]:
        found, tokens = [], limit + 1
        for i, length in enumerate(lengths):
            tokens += length - shared[i]
            if tokens > limit:  # its shared beginning has to stand in the new row once more
                found.append(i)
                tokens = length
        return found

    if not lengths:
        return []
    if max_tokens is None:
        return [0]
    low, high = 1, max_tokens
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(begins(middle)) <= len(begins(max_tokens)) else (middle + 1, high)
    return begins(low)


def _packed_row(order, shared, sequences, read, targets) -> PackedRow:
    """One row of the sequences `order`, which are sorted; `shared[i]` = tokens that order[i] begins like order[i-1]."""
    input_ids: list[int] = []
    position_ids: list[int] = []
    subtree_end: list[int] = []
    paths: dict[int, list[int]] = {}  # sequence -> the row index of each of its tokens
    path: list[int] = []
    for i, sequence in enumerate(order):
        common = shared[i] if i else 0
        begin, new = len(input_ids), read[sequence][common:]
        for closed in path[common:]:
            subtree_end[closed] = begin
        path = paths[sequence] = path[:common] + list(range(begin, begin + len(new)))
        input_ids += new
        position_ids += range(common, common + len(new))
        subtree_end += [0] * len(new)
    for closed in path:
        subtree_end[closed] = len(input_ids)

    members = sorted(order)
    gather = [(paths[s][d - 1], sequences[s][d], s) for s in members for d in targets[s]]
    predicted_from, target_ids, target_sequence = zip(*gather, strict=True)
    logit_index, target_logit = torch.tensor(predicted_from).unique(return_inverse=True)
    return PackedRow(
        input_ids=torch.tensor(input_ids),
        position_ids=torch.tensor(position_ids),
        subtree_end=torch.tensor(subtree_end),
        sequences=torch.tensor(members),
        last_index=torch.tensor([paths[s][-1] for s in members]),
        logit_index=logit_index,
        target_ids=torch.tensor(target_ids),
        target_logit=target_logit,
        target_sequence=torch.tensor(target_sequence),
    )


def paths(row: PackedRow) -> list[Tensor]:
    """Where in the row the tokens of each sequence stand, as far as they are computed (without the last target)."""
    index = torch.arange(len(row), device=row.input_ids.device)
    return [index[(index <= last) & (last < row.subtree_end)] for last in row.last_index]


def unpack(row: PackedRow) -> list[list[int]]:
    """The sequences of a row, as far as they are computed (without the last target), in the order of `sequences`."""
    return [row.input_ids[path].tolist() for path in paths(row)]


@dataclass(frozen=True)
class Saving:
    """What packing saves, from some batches.

    Attributes:
        tokens: tokens of the packed rows / tokens of the padded batches.
        scores: the same for the scores of a dense attention, which a row of unrelated sequences has many more of.
        longest: tokens of the longest packed row.
    """

    tokens: float
    scores: float
    longest: int


def packed_share(
    sequences: Sequence[Sequence[int]], batch_size: int, seed: int, order: Sequence[int] | None = None,
    batches: int = 8,
) -> Saving:  # fmt: skip
    """What packing would save, from some batches drawn at random.

    Args:
        sequences: token ids of all rows.
        batch_size: rows of a batch.
        seed: of the drawing.
        order: in which rows follow each other, batch by batch; None = at random.
        batches: how many are drawn.
    """
    packed, padded, longest_row = [0, 0], [0, 0], 0
    draw = random.Random(seed)
    for _ in range(batches):
        if order is None:
            drawn = draw.sample(range(len(sequences)), min(batch_size, len(sequences)))
        else:
            begin = draw.randrange(-(-len(order) // batch_size)) * batch_size
            drawn = order[begin : begin + batch_size]
        batch = [sequences[i] for i in drawn]
        length, longest = sum(map(len, pack(batch, [[True] * len(ids) for ids in batch]))), max(map(len, batch))
        packed = [packed[0] + length, packed[1] + length**2]
        padded = [padded[0] + len(batch) * longest, padded[1] + len(batch) * longest**2]
        longest_row = max(longest_row, length)
    return Saving(packed[0] / padded[0], packed[1] / padded[1], longest_row)


# --- masks: three spellings of `k <= q < subtree_end[k]` ------------------------------------------------------------


def dense_mask(subtree_end: Tensor, dtype: torch.dtype) -> Tensor:
    """(1, 1, N, N), 0 where query (row) may attend to key (column), the lowest number elsewhere; for sdpa and eager.

    Additive, since eager attention adds its mask: a boolean one would be silently wrong there.
    """
    index = torch.arange(len(subtree_end), device=subtree_end.device)
    allowed = (index <= index[:, None]) & (index[:, None] < subtree_end)
    return _as_summand(allowed, dtype)[None, None]


def _as_summand(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a query may see a key, the lowest number elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill(~allowed, torch.finfo(dtype).min)


def mask_mod(subtree_end: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The mask as FlexAttention's predicate of (batch, head, query, key)."""
    return lambda batch, head, query, key: (key <= query) & (query < subtree_end[key])


def block_mask(subtree_end: Tensor, size: int = 128) -> "BlockMask":
    """The mask as FlexAttention's `BlockMask`: blocks of `size` x `size` without a single pair are skipped on a GPU.

    Made from the blocks' own bounds: PyTorch's `create_block_mask` would write out all N x N pairs first.
    """
    from torch.nn.attention.flex_attention import BlockMask

    n = len(subtree_end)
    blocks = -(-n // size)
    begins = torch.arange(blocks, device=subtree_end.device) * size
    ends = torch.nn.functional.pad(subtree_end, (0, blocks * size - n), value=n).view(blocks, size)
    before = begins < begins[:, None]  # (query block, key block)
    some = before & (ends.amax(dim=1) > begins[:, None])  # a key is seen by the block's first query, if by any
    every = before & (ends.amin(dim=1) >= begins[:, None] + size)
    partial = (some & ~every).fill_diagonal_(True)
    counts_and_order = []
    for chosen in (partial, every):
        order = chosen.int().argsort(dim=1, descending=True, stable=True).int()
        counts_and_order += [chosen.sum(dim=1, dtype=torch.int32)[None, None], order[None, None]]
    return BlockMask.from_kv_blocks(
        *counts_and_order, BLOCK_SIZE=size, mask_mod=mask_mod(subtree_end), seq_lengths=(n, n)
    )


@dataclass(frozen=True)
class Span:
    """A stretch of the row, and the keys its queries may see: what lies above its first token, then itself.

    Attributes:
        begin, end: the stretch's row indices, end excluded; n = end - begin.
        above: (A,) row indices of the tokens before `begin` in whose subtree `begin` lies, ascending; before them
            0 as often as it takes for A + n to be a multiple of 32, where PyTorch's fused attention is twice as fast.
        mask: (n, A + n) additive mask over those keys; hides the padding.
    """

    begin: int
    end: int
    above: Tensor
    mask: Tensor


def spans(subtree_end: Tensor, dtype: torch.dtype, size: int = 128, first: int = 0) -> list[Span]:
    """Cut a row, from index `first` on, into spans: attention computes about N * (depth + size) scores, not N * N.

    A key before the span that one of its queries sees stands above the span's first token: from
    `key < begin <= query < subtree_end[key]` follows that `begin` lies in the key's subtree, too.
    """
    n = len(subtree_end)
    index = torch.arange(n, device=subtree_end.device)
    cut = []
    for begin in range(first, n, size):
        own = index[begin : begin + size]
        above = (subtree_end[:begin] > begin).nonzero().flatten()
        keys, queries = torch.cat([above, own]), own[:, None]
        cut.append(_padded_span(begin, above, (keys <= queries) & (queries < subtree_end[keys]), dtype))
    return cut


def _padded_span(begin: int, above: Tensor, allowed: Tensor, dtype: torch.dtype) -> Span:
    """The span of n queries that see the keys `above` (A,) and themselves where `allowed` (n, A + n)."""
    missing = -allowed.shape[1] % 32
    mask = _as_summand(torch.nn.functional.pad(allowed, (missing, 0)), dtype)
    return Span(begin, begin + len(allowed), torch.nn.functional.pad(above, (missing, 0)), mask)


def further_spans(
    paths: Sequence[Tensor], counts: Sequence[int], begin: int, dtype: torch.dtype, size: int = 32
) -> list[Span]:
    """Spans of tokens that are put behind a row, to go on with some of its sequences.

    Args:
        paths: where the tokens of each of these sequences stand, ascending row indices.
        counts: how many tokens each of them gets, in this order.
        begin: the row's length so far, where the first of them will stand.
        dtype: of the masks.
        size: tokens of a span, if a single sequence has not more.
    """
    groups: list[list[int]] = []
    room = 0
    for i, count in enumerate(counts):
        if not groups or count > room:
            groups.append([])
            room = size
        groups[-1].append(i)
        room -= count
    cut = []
    for group in groups:
        above = torch.cat([paths[i] for i in group]).unique()
        n = sum(counts[i] for i in group)
        allowed = torch.zeros(n, len(above) + n, dtype=torch.bool, device=above.device)
        row = 0
        for i in group:
            own = slice(row, row + counts[i])
            allowed[own, : len(above)] = torch.isin(above, paths[i])
            allowed[own, len(above) + row : len(above) + row + counts[i]] = True
            row += counts[i]
        allowed[:, len(above) :].tril_()
        cut.append(_padded_span(begin, above, allowed, dtype))
        begin += n
    return cut
