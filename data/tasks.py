"""The built-in tasks, and which task the flags name. (no torch)"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from data.arguments import UserError
from data.labels import ANSWER_FORM, CUSTOM_TEMPLATE, SEPARATORS, TEXT_ONLY, LabelTask

Task = LabelTask  # what stages say where the kind of task makes no difference

# --- built-in tasks -------------------------------------------------------------------------------------------------

# Instruction and labels first, text last: the prompts of a data set share all of their beginning.
EMOTION_TEMPLATE = "Emotions: {labels}\nWhich does the writer of the comment feel? {answer_form}\n\nComment:\n{text}"
# The earlier classification system's own wording, text first (FEATURES B7).
REFERENCE_TEMPLATE = (
    'Please carefully read the following reference text:"{{text}}", and determine which of the following categories '
    "it belongs to:{labels},answer:"
)

GOEMOTIONS_LABELS = (
    "admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion", "curiosity", "desire",
    "disappointment", "disapproval", "disgust", "embarrassment", "excitement", "fear", "gratitude", "grief", "joy",
    "love", "nervousness", "optimism", "pride", "realization", "relief", "remorse", "sadness", "surprise", "neutral",
)  # fmt: skip
# The published groupings of the 28 labels (Demszky et al., 2020, "GoEmotions: A Dataset of Fine-Grained Emotions").
_EKMAN_FAMILIES = {
    "anger": ("anger", "annoyance", "disapproval"),
    "disgust": ("disgust",),
    "fear": ("fear", "nervousness"),
    "joy": (
        "joy", "amusement", "approval", "excitement", "gratitude", "love", "optimism", "relief", "pride",
        "admiration", "desire", "caring",
    ),
    "neutral": ("neutral",),
    "sadness": ("sadness", "disappointment", "embarrassment", "grief", "remorse"),
    "surprise": ("surprise", "realization", "confusion", "curiosity"),
}  # fmt: skip
_EKMAN_TO_GROUP = {
    "anger": "negative", "disgust": "negative", "fear": "negative", "sadness": "negative",
    "surprise": "ambiguous", "neutral": "neutral", "joy": "positive",
}  # fmt: skip
GOEMOTIONS_EKMAN = {label: family for family, members in _EKMAN_FAMILIES.items() for label in members}
GOEMOTIONS_GROUP = {label: _EKMAN_TO_GROUP[family] for label, family in GOEMOTIONS_EKMAN.items()}


def _reference_task(name: str, labels: tuple[str, ...]) -> Task:
    listed = json.dumps(labels, separators=(",", ":"))
    return Task(name, "single_label", labels, REFERENCE_TEMPLATE.format(labels=listed))


BUILT_IN_TASKS = {
    task.name: task
    for task in (
        Task("goemotions-original", "multi_label", GOEMOTIONS_LABELS, EMOTION_TEMPLATE),
        Task("goemotions-ekman", "multi_label", tuple(_EKMAN_FAMILIES), EMOTION_TEMPLATE),
        Task("goemotions-group", "multi_label", ("ambiguous", "negative", "neutral", "positive"), EMOTION_TEMPLATE),
        _reference_task("sst2", ("Negative", "Positive")),
        _reference_task("r8", ("acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade")),
        Task("chnsenticorp", "single_label", ("负面", "正面"), "评论：{text}\n情感倾向：", use_chat_template=False),
        Task("emotion", "single_label", ("anger", "fear", "joy", "love", "sadness", "surprise"), EMOTION_TEMPLATE),
    )
}


# --- choosing a task ------------------------------------------------------------------------------------------------


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
    a built-in task, or the kind of the user's own ("single_label", "multi_label").

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
        return BUILT_IN_TASKS[name]
    if name is None:
        for task in BUILT_IN_TASKS.values():
            if task.labels == labels:
                return task
    own_name = Path(label_path).resolve().parent.name or "custom"
    if own_name in BUILT_IN_TASKS:
        own_name = f"own-{own_name}"
    return Task(own_name, name or "multi_label", labels, CUSTOM_TEMPLATE)


def with_prompt(task: Task, prompt: Literal["task", "instruction_first", "text_only"]) -> Task:
    """`task` with another wording: its own ("task"), instruction and labels before the text, or the text alone."""
    if prompt == "task":
        return task
    if prompt == "text_only":
        return replace(task, template=TEXT_ONLY, use_chat_template=False)
    template = EMOTION_TEMPLATE if task.name.startswith(("goemotions", "emotion")) else CUSTOM_TEMPLATE
    return replace(task, template=template, use_chat_template=True)


def check_same_labels(one: str, labels: Sequence[str], other: str, expected: Sequence[str]) -> None:
    """Raise a `UserError` naming the first id at which the label lists of `one` and `other` differ."""
    if tuple(labels) == tuple(expected):
        return
    for i in range(max(len(labels), len(expected))):
        a, b = (labels[i] if i < len(labels) else "nothing"), (expected[i] if i < len(expected) else "nothing")
        if a != b:
            raise UserError(f"{one} contradicts {other}: id {i} is {a!r} in the first, {b!r} in the second")
