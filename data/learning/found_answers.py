"""Which answers to a text are weighed: all of a task's, or of many those that matter.

Where a task has more than `MOST_LISTED` answers, the trie of all is expanded behind each text, without gradients and
the most probable first (data/engine/answer_tree.py). Gold is always in. Prefixes stand for the answers left out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.answers import MOST_LISTED, AnswerTrie, count_answers, label_sets
from data.encoding import Encoder
from data.engine.answer_tree import AnswerTree, Expansion
from data.learning.outcomes import Answer


def listed_answers(encoder: Encoder) -> list[Answer]:
    """All valid answers of a task."""
    ids = encoder.task.ids
    return [
        Answer(tuple(ids[label] for label in labels), tuple(encoder.target_ids(labels)))
        for labels in label_sets(encoder.task)
    ]


class FoundAnswers:
    """The answers that are weighed.

    Args:
        encoder: of a task with labels.
        pruned_mass: probability of the answers to a text that may be left out, among valid ones.
        max_tokens: tokens of answers that are read behind a text; where they are spent, more is left out.
    """

    def __init__(self, encoder: Encoder, pruned_mass: float, max_tokens: int):
        self.encoder, self.pruned_mass, self.max_tokens = encoder, pruned_mass, max_tokens
        self._listed = listed_answers(encoder) if count_answers(encoder.task) <= MOST_LISTED else None
        self._trie = AnswerTrie(encoder)
        self._labels_of: dict[tuple[int, ...], tuple[int, ...]] = {}

    def behind(self, model, prompts: Sequence[Sequence[int]], gold: Tensor) -> list[list[Answer]]:
        """The answers behind each of C prompts, and prefixes that stand for the others.

        Args:
            model: as it is now, without what distributes it.
            prompts: token ids.
            gold: (C, K), 1 for each gold label.
        """
        if self._listed is not None:
            return [self._listed] * len(prompts)
        labels = self.encoder.task.labels
        needed = [[self.encoder.target_ids([labels[i] for i in row.nonzero()[:, 0].tolist()])] for row in gold]
        training = model.training
        model.eval()
        with torch.compiler.set_stance("force_eager"):
            # the beginning of all prompts is read along with them: the weights are others than a step ago
            tree = AnswerTree(model, self._trie, [], self.encoder.tokenizer.pad_token_id)
            expansions = tree.expand(prompts, self.pruned_mass, self.max_tokens, needed)
        model.train(training)
        return [self._answers_of(expansion) for expansion in expansions]

    def _answers_of(self, expansion: Expansion) -> list[Answer]:
        """What an expansion found; of its closed prefixes only as much as tells them from the answers."""
        whole = [Answer(self._read(branch.token_ids), branch.token_ids) for branch in expansion.whole]
        known = {answer.token_ids[:n] for answer in whole for n in range(len(answer.token_ids))}
        closed = {_cut(branch.token_ids, known) for branch in expansion.closed}
        return whole + [Answer((), token_ids, is_whole=False) for token_ids in sorted(closed)]

    def _read(self, token_ids: tuple[int, ...]) -> tuple[int, ...]:
        """The ids of a whole answer's labels."""
        if token_ids not in self._labels_of:
            task = self.encoder.task
            labels = task.parse(
                self.encoder.decode(token_ids)
            ).labels  # with tags around it, where it is behind reasoning
            self._labels_of[token_ids] = tuple(task.ids[label] for label in labels)
        return self._labels_of[token_ids]


def _cut(token_ids: tuple[int, ...], known: set[tuple[int, ...]]) -> tuple[int, ...]:
    """A prefix up to its first token that no answer has there: the model has read all before it."""
    return next(token_ids[:n] for n in range(1, len(token_ids) + 1) if token_ids[:n] not in known)
