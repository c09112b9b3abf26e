"""The valid answers of a task as a token trie: what a model may write next. (no torch)

A single-label task has one answer a label. In a multi-label task an answer is a list of up to `most_labels` distinct
labels in the task's order, as training writes it, or, where the task allows none, that there is none; its trie is not
spelt out but made node by node, where a model gets to. With `--cot` the reasoning is free, and the trie begins behind
it.

`answer_grammar` is the same language in characters instead of tokens, for engines that take a grammar.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, combinations
from math import comb

from data.encoding import Encoder
from data.labels import SEPARATOR, LabelTask

MOST_LISTED = 64  # answers of a task that are computed all together; of more, those that matter


@dataclass(frozen=True)
class _Piece:
    """What is left of a label (with the separator before it), or of an answer's end, that is being written.

    Attributes:
        rest: token ids to come, at least one.
        last: id of the label it belongs to; None = it ends the answer.
        count: labels of the answer, this one included.
    """

    rest: tuple[int, ...]
    last: int | None
    count: int


class Node:
    """A place in an answer.

    Attributes:
        children: token that may come next -> the place behind it. Empty behind the end token.
    """

    def __init__(self, trie: "AnswerTrie", pieces: frozenset[_Piece]):
        self._trie, self._pieces = trie, pieces

    @cached_property
    def children(self) -> dict[int, "Node"]:
        behind: dict[int, set[_Piece]] = defaultdict(set)
        for piece in self._pieces:
            behind[piece.rest[0]] |= self._trie.after(piece)
        return {token: self._trie.node(frozenset(behind[token])) for token in sorted(behind)}

    @property
    def least_labels(self) -> int:
        """How many labels an answer has at least that goes on here."""
        return min(piece.count for piece in self._pieces)

    def behind(self, token_ids: Sequence[int]) -> "Node":
        """The place that these tokens lead to."""
        place = self
        for token in token_ids:
            place = place.children[token]
        return place


class AnswerTrie:
    """The answers of an encoder's task, as this tokenizer writes them.

    Args:
        encoder: gives the task and its token ids.

    Attributes:
        root: the place before an answer's first token.
        token_ids: every token that an answer may have.
    """

    def __init__(self, encoder: Encoder):
        task = encoder.task
        labels = range(len(task.labels))
        self._limit = most_labels(task)
        self._nodes: dict[frozenset[_Piece], Node] = {}
        none = tuple(encoder.pieces.none)
        first, self._later, self._ends = (
            [tuple(ids) for ids in pieces]
            for pieces in (encoder.pieces.first, encoder.pieces.later, encoder.pieces.ends)
        )
        if task.kind == "single_label":
            self.root = self.node(frozenset(_Piece(first[i] + self._ends[i], None, 1) for i in labels))
        else:
            whole = [_Piece(none, None, 0)] if none else []
            self.root = self.node(frozenset([*whole, *(_Piece(first[i], i, 1) for i in labels)]))
        self.token_ids = sorted({token for ids in (*first, *self._later, *self._ends, none) for token in ids})

    def node(self, pieces: frozenset[_Piece]) -> Node:
        """The place where these are what may follow."""
        return self._nodes.setdefault(pieces, Node(self, pieces))

    def after(self, piece: _Piece) -> set[_Piece]:
        """What may follow the first token of `piece`."""
        if len(piece.rest) > 1:
            return {_Piece(piece.rest[1:], piece.last, piece.count)}
        if piece.last is None:
            return set()
        following = {_Piece(self._ends[piece.last], None, piece.count)}
        if piece.count < self._limit:
            later = range(piece.last + 1, len(self._later))
            following |= {_Piece(self._later[i], i, piece.count + 1) for i in later}
        return following


def label_sets(task: LabelTask) -> Iterator[tuple[str, ...]]:
    """The label sets of all valid answers, each in the task's order; those of few labels first, and so, where the task
    allows none, the empty one.

    >>> list(label_sets(LabelTask("moods", "multi_label", ("calm", "tense"), "{text}")))
    [('calm',), ('tense',), ('calm', 'tense')]
    """
    return chain.from_iterable(combinations(task.labels, size) for size in _sizes(task))


def count_answers(task: LabelTask) -> int:
    """How many there are of them: sum over sizes c of (K choose c)."""
    return sum(comb(len(task.labels), size) for size in _sizes(task))


def _sizes(task: LabelTask) -> range:
    return range(0 if task.allow_none else 1, most_labels(task) + 1)


def most_labels(task: LabelTask) -> int:
    """How many labels an answer may have."""
    return min(task.most_labels, len(task.labels)) if task.kind == "multi_label" else 1


def answer_grammar(encoder: Encoder) -> str:
    """The answers of a task in characters, as a grammar in the EBNF of llama.cpp that xgrammar and others read.

    One rule for each label and number of labels so far: what may follow it.
    """
    task = encoder.task
    before, behind = encoder.answer_text(["\0"]).split("\0")
    limit = most_labels(task)
    none = [_quoted(encoder.answer_text(()))] if task.allow_none else []
    first = (f"{_quoted(before + label)} {_rule(i, 1)}" for i, label in enumerate(task.labels))
    lines = ["root ::= " + " | ".join([*none, *first])]
    for count in range(1, limit + 1):
        for i in range(count - 1, len(task.labels)):
            follow = [_quoted(behind)]
            if count < limit:
                later = enumerate(task.labels[i + 1 :], start=i + 1)
                follow += [f"{_quoted(SEPARATOR + label)} {_rule(j, count + 1)}" for j, label in later]
            lines.append(f"{_rule(i, count)} ::= " + " | ".join(follow))
    return "\n".join(lines) + "\n"


def _rule(label: int, count: int) -> str:
    return f"after-{label}-{count}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
