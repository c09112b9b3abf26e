"""Which answers to a text are weighed: all of a task's, or of many those that matter.

Where a task has more than `MOST_LISTED` answers, the trie of all is expanded behind each text, without gradients and
the most probable first (data/engine/answer_tree.py). Gold is always in. Prefixes stand for the answers left out, with
the labels that all of them hold: of two labels, the first is often known of answers that no pass was spent on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from data.answers import MOST_LISTED, AnswerTrie, count_answers, label_sets
from data.encoding import Encoder
from data.engine.answer_tree import AnswerTree, Expansion
from data.learning.outcomes import Answer
from data.marginals import Marginals


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
        self._labels = Marginals(encoder, self._trie)

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

    def most(self) -> list[Answer]:
        """As many answers as a text may have: those whose tree has `max_tokens`."""
        if self._listed is not None:
            return self._listed
        found: list[Answer] = []
        read: set[tuple[int, ...]] = set()
        ids = self.encoder.task.ids
        for labels in label_sets(self.encoder.task):
            answer = Answer(tuple(ids[label] for label in labels), tuple(self.encoder.target_ids(labels)))
            read |= {answer.token_ids[:n] for n in range(1, len(answer.token_ids))}
            if found and len(read) > self.max_tokens:
                break
            found.append(answer)
        return found

    def _answers_of(self, expansion: Expansion) -> list[Answer]:
        """What an expansion found; of its closed prefixes only as much as tells them from the answers."""
        whole = [Answer(tuple(self._labels.of_answer(b.token_ids)), b.token_ids) for b in expansion.whole]
        known = {answer.token_ids[:n] for answer in whole for n in range(len(answer.token_ids))}
        closed = {_cut(branch.token_ids, known) for branch in expansion.closed}
        return whole + [self._beginning(token_ids) for token_ids in sorted(closed)]

    def _beginning(self, token_ids: tuple[int, ...]) -> Answer:
        """What stands for all answers that begin so."""
        held = tuple(self._labels.held(token_ids))
        further = self._trie.root.behind(token_ids).least_labels - len(held)
        return Answer(held, token_ids, is_whole=False, further=further)


def _cut(token_ids: tuple[int, ...], known: set[tuple[int, ...]]) -> tuple[int, ...]:
    """A prefix up to its first token that no answer has there: the model has read all before it."""
    return next(token_ids[:n] for n in range(1, len(token_ids) + 1) if token_ids[:n] not in known)
