"""Reading on in an engine that answers requests, such as vLLM: each prefix is asked for as a whole, which the engine's
own cache of prefixes keeps from being computed again."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy

import torch
from torch import Tensor

from data.answers import AnswerTrie, Node
from data.engine.readers import Choices, Guess

MOST_TOKENS = 128  # vLLM's MAX_LOGPROB_TOKEN_IDS: of so many tokens a request may ask the log-probability
Ask = Callable[[Sequence[Sequence[int]], Sequence[int]], list[dict[int, float]]]


class EngineTrie(Choices):
    """What `data.engine.readers.TrieModel` is, for an engine.

    Args:
        trie: the valid answers.
        ask: B sequences of token ids and at most `MOST_TOKENS` tokens -> of each sequence, the log-probability of each
            of these tokens behind it.
    """

    def __init__(self, trie: AnswerTrie, ask: Ask):
        super().__init__(trie)
        self.beginning: list[int] = []
        self.reader = EngineReader(trie.token_ids, ask)

    def unread(self, prompts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """What of the prompts stands behind the beginning, of which there is none."""
        return list(prompts)

    @contextmanager
    def narrow_vocabulary(self) -> Iterator[None]:
        """Nothing has to be changed for it."""
        yield

    def logits_of_trie(self, logits: Tensor) -> Tensor:
        """They are that already."""
        return logits


class EngineReader:
    """A reader as those of `data.engine.readers`, that gives log-probabilities of a trie's tokens alone."""

    def __init__(self, tokens: Sequence[int], ask: Ask):
        self._tokens, self._ask = tokens, ask
        self._read: list[list[int]] = []

    def fork(self, count: int) -> "EngineReader":
        """A reader of `count` texts of which nothing is read yet."""
        reader = copy(self)
        reader._read = [[] for _ in range(count)]
        return reader

    def guesses(self, root: Node, count: int) -> list[Guess]:
        """None but the empty one."""
        return [()]

    def read(self, new: Sequence[Sequence[int]], guesses: Sequence[Guess]) -> Tensor:
        """Read what is new of each text; returns log-probabilities (B, 1, tokens of the trie) behind it."""
        self._read = [[*so_far, *ids] for so_far, ids in zip(self._read, new, strict=True)]
        parts = [self._tokens[i : i + MOST_TOKENS] for i in range(0, len(self._tokens), MOST_TOKENS)]
        found = [self._ask(self._read, part) for part in parts]
        rows = [
            [log_probs[token] for part, log_probs in zip(parts, of_parts, strict=True) for token in part]
            for of_parts in zip(*found, strict=True)
        ]
        return torch.tensor(rows)[:, None]

    def keep(self, rows: Sequence[int], came_true: Sequence[int]) -> None:
        """Go on with these texts; one that is named twice goes on in two ways."""
        self._read = [self._read[row] for row in rows]
