"""Reinforcement without sampling: the expected reward of all answers to a text, and its exact gradient.

A label task's answers can be listed (`data.answers`), and one packed tree computes the probability p(y|x) of each of
them behind each text x. So the expected reward, the sum over y of p(y|x) R(y), needs no drawing, and neither does its
gradient: no text is without a signal, there is no noise but that of the choice of texts, and the answers are those of
the policy itself. Answers that are none of the task's have a reward of 0: what mass they have is missing in the sum, so
that validity is learnt, too. main_grpo.py's docstring has the whole objective.

Of many answers, those that matter are found first (data/learning/found_answers.py). How those begin that are left out
is known, and its probability; they earn what the labels in it do, and others that are to come count as wrong ones.

Shapes: B texts, K labels, S outcomes of all texts (data/learning/outcomes.py).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import torch
from accelerate import DistributedType
from torch import Tensor

from data.answers import MOST_LISTED, count_answers
from data.arguments import UserError
from data.encoding import Encoder
from data.engine.scoring import answer_batch, answer_scores
from data.engine.tree_attention import computes_packed_rows
from data.learning.f1_reward import Counts
from data.learning.found_answers import FoundAnswers
from data.learning.objectives import LabelTraining, LossSettings
from data.learning.outcomes import (
    Answer,
    Outcomes,
    answer_entropy,
    divergence,
    expected_rewards,
    over_texts,
    similarity,
)
from data.learning.rewards import Rewards
from data.loading import Example

Scale = Literal["mean", "group", "none"]
SPREAD = (DistributedType.FSDP, DistributedType.DEEPSPEED)  # a process may have a part of the weights only
LEAST_VALID = 0.05  # probability of a valid answer under the start, below which a warning says that little is learnt
# An F1 reward may be far below 0, and over a mean of next to nothing it would be the whole step: on the 588 comments of
# the quickstart, macro F1 of dev answers fell from 45.1 to 35.6 % without a least mean, and to 44.0 % with it.
LEAST_MEAN_OF_F1 = 0.2
CHECKED_TEXTS = 32  # on which it is tried, before training, how much of the probability is reached


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


@dataclass(frozen=True)
class Weighed:
    """All answers behind C prompts, weighed.

    Attributes:
        outcomes: S of them.
        log_probs: (S,).
        parts: each reward of each outcome, (S,), by name.
        losses: (C,), the only one with gradient beside `others`.
        deviation: (C,) of the reward under the policy.
        values: (C,) expected `ExactTraining._worth`, of which the losses are made.
        entropies: (C,) of the valid answers.
        kl: (C,), None where it does not count.
        others: log-probabilities of what else was asked for.
    """

    outcomes: Outcomes
    log_probs: Tensor
    parts: dict[str, Tensor]
    losses: Tensor
    deviation: Tensor
    values: Tensor
    entropies: Tensor
    kl: Tensor | None
    others: Tensor


class ExactTraining(LabelTraining):
    """Mixin over a Transformers `Trainer`: the expected reward as the objective, label metrics at each evaluation.

    Args:
        rewards: what an answer earns.
        beta: weight of the KL divergence from the start.
        entropy_weight: of the entropy of the answers.
        scale: what each text's expected reward is divided by, + 1e-4: of the Jaccard index of its answers under the
            policy, the mean or the standard deviation ("group", after GRPO); "none" = nothing. Both make up for a right
            answer that is improbable, of which little would be learnt; that of an index from 0 to 1 leaves a text that
            can earn more its weight. With "mean" and the Jaccard index as the reward, the gradient is that of the
            logarithm of what is expected (MaxRL). With "mean" and an F1 reward, it is divided by `LEAST_MEAN_OF_F1` at
            least.
        pruned_mass, max_tree_tokens: see `FoundAnswers`.
        arguments: see `LabelEvaluationMixin`.
    """

    def __init__(
        self, *, rewards: Rewards, beta: float = 0.0, entropy_weight: float = 0.0, scale: Scale = "none",
        pruned_mass: float, max_tree_tokens: int, **arguments: Any,
    ):  # fmt: skip
        super().__init__(loss_settings=LossSettings(), **arguments)
        self.rewards, self.beta, self.entropy_weight, self.scale = rewards, beta, entropy_weight, scale
        few = count_answers(self.encoder.task) <= MOST_LISTED
        if self.accelerator.distributed_type in SPREAD and (not few or beta):
            what = f"--beta {beta}" if few else f"more than {MOST_LISTED} answers"
            raise UserError(
                f"--expectation exact: {what} need the whole model in each process, without FSDP and DeepSpeed"
            )
        self.answers = FoundAnswers(self.encoder, pruned_mass, max_tree_tokens)
        self._start = [p.detach().clone() for p in self._trained()] if beta else []
        self._sums: dict[str, float] = defaultdict(float)
        self._noted: list[dict[str, Any]] = []

    # -- the objective

    def losses(self, model, inputs) -> tuple[Tensor, Tensor]:
        """Losses (B,) of the texts, and their places (B,) in the batch."""
        weighed = self._weigh(model, inputs["prompts"], inputs["gold"])
        self._note(inputs, weighed)
        return weighed.losses, torch.arange(len(weighed.losses), device=weighed.losses.device)

    def _weigh(
        self, model, prompts: Sequence[Sequence[int]], gold: Tensor, extra: Sequence[tuple[list[int], list[int]]] = (),
        text_of: Tensor | None = None, share: float = 1.0,
    ) -> "Weighed":  # fmt: skip
        """All answers behind each of C prompts.

        Args:
            model: as the trainer wrapped it.
            prompts: token ids, up to where an answer begins.
            gold: (C, K).
            extra: prompts and what stands behind them, whose log-probabilities are wanted, too.
            text_of: (C,) which text each prompt is of, where a text has several; None = one prompt, one text.
            share: of its text that each prompt stands for.
        """
        count = len(prompts)
        outcomes = Outcomes.of(self._found(prompts, gold), gold.shape[1], gold.device)
        batch = self._batch(prompts, outcomes, extra)
        log_probs, others = answer_scores(model, batch).tensor_split([len(outcomes.answers)])
        with torch.no_grad():
            marginals = outcomes.sums(log_probs.exp()[:, None] * outcomes.holds, count)  # (C, K)
            parts = self._rewards_of(outcomes, gold, marginals, share)
            total = self._weighted(parts)
            _, deviation = expected_rewards(log_probs, total, outcomes, count)
            index = expected_rewards(log_probs, similarity(outcomes, gold), outcomes, count)
            divisors = self._divisors(*(index if text_of is None else over_texts(*index, text_of, share)))
            worth = self._worth(parts, divisors[outcomes.text])
        values, _ = expected_rewards(log_probs, worth, outcomes, count)
        losses = -values
        entropies = answer_entropy(log_probs, outcomes, count)
        if self.entropy_weight:
            losses = losses - self.entropy_weight * entropies
        kl = None
        if self.beta:
            reference = self._reference(model, batch)[: len(log_probs)]
            kl = divergence(log_probs, reference, outcomes, count)
            losses = losses + self.beta * kl
        return Weighed(outcomes, log_probs.detach(), parts, losses, deviation, values.detach(),
                       entropies.detach(), None if kl is None else kl.detach(), others)  # fmt: skip

    def _divisors(self, mean: Tensor, deviation: Tensor) -> Tensor:
        """What the expected rewards (C,) are divided by, from mean and deviation (C,) of the answers' Jaccard index."""
        if self.scale == "none":
            return torch.ones_like(mean)
        if self.scale == "mean" and self.rewards.memory is not None:
            return mean.clamp(min=LEAST_MEAN_OF_F1)
        return (deviation if self.scale == "group" else mean) + 1e-4

    def _weighted(self, parts: dict[str, Tensor]) -> Tensor:
        """The sum of some rewards (S,) of each outcome."""
        return sum(self.rewards.weights[name] * values for name, values in parts.items())

    def _worth(self, parts: dict[str, Tensor], divisors: Tensor) -> Tensor:
        """What each outcome counts (S,) in the objective, from its rewards and the divisor of its text, (S,)."""
        return self._weighted(parts) / divisors

    def _found(self, prompts: Sequence[Sequence[int]], gold: Tensor) -> list[list[Answer]]:
        """The outcomes behind each of C prompts, whose gold is (C, K)."""
        return self.answers.behind(self.accelerator.unwrap_model(self.model), prompts, gold)

    def check_tree(self) -> None:
        """Say what the start makes of the first training texts, where nothing has been learnt from yet.

        Raises:
            UserError: `--max_tree_tokens` do not reach `--pruned_mass`.
        """
        rows = [self.train_dataset[i] for i in range(min(CHECKED_TEXTS, len(self.train_dataset)))]
        valid = pruned = 0.0
        for begin in range(0, len(rows), self.args.per_device_train_batch_size):
            batch = self.data_collator(rows[begin : begin + self.args.per_device_train_batch_size])
            gold = batch["gold"].to(self.accelerator.device)
            with torch.no_grad(), self.accelerator.autocast():
                outcomes = Outcomes.of(self._found(batch["prompts"], gold), gold.shape[1], gold.device)
                probs = answer_scores(self.model, self._batch(batch["prompts"], outcomes)).exp()
            valid += float((probs * outcomes.is_whole).sum())
            pruned += float((probs * (1 - outcomes.is_whole)).sum())
        valid, pruned = valid / len(rows), pruned / len(rows)
        if pruned > self.answers.pruned_mass:
            mass, tokens = self.answers.pruned_mass, self.answers.max_tokens
            raise UserError(
                f"--pruned_mass {mass:g}: with --max_tree_tokens {tokens}, answers of "
                f"probability {pruned:.3f} are left out (mean of {len(rows)} training texts); allow that, or more"
            )
        if valid + pruned < LEAST_VALID and self.is_world_process_zero():
            print(
                f"warning: the start writes a valid answer with a probability of {valid:.1g} only, so there is next to "
                "nothing to learn from: fine-tune it first (main_SFT.py), or begin with --expectation sampled"
            )

    def _batch(
        self, prompts: Sequence[Sequence[int]], outcomes: Outcomes,
        extra: Sequence[tuple[list[int], list[int]]] = (),
    ) -> dict[str, Any]:  # fmt: skip
        pairs = [(prompts[i], a.token_ids) for i, a in zip(outcomes.text.tolist(), outcomes.answers, strict=True)]
        pairs += extra
        packed = computes_packed_rows(self.model)
        batch = answer_batch(pairs, packed, self.encoder.tokenizer.pad_token_id)
        device = self.accelerator.device
        if packed:
            return {"rows": [row.to(device) for row in batch["rows"]]}
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def _rewards_of(self, outcomes: Outcomes, gold: Tensor, marginals: Tensor, share: float) -> dict[str, Tensor]:
        """Each reward of each outcome, (S,), by name; a prompt counts as this `share` of a text."""
        rewards, found = self.rewards, {}
        for name, weight in rewards.weights.items():
            if not weight:
                continue
            if name in ("f1_macro", "f1_micro"):
                step = self._summed(Counts.of(marginals.cpu().numpy(), gold.cpu().numpy()) * share)
                worth = rewards.memory.with_texts(step).worth(gold.cpu().numpy(), rewards.memory.average)
                rewards.memory.remember(step)
                worth = torch.tensor(worth, dtype=outcomes.holds.dtype, device=outcomes.holds.device)
                found[name] = (worth[outcomes.text] * outcomes.holds).sum(dim=1)
            elif name in ("jaccard", "exact_match"):
                index = similarity(outcomes, gold)
                found[name] = index if name == "jaccard" else (index == 1) * outcomes.is_whole
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

    def _note(self, inputs, weighed: "Weighed") -> None:
        """Add up what is logged of the prompts that were weighed."""
        outcomes, parts, sums, count = weighed.outcomes, weighed.parts, self._sums, len(weighed.losses)
        probs = weighed.log_probs.exp()
        sums["texts"] += count
        total = 0.0
        for name, values in parts.items():
            value = float((probs * values).sum())
            if name == self.rewards.accuracy and self.rewards.memory is not None:
                value = self.rewards.memory.counts.f1(self.rewards.memory.average) * count
            sums[f"rewards/{name}/mean"] += value
            total += self.rewards.weights[name] * value
        sums["reward"] += total
        sums["reward_std"] += float(weighed.deviation.sum())
        sums["entropy"] += float(weighed.entropies.sum())
        sums["pruned_mass"] += float((probs * (1 - outcomes.is_whole)).sum())
        sums["invalid_mass"] += float(count - probs.sum())
        lengths = torch.tensor([float(len(a.token_ids)) for a in outcomes.answers], device=probs.device)
        sums["completions/mean_length"] += float((probs * lengths).sum())
        if weighed.kl is not None:
            sums["kl"] += float(weighed.kl.sum())
        self._noted = list(self._most_probable(inputs, weighed))

    def _most_probable(self, inputs, weighed: Weighed, most: int = 3) -> Iterator[dict[str, Any]]:
        """The most probable answers to each text, with what they earn."""
        outcomes, probs = weighed.outcomes, weighed.log_probs.exp()
        for row, text in enumerate(inputs["texts"]):
            places = (outcomes.text == row).nonzero()[:, 0]
            for at in places[probs[places].argsort(descending=True)[:most]].tolist():
                answer = outcomes.answers[at]
                rewards = {name: float(values[at]) for name, values in weighed.parts.items()}
                yield {
                    "prompt": text, "gold": self._in_words(inputs["gold"][row].nonzero()[:, 0].tolist()),
                    "completion": self._in_words(answer.labels) if answer.is_whole else "(others)",
                    "probability": float(probs[at]), **rewards,
                }  # fmt: skip

    def _in_words(self, labels: Sequence[int]) -> str:
        return self.encoder.task.answer([self.encoder.task.labels[i] for i in labels])

    def _write_answers(self) -> None:
        """The answers noted last, two texts on the console and all in `completions/`, as TRL has them there."""
        import pandas

        for text, rows in islice(groupby(self._noted, key=itemgetter("prompt")), 2):
            rows = list(rows)
            answers = ", ".join(f"{shorten(row['completion'], 40)!r} {row['probability']:.0%}" for row in rows)
            print(f"  {shorten(text, 60)!r} -> {answers}  (gold: {rows[0]['gold']})")
        folder = Path(self.args.output_dir, "completions")
        folder.mkdir(exist_ok=True)
        table = pandas.DataFrame({"step": self.state.global_step} | row for row in self._noted)
        table.to_parquet(folder / f"completions_{self.state.global_step:05d}.parquet")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The trainer's, with the means of what was added up since the last time, and the answers to the last texts."""
        if "loss" in logs and self._sums:
            names = sorted(self._sums)
            sums = torch.tensor([self._sums[name] for name in names], device=self.accelerator.device)
            sums = dict(zip(names, self.accelerator.reduce(sums, "sum").tolist(), strict=True))
            texts = sums.pop("texts")
            logs = logs | {name: value / texts for name, value in sums.items()}
            self._sums.clear()
            if self.is_world_process_zero() and self._noted:  # nothing, where no rationale came to its end
                self._write_answers()
            self._noted = []
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
