"""Data files as nobody should write them, and what reading one may come to: rows that are right, or one clear line.

`hostile_files()` is a hypothesis strategy of (file name, content), `check_data_file` the property of each. A short run
of the two is in tests/test_loading.py.
"""

import csv
import io
import json
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from hypothesis import strategies

from data.arguments import UserError
from data.labels import LabelTask
from data.loading import Example, ExampleFile, load_examples
from data.tasks import BUILT_IN_TASKS, Task

TASKS = (
    BUILT_IN_TASKS["emotion"],
    BUILT_IN_TASKS["goemotions-group"],
    LabelTask("numbers", "single_label", ("-1.0", "0.0", "1.0"), "{text}"),
    LabelTask("moods", "multi_label", ("calm", "Tense"), "{text}", allow_none=True),
)
LABELS = [label for task in TASKS for label in task.labels]
SUFFIXES = (".tsv", ".csv", ".txt", ".jsonl", ".json", ".parquet", "")
COLUMNS = ("calm", "tense", "text", "Text", "sentence", "label", "labels", "label_text", "id", "rationale", "tweet", "")
# what has a meaning in some layout, takes no ink, ends a line somewhere, or is no character
AWKWARD = "\t\n\r\";,|[]{}:\\'=<>\v\f\x1b\x85\xa0\xad\u200b\u2028\u2029\u3000\ufeff\U0001f600é字٣１-+.0129eE"


def texts() -> strategies.SearchStrategy[str]:
    """Cells: short words, awkward characters, anything Unicode has."""
    alphabet = strategies.sampled_from(AWKWARD) | strategies.characters(exclude_categories=("Cs",), min_codepoint=1)
    words = strategies.sampled_from(["good", "It was a fine day.", 'He said ""hi""', '"quoted"', *COLUMNS, *LABELS])
    return words | strategies.text(alphabet, max_size=12)


def values() -> strategies.SearchStrategy[Any]:
    """Anything that JSON can spell, and some that it should not."""
    numbers = strategies.integers() | strategies.floats() | strategies.sampled_from([10**400, -1, 0, 1, 1.0, -0.0])
    halves = strategies.sampled_from(["\ud800", "a\udfffb"])
    leaves = texts() | numbers | strategies.booleans() | strategies.none() | halves
    keys = strategies.sampled_from(COLUMNS) | texts()
    return strategies.recursive(
        leaves,
        lambda inner: strategies.lists(inner, max_size=3) | strategies.dictionaries(keys, inner, max_size=3),
        max_leaves=6,
    )


def tables() -> strategies.SearchStrategy[list[list[str]]]:
    """Rows of cells, ragged at times."""
    known = strategies.sampled_from(TASKS).flatmap(lambda task: strategies.lists(
        strategies.tuples(texts(), strategies.sampled_from(task.labels)).map(list), min_size=1, max_size=6
    ))  # fmt: skip
    labels = strategies.sampled_from([*LABELS, "0", "1", "1,2", "7", ""])
    rows = strategies.tuples(texts(), labels) | strategies.tuples(texts(), labels, texts())
    plain = known | strategies.lists(rows.map(list), min_size=1, max_size=6)
    headers = strategies.sampled_from((("text", "label"), ("label", "Text"), ("id", "text"), ("text",))).map(list)
    marks = strategies.sampled_from(["0", "1", "1.0", "true", "False", "2", ""])
    marked = strategies.lists(strategies.tuples(texts(), marks, marks).map(list), min_size=1, max_size=6)
    marked = marked.map(lambda rows: [["text", "Calm", "tense"], *rows])
    headers = headers | strategies.lists(strategies.sampled_from(COLUMNS), min_size=1, max_size=3)
    headed = strategies.tuples(headers, plain).map(lambda both: [both[0], *both[1]])
    return plain | headed | marked | strategies.lists(strategies.lists(texts(), max_size=4), max_size=5)


def _as_table(rows: list[list[str]], separator: str, quoting: int, end: str) -> bytes:
    if quoting == csv.QUOTE_NONE:
        return end.join(separator.join(cells) for cells in rows).encode()
    content = io.StringIO()
    csv.writer(content, delimiter=separator, quoting=quoting, lineterminator=end).writerows(rows)
    return content.getvalue().encode()


def _as_json(records: list[Any], lines: bool, ascii_only: bool) -> bytes:
    if not lines:
        return json.dumps(records, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    return "\n".join(json.dumps(each, ensure_ascii=ascii_only) for each in records).encode("utf-8", "surrogatepass")


@cache
def _parquet_files() -> tuple[bytes, ...]:
    """Small files with columns of many types, some of them of no use."""
    names = {"info": {"features": {"label": {"names": ["joy", "fear"], "_type": "ClassLabel"}}}}
    texts = [["a", "b"], [None, "b"], [b"\xff", b"b"], [1, 2], [[1], []], [{"a": 1}, None], [float("nan"), 1.0]]
    labels = [[0, 1], [1.0, None], [-1, 9], ["joy", "fear"], [[0], [1, 0]], [True, False], [{"joy": 1}, None]]
    files = []
    for text, label in [*((t, labels[0]) for t in texts), *((texts[0], each) for each in labels)]:
        for metadata in (None, {"huggingface": json.dumps(names)}, {"huggingface": "["}):
            table = pyarrow.table({"text": text, "label": label}).replace_schema_metadata(metadata)
            files.append(_parquet(table))
    bad = pyarrow.array([b"\xff\xfe", b"ok"]).view(pyarrow.string())
    dates = pyarrow.array([2**62, 0]).cast(pyarrow.timestamp("ms"))
    for column in (bad, dates, pyarrow.array(["joy", "fear"]).dictionary_encode()):
        files.append(_parquet(pyarrow.table({"text": column, "label": ["joy", "fear"]})))
        files.append(_parquet(pyarrow.table({"text": ["a", "b"], "label": column})))
    return tuple(files)


def _parquet(table: pyarrow.Table) -> bytes:
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content)
    return content.getvalue()


@strategies.composite
def _mutated(draw, contents: strategies.SearchStrategy[bytes]) -> bytes:
    """A file that was right, with some of its bytes changed, lost, doubled or added."""
    content = bytearray(draw(contents))
    for _ in range(draw(strategies.sampled_from((0, 0, 0, 1, 2)))):
        begin = draw(strategies.integers(0, len(content)))
        end = min(len(content), begin + draw(strategies.integers(0, 8)))
        kind = draw(strategies.sampled_from(("lost", "doubled", "changed", "cut")))
        if kind == "cut":
            del content[begin:]
        else:
            new = content[begin:end] * 2 if kind == "doubled" else draw(strategies.binary(max_size=8))
            content[begin:end] = b"" if kind == "lost" else new
    return bytes(content)


def hostile_files() -> strategies.SearchStrategy[tuple[str, bytes]]:
    """(file name, content): random bytes, and files of every layout with awkward values and damage."""
    tabular = strategies.builds(
        _as_table, tables(), strategies.sampled_from("\t\t,;"),
        strategies.sampled_from((csv.QUOTE_NONE, csv.QUOTE_MINIMAL, csv.QUOTE_ALL)),
        strategies.sampled_from(("\n", "\n", "\r\n", "\r")),
    )  # fmt: skip
    record = strategies.dictionaries(strategies.sampled_from(COLUMNS), values(), max_size=4)
    likely = strategies.fixed_dictionaries(
        {"text": texts(), "label": strategies.sampled_from(LABELS) | values()},
        optional={
            "id": texts() | values(), "rationale": texts() | values(),
            "label_text": strategies.sampled_from(LABELS) | values(),
        },
    )  # fmt: skip
    mark = strategies.sampled_from([0, 1, True, False, 1.0, "1", "", None, 2])
    marked = strategies.fixed_dictionaries({"text": texts(), "CALM": mark, "tense": mark})
    likely = likely | marked
    records = (
        strategies.lists(likely, max_size=4)
        | strategies.lists(marked, max_size=4)
        | strategies.lists(likely | record | values(), max_size=4)
    )
    objects = strategies.builds(_as_json, records, strategies.booleans(), strategies.booleans())
    parquet = strategies.deferred(lambda: strategies.sampled_from(_parquet_files()))
    coded = strategies.sampled_from(("utf-16", "utf-16-le", "utf-32-be", "latin-1", "utf-8-sig"))
    foreign = strategies.builds(lambda content, code: content.decode().encode(code, "replace"), tabular, coded)

    def named(contents: strategies.SearchStrategy[bytes], *suffixes: str) -> strategies.SearchStrategy:
        return strategies.tuples(strategies.sampled_from(suffixes).map("data{}".format), contents)

    right = [named(_mutated(tabular), ".tsv", ".csv", ".txt", ""), named(_mutated(objects), ".jsonl", ".json", "")]
    anything = named(strategies.binary(max_size=64) | foreign | _mutated(tabular) | _mutated(objects), *SUFFIXES)
    return strategies.one_of(*right, *right, named(_mutated(parquet), ".parquet"), anything)


def check_data_file(name: str, content: bytes, folder: Path) -> bool:
    """Read a file in every way that the stages do; nothing may come of it but examples that are right, or one line.

    Returns:
        Whether it was read, as a file of any of the tasks.
    """
    path = Path(folder) / name
    path.write_bytes(content)
    taken = False
    for task in TASKS:
        for labels_required in (True, False):
            rejected: list[dict[str, Any]] = []
            read = _read(path, task, labels_required, None)
            kept = _read(path, task, labels_required, rejected)
            for row in rejected:
                json.dumps(row, ensure_ascii=False).encode()
                _check_line(row["error"])
            assert read is None or (read == kept and not rejected)
        if kept is not None:
            assert list(ExampleFile(path, task, "--test_data_path", rejected=[])) == kept
        taken |= read is not None
    return taken


def _read(path: Path, task: Task, labels_required: bool, rejected: list[dict[str, Any]] | None) -> list[Example] | None:
    try:
        examples = load_examples(path, task, labels_required=labels_required, rejected=rejected)
    except UserError as error:
        _check_line(str(error))
        return None
    assert examples
    for example in examples:
        parts = (example.id, example.text, example.rationale or "x")
        assert all(part and isinstance(part, str) and part.encode() for part in parts)
        assert example.text == example.text.strip()
        if example.labels is None:
            assert not labels_required
        else:
            assert list(example.labels) == sorted(set(example.labels), key=task.ids.__getitem__)
            assert example.labels or task.allow_none
            assert task.kind == "multi_label" or len(example.labels) == 1
    assert len({example.labels is None for example in examples}) == 1
    return examples


def _check_line(line: str) -> None:
    assert line.isprintable(), repr(line)
    assert 0 < len(line) < 1000
