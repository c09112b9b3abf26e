"""The built-in tasks, and which task the flags, or a task.json, name. (no torch)"""

import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from data.arguments import UserError
from data.folding import composed, folded
from data.labels import ANSWER_FORM, CUSTOM_TEMPLATE, TEXT_ONLY, LabelTask, label_problem
from data.published import DATA_SETS
from data.summaries.task import SUMMARY_TASKS, SummaryTask

Task = LabelTask | SummaryTask  # what stages say: both answer the same questions
LABEL_TASKS = {task.name: task for data_set in DATA_SETS.values() for task in data_set.tasks.values() if task.labels}
BUILT_IN_TASKS: dict[str, Task] = LABEL_TASKS | SUMMARY_TASKS
MOST_LABELS = 10_000
_LONGEST_LABEL = 200  # characters
_MOST_LABEL_BYTES = 10 << 20


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Labels of a `labels.txt`: one a line, line number = id (the first is 0); accents are composed (Unicode NFC).

    Raises:
        UserError: the file is missing, empty, not UTF-8, too large for labels, or a line is blank, stands twice, or
            can be no label.
    """
    lines = _label_text(Path(path)).rstrip().split("\n")  # as editors count lines
    if not 2 <= len(lines) <= MOST_LABELS:
        expected = "at least two labels" if len(lines) < 2 else f"at most {MOST_LABELS:,} labels"
        raise UserError(f"--label_path {path}: needs {expected}, one a line; found {len(lines):,}")
    labels = [composed(line.strip()) for line in lines]
    seen: dict[str, int] = {}
    for number, label in enumerate(labels, start=1):
        if problem := _line_problem(label):
            raise UserError(f"{path}:{number}: {problem}")
        if (first := seen.setdefault(folded(label), number)) != number:
            raise UserError(f"{path}:{number}: label {label!r} stands already on line {first}")
    return tuple(labels)


def _label_text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # a pipe may never end
            raise UserError(f"--label_path {path}: is no file")
        with path.open("rb") as file:
            content = file.read(_MOST_LABEL_BYTES + 1)
        if len(content) > _MOST_LABEL_BYTES:
            raise UserError(f"--label_path {path}: over {_MOST_LABEL_BYTES >> 20} MB; expected labels, one a line")
        return content.decode("utf-8-sig")
    except (OSError, ValueError) as error:  # ValueError: bytes that are not UTF-8, a path that cannot be one
        reason = f"byte {error.start}: not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        reason = getattr(error, "strerror", None) or str(reason)
        raise UserError(f"--label_path {path}: cannot be read ({reason})") from error


def _line_problem(label: str) -> str | None:
    """Why a line of a label file is no label, or None."""
    if not label:
        return "empty line; every line is a label, its number the label's id"
    if len(label) > _LONGEST_LABEL:
        return f"label {label[:20]!r}… has {len(label):,} characters; a label has at most {_LONGEST_LABEL}"
    if any(unicodedata.category(character) == "Cc" for character in label):
        return f"label {label!r} holds a control character"
    problem = label_problem(label)
    return problem and f"label {label!r} {problem}"


def resolve_task(name: str | None, label_path: str | None) -> Task | None:
    """The task that `--task` and `--label_path` name together, or None when neither is given.

    `--label_path` alone: the built-in task with exactly these labels in this order, else a task of the user's own,
    named after the file's folder and "multi_label" until the training data says otherwise. `--task` takes the name of
    a built-in task, or the kind of the user's own ("single_label", "multi_label"). Who gives a labels.txt has said
    what ids mean: the task has no `published_order` then.

    Raises:
        UserError: an unknown name, a kind without labels, or labels that contradict the task.
    """
    known = ", ".join([*BUILT_IN_TASKS, *ANSWER_FORM])
    if name is not None and name not in BUILT_IN_TASKS and name not in ANSWER_FORM:
        raise UserError(f"--task {name}: unknown; known tasks are {known}")
    if label_path is not None and name in SUMMARY_TASKS:
        raise UserError(f"--label_path {label_path}: task {name} has no labels")
    if label_path is None:
        if name in ANSWER_FORM:
            raise UserError(f"--task {name}: needs --label_path with the labels")
        return BUILT_IN_TASKS.get(name)
    labels = read_labels(label_path)
    if name in BUILT_IN_TASKS:
        check_same_labels(f"--label_path {label_path}", labels, f"--task {name}", BUILT_IN_TASKS[name].labels)
        return _numbered_by_file(BUILT_IN_TASKS[name])
    if name is None:
        for task in LABEL_TASKS.values():
            if task.labels == labels:
                return _numbered_by_file(task)
    own_name = Path(label_path).resolve().parent.name or "custom"
    if own_name in BUILT_IN_TASKS or own_name in ANSWER_FORM:
        own_name = f"own-{own_name}"
    return LabelTask(own_name, name or "multi_label", labels, CUSTOM_TEMPLATE)


def _numbered_by_file(task: Task) -> Task:
    return replace(task, published_order=()) if task.published_order else task


def of_built_in(task: Task) -> Task:
    """A task as a task.json tells of it, with what is not in there from the built-in task of its name."""
    known = LABEL_TASKS.get(task.name, task)
    if not task.labels:
        return task
    names = ("instruction_first", "header_allowed", "published_order")
    return replace(task, **{name: getattr(known, name) for name in names})


def with_prompt(task: Task, prompt: Literal["task", "instruction_first", "text_only"]) -> Task:
    """`task` with another wording: its own ("task"), instruction and labels before the text, or the text alone.

    Raises:
        UserError: a task without labels, which has one wording.
    """
    if prompt == "task":
        return task
    if not task.labels:
        raise UserError(f"--prompt {prompt}: task {task.name} has one wording")
    if prompt == "text_only":
        return replace(task, template=TEXT_ONLY, use_chat_template=False)
    return replace(task, template=task.instruction_first, use_chat_template=True)


def with_none(task: Task, allow_none: bool | None, objective: str = "generate") -> Task:
    """`task`, to which that no label applies is an answer if `--allow_none` says so.

    Args:
        task: the task.
        allow_none: the flag.
        objective: how it is answered.

    Raises:
        UserError: a task or an objective with which it cannot be.
    """
    if not allow_none:
        return task
    if not task.labels:
        raise UserError(f"--allow_none: task {task.name} has no labels")
    if objective == "score":
        raise UserError("--allow_none: needs --objective generate or classify; score asks which of the labels is right")
    try:
        return replace(task, allow_none=True)
    except ValueError as error:
        raise UserError(f"--allow_none: {error}") from error


def check_has_labels(task: Task, task_name: str | None, model_path: str | None, needed_by: str) -> None:
    """Raise a `UserError` naming the flag that gave a task without labels.

    Args:
        task: the task.
        task_name, model_path: `--task` and `--model_path`, whichever were given.
        needed_by: what it is that needs labels.
    """
    if not task.labels:
        named = f"--model_path {model_path}" if task_name is None else f"--task {task_name}"
        raise UserError(f"{named}: task {task.name} has no labels, and {needed_by} needs some")


def check_same_labels(one: str, labels: Sequence[str], other: str, expected: Sequence[str]) -> None:
    """Raise a `UserError` naming the first id at which the label lists of `one` and `other` differ."""
    labels, expected = [[composed(label) for label in each] for each in (labels, expected)]
    if labels == expected:
        return
    for i in range(max(len(labels), len(expected))):
        a, b = (labels[i] if i < len(labels) else "nothing"), (expected[i] if i < len(expected) else "nothing")
        if a != b:
            raise UserError(f"{one} contradicts {other}: id {i} is {a!r} in the first, {b!r} in the second")
