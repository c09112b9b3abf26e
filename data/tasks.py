"""The built-in tasks, and which task the flags, or a task.json, name. (no torch)"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from data.arguments import UserError
from data.labels import ANSWER_FORM, CUSTOM_TEMPLATE, SEPARATORS, TEXT_ONLY, LabelTask
from data.published import DATA_SETS

Task = LabelTask  # what stages say where the kind of task makes no difference
BUILT_IN_TASKS: dict[str, Task] = {
    task.name: task for data_set in DATA_SETS.values() for task in data_set.tasks.values()
}


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Labels of a `labels.txt`: one a line, line number = id (the first is 0).

    Raises:
        UserError: the file is missing, empty, not UTF-8, or a line is blank or stands twice.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").rstrip().split("\n")  # as editors count lines
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--label_path {path}: cannot be read ({_reason(error)})") from error
    if len(lines) < 2:
        raise UserError(f"--label_path {path}: needs at least two labels, one a line; found {len(lines)}")
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        label = line.strip()
        if not label:
            raise UserError(f"{path}:{number}: empty line; every line is a label, its number the label's id")
        if SEPARATORS.search(label):
            raise UserError(f"{path}:{number}: label {label!r} holds a comma, which separates the labels of an answer")
        if label.casefold() in seen:
            raise UserError(f"{path}:{number}: label {label!r} stands already on line {seen[label.casefold()]}")
        seen[label.casefold()] = number
    return tuple(line.strip() for line in lines)


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start}: not UTF-8"
    return getattr(error, "strerror", None) or str(error)


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
    if label_path is None:
        if name in ANSWER_FORM:
            raise UserError(f"--task {name}: needs --label_path with the labels")
        return BUILT_IN_TASKS.get(name)
    labels = read_labels(label_path)
    if name in BUILT_IN_TASKS:
        check_same_labels(f"--label_path {label_path}", labels, f"--task {name}", BUILT_IN_TASKS[name].labels)
        return _numbered_by_file(BUILT_IN_TASKS[name])
    if name is None:
        for task in BUILT_IN_TASKS.values():
            if task.labels == labels:
                return _numbered_by_file(task)
    own_name = Path(label_path).resolve().parent.name or "custom"
    if own_name in BUILT_IN_TASKS:
        own_name = f"own-{own_name}"
    return LabelTask(own_name, name or "multi_label", labels, CUSTOM_TEMPLATE)


def _numbered_by_file(task: Task) -> Task:
    return replace(task, published_order=()) if task.published_order else task


def of_built_in(task: Task) -> Task:
    """A task as a task.json tells of it, with what is not in there from the built-in task of its name."""
    known = BUILT_IN_TASKS.get(task.name, task)
    names = ("instruction_first", "header_allowed", "published_order")
    return replace(task, **{name: getattr(known, name) for name in names})


def with_prompt(task: Task, prompt: Literal["task", "instruction_first", "text_only"]) -> Task:
    """`task` with another wording: its own ("task"), instruction and labels before the text, or the text alone."""
    if prompt == "task":
        return task
    if prompt == "text_only":
        return replace(task, template=TEXT_ONLY, use_chat_template=False)
    return replace(task, template=task.instruction_first, use_chat_template=True)


def check_same_labels(one: str, labels: Sequence[str], other: str, expected: Sequence[str]) -> None:
    """Raise a `UserError` naming the first id at which the label lists of `one` and `other` differ."""
    if tuple(labels) == tuple(expected):
        return
    for i in range(max(len(labels), len(expected))):
        a, b = (labels[i] if i < len(labels) else "nothing"), (expected[i] if i < len(expected) else "nothing")
        if a != b:
            raise UserError(f"{one} contradicts {other}: id {i} is {a!r} in the first, {b!r} in the second")
