"""Reinforcement without sampling: the expected reward of all answers to a text, and its exact gradient.

A label task's answers can be listed (`data.answers`), and one packed tree computes the probability p(y|x) of each of
them behind each text x. So the expected reward, the sum over y of p(y|x) R(y), needs no drawing, and neither does its
gradient: no text is without a signal, there is no noise but that of the choice of texts, and the answers are those of
the policy itself. Answers that are none of the task's have a reward of 0: what mass they have is missing in the sum, so
that validity is learnt, too. main_grpo.py's docstring has the whole objective.

Shapes: B texts, K labels, S outcomes of all texts: answers, and prefixes that stand for all answers that begin so.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from data.answers import count_answers, label_sets
from data.arguments import UserError
from data.encoding import Encoder
from data.engine.scoring import answer_batch, answer_scores
from data.engine.tree_attention import computes_packed_rows
from data.learning.f1_reward import Counts
from data.learning.objectives import LabelTraining, LossSettings
from data.learning.rewards import Rewards
from data.loading import Example

MOST_LISTED = 64  # answers of a task that are all computed; of more, those that matter
KEPT_SUM = 1e-6  # of the mass outside of all outcomes, whose logarithm is taken


@dataclass(frozen=True)
class Answer:
    """A valid answer, or how some of them begin.

    Attributes:
        labels: ids of its labels.
        token_ids: with the end token, where it is whole.
        is_whole: False = it stands for all answers that begin so.
    """

    labels: tuple[int, ...]
    token_ids: tuple[int, ...]
    is_whole: bool = True


def listed_answers(encoder: Encoder) -> list[Answer]:
    """All valid answers of a task."""
    ids = encoder.task.ids
    return [
        Answer(tuple(ids[label] for label in labels), tuple(encoder.target_ids(labels)))
        for labels in label_sets(encoder.task)
    ]


@dataclass(frozen=True)
class Outcomes:
    """What may be written behind B texts, side by side.

    Attributes:
        answers: (S,) of all texts.
        text: (S,) which text each is behind.
        holds: (S, K) 1 where an answer has a label.
        is_whole: (S,) 0 for prefixes.
    """

    answers: list[Answer]
    text: Tensor
    holds: Tensor
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
        is_whole = torch.tensor([float(answer.is_whole) for answer in flat])
        return cls(flat, text.to(device), holds.to(device), is_whole.to(device))

    def sums(self, values: Tensor, texts: int) -> Tensor:
        """Sums (B, ...) over the outcomes of each text, of values (S, ...)."""
        return values.new_zeros(texts, *values.shape[1:]).index_add(0, self.text, values)


def objective(
    log_probs: Tensor, rewards: Tensor, outcomes: Outcomes, texts: int, scaled: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Expected rewards (B,), with gradient, and their standard deviations (B,) under the policy, without.

    Args:
        log_probs: (S,) of the outcomes, over the whole vocabulary.
        rewards: (S,) without gradient; that of a prefix does not count.
        outcomes: see `Outcomes`.
        texts: B.
        scaled: divide each text's by its standard deviation + 1e-4, as GRPO does with the advantages of a group.
    """
    values = rewards * outcomes.is_whole
    expected = outcomes.sums(log_probs.exp() * values, texts)
    with torch.no_grad():
        squares = outcomes.sums(log_probs.exp() * values**2, texts)
        deviation = (squares - expected**2).clamp(min=0).sqrt()
    return (expected / (deviation + 1e-4) if scaled else expected), deviation


def divergence(log_probs: Tensor, reference: Tensor, outcomes: Outcomes, texts: int) -> Tensor:
    """KL divergence (B,) of the policy from the start, in nats, over the outcomes and "anything else".

    Args:
        log_probs, reference: (S,) of the outcomes under the two.
        outcomes, texts: see `objective`.
    """
    inside = outcomes.sums(log_probs.exp() * (log_probs - reference), texts)
    outside, outside_before = (_outside(each, outcomes, texts) for each in (log_probs, reference))
    return inside + outside * (outside.log() - outside_before.log())


def _outside(log_probs: Tensor, outcomes: Outcomes, texts: int) -> Tensor:
    """Mass (B,) outside of all outcomes: that of invalid answers."""
    return (1 - outcomes.sums(log_probs.exp(), texts)).clamp(min=KEPT_SUM)


def answer_entropy(log_probs: Tensor, outcomes: Outcomes, texts: int) -> Tensor:
    """-(sum of p log p) over the valid answers, (B,) in nats; invalid ones are not in it, so as not to be sought."""
    return -outcomes.sums(log_probs.exp() * log_probs * outcomes.is_whole, texts)


class ExactCollator:
    """Rows of `exact_rows` -> a batch: `prompts`, token ids of B texts; `gold` (B, K); `texts`, `ids`."""

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {
            "prompts": [row["input_ids"] for row in rows],
            "gold": torch.tensor([row["gold"] for row in rows]),
            "texts": [row["text"] for row in rows],
            "ids": [row["id"] for row in rows],
            # what Transformers counts a batch by; it would skip the first
            "shift_labels": torch.zeros(len(rows), dtype=torch.long),
        }


def exact_rows(examples: Sequence[Example], encoder: Encoder):
    """Examples -> a data set of `input_ids` (the prompt), `gold` (K,), `text` and `id`."""
    from data.learning.objectives import text_rows

    rows = text_rows(examples, encoder).select_columns(["input_ids", "gold", "id"])
    return rows.add_column("text", [example.text for example in examples])


class ExactTraining(LabelTraining):
    """Mixin over a Transformers `Trainer`: the expected reward as the objective, label metrics at each evaluation.

    Args:
        rewards: what an answer earns.
        beta: weight of the KL divergence from the start.
        entropy_weight: of the entropy of the answers.
        scaled: see `objective`.
        arguments: see `LabelEvaluationMixin`.
    """

    def __init__(
        self, *, rewards: Rewards, beta: float = 0.0, entropy_weight: float = 0.0, scaled: bool = False,
        **arguments: Any,
    ):  # fmt: skip
        super().__init__(loss_settings=LossSettings(), **arguments)
        self.rewards, self.beta, self.entropy_weight, self.scaled = rewards, beta, entropy_weight, scaled
        if count_answers(self.encoder.task) > MOST_LISTED:
            raise UserError("--expectation exact: too many answers")
        self._answers = listed_answers(self.encoder)
        self._start = [p.detach().clone() for p in self._trained()] if beta else []
        self._sums: dict[str, float] = defaultdict(float)
        self._shown: list[str] = []

    # -- the objective

    def losses(self, model, inputs) -> tuple[Tensor, Tensor]:
        """Losses (B,) of the texts, and their places (B,) in the batch."""
        prompts, gold = inputs["prompts"], inputs["gold"]
        count = len(prompts)
        found = [self._answers for _ in prompts]
        outcomes = Outcomes.of(found, gold.shape[1], gold.device)
        batch = self._batch(prompts, outcomes)
        log_probs = answer_scores(model, batch)  # (S,)
        with torch.no_grad():
            marginals = outcomes.sums(log_probs.exp()[:, None] * outcomes.holds, count)  # (B, K)
            parts = self._rewards_of(outcomes, gold, marginals)
            total = sum(self.rewards.weights[name] * values for name, values in parts.items())
        expected, deviation = objective(log_probs, total, outcomes, count, self.scaled)
        losses = -expected
        entropies = answer_entropy(log_probs, outcomes, count)
        if self.entropy_weight:
            losses = losses - self.entropy_weight * entropies
        kl = None
        if self.beta:
            kl = divergence(log_probs, self._reference(model, batch), outcomes, count)
            losses = losses + self.beta * kl
        self._note(inputs, outcomes, log_probs.detach(), parts, deviation, entropies, kl)
        return losses, torch.arange(count, device=losses.device)

    def _batch(self, prompts: Sequence[Sequence[int]], outcomes: Outcomes) -> dict[str, Any]:
        pairs = [(prompts[i], a.token_ids) for i, a in zip(outcomes.text.tolist(), outcomes.answers, strict=True)]
        packed = computes_packed_rows(self.model)
        batch = answer_batch(pairs, packed, self.encoder.tokenizer.pad_token_id)
        device = self.accelerator.device
        if packed:
            return {"rows": [row.to(device) for row in batch["rows"]]}
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def _rewards_of(self, outcomes: Outcomes, gold: Tensor, marginals: Tensor) -> dict[str, Tensor]:
        """Each reward of each outcome, (S,), by name."""
        rewards, found = self.rewards, {}
        for name, weight in rewards.weights.items():
            if not weight:
                continue
            if name in ("f1_macro", "f1_micro"):
                step = self._summed(Counts.of(marginals.cpu().numpy(), gold.cpu().numpy()))
                worth = rewards.memory.with_texts(step).worth(gold.cpu().numpy(), rewards.memory.average)
                rewards.memory.remember(step)
                worth = torch.tensor(worth, dtype=outcomes.holds.dtype, device=outcomes.holds.device)
                found[name] = (worth[outcomes.text] * outcomes.holds).sum(dim=1)
            elif name in ("jaccard", "exact_match"):
                both = (outcomes.holds * gold[outcomes.text]).sum(dim=1)
                union = (outcomes.holds + gold[outcomes.text]).clamp(max=1).sum(dim=1)
                index = torch.where(union > 0, both / union.clamp(min=1), 1.0)
                found[name] = index if name == "jaccard" else (index == 1).to(index.dtype)
            elif name == "format":
                found[name] = torch.ones_like(outcomes.is_whole)
            else:
                lengths = [rewards.length_of(len(answer.token_ids)) for answer in outcomes.answers]
                found[name] = torch.tensor(lengths, device=outcomes.is_whole.device)
        return found

    def _summed(self, counts: Counts) -> Counts:
        """Counts of the texts of all processes."""
        if self.accelerator.num_processes == 1:
            return counts
        rows = [counts.true_positives, counts.predicted, counts.gold, [counts.texts] * len(counts.gold)]
        table = torch.tensor(rows, dtype=torch.float32, device=self.accelerator.device)
        table = self.accelerator.reduce(table, "sum").cpu().double().numpy()
        return Counts(*table[:3], texts=float(table[3, 0]))

    # -- where the run began

    def _trained(self) -> list[Tensor]:
        return [p for p in self.model.parameters() if p.requires_grad]

    def _reference(self, model, batch: dict[str, Any]) -> Tensor:
        """Log-probabilities (S,) under the weights that the run began with."""
        with torch.no_grad(), self._as_it_began():
            return answer_scores(model, batch)

    @contextmanager
    def _as_it_began(self) -> Iterator[None]:
        """Within this context, the weights that learn are those that the run began with."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for weight, begun in zip(self._trained(), self._start, strict=True):
            now = weight.data.clone()
            weight.data.copy_(begun)
            begun.copy_(now)

    # -- watching

    def _note(self, inputs, outcomes: Outcomes, log_probs: Tensor, parts, deviation, entropies, kl) -> None:
        """Add up what is logged of the texts."""
        count, sums = len(inputs["prompts"]), self._sums
        probs = log_probs.exp()
        sums["texts"] += count
        total = 0.0
        for name, values in parts.items():
            value = float((probs * values * outcomes.is_whole).sum())
            if name == self.rewards.accuracy and self.rewards.memory is not None:
                value = self.rewards.memory.counts.f1(self.rewards.memory.average) * count
            sums[f"rewards/{name}/mean"] += value
            total += self.rewards.weights[name] * value
        sums["reward"] += total
        sums["reward_std"] += float(deviation.sum())
        sums["entropy"] += float(entropies.detach().sum())
        sums["pruned_mass"] += float((probs * (1 - outcomes.is_whole)).sum())
        sums["invalid_mass"] += float(count - probs.sum())
        lengths = torch.tensor([float(len(a.token_ids)) for a in outcomes.answers], device=probs.device)
        sums["completions/mean_length"] += float((probs * lengths).sum())
        if kl is not None:
            sums["kl"] += float(kl.detach().sum())
        self._shown = list(self._most_probable(inputs, outcomes, probs))

    def _most_probable(self, inputs, outcomes: Outcomes, probs: Tensor, texts: int = 2, most: int = 3) -> Iterator[str]:
        labels = self.encoder.task.labels
        for row in range(min(texts, len(inputs["texts"]))):
            places = (outcomes.text == row).nonzero()[:, 0]
            best = places[probs[places].argsort(descending=True)[:most]].tolist()
            shown = ", ".join(
                f"{shorten(', '.join(labels[i] for i in outcomes.answers[at].labels), 40)!r} {float(probs[at]):.0%}"
                for at in best
            )
            gold = ", ".join(labels[i] for i in inputs["gold"][row].nonzero()[:, 0].tolist())
            yield f"  {shorten(inputs['texts'][row], 60)!r} -> {shown}  (gold: {gold})"

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The trainer's, with the means of what was added up since the last time, and two texts on the console."""
        if "loss" in logs and self._sums:
            names = sorted(self._sums)
            sums = torch.tensor([self._sums[name] for name in names], device=self.accelerator.device)
            sums = dict(zip(names, self.accelerator.reduce(sums, "sum").tolist(), strict=True))
            texts = sums.pop("texts")
            logs = logs | {name: value / texts for name, value in sums.items()}
            self._sums.clear()
            if self.is_world_process_zero():
                print("\n".join(self._shown))
        super().log(logs, start_time)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Label metrics of greedy answers to the validation rows."""
        scores = self.label_scores()
        self.log(dict(scores))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    def _save_rng_state(self, output_dir: str) -> None:
        """Transformers', and what the rewards remember of earlier texts."""
        super()._save_rng_state(output_dir)
        if self.rewards.memory is not None:
            self.rewards.memory.save(output_dir, self.args.process_index)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and self.rewards.memory is not None:
            self.rewards.memory.load(checkpoint, self.args.process_index)
