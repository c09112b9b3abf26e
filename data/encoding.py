"""Token ids of a task's prompts and targets: the only way from a text to what a model reads. (no torch)"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any, Literal

from data.arguments import UserError, one_line
from data.labels import NONE, SEPARATOR
from data.rendering import PromptIds, spelt_prompt
from data.spelling import Spelling
from data.tasks import Task

Objective = Literal["generate", "classify", "score"]
ENCODERS = frozenset(
    (
        "albert", "bert", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra",
        "ernie", "eurobert", "flaubert", "fnet", "funnel", "ibert", "longformer", "luke", "megatron-bert", "mobilebert",
        "modernbert", "mpnet", "mra", "nezha", "nomic_bert", "nystromformer", "rembert", "roberta",
        "roberta-prelayernorm", "roc_bert", "roformer", "squeezebert", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod",
        "yoso",
    )
)  # fmt: skip
CHARACTERS_AT_ONCE = 1 << 20  # that a tokenizer is given: it takes a hundred bytes or so for each
RATIONALE_TOKENS = 256  # room for the reasoning of a --cot answer


def is_bidirectional(model_type: str) -> bool:
    """Whether this is an encoder: its tokens see what follows them, so it classifies, but writes and scores nothing."""
    return model_type in ENCODERS


@dataclass(frozen=True)
class AnswerPieces:
    """Token ids that answers are put together from: training teaches these, and inference allows no others.

    For most labels they are what a tokenizer makes of the whole answer. Not so for a label that ends in punctuation: of
    "fear (mild), joy" a tokenizer may write ")," as one token, and then no answer "fear (mild)" could go on.

    Attributes:
        first: of each of the task's K labels, as an answer begins with it.
        later: of each label behind another one, with the separator; empty where answers have one label.
        ends: of what ends an answer behind each label, end token included.
        none: the whole answer that no label applies, end token included; empty where that is no answer.
    """

    first: list[list[int]]
    later: list[list[int]]
    ends: list[list[int]]
    none: list[int]


class PromptEncoder(ABC):
    """Task and text -> token ids. Training, evaluation and every backend read the same ids from here.

    A prompt is `head + text + tail`. The three are tokenised apart, so that all prompts of a task begin with the very
    same ids, a long text can be cut without touching the instruction, and markup written inside a text
    (`<|im_end|>`) is read as plain characters instead of ending the turn.

    Args:
        task: the task.
        tokenizer: a Hugging Face tokenizer.
        cot: ask for reasoning before the answer.
        max_length: tokens of prompt and answer together; longer texts are cut as their task says.
        objective: "generate" and "score" keep room for an answer, "classify" has none.
        prompt: the words around a text as they were when a run began; None = as the tokenizer spells them now.

    Attributes:
        prompt: the words around a text, in either case.
        head_ids, tail_ids: token ids before and behind a text.
        end_id: the token that ends an answer; None where none is written.

    Raises:
        UserError: `max_length` leaves no room for a text, `prompt` is of another tokenizer, or the chat template does
            not print the question.
    """

    def __init__(
        self, task: Task, tokenizer, cot: bool = False, max_length: int = 512, objective: Objective = "generate",
        prompt: PromptIds | None = None,
    ):  # fmt: skip
        self.task, self.tokenizer, self.cot, self.max_length = task, tokenizer, cot, max_length
        self.objective = objective
        self._spelling = Spelling(tokenizer)
        writes = objective != "classify"
        self.prompt = prompt or spelt_prompt(task, self._spelling, cot, writes)
        unknown = tokenizer.is_fast and None in tokenizer.convert_ids_to_tokens(self.prompt.token_ids)
        if unknown or (self.prompt.end is not None) != writes:
            raise UserError(f"task {task.name}: its prompt was spelt by another tokenizer than that of --model_path")
        self.head_ids, self.tail_ids = list(self.prompt.head), list(self.prompt.tail)
        self.end_id = self.prompt.end
        if writes:
            self._check_answers()
        needed = len(self.head_ids) + len(self.tail_ids) + self.answer_tokens
        if max_length <= needed:
            raise UserError(
                f"--max_length {max_length}: the prompt of task {task.name} takes "
                f"{needed - self.answer_tokens} tokens without its text and the answer up to {self.answer_tokens} "
                f"({self.room_in_words}); must be over {needed}"
            )

    @abstractmethod
    def _check_answers(self) -> None:
        """Raise a `UserError` where this tokenizer cannot write the task's answers."""

    @property
    @abstractmethod
    def answer_tokens(self) -> int:
        """Room kept for the answer, end included."""

    @property
    @abstractmethod
    def room_in_words(self) -> str:
        """What the room for an answer is for."""

    @abstractmethod
    def target_ids(self, gold: Sequence[str], rationale: str | None = None) -> list[int]:
        """Token ids of an answer to train on, end token included."""

    def token_ids(self, text: str) -> list[int]:
        """Token ids of words of our own; markup in them is read as markup."""
        return self._spelling.ids([text])[0]

    def prompts_and_cuts(self, texts: Sequence[Any]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of the prompts, and which texts were cut because they left no room for the answer."""
        prompts, cuts, room = [], [], self._room
        for some in _not_too_many([self.task.pieces(text) for text in texts]):
            encoded = iter(self._spelling.plain_ids(list(chain.from_iterable(some))))
            for each in some:
                ids = list(islice(encoded, len(each)))
                kept, cut = self.task.truncate([len(piece) for piece in ids], room)
                prompts.append(self.head_ids + [id for i, count in kept for id in ids[i][:count]] + self.tail_ids)
                cuts.append(cut)
        return prompts, cuts

    @property
    def _room(self) -> int:
        """Tokens that a text may have."""
        return self.max_length - len(self.head_ids) - len(self.tail_ids) - self.answer_tokens

    def prompt_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of the prompts; see `prompts_and_cuts`."""
        return self.prompts_and_cuts(texts)[0]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The answer as text, without its end token."""
        ids = list(token_ids)
        end = ids.index(self.end_id) if self.end_id in ids else len(ids)
        return self.tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False).strip()


class Encoder(PromptEncoder):
    """The encoder of a task with labels: its answers are put together from pieces.

    Args, attributes, raises: see `PromptEncoder`; a label that cannot be written and read back is a `UserError`, too.
    """

    @property
    def room_in_words(self) -> str:
        """What the room for an answer is for."""
        labels = "one label" if self._most_labels == 1 else f"at most {self._most_labels} labels"
        return labels + f", and {RATIONALE_TOKENS} of reasoning" * self.cot

    @property
    def _several(self) -> bool:
        """Whether an answer may have several labels."""
        return self.task.kind == "multi_label" and self.objective == "generate"

    @property
    def _most_labels(self) -> int:
        """How many labels an answer may have."""
        return min(self.task.most_labels, len(self.task.labels)) if self._several else 1

    def _check_answers(self) -> None:
        """Raise a `UserError` naming a label that this tokenizer cannot write so that it is read back as it was."""
        labels = self.task.labels
        for label, ids in zip(labels, self._spelling.ids(labels), strict=True):
            where = f"task {self.task.name}: label {one_line(repr(label))}"
            if markup := self._spelling.markup.intersection(ids):
                token = self.tokenizer.convert_ids_to_tokens(min(markup))
                raise UserError(
                    f"{where} holds {token}, which is no word to the tokenizer of --model_path, but a command"
                )
            behind_another = [(labels[0], label)] if self.pieces.later and label != labels[0] else []
            for answer in [(label,), *behind_another]:
                self._check_written(answer, where)
        if self.pieces.none:
            self._check_written((), f"task {self.task.name}: {NONE!r}")

    def _check_written(self, answer: tuple[str, ...], where: str) -> None:
        before = self.task.reasoning("-") if self.cot else ""
        written = self.decode(self.answer_ids(answer))
        read = self.task.parse(before + written, self.cot)
        if not read.valid or read.labels != answer:
            meant = one_line(repr(self.answer_text(answer).strip()))
            raise UserError(f"{where} cannot be written: of {meant}, the tokenizer of --model_path makes "
                            f"{one_line(repr(written))}")  # fmt: skip

    def text_spans(self, text: str) -> list[tuple[int, int]]:
        """Where in `text` the tokens stand that its prompt has between head and tail; see `Spelling.plain_spans`.

        Raises:
            UserError: a tokenizer that cannot say so.
        """
        before = len(text) - len(text.lstrip())
        spans = self._spelling.plain_spans(text.strip())[: self._room]
        return [(before + begin, before + end) for begin, end in spans]

    @cached_property
    def answer_tokens(self) -> int:
        """Room kept for the answer, end included: the longest one of as many labels as there may be."""
        if self.objective == "classify":
            return 0
        count = self._most_labels
        inside, first = (
            [len(ids) for ids in self._spelling.ids([before + label for label in self.task.labels])]
            for before in (" ", "")
        )
        more = max(a - b for a, b in zip(first, inside, strict=True))  # at the beginning of an answer
        labels = sum(sorted(inside)[-count:]) + max(more, 0) + (count - 1) * len(self.token_ids(","))
        frame = self.task.target(self.task.labels[:1], "")
        reasoning = RATIONALE_TOKENS + len(self.token_ids(frame)) if self.cot else 0
        in_pieces = self._longest_answer(count) + (RATIONALE_TOKENS + len(self.reasoning_ids("")) if self.cot else 0)
        return max(labels + reasoning + 1, in_pieces)  # the first alone is what earlier versions kept

    def _longest_answer(self, count: int) -> int:
        """Tokens of the longest answer of up to `count` labels, as it is put together from pieces."""
        pieces = self.pieces
        first, later, ends = ([len(ids) for ids in each] for each in (pieces.first, pieces.later, pieces.ends))
        others = sorted(range(len(later)), key=later.__getitem__, reverse=True)[:count]
        behind = (sum(later[j] for j in [j for j in others if j != i][: count - 1]) for i in range(len(first)))
        return max(max(map(sum, zip(first, behind, strict=True))) + max(ends), len(pieces.none))

    @cached_property
    def pieces(self) -> AnswerPieces:
        """What answers are put together from."""
        labels = self.task.labels
        first = self._spelling.ids([self.answer_text([label], closed=False) for label in labels])
        whole = self._spelling.ids([self.answer_text([label]) for label in labels])
        closing = self.answer_text([""]).removeprefix(self.answer_text([""], closed=False))
        closing_ids = self.token_ids(closing) if closing else []
        ends = [[*_behind(ids, begin, closing_ids), self.end_id] for ids, begin in zip(whole, first, strict=True)]
        none = [*self.token_ids(self.answer_text(())), self.end_id] if self.task.allow_none else []
        return AnswerPieces(first, self._later_pieces() if self._several else [], ends, none)

    def _later_pieces(self) -> list[list[int]]:
        labels = self.task.labels
        alone = self._spelling.ids([SEPARATOR + label for label in labels])
        for begin in (*labels, "a"):  # behind the first that keeps clear of the separator
            ids = self.token_ids(self.answer_text([begin], closed=False))
            if _behind(self.token_ids(self.answer_text([begin, labels[0]], closed=False)), ids, []):
                listed = self._spelling.ids([self.answer_text([begin, label], closed=False) for label in labels])
                return [_behind(whole, ids, apart) for whole, apart in zip(listed, alone, strict=True)]
        return alone

    def answer_text(self, labels: Sequence[str], closed: bool = True) -> str:
        """An answer of these labels as it stands behind a prompt, or behind the reasoning.

        Args:
            labels: in the order in which they are written; none where the task allows it.
            closed: False leaves out what stands behind the last label.
        """
        before, behind = ("<answer>", "</answer>") if self.cot else (self.prompt.answer_prefix, "")
        return before + self.task.answer(labels) + (behind if closed else "")

    def answer_ids(self, labels: Sequence[str]) -> list[int]:
        """Token ids of `answer_text` and the end token."""
        if not labels and self.pieces.none:
            return list(self.pieces.none)
        first, *later = (self.task.ids[label] for label in labels)
        ids = list(self.pieces.first[first])
        for label in later:
            ids += self.pieces.later[label]
        return ids + self.pieces.ends[later[-1] if later else first]

    def target_ids(self, labels: Sequence[str], rationale: str | None = None) -> list[int]:
        """Token ids of an answer to train on: with the reasoning before it, labels in the task's order.

        Raises:
            KeyError: a label that the task does not have.
        """
        reasoning = [] if rationale is None else self.reasoning_ids(rationale)
        return reasoning + self.answer_ids(self.task.in_order(labels))

    def reasoning_ids(self, rationale: str) -> list[int]:
        """Token ids of the reasoning with its tags; markup inside it is read as plain characters."""
        whole, frame = self._spelling.ids([self.task.reasoning(rationale), self.task.reasoning("")])
        if sum(map(self._is_markup, whole)) == sum(map(self._is_markup, frame)):
            return whole
        before, behind = self.task.reasoning("\0").split("\0")
        return [*self.token_ids(before), *self._spelling.plain_ids([rationale])[0], *self.token_ids(behind)]

    def _is_markup(self, token: int) -> bool:
        return token in self._spelling.markup

    def reasoned_ids(self, prompt: Sequence[int], rationale: str) -> list[int]:
        """Token ids of a `cot` prompt with its reasoning, up to where the answer begins."""
        return [*prompt, *self.reasoning_ids(rationale)]

    def candidate_ids(self) -> list[list[int]]:
        """Token ids of each label as an answer of its own, end token included, in the task's order."""
        return [self.answer_ids((label,)) for label in self.task.labels]


def _not_too_many(texts: Sequence[Sequence[str]]) -> Iterator[list[Sequence[str]]]:
    """Texts in pieces, as many at once as have `CHARACTERS_AT_ONCE` together; at least one."""
    some, characters = [], 0
    for pieces in texts:
        size = sum(map(len, pieces))
        if some and characters + size > CHARACTERS_AT_ONCE:
            yield some
            some, characters = [], 0
        some.append(pieces)
        characters += size
    if some:
        yield some


def _behind(ids: list[int], begin: list[int], otherwise: list[int]) -> list[int]:
    """What stands in `ids` behind `begin`; `otherwise` where a tokenizer writes the two together in another way."""
    return ids[len(begin) :] if ids[: len(begin)] == begin and len(ids) > len(begin) else otherwise
