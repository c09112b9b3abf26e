"""A corpus of many files, labelled in parts: what its rows are, what each part has, and which are there. (no torch)

The rows of all files, one file behind the other, are cut into parts of like size, as `inference.py --shard i/n` cuts
those of one file; so `scripts.gather` joins them. A part is written whole or not at all, by whoever computes it, and
twice to the same content: a process that dies in the middle leaves none, and another one makes it again.

In the folder are `corpus.json` (files, their rows and hashes, settings), and for each part its rows, and beside them in
a `.json` what they were made of, their SHA-256, and counts of what was answered.
"""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain, groupby, islice
from pathlib import Path
from typing import Any

from data.arguments import UserError, one_line
from data.files import as_json, file_hash, is_of_type, read_json, write_json, write_text
from data.labels import LabelTask
from data.loading import Example
from data.prediction_files import PART_NAME, Settings, different_settings
from data.text_files import check_readable

CORPUS_FILE = "corpus.json"
CORPUS_SUMMARY_FILE = "corpus_summary.json"
INPUT = "--input_path"
SUFFIXES = (".tsv", ".csv", ".txt", ".json", ".jsonl", ".parquet")  # of a folder's files that are data
LABEL_FILE = "labels.txt"  # which lies beside data, and is none
MOST_PARTS = 99_999  # a part's name has so many digits
ANY_PART = PART_NAME.format(i="*", n="*")
COUNTS = ("rows", "none", "invalid", "truncated", "abstained")


# --- files ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CorpusFile:
    """A data file of the corpus: its path, the number of its good rows, the SHA-256 of its content."""

    path: str
    rows: int
    sha256: str


def input_files(paths: Sequence[str], output_dir: str | Path) -> list[Path]:
    """The data files that `--input_path` names: files as they are, of folders those of known suffixes, by name.

    Args:
        paths: files and folders; those below a folder count, hidden ones and labels.txt do not.
        output_dir: where the parts go, which are no input.

    Raises:
        UserError: one of them is not there or named twice, has no data files, or holds `output_dir`.
    """
    found: dict[Path, str] = {}  # file -> what named it
    for named in paths:
        folder, files = Path(named), [Path(named)]
        if folder.is_dir():
            if folder.resolve() in (Path(output_dir).resolve(), *Path(output_dir).resolve().parents):
                raise UserError(f"--output_dir {output_dir}: lies in {INPUT} {named}, whose files are read")
            files = sorted(path for path in folder.rglob("*") if _is_data(path, folder))
            if not files:
                raise UserError(f"{INPUT} {named}: no data files ({', '.join(SUFFIXES)}) in it")
        for path in files:
            check_readable(path, INPUT)
            if (file := path.resolve()) in found:
                raise UserError(f"{INPUT} {named}: {path} is there already, by {found[file]}; a row would count twice")
            found[file] = named
    return list(found)


def _is_data(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and path.name != LABEL_FILE and path.is_file() and not hidden


def look_at(path: str, task: LabelTask, skip_bad_rows: bool) -> tuple[CorpusFile, list[dict[str, Any]]]:
    """Go through a data file once, and count its rows.

    Returns:
        The file, and its bad rows with file, line and error.

    Raises:
        UserError: a bad row without `skip_bad_rows`, or a file that is none of data; names file and line.
    """
    rejected: list[dict[str, Any]] | None = [] if skip_bad_rows else None
    rows = sum(1 for _ in task.read(path, INPUT, labels_required=False, rejected=rejected))
    return CorpusFile(path, rows, file_hash(path)), rejected or []


# --- parts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Corpus:
    """The rows of all files, in order, and how they are cut.

    Attributes:
        files: the files.
        rows: how many of their rows are labelled, from the first on.
        parts: in how many parts; the i-th (from 1) has rows `rows * (i - 1) // parts` to `rows * i // parts`.
        skip_bad_rows: whether files may have bad rows, which do not count.
    """

    files: tuple[CorpusFile, ...]
    rows: int
    parts: int
    skip_bad_rows: bool = False

    def span(self, part: int) -> tuple[int, int]:
        """The first row of a part, from 0, and the one behind its last.

        >>> corpus = Corpus((), rows=10, parts=3)
        >>> [corpus.span(part) for part in (1, 2, 3)]
        [(0, 3), (3, 6), (6, 10)]
        """
        return self.rows * (part - 1) // self.parts, self.rows * part // self.parts

    def named_span(self, part: int) -> dict[str, int]:
        """The same as `ExampleFile.span` says it."""
        begin, end = self.span(part)
        return {"first_row": begin + 1, "last_row": end, "rows": self.rows}

    @cached_property
    def first_rows(self) -> list[int]:
        """Of each file, the place of its first row in the corpus, from 0."""
        return list(accumulate((file.rows for file in self.files[:-1]), initial=0))

    def readers(self, parts: Iterable[int]) -> list[tuple[int, list[int]]]:
        """The number of each file, from 0, in which one of these parts begins, and the parts that do: what one process
        reads from one end to the other."""

        def file_of(part: int) -> int:
            return bisect_right(self.first_rows, self.span(part)[0]) - 1

        return [(number, list(some)) for number, some in groupby(sorted(parts), key=file_of)]

    def examples(self, number: int, parts: Iterable[int], task: LabelTask) -> Iterator[tuple[int, list[Example]]]:
        """Each part with its rows.

        Args:
            number: the file, from 0, in which all of them begin; the last one may end in another.
            parts: the parts, in order.
            task: whose rows they are.

        Raises:
            UserError: a file has other rows than when it was looked at.
        """
        place = self.first_rows[number]
        rows = chain.from_iterable(self._rows_of(file, task) for file in self.files[number:])
        for part in parts:
            begin, end = self.span(part)
            yield part, list(islice(rows, begin - place, end - place))
            place = end

    def _rows_of(self, file: CorpusFile, task: LabelTask) -> Iterator[Example]:
        count = 0
        rejected = [] if self.skip_bad_rows else None
        for count, example in enumerate(task.read(file.path, INPUT, labels_required=False, rejected=rejected), start=1):
            if count > file.rows:
                break
            yield example
        if count != file.rows:
            raise UserError(f"{file.path}: was changed while it was labelled: it has not {file.rows:,} rows any more")


def cut(files: Sequence[CorpusFile], rows_per_part: int, limit: int | None, skip_bad_rows: bool) -> Corpus:
    """The corpus of these files, in as few parts as have at most `rows_per_part` rows.

    Args:
        limit: the first rows only; None = all.

    Raises:
        UserError: that would be too many parts.
    """
    rows = sum(file.rows for file in files)
    rows = min(rows, limit or rows)
    parts = -(-rows // rows_per_part)
    if parts > MOST_PARTS:
        raise UserError(
            f"--rows_per_part {rows_per_part}: makes {parts:,} parts of {rows:,} rows; there may be {MOST_PARTS:,}, so "
            f"give {-(-rows // MOST_PARTS):,} or more"
        )
    return Corpus(tuple(files), rows, parts, skip_bad_rows)


def part_path(directory: str | Path, part: int, parts: int) -> Path:
    """Where the rows of a part go."""
    return Path(directory) / PART_NAME.format(i=f"{part:05}", n=f"{parts:05}")


# --- what decides ---------------------------------------------------------------------------------------------------


def begin_or_continue(directory: str | Path, corpus: Corpus, settings: Settings) -> Settings:
    """Write corpus.json, or compare with it where parts were begun, and say what is to stand beside each part.

    Args:
        directory: where the parts go.
        corpus: the rows.
        settings: `flags`, and of the model and its labels `files`, that decide what is predicted.

    Returns:
        The settings of a part: those given, with all of the corpus' files as one.

    Raises:
        UserError: the folder was begun with another model, other data or settings, or holds other parts.
    """
    path = Path(directory) / CORPUS_FILE
    ends = [begin + file.rows for begin, file in zip(corpus.first_rows, corpus.files, strict=True)]
    inputs = {
        f"{INPUT} file {number}": {
            "path": file.path, "hash": file.sha256, "first_row": end - file.rows + 1, "last_row": end
        }
        for number, (file, end) in enumerate(zip(corpus.files, ends, strict=True), start=1)
    }  # fmt: skip
    whole = {**settings, "files": settings["files"] | inputs, "rows": corpus.rows, "parts": corpus.parts}
    before = read_json(path, missing_ok=True, fields={"flags": dict, "files": dict})
    if not before and any(Path(directory).glob(ANY_PART)):
        raise UserError(f"--output_dir {directory}: has parts of other predictions; choose another folder")
    if not before:
        write_json(path, whole)
    elif not {"flags", "files"} <= before.keys():
        raise UserError(f"{path}: does not say what it was begun with; choose another --output_dir")
    elif difference := different_settings(before, whole, str(path)):
        raise UserError(f"{difference}; choose another --output_dir, or remove {directory} to begin anew")
    digest = hashlib.sha256("".join(file.sha256 for file in corpus.files).encode()).hexdigest()
    of_all = {INPUT: {"path": f"{len(corpus.files)} files of {CORPUS_FILE}", "hash": digest}}
    return {**settings, "files": settings["files"] | of_all}


def finished_parts(directory: str | Path, corpus: Corpus, settings: Settings) -> dict[int, dict[str, Any]]:
    """The parts that are there and whole, each with what stands beside it; the others are to be made.

    Args:
        directory, corpus: see `begin_or_continue`.
        settings: what it returns.
    """
    return {
        part: beside
        for part in range(1, corpus.parts + 1)
        if (beside := _beside(part_path(directory, part, corpus.parts), corpus.named_span(part), settings)) is not None
    }


def _beside(path: Path, span: Mapping[str, int], settings: Settings) -> dict[str, Any] | None:
    """What stands beside the part in `path`; None where it is not there, not whole, or of something else."""
    if not path.is_file():
        return None
    beside = read_json(
        path.with_suffix(".json"), missing_ok=True, fields={"flags": dict, "files": dict, "counts": dict}
    )
    is_same = (
        {"flags", "files", "counts"} <= beside.keys()
        and span.items() <= beside.items()
        and different_settings(beside, settings, path.name) is None
        and _are_counts(beside["counts"])
        and beside.get("sha256") == file_hash(path)
    )
    return beside if is_same else None


def begin_part(directory: str | Path, corpus: Corpus, part: int) -> int:
    """Note that a process is about to make this part; returns how many have been, with this one.

    The notes are hidden files of a byte a try, which `write_part` and `remove_leftovers` remove.
    """
    with _tries(directory, corpus, part).open("ab") as file:
        file.write(b".")
        return file.tell()


def _tries(directory: str | Path, corpus: Corpus, part: int) -> Path:
    path = part_path(directory, part, corpus.parts)
    return path.with_name(f".{path.name}.tries")


def write_part(
    directory: str | Path, corpus: Corpus, part: int, rows: Sequence[dict[str, Any]], settings: Settings
) -> None:
    """Write a part's rows, and beside them what they are, each whole or not at all; the rows last.

    Args:
        directory, corpus, settings: see `finished_parts`.
        part: its number, from 1.
        rows: rows of predictions.jsonl, all of the part's.

    Raises:
        UserError: there are more or fewer.
    """
    begin, end = corpus.span(part)
    if len(rows) != end - begin:
        raise UserError(f"part {part}: {len(rows):,} rows, expected {end - begin:,}: a file was changed meanwhile")
    path = part_path(directory, part, corpus.parts)
    content = "".join(f"{as_json(row, path)}\n" for row in rows)
    digest = hashlib.sha256(content.encode(errors="backslashreplace")).hexdigest()
    beside = settings | corpus.named_span(part) | {"sha256": digest, "counts": counts_of(rows)}
    write_json(path.with_suffix(".json"), beside)
    write_text(path, content)
    _tries(directory, corpus, part).unlink(missing_ok=True)


def remove_leftovers(directory: str | Path) -> None:
    """Remove what processes that were killed had begun to write; nobody may be writing."""
    for path in Path(directory).glob(f".{ANY_PART.removesuffix('.jsonl')}.json*"):
        path.unlink(missing_ok=True)


# --- what was answered ----------------------------------------------------------------------------------------------


def counts_of(rows: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """How many rows there are; how many say that no label applies, could not be read, were cut, abstain; and how many
    have each label."""
    counts, labels = Counter(dict.fromkeys(COUNTS, 0)), Counter()
    for row in rows:
        labels.update(row["labels"])
        counts["rows"] += 1
        counts["none"] += row["valid"] and not row["labels"]
        counts["invalid"] += not row["valid"]
        counts["truncated"] += row["truncated"]
        counts["abstained"] += row.get("abstained", False)
    return {**counts, "labels": dict(labels)}


def _are_counts(value: dict[str, Any]) -> bool:
    labels = value.get("labels")
    return isinstance(labels, dict) and all(
        is_of_type(count, int) for count in (*(value.get(name) for name in COUNTS), *labels.values())
    )


def added(counts: Iterable[Mapping[str, Any]], task: LabelTask) -> dict[str, Any]:
    """Counts of several parts as those of one, with all of the task's labels in its order."""
    total, labels = Counter(dict.fromkeys(COUNTS, 0)), Counter()
    for each in counts:
        total.update({name: each[name] for name in COUNTS})
        labels.update(each["labels"])
    return {**total, "labels": {label: labels[label] for label in task.labels}}


def in_words(counts: Mapping[str, Any]) -> str:
    """Counts as a person reads them: a line for each label, the most frequent first, and one for what is not usual."""
    rows, labels = counts["rows"], sorted(counts["labels"].items(), key=lambda item: -item[1])
    width = max(len(label) for label, _ in labels)
    lines = [f"  {label:<{width}}  {count:>12,}  {count / rows:>6.1%}" for label, count in labels]
    names = {"none": "no label applies", "invalid": "not read", "truncated": "cut", "abstained": "abstained"}
    odd = [f"{counts[name]:,} {words}" for name, words in names.items() if counts[name]]
    return "\n".join(map(one_line, [*lines, *([f"  ({', '.join(odd)})"] if odd else [])]))
