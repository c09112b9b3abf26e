"""What may be written behind texts, how probable it is, and what is expected of it: the mathematics of exact
reinforcement, with gradients.

Shapes: B texts, K labels, S outcomes of all texts: answers, and prefixes that stand for all answers that begin so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

KEPT_SUM = 1e-6  # of the mass outside of all outcomes, whose logarithm is taken


@dataclass(frozen=True)
class Answer:
    """A valid answer, or how some of them begin.

    Attributes:
        labels: ids of its labels; of a beginning, those that all answers hold that begin so.
        token_ids: with the end token, where it is whole.
        is_whole: False = it stands for all answers that begin so.
        further: how many labels these have at least beside `labels`.
    """

    labels: tuple[int, ...]
    token_ids: tuple[int, ...]
    is_whole: bool = True
    further: int = 0


@dataclass(frozen=True)
class Outcomes:
    """What may be written behind B texts, side by side.

    Attributes:
        answers: (S,) of all texts.
        text: (S,) which text each is behind.
        holds: (S, K) 1 where an answer has a label.
        further: (S,) labels that a prefix will have beside those.
        is_whole: (S,) 0 for prefixes.
    """

    answers: list[Answer]
    text: Tensor
    holds: Tensor
    further: Tensor
    is_whole: Tensor

    @classmethod
    def of(cls, answers: Sequence[Sequence[Answer]], labels: int, device: torch.device) -> "Outcomes":
        """Those of B texts in one."""
        flat = [answer for each in answers for answer in each]
        holds = torch.zeros(len(flat), labels)
        for row, answer in enumerate(flat):
            holds[row, list(answer.labels)] = 1
        counts = torch.tensor([len(each) for each in answers])
        text = torch.repeat_interleave(torch.arange(len(answers)), counts)
        further = torch.tensor([float(answer.further) for answer in flat])
        is_whole = torch.tensor([float(answer.is_whole) for answer in flat])
        return cls(flat, text.to(device), holds.to(device), further.to(device), is_whole.to(device))

    def sums(self, values: Tensor, texts: int) -> Tensor:
        """Sums (B, ...) over the outcomes of each text, of values (S, ...)."""
        return values.new_zeros(texts, *values.shape[1:]).index_add(0, self.text, values)


def expected_rewards(log_probs: Tensor, rewards: Tensor, outcomes: Outcomes, texts: int) -> tuple[Tensor, Tensor]:
    """Expected rewards (B,), with gradient, and their standard deviations (B,) under the policy, without.

    Args:
        log_probs: (S,) of the outcomes, over the whole vocabulary.
        rewards: (S,) without gradient.
        outcomes: see `Outcomes`.
        texts: B.
    """
    expected = outcomes.sums(log_probs.exp() * rewards, texts)
    with torch.no_grad():
        squares = outcomes.sums(log_probs.exp() * rewards**2, texts)
        deviation = (squares - expected**2).clamp(min=0).sqrt()
    return expected, deviation


def over_texts(mean: Tensor, deviation: Tensor, text_of: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Means and standard deviations over whole texts, each of which stands at all of the text's prompts.

    Args:
        mean, deviation: (C,) of each prompt.
        text_of: (C,) which text it is of.
        share: of its text; what is missing of a text counts as 0.
    """
    texts = int(text_of.max()) + 1
    first, second = (
        share * values.new_zeros(texts).index_add(0, text_of, values) for values in (mean, deviation**2 + mean**2)
    )
    return first[text_of], (second - first**2).clamp(min=0).sqrt()[text_of]


def similarity(outcomes: Outcomes, gold: Tensor) -> Tensor:
    """Jaccard index (S,) of each outcome's labels and the gold ones of its text, (B, K); 1 where both are empty.

    What further labels a prefix will have are counted as wrong ones.
    """
    truth = gold[outcomes.text]
    union = (outcomes.holds + truth).clamp(max=1).sum(dim=1) + outcomes.further
    return torch.where(union > 0, (outcomes.holds * truth).sum(dim=1) / union.clamp(min=1), 1.0)


def divergence(log_probs: Tensor, reference: Tensor, outcomes: Outcomes, texts: int) -> Tensor:
    """KL divergence (B,) of the policy from the start, in nats, over the outcomes and "anything else".

    Args:
        log_probs, reference: (S,) of the outcomes under the two.
        outcomes, texts: see `expected_rewards`.
    """
    inside = outcomes.sums(log_probs.exp() * (log_probs - reference), texts)
    outside, outside_before = (_outside(each, outcomes, texts) for each in (log_probs, reference))
    return inside + outside * (outside.log() - outside_before.log())


def _outside(log_probs: Tensor, outcomes: Outcomes, texts: int) -> Tensor:
    """Mass (B,) outside of all outcomes: that of invalid answers."""
    return (1 - outcomes.sums(log_probs.exp(), texts)).clamp(min=KEPT_SUM)


def answer_entropy(log_probs: Tensor, outcomes: Outcomes, texts: int) -> Tensor:
    """-(sum of p log p) over the outcomes, (B,) in nats; invalid answers are not in it, so as not to be sought."""
    return -outcomes.sums(log_probs.exp() * log_probs, texts)
