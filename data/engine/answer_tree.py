"""How probable each valid answer is: the trie of a task's answers expanded behind a text, the most probable first.

Valid answers can be listed, and all of them together have probability 1. Level by level, all prefixes that are still
open are read in one pass, of all texts together, and each gives way to its children; where there is one child alone,
there is nothing to ask, and it is read with the next one that matters:

    T ┬─ joy  0.70 ─┬─ $  0.66   whole: its probability is known
      │             └─ ,  0.04   open: read on in the next pass
      ├─ love 0.29 ─ …           open
      └─ sad ness 0.01           closed: what is closed together stays within `pruned_mass`

Which prefixes are read and which are closed depends on the text alone. Of few texts, a pass also reads guesses of how
their answers may begin; where they hold all that is open of a text, its next level takes no pass of its own.

Of a closed prefix the probability is known, only not how it divides among the answers that begin so. The probability
of every set of answers is thereby known but for the pruned mass, and exactly known where that is 0.

As in constrained writing, a token's probability is that among the tokens with which a valid answer may go on there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import exp

import torch
from torch import Tensor

from data.answers import AnswerTrie, Node
from data.engine.readers import AnewReader, Guess, TrieModel
from data.marginals import PRUNED_MASS

MAX_TOKENS = 512  # of answers that are read behind a text


@dataclass(frozen=True)
class Branch:
    """An answer, or how several begin.

    Attributes:
        token_ids: its tokens; the end token is the last of a whole answer.
        log_prob: that an answer begins so, in nats.
    """

    token_ids: tuple[int, ...]
    log_prob: float

    @cached_property
    def probability(self) -> float:
        return exp(self.log_prob)


@dataclass(frozen=True)
class Expansion:
    """All answers to one text. The probabilities of `whole` and `closed` add up to 1.

    Attributes:
        greedy: the answer whose every token is the most probable one, as `ConstrainedWriter` writes it; in `whole`.
        whole: answers whose probability is known.
        closed: beginnings of all the others.
        tokens: of the answers that it took to read; guesses that were not needed are not counted.
    """

    greedy: Branch
    whole: list[Branch]
    closed: list[Branch]
    tokens: int

    @property
    def pruned_mass(self) -> float:
        """The probability of the answers that are not in `whole`."""
        return sum(branch.probability for branch in self.closed)


class AnswerTree:
    """Expands the answers to texts; see above. Without gradients: the answers it finds can be scored with them by
    `data.engine.scoring.answer_scores`, as can all answers where there are few.

    What it knows of the model's weights is of the moment it is made.

    Args:
        model: a causal language model in evaluation mode, without what distributes it.
        trie: the valid answers.
        beginning: token ids that all prompts begin with; they are read once for all calls.
        pad_id: the padding token.
    """

    def __init__(self, model, trie: AnswerTrie, beginning: Sequence[int], pad_id: int):
        self._root, self._asked = trie.root, TrieModel(model, trie, beginning, pad_id)
        self._reader = self._asked.reader or AnewReader(model, pad_id)

    @classmethod
    def of(cls, trie: AnswerTrie, asked) -> "AnswerTree":
        """A tree of what is asked in another way: `asked` has the attributes and methods of `TrieModel`."""
        tree = cls.__new__(cls)
        tree._root, tree._asked, tree._reader = trie.root, asked, asked.reader
        return tree

    def expand(
        self, prompts: Sequence[Sequence[int]], pruned_mass: float = PRUNED_MASS, max_tokens: int = MAX_TOKENS,
        needed: Sequence[Sequence[Sequence[int]]] | None = None,
    ) -> list[Expansion]:  # fmt: skip
        """The answers to B prompts.

        Args:
            prompts: token ids.
            pruned_mass: probability that may be closed of each prompt's answers to save time; 0 = none.
            max_tokens: tokens of answers that are read behind a prompt; where they are spent, more is closed, the least
                probable first. A level takes no more than half of those that are left, so that the next ones have some.
                The greedy answer and those that are needed are read in any case.
            needed: of each prompt, token ids of answers that are to be among the whole ones (one that is not in the
                trie is not found).
        """
        asked, reader = self._asked, self._reader.fork(len(prompts))
        growths = [_Growth(asked, ids, pruned_mass, max_tokens) for ids in needed or [()] * len(prompts)]
        opened = [(growth, _Prefix(self._root, is_greedy=True)) for growth in growths]
        guesses = reader.guesses(self._root, len(prompts))
        unread = asked.unread(prompts)
        with torch.inference_mode(), asked.narrow_vocabulary():
            while opened:
                logits = asked.logits_of_trie(reader.read(unread, guesses))  # (N, G, tokens of the trie)
                for row, (growth, prefix) in enumerate(opened):
                    behind = dict(zip(guesses, logits[row], strict=True))
                    growth.grow(replace(prefix, read=_Read(row, len(prefix.token_ids), behind)))
                opened = [(growth, prefix) for growth in growths for prefix in growth.next()]
                reader.keep([p.read.row for _, p in opened], [guesses.index(p.guess) for _, p in opened])
                unread, guesses = [p.unread for _, p in opened], [()]
        return [growth.expansion() for growth in growths]


@dataclass
class _Read:
    """What the last pass has read of a text.

    Attributes:
        row: its row in the pass.
        begin: how many tokens of the answer the row ends with.
        behind: logits (tokens of the trie,) behind each guess that was read there, the empty one among them.
    """

    row: int
    begin: int
    behind: dict[Guess, Tensor]


@dataclass
class _Prefix:
    """How an answer may begin.

    Attributes:
        place: where in the trie it ends.
        token_ids, log_prob: see `Branch`.
        is_greedy: each of its tokens is the most probable one.
        new: how many of its tokens are not its parent's.
        read: what it stands behind; nothing before the first pass.
    """

    place: Node
    token_ids: tuple[int, ...] = ()
    log_prob: float = 0.0
    is_greedy: bool = False
    new: int = 0
    read: _Read | None = None

    @property
    def logits(self) -> Tensor | None:
        """Logits (tokens of the trie,) behind it; None where it was not read."""
        return self.read.behind.get(self._written)

    @property
    def guess(self) -> Guess:
        """The longest guess that it begins with. Its last token is left to be read, for logits behind it."""
        written = self._written
        return next(guess for n in range(1, len(written) + 1) if (guess := written[:-n]) in self.read.behind)

    @property
    def unread(self) -> tuple[int, ...]:
        """Its tokens behind `guess`."""
        return self._written[len(self.guess) :]

    @property
    def _written(self) -> tuple[int, ...]:
        return self.token_ids[self.read.begin :]


@dataclass
class _Growth:
    """The tree behind one text as far as it has grown; the last arguments are those of `AnswerTree.expand`."""

    asked: TrieModel
    needed: Sequence[Sequence[int]]
    pruned_mass: float
    max_tokens: int
    whole: list[Branch] = field(default_factory=list)
    closed: list[Branch] = field(default_factory=list)
    greedy: Branch | None = None
    tokens: int = 0
    _opened: list[_Prefix] = field(default_factory=list)
    _closed_mass: float = 0.0

    def grow(self, parent: _Prefix) -> None:
        """Put what may follow in the place of a prefix that is read."""
        choices = self.asked.choices(parent.place, parent.logits)
        best = int(choices.argmax()) if parent.is_greedy else None
        for i, ((token, place), log_prob) in enumerate(
            zip(parent.place.children.items(), choices.tolist(), strict=True)
        ):
            place, token_ids = _without_choice(place, (*parent.token_ids, token))
            new = len(token_ids) - len(parent.token_ids)
            found = _Prefix(place, token_ids, parent.log_prob + log_prob, i == best, new, parent.read)
            if place.children:
                self._opened.append(found)
            else:
                self._end(found)

    def next(self) -> list[_Prefix]:
        """The prefixes to read next; the others are closed. A level that the guesses hold whole is read already."""
        level = self._kept()
        while level and all(prefix.logits is not None for prefix in level):
            for prefix in level:
                self.grow(prefix)
            level = self._kept()
        return level

    def _kept(self) -> list[_Prefix]:
        """Close what need not be read of the level that is open, and take the rest out."""
        kept = [prefix for prefix in self._opened if self._has_to_stay(prefix)]
        others = [prefix for prefix in self._opened if not self._has_to_stay(prefix)]
        others.sort(key=lambda prefix: prefix.log_prob)
        for first, prefix in enumerate(others):
            if self._closed_mass + exp(prefix.log_prob) > self.pruned_mass:
                others = others[first:][::-1]
                break
            self._close(prefix)
        else:
            others = []
        self.tokens += sum(prefix.new for prefix in kept)
        allowed = self.tokens + (self.max_tokens - self.tokens) / 2
        for last, prefix in enumerate(others):
            if self.tokens + prefix.new > allowed:
                for beyond in others[last:]:
                    self._close(beyond)
                others = others[:last]
                break
            self.tokens += prefix.new
        self._opened = []
        return kept + others

    def expansion(self) -> Expansion:
        """The tree when nothing is open any more."""
        return Expansion(self.greedy, self.whole, self.closed, self.tokens)

    def _end(self, found: _Prefix) -> None:
        answer = Branch(found.token_ids, found.log_prob)
        self.whole.append(answer)
        if found.is_greedy:
            self.greedy = answer

    def _close(self, prefix: _Prefix) -> None:
        self.closed.append(Branch(prefix.token_ids, prefix.log_prob))
        self._closed_mass += self.closed[-1].probability

    def _has_to_stay(self, prefix: _Prefix) -> bool:
        return prefix.is_greedy or prefix.token_ids in self._needed_prefixes

    @cached_property
    def _needed_prefixes(self) -> set[tuple[int, ...]]:
        return {tuple(ids[:n]) for ids in self.needed for n in range(1, len(ids))}


def _without_choice(place: Node, token_ids: tuple[int, ...]) -> tuple[Node, tuple[int, ...]]:
    """Where one gets to from `place` where there is one way only."""
    while len(place.children) == 1:
        ((token, place),) = place.children.items()
        token_ids = (*token_ids, token)
    return place, token_ids
