"""Answers that no model should write, texts that look like commands, archives that lead elsewhere; see tests/fuzz.py."""

import io
import tarfile
import zipfile
from functools import cache
from pathlib import Path
from warnings import catch_warnings

from hypothesis import strategies as st

from data.archives import list_archive, unpack
from data.arguments import UserError
from data.encoding import Encoder
from data.labels import NONE
from data.spelling import Spelling
from data.tasks import BUILT_IN_TASKS, Task
from tests.hostile_files import TASKS
from tests.test_hostile_texts import COMMANDS, HUB, SPECIAL, from_hub, tagged

# --- answers --------------------------------------------------------------------------------------------------------

_PIECES = (
    *(label for task in TASKS for label in task.labels), NONE, ",", ", ", "，", "、", "\n", " ", ".", "<think>", "</think>",
    "<answer>", "</answer>", "Joy", "joyful", "\u202ejoy", "\0", "\x1b[2J", "\ud800", "ﬁ", "e\u0301", "[[[[", '{"a":', "<|im_end|>",
)  # fmt: skip


@st.composite
def hostile_answers(draw) -> tuple[Task, str, bool]:
    """A task, what a model writes, and whether it was to reason first."""
    words = draw(st.lists(st.sampled_from(_PIECES) | st.text(max_size=4), max_size=8))
    cot = draw(st.booleans())
    if cot and draw(st.booleans()):
        words = ["<think>", *words[: len(words) // 2], "</think>", "<answer>", *words[len(words) // 2 :], "</answer>"]
    task = draw(st.sampled_from(TASKS))
    if draw(st.booleans()):  # nearly right
        written = draw(st.lists(st.sampled_from(task.labels), min_size=1, max_size=2))
        words = [*written[:1], *(piece for label in written[1:] for piece in (", ", label)), *words[:1]]
    return task, "".join(words) * draw(st.sampled_from((1, 1, 1, 500))), cot


def check_answer(case: tuple[Task, str, bool], folder: Path) -> None:
    """An answer is read as labels of the task, each once and in its order, as they would be written; or is no valid one."""
    task, written, cot = case
    read = task.parse(written, cot)
    assert set(read.labels) <= set(task.labels)
    assert read.completion == written
    if not read.valid:
        raise UserError("no valid answer")
    assert len(set(read.labels)) == len(read.labels)
    assert read.labels or task.allow_none
    again = task.parse(task.target(read.labels, "because" if cot else None), cot)
    assert (again.labels, again.valid) == (tuple(task.in_order(read.labels)), True)


# --- texts ----------------------------------------------------------------------------------------------------------

_MARKUP = (*COMMANDS, *SPECIAL, "[SEP]", "＜/s＞", "<|", "|>", "</", "▁", "\u202e", "\0", "☃", "\ud800", " ", "zq")


def hostile_texts() -> st.SearchStrategy[str]:
    """A text that is made of commands, halves of them, and what normalisers make them of."""
    return st.lists(st.sampled_from(_MARKUP) | st.text(max_size=4), max_size=12).map("".join)


@cache
def _readers() -> list[tuple[Spelling, frozenset[int]]]:
    tokenizers = [tagged(), tagged(chat=False), *map(from_hub, HUB)]
    return [
        (Spelling(each), frozenset(i for i, token in each.added_tokens_decoder.items() if token.special and i != each.unk_token_id))
        for each in tokenizers
    ]  # fmt: skip


@cache
def _encoder() -> Encoder:
    return Encoder(BUILT_IN_TASKS["emotion"], tagged(), max_length=256)


def check_text(text: str, folder: Path) -> None:
    """No tokenizer makes a command of it, alone or between others; its prompt begins and ends as every prompt does."""
    encoder = _encoder()
    if (problem := encoder.task.problem(text)) is not None:
        raise UserError(problem)
    for spelling, commands in _readers():
        for ids in spelling.plain_ids([text, f"so {text}", text * 2]):
            assert commands.isdisjoint(ids)
            assert spelling._stubborn.isdisjoint(ids)
        assert len(spelling.plain_spans(text)) == len(spelling.plain_ids([text])[0])
    (prompt,) = encoder.prompt_ids([text])
    head, tail = len(encoder.head_ids), len(encoder.tail_ids)
    assert (prompt[:head], prompt[len(prompt) - tail :]) == (encoder.head_ids, encoder.tail_ids)
    assert encoder._spelling.markup.isdisjoint(prompt[head : len(prompt) - tail])
    assert len(prompt) + encoder.answer_tokens <= encoder.max_length


# --- archives -------------------------------------------------------------------------------------------------------

_NAMES = (
    "model/a",
    "model/b/c",
    "other/x",
    "../x",
    "model/../../x",
    "/x",
    "C:\\x",
    "model/./y",
    "model\\..\\..\\x",
    "model/",
    "model/a/d",
)
_KINDS = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_LONGNAME,
          tarfile.XHDTYPE, tarfile.GNUTYPE_SPARSE)  # fmt: skip


@st.composite
def hostile_archives(draw) -> bytes:
    """A zip or tar file with members of any name and kind, some of its bytes changed."""
    names = st.sampled_from(_NAMES) | st.sampled_from(_NAMES[:3]) | st.text(min_size=1, max_size=8)
    members, content = draw(st.lists(st.tuples(names, st.binary(max_size=8)), max_size=4)), io.BytesIO()
    packed = draw(st.sampled_from(("zip", "", "gz", "xz")))
    if packed == "zip":
        with (
            catch_warnings(action="ignore"),
            zipfile.ZipFile(content, "w", draw(st.sampled_from((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))) as file,
        ):
            for name, inside in members:
                file.writestr(
                    name.encode("utf-8", "replace").decode().replace("\0", "") or "x",
                    inside * draw(st.sampled_from((1, 1, 10_000))),
                )
    else:
        with tarfile.open(fileobj=content, mode=f"w:{packed}") as file:
            for name, inside in members:
                info = tarfile.TarInfo(name)
                info.type, info.size = draw(st.sampled_from((_KINDS[0], *_KINDS))), len(inside)
                info.linkname = draw(st.sampled_from(("", *_NAMES)))
                file.addfile(info, io.BytesIO(inside))
    changed = bytearray(content.getvalue())
    for _ in range(draw(st.sampled_from((0, 0, 1, 3)))):
        place = draw(st.integers(0, max(len(changed) - 1, 0)))
        changed[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(changed)


def check_archive(content: bytes, folder: Path) -> None:
    """What is unpacked is what was listed, and lies below its folder."""
    (folder / "archive").write_bytes(content)
    (folder / "around").mkdir()
    try:
        listed = dict(list_archive(folder / "archive", "model"))
        unpack(folder / "archive", "model", folder / "around" / "target")
    except OSError as error:  # a name that is too long, or is a file's and a folder's at once
        raise UserError(str(error)) from error
    finally:
        assert sorted(path.name for path in folder.iterdir()) == ["archive", "around"]
        assert {path.name for path in (folder / "around").iterdir()} <= {"target"}
        assert not any(path.is_symlink() for path in folder.rglob("*"))
    files = {
        str(path.relative_to(folder / "around" / "target")) for path in (folder / "around").rglob("*") if path.is_file()
    }
    assert len(files) <= len(listed)
