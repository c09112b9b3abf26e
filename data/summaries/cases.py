"""Files of counselling cases -> Cases, validated: every bad row is named by file and line. (no torch)

A case is what is known of a person, what was said and done, and what the counsellor made of it afterwards, which a
model learns to write. A file is JSON Lines, or a JSON list, of

    {"id": 7, "case_description": ["…", …], "consultation_process": ["…", …], "experience_and_reflection": "…"}

LongEmotion's files (arXiv 2509.07403) have this form, and five texts more of each case, by which a summary is judged.
What a model wrote of a case stands beside it, as `summary`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.arguments import UserError, one_line
from data.records import json_object, json_objects
from data.row_values import RowError, checked_id, checked_text, missing, rejection, seen_text, shown
from data.text_files import check_readable

DESCRIPTION, PROCESS, SUMMARY = "case_description", "consultation_process", "experience_and_reflection"
WRITTEN, TRUNCATED = "summary", "truncated"
REFERENCES = ("causes", "symptoms", "treatment_process", "characteristics_of_illness", "treatment_effect")


@dataclass(frozen=True)
class Case:
    """One counselling case.

    Attributes:
        id: as the file has it; else the line number.
        case_description: what is known of the person and of what they came for, part by part.
        consultation_process: what was said and done, turn by turn.
        summary: the counsellor's experience and reflection; None where the file has none.
        reference: name, of `REFERENCES`, -> what a good summary says of it; those that the file has.
    """

    id: str
    case_description: tuple[str, ...]
    consultation_process: tuple[str, ...]
    summary: str | None = None
    reference: dict[str, str] = field(default_factory=dict)

    @property
    def asked(self) -> "Case":
        """What a model is asked about; see `data.loading.Example.asked`."""
        return self

    @property
    def gold(self) -> tuple[str, ...] | None:
        """What it should answer: the summary, if there is one."""
        return None if self.summary is None else (self.summary,)

    @property
    def beginning(self) -> tuple[str, ...]:
        """What is common to inputs that begin alike: several answers to one question are cases of one description."""
        return self.case_description

    @property
    def strata(self) -> tuple[str, ...]:
        """By what a split is stratified: nothing."""
        return ("",)

    @property
    def text(self) -> str:
        """All of its texts but for the summary, for people."""
        return "\n".join((*self.case_description, *self.consultation_process))

    def record(self) -> dict[str, Any]:
        """The case as a line of a file has it."""
        parts = {"id": self.id, DESCRIPTION: list(self.case_description), PROCESS: list(self.consultation_process)}
        return parts | ({} if self.summary is None else {SUMMARY: self.summary}) | self.reference


@dataclass(frozen=True)
class WrittenSummary:
    """What a model wrote of a case.

    Attributes:
        case: the case; its own summary is the reference.
        text: the model's summary; "" where it wrote nothing.
        truncated: whether the model did not see the whole case; None where the file does not say.
    """

    case: Case
    text: str
    truncated: bool | None = None


def read_cases(
    path: str | Path, flag: str, rejected: list[dict[str, Any]] | None = None, summaries_required: bool = True
) -> Iterator[Case]:
    """The cases of a file one by one.

    Args:
        path: JSON Lines, or a JSON list, which is read whole.
        flag: the flag that named the file, for error messages.
        rejected: where bad rows are put, with file, line and error; None = stop at the first.
        summaries_required: False also takes a file without any summary (to write them).

    Raises:
        UserError: the file or one of its rows is not right, or some of its rows have a summary and others none.
    """
    for _, _, case in _read(Path(path), flag, rejected, summaries_required):
        yield case


def case_of(case_description: Sequence[str], consultation_process: Sequence[str]) -> Case:
    """A case from its texts alone.

    Raises:
        RowError: one of the two is no list of texts, or is empty, or holds an empty text.
    """
    parts = {DESCRIPTION: case_description, PROCESS: consultation_process}
    record = {name: list(value) if isinstance(value, tuple) else value for name, value in parts.items()}
    return _case(1, record, summary_required=False)


def case_in(text: str) -> Case:
    """A case from a JSON object, as a line of a file has it; its summary may be missing.

    Raises:
        RowError: it is none.
    """
    return _case(1, json_object(text), summary_required=False)


def written_in(record: dict[str, Any]) -> WrittenSummary:
    """A case and what a model wrote of it, from a JSON object.

    Raises:
        RowError: it is none.
    """
    return _written(record, _case(1, record, summary_required=False))


def read_written(path: str | Path, flag: str) -> Iterator[WrittenSummary]:
    """The cases of a file one by one, with what a model wrote of them.

    Args:
        path, flag: see `read_cases`; cases need no summary of their own.

    Raises:
        UserError: see `read_cases`; a row has no `summary`, or some rows say whether they are `truncated`, others not.
    """
    says: bool | None = None  # as the first row does
    for line, record, case in _read(Path(path), flag, None, summaries_required=False):
        try:
            written = _written(record, case)
        except RowError as error:
            raise UserError(f"{path}:{line}: {error}") from error
        if says is None:
            says, first_line = written.truncated is not None, line
        if says != (written.truncated is not None):
            raise UserError(f"{path}:{line if says else first_line}: no {TRUNCATED}, while other rows have it")
        yield written


def _read(
    path: Path, flag: str, rejected: list[dict[str, Any]] | None, summaries_required: bool
) -> Iterator[tuple[int, dict[str, Any], Case]]:
    """Line number, row and case; see `read_cases`."""
    check_readable(path, flag)
    summarised: bool | None = None  # as the first case is
    first_line, bad = 0, 0
    for line, record in json_objects(path):
        try:
            case = _case(line, record, summaries_required)
        except RowError as error:
            if rejected is None:
                raise UserError(f"{path}:{line}: {error}") from error
            rejected.append(rejection(path, line, error, _begin(record)))
            bad += 1
            continue
        if summarised is None:
            summarised, first_line = case.summary is not None, line
        if summarised != (case.summary is not None):
            raise UserError(f"{path}:{line if summarised else first_line}: no {SUMMARY}, while other rows have one")
        yield line, record, case
    if summarised is None:
        raise UserError(f"{flag} {path}: no cases in it" + (f" ({bad} rejected)" if bad else ""))


def _case(line: int, record: dict[str, Any] | str, summary_required: bool) -> Case:
    if isinstance(record, str):
        raise RowError(record)
    for name in (DESCRIPTION, PROCESS, SUMMARY) if summary_required else (DESCRIPTION, PROCESS):
        _check_there(record, name)
    identity, summary = record.get("id"), record.get(SUMMARY)
    if not (summary_required or missing(summary)):  # where none is needed, an empty one keeps the place of none
        summary = checked_text(SUMMARY, summary) or None
    return Case(
        id=str(line) if missing(identity) else checked_id(identity) or str(line),
        case_description=_texts(DESCRIPTION, record[DESCRIPTION]),
        consultation_process=_texts(PROCESS, record[PROCESS]),
        summary=None if missing(summary) else seen_text(SUMMARY, summary),
        reference={name: text for name in REFERENCES if (text := _reference(name, record.get(name)))},
    )


def _written(record: dict[str, Any], case: Case) -> WrittenSummary:
    _check_there(record, WRITTEN)
    truncated = None if missing(record.get(TRUNCATED)) else record[TRUNCATED]
    if truncated not in (True, False, None):
        raise RowError(f"{TRUNCATED} is {shown(truncated)}, where true or false is expected")
    return WrittenSummary(case, checked_text(WRITTEN, record[WRITTEN]), truncated)


def _check_there(record: dict[str, Any], name: str) -> None:
    if missing(record.get(name)):
        there = one_line(", ".join(map(repr, record)), 200)
        raise RowError(f"{name} is null" if name in record else f"no {name} among {there or 'no keys at all'}")


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """A list of texts, none of them empty."""
    if not isinstance(value, list):
        raise RowError(f"{name} is {shown(value)}, where a list of texts is expected")
    if not value:
        raise RowError(f"{name} is an empty list")
    return tuple(seen_text(f"{name}[{i}]", text) for i, text in enumerate(value))


def _reference(name: str, value: Any) -> str:
    return "" if missing(value) else checked_text(name, value)


def _begin(record: dict[str, Any] | str) -> Any:
    """What a person will know a rejected case by: how its description begins."""
    parts = record.get(DESCRIPTION) if isinstance(record, dict) else None
    return parts[0] if isinstance(parts, list) and parts else parts
