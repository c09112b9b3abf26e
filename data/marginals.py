"""The probability of answers -> that of labels, each as probable as the answers that hold it together. (no torch)"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy

from data.answers import AnswerTrie
from data.encoding import Encoder
from data.labels import SEPARATORS

PRUNED_MASS = 0.01  # of the answers to a text, which need not be looked at
FEW_TOKENS, MANY_TOKENS = 24, 4096  # of answers, that are read behind a text: by default, and where a mass is asked for
REMEMBERED = 2**16  # answers, of which each text brings the same again
Weighed = Iterable[tuple[Sequence[int], float]]  # token ids, and a probability


def bounds(pruned_mass: float | None) -> tuple[float, int]:
    """Within what answers are looked at: the probability that may be left out, and tokens that may be read for them;
    what stands first gives way.

    Args:
        pruned_mass: as it was asked for; None = `PRUNED_MASS`, where few tokens are enough for it.
    """
    return (PRUNED_MASS, FEW_TOKENS) if pruned_mass is None else (pruned_mass, MANY_TOKENS)


class Marginals:
    """Probabilities of labels in written answers.

    Args:
        encoder: of a task whose answers are written; behind reasoning, they are read without it.
        trie: its answers.
    """

    def __init__(self, encoder: Encoder, trie: AnswerTrie):
        self._encoder, self._task, self._root = encoder, encoder.task, trie.root
        self._whole = lru_cache(REMEMBERED)(self._in_answer)
        self._begun = lru_cache(REMEMBERED)(self._in_beginning)

    def of(self, whole: Weighed, begun: Weighed) -> dict[str, float]:
        """The probability of each label, in the task's order: the sum over the answers that hold it.

        Args:
            whole: answers, each once.
            begun: how the other answers begin. What begins so counts for the labels that it surely holds (`held`).

        Returns:
            Label -> probability: at least that, and at most as much more as `begun` has in all.
        """
        found = numpy.zeros(len(self._task.labels))
        for labels_in, weighed in ((self._whole, whole), (self._begun, begun)):
            for token_ids, probability in weighed:
                found[labels_in(tuple(token_ids))] += probability
        return dict(zip(self._task.labels, found.clip(max=1.0).tolist(), strict=True))  # a sum's last digit

    def of_answer(self, token_ids: tuple[int, ...]) -> list[int]:
        """Ids of an answer's labels."""
        return self._whole(token_ids)

    def held(self, token_ids: tuple[int, ...]) -> list[int]:
        """Ids of the labels that every answer holds that begins so: those that are complete behind each token that may
        come next."""
        return self._begun(token_ids)

    def _in_answer(self, token_ids: tuple[int, ...]) -> list[int]:
        """Ids of an answer's labels."""
        return self._ids(self._encoder.decode(token_ids))

    def _in_beginning(self, token_ids: tuple[int, ...]) -> list[int]:
        place = self._root.behind(token_ids)
        held = [
            self._before_separator((*token_ids, token)) if behind.children else self._in_answer((*token_ids, token))
            for token, behind in place.children.items()
        ]
        return sorted(set(held[0]).intersection(*held[1:]))

    def _before_separator(self, token_ids: tuple[int, ...]) -> list[int]:
        text = self._encoder.decode(token_ids)
        *_, last = [0, *(match.start() for match in SEPARATORS.finditer(text))]
        return self._ids(text[:last]) if last else []

    def _ids(self, text: str) -> list[int]:
        return [self._task.ids[label] for label in self._task.parse(text).labels]
