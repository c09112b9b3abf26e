"""What an answer earns in main_grpo.py: for its labels, its form, its length; and the table of it. (no torch)"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.encoding import Encoder
from data.files import REWARDS_FILE, write_text
from data.labels import Prediction
from data.learning.f1_reward import Counts, F1Memory
from data.metrics import indicators, jaccard

if TYPE_CHECKING:
    from transformers import TrainerCallback

Completions = Sequence[Sequence[int]]  # B answers as token ids
ACCURACY_REWARDS = ("jaccard", "exact_match", "f1_macro", "f1_micro")


def jaccard_reward(prediction: Prediction, gold: Sequence[str]) -> float:
    """|P∩G| / |P∪G| of predicted and gold labels; 1 when both are empty.

    >>> jaccard_reward(Prediction(("joy", "love"), valid=True), ("joy",))
    0.5
    >>> jaccard_reward(Prediction((), valid=False), ("joy",))
    0.0
    """
    return jaccard(prediction.labels, gold)


def exact_match_reward(prediction: Prediction, gold: Sequence[str]) -> float:
    """1 where the predicted labels are the gold ones, else 0.

    >>> exact_match_reward(Prediction(("joy", "love"), valid=True), ("joy",))
    0.0
    """
    return float(set(prediction.labels) == set(gold))


def format_reward(prediction: Prediction, finished: bool) -> float:
    """1 for an answer to the letter, else 0.

    To the letter is what `Task.parse` calls valid: only labels of the task, each once, nothing around them; with
    reasoning asked for, reasoning and answer each in their tags, once and in order. An answer that was cut off is not.

    >>> format_reward(Prediction(("joy",), valid=True), finished=True)
    1.0
    >>> format_reward(Prediction(("joy",), valid=True), finished=False)   # "joy, sadn" may have been meant
    0.0
    """
    return float(prediction.valid and finished)


def length_reward(length: int, budget: int, limit: int, finished: bool) -> float:
    """0 up to `budget` tokens, then falling in a straight line to -1 at `limit`; -1 for an answer that was cut off.

    The soft overlong punishment of DAPO (Yu et al., 2025, equation 13), with the budget given as such.

    >>> [length_reward(n, budget=10, limit=20, finished=True) for n in (9, 10, 15, 20)]
    [0.0, 0.0, -0.5, -1.0]
    >>> length_reward(10, budget=10, limit=10, finished=False)
    -1.0
    """
    if not finished:
        return -1.0
    return -(length - budget) / (limit - budget) if length > budget else 0.0


@dataclass(frozen=True)
class Rewards:
    """The rewards of drawn answers, as TRL calls them: B lists of token ids in, B numbers out.

    Attributes:
        encoder: reads token ids as text, and knows the task.
        stop_ids: tokens that end an answer; one that does not end with one was cut off.
        budget, limit: of `length_reward`, in tokens, the end token among them.
        weights: name -> weight; a reward of weight 0 is not computed. The first is the one for the labels.
        memory: of earlier texts, for an F1 reward.
    """

    encoder: Encoder
    stop_ids: Sequence[int]
    budget: int
    limit: int
    weights: dict[str, float]
    memory: F1Memory | None = None

    @property
    def accuracy(self) -> str:
        """The name of the reward for the labels, one of `ACCURACY_REWARDS`."""
        return next(iter(self.weights))

    def jaccard(self, completion_ids: Completions, gold: Sequence[Sequence[str]], **_) -> list[float]:
        """`jaccard_reward` of each of B answers; `gold` has the labels of its text."""
        return [jaccard_reward(self._read(ids)[0], labels) for ids, labels in zip(completion_ids, gold, strict=True)]

    def exact_match(self, completion_ids: Completions, gold: Sequence[Sequence[str]], **_) -> list[float]:
        """`exact_match_reward` of each of B answers."""
        read = [self._read(ids)[0] for ids in completion_ids]
        return [exact_match_reward(prediction, labels) for prediction, labels in zip(read, gold, strict=True)]

    def f1_macro(
        self, completion_ids: Completions, gold: Sequence[Sequence[str]], id: Sequence[str], **_
    ) -> list[float]:
        """What each of B answers adds to the F1 of texts: n (F1 with it - F1 without its text), n texts in the counts.

        The answers to a text, which `id` names, stand one behind the other. "Without" are the texts remembered and the
        others of this batch, each with the mean counts of its answers; the current ones are then remembered. The
        estimator is biased as `data.learning.f1_reward` says, and by the difference of a step of one text to a
        derivative, which vanishes as n grows.
        """
        values, counts = self._f1_values(completion_ids, gold, id)
        self.memory.remember(counts)
        return values

    def f1_micro(
        self, completion_ids: Completions, gold: Sequence[Sequence[str]], id: Sequence[str], **_
    ) -> list[float]:
        """See `f1_macro`; which of the two, the memory knows."""
        return self.f1_macro(completion_ids, gold, id)

    def _f1_values(
        self, completion_ids: Completions, gold: Sequence[Sequence[str]], ids: Sequence[str]
    ) -> tuple[list[float], Counts]:
        """What each answer adds, and the counts of these texts."""
        task, average = self.encoder.task, self.memory.average
        predicted = indicators([self._read(ids)[0].labels for ids in completion_ids], task).astype(float)  # (B, K)
        truth = indicators(gold, task).astype(float)
        groups = [list(rows) for _, rows in groupby(range(len(gold)), key=ids.__getitem__)]
        means = [Counts.of(predicted[rows].mean(axis=0, keepdims=True), truth[rows[:1]]) for rows in groups]
        together = sum(means[1:], start=means[0])
        values: list[float] = []
        for rows, mean in zip(groups, means, strict=True):
            others = self.memory.with_texts(together, mean * -1)
            before = others.f1(average)
            alone = [Counts.of(predicted[[i]], truth[[i]]) for i in rows]
            values += [(others.texts + 1) * ((others + one).f1(average) - before) for one in alone]
        return values, together

    def format(self, completion_ids: Completions, **_) -> list[float]:
        """`format_reward` of each of B answers."""
        return [format_reward(*self._read(ids)) for ids in completion_ids]

    def length(self, completion_ids: Completions, **_) -> list[float]:
        """`length_reward` of each of B answers."""
        return [length_reward(len(ids), self.budget, self.limit, self._is_finished(ids)) for ids in completion_ids]

    def length_of(self, tokens: int) -> float:
        """`length_reward` of an answer of so many tokens that came to its end."""
        return length_reward(tokens, self.budget, self.limit, finished=True)

    def functions(self) -> list[Callable[..., list[float]]]:
        """Those with a weight."""
        return [getattr(self, name) for name, weight in self.weights.items() if weight]

    def totals(self, completion_ids: Completions, gold: Sequence[Sequence[str]]) -> list[float]:
        """The weighted sum for each of B answers to one text; nothing is remembered of them."""
        parts = []
        for function in self.functions():
            name = function.__name__
            if name in ("f1_macro", "f1_micro"):
                values, _ = self._f1_values(completion_ids, gold, [""] * len(gold))
            else:
                values = function(completion_ids=completion_ids, gold=gold)
            parts.append([self.weights[name] * value for value in values])
        return [sum(values) for values in zip(*parts, strict=True)]

    def _is_finished(self, ids: Sequence[int]) -> bool:
        return ids[-1] in self.stop_ids

    def _read(self, ids: Sequence[int]) -> tuple[Prediction, bool]:
        """What an answer says, and whether it came to its end."""
        return self._parsed(tuple(ids))

    @cached_property
    def _parsed(self) -> Callable[[tuple[int, ...]], tuple[Prediction, bool]]:
        """Parses an answer once, however many rewards ask, and however many samples are the same."""

        @lru_cache(maxsize=4096)
        def parsed(ids: tuple[int, ...]) -> tuple[Prediction, bool]:
            finished = self._is_finished(ids)
            text = self.encoder.decode(ids[:-1] if finished else ids)
            return self.encoder.task.parse(text, self.encoder.cot), finished

        return parsed


# --- rewards.csv ----------------------------------------------------------------------------------------------------

REWARD_COLUMNS = {  # column of rewards.csv -> what the trainer logs it as
    "reward": "reward",
    **{name: f"rewards/{name}/mean" for name in ACCURACY_REWARDS},
    "format": "rewards/format/mean",
    "length": "rewards/length/mean",
    "completion_length": "completions/mean_length",
    "cut_off": "completions/clipped_ratio",
    "zero_variance_groups": "frac_reward_zero_std",
    "groups_replaced": "groups_replaced",
    "entropy": "entropy",
    "invalid_mass": "invalid_mass",  # probability of answers that are none; exact expectation only, as is the next
    "pruned_mass": "pruned_mass",
    "kl": "kl",
    "vllm_difference": "sampling/sampling_logp_difference/mean",  # of a token's log-probability there and here
}


def write_rewards(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """`rewards.csv`: a row for each log entry of training, from the trainer's whole history."""
    entries = [entry for entry in history if "reward" in entry]
    if not entries:
        return
    columns = {column: key for column, key in REWARD_COLUMNS.items() if any(key in entry for entry in entries)}
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["step", *columns])
    rows.writerows([entry["step"], *(entry.get(key, "") for key in columns.values())] for entry in entries)
    write_text(path, text.getvalue())


def reward_writer() -> "TrainerCallback":
    """A callback that keeps `rewards.csv` up to date."""
    from transformers import TrainerCallback

    class RewardWriter(TrainerCallback):
        def on_log(self, args, state, control, **kwargs) -> None:
            if state.is_world_process_zero:
                write_rewards(Path(args.output_dir) / REWARDS_FILE, state.log_history)

    return RewardWriter()
