import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from data.engine.packing import (
    PackedRow,
    Saving,
    block_mask,
    common_prefix_length,
    dense_mask,
    further_spans,
    mask_mod,
    pack,
    packed_share,
    paths,
    spans,
    unpack,
)

TOKENS = st.integers(0, 3)  # few, so that many sequences begin alike


@st.composite
def batches(draw):
    """Sequences grown from each other's beginnings, with duplicates, prefixes of others and single tokens."""
    sequences: list[list[int]] = []
    for _ in range(draw(st.integers(1, 7))):
        begin = draw(st.sampled_from(sequences)) if sequences and draw(st.booleans()) else []
        kept = draw(st.integers(0, len(begin)))
        rest = draw(st.lists(TOKENS, min_size=0 if kept else 1, max_size=6))
        sequences.append(begin[:kept] + rest)
    flags = [draw(st.lists(st.booleans(), min_size=len(s), max_size=len(s))) for s in sequences]
    return sequences, flags


def read_part(sequence: list[int], flags: list[bool]) -> list[int]:
    """What has to be computed: everything before the last target."""
    last = max((d for d in range(1, len(sequence)) if flags[d]), default=0)
    return sequence[:last]


@given(batches(), st.one_of(st.none(), st.integers(1, 12)))
@example(([[1, 2], [1, 2]], [[False, True], [True, True]]), None)
@example(([[1], [1, 2, 3], [1, 2]], [[True], [False, False, True], [False, True]]), None)
def test_unpacking_gives_the_sequences_back(batch, max_tokens):
    sequences, flags = batch
    rows = pack(sequences, flags, max_tokens)
    found = {int(s): ids for row in rows for s, ids in zip(row.sequences, unpack(row), strict=True)}
    expected = {i: part for i, (s, f) in enumerate(zip(sequences, flags, strict=True)) if (part := read_part(s, f))}
    assert found == expected
    assert sum(len(row.sequences) for row in rows) == len(expected)


@given(batches())
def test_every_token_sees_its_own_prefix_and_nothing_else(batch):
    sequences, flags = batch
    for row in pack(sequences, flags):
        visible = dense_mask(row.subtree_end, torch.float32)[0, 0] == 0
        read = sorted({tuple(read_part(sequences[int(s)], flags[int(s)])) for s in row.sequences})
        prefixes = sorted({part[: d + 1] for part in read for d in range(len(part))})
        seen = [tuple(row.input_ids[v].tolist()) for v in visible]
        assert sorted(seen) == prefixes  # each prefix once: shared tokens are there once, and see just what is theirs
        for index, sees in enumerate(seen):
            assert row.position_ids[index] == len(sees) - 1
            assert sees[-1] == row.input_ids[index]


@given(batches(), st.one_of(st.none(), st.integers(1, 12)))
def test_targets_are_gathered_from_the_token_before_them(batch, max_tokens):
    sequences, flags = batch
    found = []
    for row in pack(sequences, flags, max_tokens):
        visible = dense_mask(row.subtree_end, torch.float32)[0, 0] == 0
        assert row.logit_index.tolist() == sorted(set(row.logit_index.tolist()))
        assert set(row.target_logit.tolist()) == set(range(len(row.logit_index)))
        for token, logit, sequence in zip(row.target_ids, row.target_logit, row.target_sequence, strict=True):
            prefix = row.input_ids[visible[row.logit_index[logit]]].tolist()
            found.append((int(sequence), prefix, int(token)))
    expected = [
        (i, s[:d], s[d])
        for i, (s, f) in enumerate(zip(sequences, flags, strict=True))
        for d in range(1, len(s))
        if f[d]
    ]
    assert sorted(found) == sorted(expected)


@given(batches(), st.integers(1, 12))
def test_rows_keep_the_budget(batch, max_tokens):
    sequences, flags = batch
    rows = pack(sequences, flags, max_tokens)
    for row in rows:
        assert len(row) <= max_tokens or len(row.sequences) == 1 or len({tuple(ids) for ids in unpack(row)}) == 1
    whole = pack(sequences, flags)
    assert len(whole) <= 1
    if whole and len(whole[0]) <= max_tokens:
        assert len(rows) == 1


def test_rows_are_about_equally_long():
    sequences = [[i, *range(9)] for i in range(10)]
    rows = pack(sequences, [[True] * 10] * 10, max_tokens=80)
    assert [len(row) for row in rows] == [45, 45]


@given(batches(), st.integers(1, 5))
def test_masks_agree(batch, size):
    sequences, flags = batch
    for row in pack(sequences, flags):
        visible = dense_mask(row.subtree_end, torch.float32)[0, 0] == 0
        index = torch.arange(len(row))
        assert torch.equal(mask_mod(row.subtree_end)(0, 0, index[:, None], index[None]), visible)
        covered = []
        for span in spans(row.subtree_end, torch.float32, size):
            keys = torch.cat([span.above, index[span.begin : span.end]])
            assert len(keys) % 32 == 0
            for query, mask in zip(range(span.begin, span.end), span.mask, strict=True):
                assert keys[mask == 0].tolist() == visible[query].nonzero().flatten().tolist()
                covered.append(query)
        assert covered == index.tolist()


def test_block_mask_covers_the_dense_mask():
    """Of the 128 x 128 blocks, those are computed in which something is to be seen, and no others."""
    sequences = [[1] * 150 + [2 + i] * 170 for i in range(3)]
    (row,) = pack(sequences, [[False] * 319 + [True]] * 3)
    size, visible = 128, dense_mask(row.subtree_end, torch.float32)[0, 0] == 0
    padded = torch.nn.functional.pad(visible, (0, -len(row) % size, 0, -len(row) % size))
    tiles = padded.unflatten(0, (-1, size)).unflatten(2, (-1, size)).any(dim=3).any(dim=1)
    found = block_mask(row.subtree_end).to_dense()[0, 0].bool()
    assert found.shape == (6, 6)
    assert torch.equal(found, tiles)
    assert 0 < found.sum() < 21  # fewer than a causal mask has


@given(batches(), st.sampled_from([2, 4, 8]))
def test_block_mask_is_the_one_of_all_pairs(batch, size):
    """Blocks seen in part and blocks seen whole, as PyTorch finds them from N x N pairs."""
    from torch.nn.attention.flex_attention import create_block_mask

    sequences, flags = batch
    for row in pack(sequences, flags):
        n = len(row)
        found = block_mask(row.subtree_end, size)
        expected = create_block_mask(mask_mod(row.subtree_end), None, None, n, n, device="cpu", BLOCK_SIZE=size)
        assert torch.equal(found.to_dense(), expected.to_dense())
        for counts in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
            assert torch.equal(getattr(found, counts), getattr(expected, counts)), counts


def test_what_packing_saves():
    shared = [[1] * 9 + [i, 2] for i in range(10, 14)]  # 9 in common, then each its own; the last is only predicted
    assert packed_share(shared, 4, seed=0) == Saving(13 / 44, 13**2 / (4 * 11**2), 13)
    assert packed_share([[i] * 5 for i in range(8)], 8, seed=0) == Saving(32 / 40, 32**2 / (8 * 5**2), 32)


def test_what_packing_would_save_in_an_order():
    rows = [[1, 1, 1, 8], [2, 2, 2, 8], [1, 1, 1, 9], [2, 2, 2, 9], [3, 3, 3, 9]]
    pairs = packed_share(rows[:4], 2, seed=0, order=[0, 2, 3, 1])
    assert pairs == Saving(3 / 8, 3**2 / (2 * 4**2), 3)  # all but the last token, once for both
    assert packed_share(rows, 2, seed=0, order=[0, 1, 2, 3, 4]).longest == 6


def test_the_example_of_the_docstring():
    a, b, c, d, e, f, end = range(7)
    sequences = [[a, b, c, d, end], [a, b, c, e, end], [a, f, end]]
    (row,) = pack(sequences, [[False] * (len(s) - 1) + [True] for s in sequences])
    assert row.input_ids.tolist() == [a, b, c, d, e, f]
    assert row.position_ids.tolist() == [0, 1, 2, 3, 3, 1]
    assert row.subtree_end.tolist() == [6, 5, 5, 4, 5, 6]
    assert row.last_index.tolist() == [3, 4, 5]
    assert row.target_ids.tolist() == [end] * 3
    assert row.target_sequence.tolist() == [0, 1, 2]


def test_nothing_to_predict():
    assert pack([], []) == []
    assert pack([[5], [6, 7]], [[True], [False, False]]) == []


def test_flags_of_another_length():
    with pytest.raises(ValueError, match="differ in shape"):
        pack([[1, 2]], [[True]])


@pytest.mark.parametrize(
    ("position_ids", "subtree_end", "message"),
    [
        ([1, 2], [2, 2], "begins with a root"),
        ([0, 2], [2, 2], "one deeper"),
        ([0, 1], [2, 1], "in its subtree"),
        ([0, 1], [2, 3], "in its subtree"),
        ([0, 1, 2], [3, 2, 3], "more or less than its own path"),
        ([0, 1, 1], [3, 3, 3], "more or less than its own path"),  # the last would see its sibling
        ([0, 1], [2], "one subtree a token"),
    ],
)
def test_a_row_that_is_no_tree(position_ids, subtree_end, message):
    one = torch.tensor([0])
    with pytest.raises(AssertionError, match=message):
        PackedRow(
            torch.zeros(len(position_ids), dtype=torch.long), torch.tensor(position_ids), torch.tensor(subtree_end),
            one, one, one, one, one, one,
        )  # fmt: skip


def test_common_prefix_length():
    assert common_prefix_length([], [1]) == 0
    assert common_prefix_length([1, 2], [1, 2]) == 2
    assert common_prefix_length([1, 2], [1, 3, 4]) == 1


def test_a_row_moves_as_a_whole():
    (row,) = pack([[1, 2]], [[False, True]])
    assert row.to("meta").input_ids.device.type == row.to("meta").target_sequence.device.type == "meta"


@given(batches(), st.data(), st.integers(1, 8))
def test_what_is_put_behind_a_row_goes_on_with_its_own_sequence(batch, data, size):
    sequences = [ids for ids in batch[0] if ids]
    (row,) = pack([[*ids, 0] for ids in sequences], [[False] * len(ids) + [True] for ids in sequences])
    counts = data.draw(st.lists(st.integers(1, 4), min_size=len(sequences), max_size=len(sequences)))
    behind = iter(range(len(row), len(row) + sum(counts)))
    expected = {}
    for path, count in zip(paths(row), counts, strict=True):
        visible = path.tolist()
        for index in [next(behind) for _ in range(count)]:
            visible.append(index)
            expected[index] = set(visible)
    cut = further_spans(paths(row), counts, len(row), torch.float32, size)
    found = {}
    for span in cut:
        keys = torch.cat([span.above, torch.arange(span.begin, span.end)])
        for query, mask in zip(range(span.begin, span.end), span.mask, strict=True):
            found[query] = keys[mask == 0].tolist()
    assert {query: sorted(keys) for query, keys in expected.items()} == found
    assert [span.begin for span in cut] == [len(row), *(span.end for span in cut[:-1])]
