"""LabelTask: the labels, the prompt, the target and the answer parser that every stage shares. (no torch)

A text walks down once: `LabelTask.messages` (or `.plain_prompt`) -> `data/encoding.py` (token ids) -> a model ->
`LabelTask.parse`. Training, evaluation and every inference backend take these same steps.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from data.folding import composed, folded
from data.predictions import NONE, Prediction
from data.prompts import Prompted

if TYPE_CHECKING:
    from data.contract import Contract
    from data.loading import Example

SEPARATOR = ", "  # between the labels of an answer, and of the list in the prompt
SEPARATORS = re.compile(r"[,，、]")  # what is taken for one in an answer that was read
_CLOSING = " \t\r\n.。!！?？:：;；,，、…"  # what may follow an answer without changing it
_REASONED = re.compile(r"\s*<think>(?P<rationale>.*?)</think>\s*<answer>(?P<answer>.*?)</answer>\s*", re.DOTALL)
_TAGS = re.compile(r"</?(?:think|answer)>")
THINK = "<think>\n"  # opens the reasoning

DEFAULT_MOST_LABELS = 5  # of an answer, where no training data says more: GoEmotions never has more

ANSWER_FORM = {
    "single_label": "Answer with one of them.",
    "multi_label": "Answer with all that apply, separated by commas.",
}
NONE_FORM = f"Answer with all that apply, separated by commas, or with {NONE} if none applies."
KINDS = {"single_label": "one label a text", "multi_label": "one or more labels a text"}
COT_FORM = "Reason first, between <think> and </think>. Then, between <answer> and </answer>: {form}"
# Instruction and labels first, text last: the prompts of a data set share all of their beginning.
CUSTOM_TEMPLATE = "Labels: {labels}\nWhich fits the text? {answer_form}\n\nText:\n{text}"
TEXT_ONLY = "{text}"  # the template of heads that read nothing but the text
DEMO_TEXTS = (
    "You made my day, thank you so much!",
    "I can't believe they cancelled it again. This is infuriating.",
    "Does anyone know when the shop opens tomorrow?",
    "I miss my grandmother more every winter.",
    "这家酒店的服务太好了，下次还来。",
    "房间又小又吵，一晚上没睡好。",
)
_GAPS = re.compile(r"\{(text|labels|answer_form)\}")


@dataclass(frozen=True)
class LabelTask(Prompted):
    """A label set with the words around it.

    Attributes:
        name: name of a built-in task, or of the user's own.
        kind: "multi_label" (one or more labels a text) or "single_label" (exactly one).
        allow_none: a text of a multi-label task may also have no label, to which the answer is `NONE`.
        most_labels: how many labels an answer to a multi-label task may have. It follows from the training data, so it
            is in task.json, but tasks that differ in it only are equal.
        labels: the label set; a label's place in it is its id.
        template: the prompt; `{labels}`, `{text}` and (optionally) `{answer_form}` are filled in.
        use_chat_template: wrap the prompt in the tokenizer's chat template where it has one. False: the template is
            all there is, and nothing is put around it or behind it.
        instruction_first: the template of `--prompt instruction_first`.
        header_allowed: False where the published files have no header, so that one is a mistake.
        published_order: the labels in the order of the ids in published files, where that is another: an id without
            its name could mean either.

    The last three belong to the name: they are not in task.json, and tasks that differ in them only are equal.

    Raises:
        ValueError: fewer than two labels, a repeated one (upper and lower case are one), one that cannot be written
            (`label_problem`), a template that does not hold `{text}` once, answers of fewer than one label, or
            `allow_none` where a text has one label or a label is called `NONE`.
    """

    sampling: ClassVar[None] = None  # nothing is drawn: an answer is one of a list
    demo: ClassVar[tuple[str, ...]] = DEMO_TEXTS
    objectives: ClassVar[tuple[str, ...]] = ("generate", "classify", "score")
    what_is_lost: ClassVar[str] = "their end"
    unit: ClassVar[str] = "text"  # what the model is asked about
    written: ClassVar[str] = "the labels"  # what it answers
    pipeline_tag: ClassVar[str] = "text-classification"  # of the hub
    limits: ClassVar[tuple[str, ...]] = ()  # of every model of such a task

    name: str
    kind: Literal["multi_label", "single_label"]
    labels: tuple[str, ...]
    template: str
    use_chat_template: bool = True
    allow_none: bool = field(default=False, kw_only=True)
    most_labels: int = field(default=DEFAULT_MOST_LABELS, compare=False, kw_only=True, metadata={"stored": True})
    instruction_first: str = field(default=CUSTOM_TEMPLATE, compare=False, kw_only=True)
    header_allowed: bool = field(default=True, compare=False, kw_only=True)
    published_order: tuple[str, ...] = field(default=(), compare=False, kw_only=True)

    def __post_init__(self):
        if self.kind not in ANSWER_FORM:
            raise ValueError(f"task kind {self.kind!r}: must be one of {', '.join(ANSWER_FORM)}")
        if len(self.labels) < 2:
            raise ValueError(f"task {self.name}: needs at least two labels, got {list(self.labels)}")
        for label in self.labels:
            if problem := label_problem(label):
                raise ValueError(f"task {self.name}: label {label!r} {problem}")
        if len(self._by_folded) != len(self.labels):
            raise ValueError(f"task {self.name}: a label stands twice (upper and lower case count as one)")
        if (count := self.template.count("{text}")) != 1:
            raise ValueError(f"task {self.name}: the prompt template has {{text}} {count} times, expected once")
        if self.most_labels < 1:
            raise ValueError(f"task {self.name}: an answer has at most {self.most_labels} labels, expected 1 or more")
        if self.allow_none and self.kind == "single_label":
            raise ValueError(f"task {self.name}: is single_label, so each text has a label")
        if self.allow_none and NONE in self._by_folded:
            label = self._by_folded[NONE]
            raise ValueError(f"task {self.name}: label {label!r} is what the answer is called that no label applies")

    @cached_property
    def ids(self) -> dict[str, int]:
        """Label -> id."""
        return {label: i for i, label in enumerate(self.labels)}

    @cached_property
    def _by_folded(self) -> dict[str, str]:
        return {folded(label): label for label in self.labels}

    @cached_property
    def _by_spelling(self) -> dict[str, str]:
        return {composed(label): label for label in self.labels}

    def named(self, name: str) -> str | None:
        """The label that is spelt `name`, however accents in it are encoded; None where there is none."""
        return self._by_spelling.get(composed(name))

    @cached_property
    def _anywhere(self) -> re.Pattern:
        """Finds labels inside other words; longer labels first, so that "money-fx" is not read as "money"."""
        alternatives = map(re.escape, sorted(self._by_folded, key=len, reverse=True))
        guarded = (rf"(?<!\w){a}(?!\w)" if a.isascii() else a for a in alternatives)
        return re.compile("|".join(guarded))

    @property
    def default_metric(self) -> str:
        """The label metric that says best how good a model is at this task."""
        return "f1_macro" if self.kind == "multi_label" else "accuracy"

    @property
    def kind_in_words(self) -> str:
        """The kind as a person says it."""
        return "any number of labels a text, or none" if self.allow_none else KINDS[self.kind]

    def prompt(self, text: str, cot: bool = False) -> str:
        """The question about one text, without any chat markup."""
        form = NONE_FORM if self.allow_none else ANSWER_FORM[self.kind]
        form = COT_FORM.format(form=form) if cot else form
        template = self.template
        if (cot or self.allow_none) and "{answer_form}" not in template and template != TEXT_ONLY:
            template = "{answer_form}\n" + template
        filled = {"text": text, "labels": SEPARATOR.join(self.labels), "answer_form": form}
        return _GAPS.sub(lambda gap: filled[gap[1]], template)  # at once: what is filled in may hold braces of its own

    def pieces(self, text: str) -> list[str]:
        """A text as it stands in the prompt: spaces and line breaks around it are no part of it, so that files, flags
        and the page spell one text alike."""
        return [text.strip()]

    def truncate(self, sizes: Sequence[int], room: int) -> tuple[list[tuple[int, int]], bool]:
        """Which pieces of a text go into the prompt, where it has more tokens than `room`: a text loses its end.

        Returns:
            Pieces, each with how many of its tokens are kept; and whether anything was left out.
        """
        return [(0, min(sizes[0], room))], sizes[0] > room

    def target(self, gold: Iterable[str], rationale: str | None = None) -> str:
        """The answer to train on: gold labels in the task's order, or that there are none, inside tags after the
        reasoning if there is one.

        >>> LabelTask("moods", "multi_label", ("calm", "tense"), "{text}").target(["tense", "calm"])
        'calm, tense'

        Raises:
            KeyError: a gold label that the task does not have.
        """
        answer = self.answer(self.in_order(gold))
        return answer if rationale is None else f"{self.reasoning(rationale)}<answer>{answer}</answer>"

    def answer(self, labels: Sequence[str]) -> str:
        """How these labels are written, in this order."""
        return SEPARATOR.join(labels) if labels or not self.allow_none else NONE

    def reasoning(self, rationale: str) -> str:
        """What stands before the answer where a model reasons."""
        return f"{THINK}{rationale}\n</think>\n"

    def parse(self, completion: str, cot: bool = False) -> Prediction:
        """Read an answer.

        Tolerant of case, order, spaces, and punctuation after a label; strict about everything else: an unknown word,
        a repeated label, a second label in a single-label task, or (with `cot`) reasoning and answer not each in
        their tags, once and in order, make it invalid. What could be read of an invalid answer is still returned.

        >>> LabelTask("moods", "multi_label", ("calm", "tense"), "{text}").parse("Tense,  calm.").labels
        ('calm', 'tense')
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
        pieces = [folded(piece) for piece in SEPARATORS.split(answer.strip(" \t\r\n,，、"))]
        if self.allow_none and [piece.rstrip(_CLOSING) for piece in pieces] == [NONE]:
            return (), True
        # as it stands first: a label may end with a full stop of its own
        known = [self._by_folded.get(p) or self._by_folded.get(p.rstrip(_CLOSING)) for p in pieces]
        if all(known):
            found, clean = known, len(set(known)) == len(known)
        else:
            found, clean = [self._by_folded[m] for m in self._anywhere.findall(folded(answer))], False
        if self.kind == "single_label":
            return tuple(found[:1]), clean and len(found) == 1
        return self.in_order(found), clean

    # --- files and scores; the modules that are called here know a LabelTask ----------------------------------------

    def in_language_of(self, examples: Iterable["Example"]) -> "LabelTask":
        """The task itself: its words are those of its labels."""
        return self

    def answered_as_in(self, train: Sequence["Example"]) -> "LabelTask":
        """The task with answers of as many labels as a training row has at most."""
        return replace(self, most_labels=max([1, *(len(example.gold) for example in train)]))

    def read(
        self, path: str | Path, flag: str, labels_required: bool = True, cot: bool = False,
        rejected: list[dict[str, Any]] | None = None, most_labels: int | None = None,
    ) -> Iterator["Example"]:  # fmt: skip
        """The rows of a data file; see `data.loading.load_examples`."""
        from data.loading import read_examples

        return read_examples(path, self, flag, labels_required, cot, rejected, most_labels)

    def asked_in(self, text: str, where: str) -> str:
        """What is asked about in one line: the text."""
        return text

    def problem(self, text: Any) -> str | None:
        """Why this cannot be asked about, or None: what stands behind "text 3"."""
        if not isinstance(text, str):
            return f"is of type {type(text).__name__}, expected str"
        if not text.strip():
            return "is empty"
        half = not text.isprintable() and any("\ud800" <= c <= "\udfff" for c in text)
        return "holds half a character (a lone surrogate)" if half else None

    def spelt(self, text: str) -> str:
        """A text for people."""
        return text

    @property
    def metrics(self) -> tuple[str, ...]:
        """The scores that a checkpoint may be chosen by."""
        from data.metrics import LABEL_METRICS

        return LABEL_METRICS

    def score(self, gold: Sequence["Example"], predictions: Sequence[Prediction]) -> dict[str, Any]:
        """See `data.metrics.label_metrics`."""
        from data.metrics import label_metrics

        return label_metrics([example.labels for example in gold], predictions, self)

    def given(self, example: "Example") -> dict[str, Any]:
        """What a row of predictions.jsonl has of the example itself."""
        gold = None if example.labels is None else list(example.labels)
        return {"id": example.id, "text": example.text, "gold": gold}

    def result_row(self, example: "Example", prediction: Prediction) -> dict[str, Any]:
        """What predictions.jsonl says of one text."""
        answer = {
            "labels": prediction.labels,
            "probabilities": prediction.probabilities,
            "confidence": prediction.confidence,
            "valid": prediction.valid,
            "completion": prediction.completion,
            "truncated": prediction.truncated,
            "pruned_mass": prediction.pruned_mass,
        }
        return self.given(example) | answer | prediction.promised

    def check_row(self, row: dict[str, Any], place: str) -> None:
        """Raise a `UserError` that names `place` where a row is none that `result_row` gives."""
        from data.prediction_rows import check_fields, check_row

        check_fields(row, place)
        check_row(row, place, self)

    def measure(self, rows: Iterable[dict[str, Any]], contract: "Contract") -> dict[str, Any]:
        """Scores of predicted rows, as `test_results.json` has them; see `data.prediction_rows.measure`."""
        from data.prediction_rows import measure

        return measure(rows, contract)

    def summary_of(self, scores: dict[str, Any], title: str) -> str:
        """`test_summary.txt`: the scores as a person reads them."""
        from data.metrics import format_summary

        return format_summary(scores, title)

    def data_report(self, train: Sequence["Example"]) -> dict[str, Any]:
        """What is to be known of training rows; see `data.loading.label_report`."""
        from data.loading import label_report

        return label_report(train)

    def in_order(self, labels: Iterable[str]) -> tuple[str, ...]:
        """Labels in the task's order, each once.

        Raises:
            KeyError: one that the task does not have.
        """
        return tuple(sorted(set(labels), key=self.ids.__getitem__))


def rationale_in(completion: str) -> str:
    """The reasoning in an answer that has got no further than its end, without tags."""
    return next(filter(str.strip, _TAGS.split(completion)), "").strip()


def holds_tags(text: str) -> bool:
    """Whether a tag of ours stands in `text`, such as `</think>`."""
    return bool(_TAGS.search(text))


def label_problem(label: str) -> str | None:
    """Why this can be no label, or None: an answer that holds it could not be read."""
    if not label or label != label.strip() or len(label.splitlines()) > 1:
        return "is empty, padded, or holds a line break"
    if SEPARATORS.search(label):
        return "holds a comma, which separates the labels of an answer"
    if holds_tags(label):
        return "holds a tag that stands around reasoning or answer"
    if any(unicodedata.category(character) == "Cs" for character in label):
        return "holds half a character (a lone surrogate)"
    return None


def _after_reasoning(completion: str) -> tuple[str, str | None]:
    """`"<think>why</think> joy"` -> `("joy", "why")`; a broken `<answer>` tag is looked past."""
    rationale, closed, answer = completion.rpartition("</think>")
    answer = answer.rpartition("<answer>")[2].partition("</answer>")[0]
    return answer, (rationale.replace("<think>", "").strip() or None) if closed else None
