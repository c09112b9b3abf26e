"""SummaryTask: the prompt, the target and the cut that every stage shares for summaries of cases. (no torch)

It answers what `data.labels.LabelTask` answers for texts with labels. What the model reads is a `Case`.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal

from data.arguments import UserError
from data.perturbing.perturbations import main_language
from data.predictions import Prediction
from data.prompts import Prompted
from data.row_values import RowError
from data.sampling import Sampling
from data.summaries.cases import (
    TRUNCATED,
    WRITTEN,
    Case,
    case_in,
    read_cases,
    written_in,
)
from data.summaries.demo import DEMO_CASES
from data.summaries.metrics import format_scores, summary_metrics

FINISHED = "finished"  # in rows: whether a summary came to its end within its tokens
GAP = "[…]"  # stands for turns that were left out
# Instruction first, so that all prompts begin alike; what is asked for once more behind a case of thousands of words.
TEMPLATES = {
    "en": "You are an experienced counsellor. Below is a case: what is known of the person, and how the consultation "
    "went.\n\n{text}\n\nNow write your experience and reflection on this case: the causes of the problem, its "
    "symptoms, the course of the treatment, what is characteristic of it, and what the treatment achieved.",
    "zh": "你是一位经验丰富的心理咨询师。下面是一个个案：来访者的情况和咨询的过程。\n\n{text}\n\n"
    "请写下你对这个个案的体会与反思：问题的成因、症状表现、治疗过程、病症特点以及治疗效果。",
}
HEADINGS = {"en": ("Case description:", "Consultation:"), "zh": ("个案描述：", "咨询过程：")}
KIND = "emotion-summary"
_LOOKED_AT = 200  # cases, to find out their language


@dataclass(frozen=True)
class SummaryTask(Prompted):
    """Counselling cases, and the counsellor's experience and reflection on each, which a model is to write.

    Attributes:
        name: that of its kind, or that and its language, if this was set or found.
        kind: of tasks: it tells this one from those with labels.
        language: of the prompt.
        template: the prompt; `{text}` is filled in.
        use_chat_template: wrap the prompt in the tokenizer's chat template where it has one.

    Raises:
        ValueError: a template that does not hold `{text}` once.
    """

    labels: ClassVar[tuple[str, ...]] = ()
    allow_none: ClassVar[bool] = False  # there is a summary of every case
    sampling: ClassVar[Sampling] = Sampling()  # where nothing else is asked for
    default_metric: ClassVar[str] = "loss"  # hundreds of summaries take longer to write than to learn from
    metrics: ClassVar[tuple[str, ...]] = ("rouge1_f1", "rouge2_f1", "rougeL_f1", "bleu")
    demo: ClassVar[tuple[Case, ...]] = DEMO_CASES
    objectives: ClassVar[tuple[str, ...]] = ("generate",)
    what_is_lost: ClassVar[str] = "turns from the middle of their consultation"
    unit: ClassVar[str] = "case"
    written: ClassVar[str] = "a summary"
    kind_in_words: ClassVar[str] = "a summary of each counselling case: the counsellor's experience and reflection"
    pipeline_tag: ClassVar[str] = "summarization"
    limits: ClassVar[tuple[str, ...]] = (
        "A summary may say what its case does not: the scores count shared words, and no counsellor has checked it.",
    )

    name: str
    kind: Literal["emotion-summary"]
    language: Literal["en", "zh"]
    template: str
    use_chat_template: bool = True

    def __post_init__(self):
        if (count := self.template.count("{text}")) != 1:
            raise ValueError(f"task {self.name}: the prompt template has {{text}} {count} times, expected once")

    def in_language_of(self, cases: Iterable[Case]) -> "SummaryTask":
        """The task with its prompt in the language of most of the cases, if none was set."""
        if self.name != KIND:
            return self
        return SUMMARY_TASKS[f"{KIND}-{main_language([case.text for case in islice(cases, _LOOKED_AT)])}"]

    def answered_as_in(self, train: Sequence[Case]) -> "SummaryTask":
        """The task itself: how long an answer is says its sampling."""
        return self

    # --- asking -----------------------------------------------------------------------------------------------------

    def prompt(self, text: str, cot: bool = False) -> str:
        """The question about a case that is laid out already, without any chat markup."""
        before, behind = self.template.split("{text}")
        return before + text + behind

    def pieces(self, case: Case) -> list[str]:
        """A case as it is laid out in the prompt, in pieces: what is known, a heading, turn by turn; the last piece
        stands for turns that are left out."""
        description, process = HEADINGS[self.language]
        known = "\n".join([description, *case.case_description])
        return [known, f"\n\n{process}", *(f"\n{turn}" for turn in case.consultation_process), f"\n{GAP}"]

    def truncate(self, sizes: Sequence[int], room: int) -> tuple[list[tuple[int, int]], bool]:
        """Which pieces of a case go into the prompt, where not all of them fit.

        The description and the first and last turns stay; of the other turns, those nearest the middle go first. Where
        even what stays is too long, its three parts lose their ends, the longest first.

        Args:
            sizes: tokens of each of `pieces`.
            room: tokens that the case may have.

        Returns:
            Pieces in their order, each with how many of its tokens are kept; and whether anything was left out.
        """
        known, heading, *turns, gap = sizes
        if known + heading + sum(turns) <= room:
            return [(i, sizes[i]) for i in range(len(sizes) - 1)], False
        first, last = 2, len(sizes) - 2
        ends = sorted({first, last})
        room_in_parts = room - heading - (gap if len(turns) > 2 else 0)  # of fewer, none can be missing
        limits = _shares([known, *(sizes[i] for i in ends)], room_in_parts)
        spare = room_in_parts - sum(limits)
        front, back = [(first, limits[1])], [(last, limits[-1])] if last > first else []
        before, behind = first + 1, last - 1
        open_before = open_behind = True
        while before <= behind and (open_before or open_behind):
            if open_before and (open_before := sizes[before] <= spare):
                front.append((before, sizes[before]))
                spare, before = spare - sizes[before], before + 1
            if before <= behind and open_behind and (open_behind := sizes[behind] <= spare):
                back.insert(0, (behind, sizes[behind]))
                spare, behind = spare - sizes[behind], behind - 1
        missing = [(len(sizes) - 1, gap)] if before <= behind else []
        kept = [(0, limits[0]), (1, heading), *front, *missing, *back]
        return _first_tokens(kept, room), True

    # --- answering --------------------------------------------------------------------------------------------------

    def target(self, gold: Iterable[str], rationale: str | None = None) -> str:
        """The answer to train on: the counsellor's own."""
        (summary,) = gold
        return summary

    def parse(self, completion: str, cot: bool = False) -> Prediction:
        """What a model wrote, without the zero bytes that no file may hold; valid where there is something."""
        written = completion.replace("\0", "").strip()
        return Prediction((), bool(written), completion=written)

    def score(self, gold: Sequence[Case], predictions: Sequence[Prediction]) -> dict[str, Any]:
        """See `data.summaries.metrics`."""
        return summary_metrics(gold, [p.completion for p in predictions], [p.truncated for p in predictions])

    # --- files ------------------------------------------------------------------------------------------------------

    def read(
        self, path: str | Path, flag: str, labels_required: bool = True, cot: bool = False,
        rejected: list[dict[str, Any]] | None = None, most_labels: int | None = None,
    ) -> Iterator[Case]:  # fmt: skip
        """The cases of a file; see `data.summaries.cases.read_cases`."""
        return read_cases(path, flag, rejected, summaries_required=labels_required)

    def asked_in(self, text: str, where: str) -> Case:
        """A case from one line of JSON.

        Raises:
            UserError: it is none; calls it `where`.
        """
        try:
            return case_in(text)
        except RowError as error:
            raise UserError(f"{where}: {error}") from error

    def problem(self, case: Any) -> str | None:
        """Why this cannot be asked about, or None: what stands behind "text 3"."""
        return (
            None if isinstance(case, Case) else f"is of type {type(case).__name__}, expected data.summaries.cases.Case"
        )

    def spelt(self, case: Case) -> str:
        """A case for people."""
        return case.text

    def given(self, case: Case) -> dict[str, Any]:
        """What a row of predictions.jsonl has of the case itself."""
        return case.record()

    def result_row(self, case: Case, prediction: Prediction) -> dict[str, Any]:
        """What predictions.jsonl says of one case: the case, and what was written of it."""
        return self.given(case) | {
            WRITTEN: prediction.completion,
            TRUNCATED: prediction.truncated,
            FINISHED: prediction.valid,
            "confidence": prediction.confidence,
        }

    def check_row(self, row: dict[str, Any], place: str) -> None:
        """Raise a `UserError` that names `place` where a row is none that `result_row` gives."""
        try:
            written_in(row)
        except RowError as error:
            raise UserError(f"{place}: {error}, so this is no line of written summaries") from error
        if not isinstance(row.get(FINISHED), bool):
            raise UserError(f"{place}: {FINISHED} is not true or false, so this is no line of written summaries")

    def measure(self, rows: Iterable[dict[str, Any]], contract: Any) -> dict[str, Any]:
        """Scores of predicted rows, as `test_results.json` has them; see `data.summaries.metrics`."""
        rows = list(rows)
        written = [written_in(row) for row in rows]
        texts, truncated = [each.text for each in written], [bool(each.truncated) for each in written]
        unfinished = sum(not row[FINISHED] for row in rows) / len(rows)
        return summary_metrics([each.case for each in written], texts, truncated) | {"unfinished_rate": unfinished}

    def summary_of(self, scores: dict[str, Any], title: str) -> str:
        """`test_summary.txt`: the scores as a person reads them."""
        return format_scores(scores, title)

    def data_report(self, train: Sequence[Case]) -> dict[str, Any]:
        """How many different cases the training rows are of, and how many repeat case and summary of another."""
        pairs = {(case.text, case.summary) for case in train}
        return {"train_cases": len({text for text, _ in pairs}), "train_repeated_rows": len(train) - len(pairs)}


SUMMARY_TASKS = {
    name: SummaryTask(name, KIND, language, TEMPLATES[language])
    for name, language in ((KIND, "en"), (f"{KIND}-en", "en"), (f"{KIND}-zh", "zh"))
}


def _shares(wanted: Sequence[int], room: int) -> list[int]:
    """What each gets of `room` where they may want more together: the largest give first, until they are equal.

    >>> _shares([10, 100, 40], 90)
    [10, 40, 40]
    """
    limits, left = [0] * len(wanted), max(room, 0)
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    for done, i in enumerate(order):
        limits[i] = min(wanted[i], left // (len(order) - done))
        left -= limits[i]
    return limits


def _first_tokens(kept: Sequence[tuple[int, int]], room: int) -> list[tuple[int, int]]:
    """`kept` pieces, cut off behind `room` tokens."""
    found = []
    for piece, count in kept:
        found.append((piece, min(count, room)))
        room -= found[-1][1]
    return found
