"""Task: the labels, the prompt, the target and the answer parser that every stage shares. (no torch)

A text walks down once: `Task.messages` (or `Task.plain_prompt`) -> `data/encoding.py` (token ids) -> a model ->
`Task.parse`. Training, evaluation and every inference backend take these same steps.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from data.arguments import UserError

SEPARATOR = ", "  # between the labels of an answer, and of the list in the prompt
_SEPARATORS = re.compile(r"[,，、]")
_CLOSING = " \t\r\n.。!！?？:：;；,，、…"  # what may follow an answer without changing it
_REASONED = re.compile(r"\s*<think>(?P<rationale>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)
_TAGS = re.compile(r"</?(?:think|answer)>")
THINK = "<think>\n"  # opens the reasoning

ANSWER_FORM = {
    "single_label": "Answer with one of them.",
    "multi_label": "Answer with all that apply, separated by commas.",
}
COT_FORM = "Reason first, between <think> and </think>. Then, between <answer> and </answer>: {form}"


@dataclass(frozen=True)
class Prediction:
    """What one completion says.

    Attributes:
        labels: labels of the task, in the task's order, without repeats. Empty when none could be read.
        valid: the completion is an answer to the letter: only known labels, each once, nothing around them.
        rationale: the reasoning between `<think>` tags, if there is any.
        completion: the text the model wrote.
        confidence: probability of the whole answer under the model, 0 to 1, where the backend measured it; where only
            valid answers may be written, among those (and given the reasoning, if there is any).
        probabilities: label -> probability, where the backend measured them.
    """

    labels: tuple[str, ...]
    valid: bool
    rationale: str | None = None
    completion: str = ""
    confidence: float | None = None
    probabilities: dict[str, float] | None = None

    @property
    def label(self) -> str | None:
        """The first label, or None: the one that counts in a single-label task."""
        return self.labels[0] if self.labels else None


@dataclass(frozen=True)
class Task:
    """A label set with the words around it.

    Attributes:
        name: name of a built-in task, or of the user's own.
        kind: "multi_label" (one or more labels a text) or "single_label" (exactly one).
        labels: the label set; a label's place in it is its id.
        template: the prompt; `{labels}`, `{text}` and (optionally) `{answer_form}` are filled in.
        use_chat_template: wrap the prompt in the tokenizer's chat template where it has one.

    Raises:
        ValueError: fewer than two labels, an empty or repeated one (upper and lower case are one), a separator in a
            label, or a template without `{text}`.
    """

    name: str
    kind: Literal["multi_label", "single_label"]
    labels: tuple[str, ...]
    template: str
    use_chat_template: bool = True

    def __post_init__(self):
        if self.kind not in ANSWER_FORM:
            raise ValueError(f"task kind {self.kind!r}: must be one of {', '.join(ANSWER_FORM)}")
        if len(self.labels) < 2:
            raise ValueError(f"task {self.name}: needs at least two labels, got {list(self.labels)}")
        for label in self.labels:
            if not label or label != label.strip() or "\n" in label or _SEPARATORS.search(label):
                raise ValueError(f"task {self.name}: label {label!r} is empty, padded, or holds a comma or line break")
        if len(self._by_folded) != len(self.labels):
            raise ValueError(f"task {self.name}: a label stands twice (upper and lower case count as one)")
        if "{text}" not in self.template:
            raise ValueError(f"task {self.name}: the prompt template has no {{text}}")

    @cached_property
    def ids(self) -> dict[str, int]:
        """Label -> id."""
        return {label: i for i, label in enumerate(self.labels)}

    @cached_property
    def _by_folded(self) -> dict[str, str]:
        return {_folded(label): label for label in self.labels}

    @cached_property
    def _anywhere(self) -> re.Pattern:
        """Finds labels inside other words; longer labels first, so that "money-fx" is not read as "money"."""
        alternatives = (re.escape(folded) for folded in sorted(self._by_folded, key=len, reverse=True))
        guarded = (rf"(?<!\w){a}(?!\w)" if a.isascii() else a for a in alternatives)
        return re.compile("|".join(guarded))

    @property
    def template_hash(self) -> str:
        """First 16 hex digits of the template's SHA-256: two runs with the same hash asked the same question."""
        return hashlib.sha256(self.template.encode()).hexdigest()[:16]

    def prompt(self, text: str, cot: bool = False) -> str:
        """The question about one text, without any chat markup."""
        form = ANSWER_FORM[self.kind]
        form = COT_FORM.format(form=form) if cot else form
        template = self.template
        if cot and "{answer_form}" not in template:
            template = "{answer_form}\n" + template
        filled = template.replace("{answer_form}", form).replace("{labels}", SEPARATOR.join(self.labels))
        return filled.replace("{text}", text)  # last: a text may hold braces of its own

    def messages(self, text: str, cot: bool = False) -> list[dict[str, str]]:
        """The question as a chat of one user turn."""
        return [{"role": "user", "content": self.prompt(text, cot)}]

    def plain_prompt(self, text: str, cot: bool = False) -> str:
        """The question for a model without a chat template: the prompt, ending where the answer begins."""
        prompt = self.prompt(text, cot)
        return prompt if self.template == TEXT_ONLY or prompt.endswith((":", "：")) else prompt + "\n\nAnswer:"

    def target(self, gold: Iterable[str], rationale: str | None = None) -> str:
        """The answer to train on: gold labels in the task's order, inside tags after the reasoning if there is one.

        >>> BUILT_IN_TASKS["goemotions-group"].target(["positive", "ambiguous"])
        'ambiguous, positive'

        Raises:
            KeyError: a gold label that the task does not have.
        """
        answer = SEPARATOR.join(self._in_order(gold))
        return answer if rationale is None else f"{self.reasoning(rationale)}<answer>{answer}</answer>"

    def reasoning(self, rationale: str) -> str:
        """What stands before the answer where a model reasons."""
        return f"{THINK}{rationale}\n</think>\n"

    def parse(self, completion: str, cot: bool = False) -> Prediction:
        """Read an answer.

        Tolerant of case, order, spaces, and punctuation after a label; strict about everything else: an unknown word,
        a repeated label, a second label in a single-label task, or (with `cot`) reasoning and answer not each in
        their tags, once and in order, make it invalid. What could be read of an invalid answer is still returned.

        >>> BUILT_IN_TASKS["goemotions-group"].parse("Positive,  ambiguous.").labels
        ('ambiguous', 'positive')
        """
        reasoned = _REASONED.fullmatch(completion)
        if reasoned and len(_TAGS.findall(completion)) == 4:
            answer, rationale, formed = reasoned["answer"], reasoned["rationale"].strip() or None, cot
        else:
            answer, rationale = _after_reasoning(completion)
            formed = not cot and not _TAGS.search(completion)
        labels, clean = self._read(answer)
        return Prediction(labels, clean and formed, rationale, completion)

    def _read(self, answer: str) -> tuple[tuple[str, ...], bool]:
        """Labels in `answer`, and whether there was nothing else in it."""
        pieces = [_folded(piece) for piece in _SEPARATORS.split(answer.strip(" \t\r\n,，、"))]
        # as it stands first: a label may end with a full stop of its own
        known = [self._by_folded.get(p) or self._by_folded.get(p.rstrip(_CLOSING)) for p in pieces]
        if all(known):
            found, clean = known, len(set(known)) == len(known)
        else:
            found, clean = [self._by_folded[m] for m in self._anywhere.findall(_folded(answer))], False
        if self.kind == "single_label":
            return tuple(found[:1]), clean and len(found) == 1
        return self._in_order(found), clean

    def _in_order(self, labels: Iterable[str]) -> tuple[str, ...]:
        return tuple(sorted(set(labels), key=self.ids.__getitem__))


def rationale_in(completion: str) -> str:
    """The reasoning in an answer that has got no further than its end, without tags."""
    return next(filter(str.strip, _TAGS.split(completion)), "").strip()


def _folded(text: str) -> str:
    """Case and spaces that make no difference taken out."""
    return " ".join(text.split()).casefold()


def _after_reasoning(completion: str) -> tuple[str, str | None]:
    """`"<think>why</think> joy"` -> `("joy", "why")`; a broken `<answer>` tag is looked past."""
    rationale, closed, answer = completion.rpartition("</think>")
    answer = answer.rpartition("<answer>")[2].partition("</answer>")[0]
    return answer, (rationale.replace("<think>", "").strip() or None) if closed else None


# --- built-in tasks -------------------------------------------------------------------------------------------------

# Instruction and labels first, text last: the prompts of a data set share all of their beginning.
EMOTION_TEMPLATE = "Emotions: {labels}\nWhich does the writer of the comment feel? {answer_form}\n\nComment:\n{text}"
CUSTOM_TEMPLATE = "Labels: {labels}\nWhich fits the text? {answer_form}\n\nText:\n{text}"
TEXT_ONLY = "{text}"
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
        if _SEPARATORS.search(label):
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
