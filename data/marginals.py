"""The probability of answers -> that of labels, each as probable as the answers that hold it together. (no torch)"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy

from data.encoding import Encoder
from data.labels import SEPARATORS

PRUNED_MASS = 0.01  # of the answers to a text, which need not be looked at
REMEMBERED = 2**16  # answers, of which each text brings the same again
Weighed = Iterable[tuple[Sequence[int], float]]  # token ids, and a probability


class Marginals:
    """Probabilities of labels in written answers.

    Args:
        encoder: of a task whose answers are written without reasoning.
    """

    def __init__(self, encoder: Encoder):
        self._encoder, self._task = encoder, encoder.task
        self._whole = lru_cache(REMEMBERED)(self._in_answer)
        self._begun = lru_cache(REMEMBERED)(self._in_beginning)

    def of(self, whole: Weighed, begun: Weighed) -> dict[str, float]:
        """The probability of each label, in the task's order: the sum over the answers that hold it.

        Args:
            whole: answers, each once.
            begun: how the other answers begin. What begins so counts for the labels that it surely holds, the complete
                ones before the last separator.

        Returns:
            Label -> probability: at least that, and at most as much more as `begun` has in all.
        """
        found = numpy.zeros(len(self._task.labels))
        for labels_in, weighed in ((self._whole, whole), (self._begun, begun)):
            for token_ids, probability in weighed:
                found[labels_in(tuple(token_ids))] += probability
        return dict(zip(self._task.labels, found.clip(max=1.0).tolist(), strict=True))  # a sum's last digit

    def _in_answer(self, token_ids: tuple[int, ...]) -> list[int]:
        """Ids of an answer's labels."""
        return self._ids(self._encoder.decode(token_ids))

    def _in_beginning(self, token_ids: tuple[int, ...]) -> list[int]:
        """Ids of the labels that every answer holds that begins so: of single labels there may be none."""
        text = self._encoder.decode(token_ids)
        *_, last = [0, *(match.start() for match in SEPARATORS.finditer(text))]
        return self._ids(text[:last]) if last else []

    def _ids(self, text: str) -> list[int]:
        return [self._task.ids[label] for label in self._task.parse(text).labels]
