"""PsyQA, questions of people who seek help and the answers of those who support them, as counselling cases. (no torch)

PsyQA (Sun et al., 2021, arXiv 2106.01702) has no consultation and no counsellor's reflection. What a case is made of:

    case_description           question, description, keywords: what is known before anybody answers
    consultation_process       an answer up to its closing, paragraph by paragraph
    experience_and_reflection  its closing: where the supporter draws together what was said

The whole answer as the reflection would leave no process to read, and the task would be to answer, not to sum up. A
closing that stands in the input already would be copied. So the closing is taken away from the answer, and a model
learns to write what a supporter comes to in the end. That is the nearest thing in this data to a reflection, and not
one: it speaks to the person, not about the case.

The closing is the last paragraphs that make up a fifth of the answer and 40 characters. If these are more than half of
it (an answer is often one paragraph), the last sentences that do. An answer of which these, too, are more than half is
too short, and is left out.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.arguments import UserError, one_line
from data.files import write_json_lines
from data.records import json_objects
from data.row_values import RowError, checked_id, checked_text, missing, seen_text, shown
from data.summaries.cases import Case

FILE_NAME = "Emotion_Summary.jsonl"  # in a folder for each split
TRAIN_SHARE = 0.85  # of the questions; one half of the others is for validation, one for testing
CLOSING_SHARE, CLOSING_CHARACTERS = 5, 40  # at least a fifth of an answer, and so many characters
_PARAGRAPH_END = re.compile(r"\n")
_SENTENCE_END = re.compile(r"[。！？!?…~～]+[”’」』）)\"']*|\.[”’)\"']*\s")


@dataclass
class Question:
    """A question, as one or several objects of the file have it, and its answers."""

    id: str
    key: str  # a hash of its words
    description: tuple[str, ...]
    answers: list[tuple[tuple[str, ...], str]] = field(default_factory=list)  # process and closing of each


def write_cases(path: Path, ready: Path, name: str = "psyqa") -> None:
    """Write a file in PsyQA's form as `{train,validation,test}/Emotion_Summary.jsonl`, and print what became of it.

    Args:
        path: a JSON list, or JSON Lines, of objects with `question`, `answers` and, in each answer, `answer_text`;
            `description`, `keywords` and `questionID` may be missing.
        ready: the folder that is to hold the splits.
        name: of the data set, for what is printed.

    Raises:
        UserError: an object of another form, or fewer than three questions that a case can be made of.
    """
    counts: Counter[str] = Counter()
    questions = [question for question in read_questions(path, counts) if question.answers]
    if len(questions) < 3:
        found = f"{len(questions)} questions with an answer that a case can be made of"
        raise UserError(f"{path}: {found}, expected three or more, one for each split{_reported(counts)}")
    taken: Counter[str] = Counter()
    for split, part in split_questions(questions).items():
        cases = [case for question in part for case in _cases(question, taken)]
        write_json_lines(ready / split / FILE_NAME, (case.record() for case in cases))
        print(f"{name}: {split} has {len(part):,} questions, {len(cases):,} cases")
    print(f"{name}: {counts['questions']:,} questions with {counts['answers']:,} answers read{_reported(counts)}")


def _reported(counts: Counter[str]) -> str:
    left_out = [f"{count:,} {what}" for what, count in counts.items() if what not in ("questions", "answers")]
    return f"; left out: {', '.join(left_out)}" if left_out else ""


def _cases(question: Question, taken: Counter[str]) -> Iterator[Case]:
    for process, closing in question.answers:
        taken[question.id] += 1
        yield Case(f"{question.id}-{taken[question.id]}", question.description, process, closing)


# --- reading --------------------------------------------------------------------------------------------------------


def read_questions(path: Path, counts: Counter[str]) -> list[Question]:
    """The questions of a file in PsyQA's form; those of the same words are one, whatever their ids.

    Args:
        path: the file.
        counts: what was read, and what could not be used, is added here.

    Raises:
        UserError: an object of another form.
    """
    questions: dict[str, Question] = {}
    for line, record in json_objects(path):
        try:
            asked, answers = _parts(record)
        except RowError as error:
            raise UserError(f"{path}:{line}: not in PsyQA's form: {error}") from error
        counts["questions"] += 1
        counts["answers"] += len(answers)
        if not answers:
            counts["questions without answers"] += 1
            continue
        try:
            words = _words(asked)
            key = _hash(words)
            identity = asked.get("questionID")
            id = key[:12] if missing(identity) else checked_id(identity) or key[:12]
            description = words + _keywords(asked.get("keywords"))
        except RowError:
            counts["answers to unusable questions (empty, or half a character in them)"] += len(answers)
            continue
        question = questions.setdefault(key, Question(id, key, description))
        for answer in answers:
            _add(question, answer, counts)
    if not counts["questions"]:
        raise UserError(f"{path}: no questions in it")
    return list(questions.values())


def _parts(record: dict[str, Any] | str) -> tuple[dict[str, Any], list[Any]]:
    """An object and the texts of its answers, None for one that has none.

    Raises:
        RowError: it has not the keys of PsyQA, or something else than words in them.
    """
    if isinstance(record, str):
        raise RowError(record)
    for name in ("question", "answers"):
        if name not in record:
            there = one_line(", ".join(map(repr, record)), 200)
            raise RowError(f"no {name} among {there or 'no keys at all'}")
    for name in ("question", "description"):
        _check_words(name, record.get(name))
    if not isinstance(record.get("keywords"), list):
        _check_words("keywords", record.get("keywords"))
    answers = [] if missing(record["answers"]) else record["answers"]
    if not isinstance(answers, list):
        raise RowError(f"answers is {shown(answers)}, where a list of objects is expected")
    for i, answer in enumerate(answers):
        if not isinstance(answer, dict) or "answer_text" not in answer:
            raise RowError(f"answers[{i}] is {shown(answer)}, where an object with answer_text is expected")
        _check_words(f"answers[{i}].answer_text", answer["answer_text"])
    return record, [answer["answer_text"] for answer in answers]


def _check_words(name: str, value: Any) -> None:
    if not missing(value) and type(value) is not str:  # a number of a JSON file is a `Written`
        raise RowError(f"{name} is {shown(value)}, where words are expected")


def _words(record: dict[str, Any]) -> tuple[str, ...]:
    """A question and, if it has one that says more, its description."""
    question, description = seen_text("question", record["question"]), record.get("description")
    text = "" if missing(description) else checked_text("description", description)
    return (question,) if text in ("", question) else (question, text)


def _keywords(value: Any) -> tuple[str, ...]:
    """`"学业,压力"` or `["学业", "压力"]` -> `("关键词：学业、压力",)`; nothing where there are none."""
    words = value if isinstance(value, list) else [] if missing(value) else re.split(r"[,，、;；\s]+", value)
    words = [word for each in words if (word := checked_text("keywords", each))]
    return (f"关键词：{'、'.join(words)}",) if words else ()


def _add(question: Question, answer: Any, counts: Counter[str]) -> None:
    """Add an answer to its question, if a case can be made of it."""
    try:
        text = seen_text("answer", answer)
    except RowError:
        counts["unusable answers (empty, or half a character in them)"] += 1
        return
    parts = split_answer(text)
    if parts is None:
        counts["answers too short to have a closing"] += 1
    elif parts in question.answers:
        counts["answers that stand there twice"] += 1
    elif parts[1] in "\n".join((*question.description, *parts[0])):
        counts["answers whose closing repeats what was said before"] += 1
    else:
        question.answers.append(parts)


# --- an answer and its closing --------------------------------------------------------------------------------------


def split_answer(answer: str) -> tuple[tuple[str, ...], str] | None:
    """What comes before an answer's closing, paragraph by paragraph, and the closing; None where it is too short.

    The closing begins with a paragraph if it can, else with a sentence; see the top of this file.
    """
    text = "\n".join(_paragraphs(answer))
    least = max(len(text) // CLOSING_SHARE, CLOSING_CHARACTERS)
    for end in (_PARAGRAPH_END, _SENTENCE_END):
        cuts = [match.end() for match in end.finditer(text) if len(text) - match.end() >= least]
        if cuts and 2 * cuts[-1] >= len(text):
            return tuple(_paragraphs(text[: cuts[-1]])), text[cuts[-1] :].strip()
    return None


def _paragraphs(text: str) -> list[str]:
    return [paragraph for line in text.split("\n") if (paragraph := line.strip())]


# --- splits ---------------------------------------------------------------------------------------------------------


def split_questions(questions: list[Question]) -> dict[str, list[Question]]:
    """85 % of the questions to train on, half of the others for validation, half for testing; none of them is empty.

    Which question goes where, and in which order, is told by a hash of its words alone: not by its place in the file,
    nor by its id, so that copies of it are never on two sides.
    """
    ordered = sorted(questions, key=lambda question: question.key)
    others = max(round(len(ordered) * (1 - TRAIN_SHARE)), 2)
    validation, test = ordered[: others // 2], ordered[others // 2 : others]
    return {"train": ordered[others:], "validation": validation, "test": test}


def _hash(words: tuple[str, ...]) -> str:
    """Hex digest of a question's words, whatever their case and the spaces between them."""
    return hashlib.sha256("".join("".join(words).casefold().split()).encode()).hexdigest()
