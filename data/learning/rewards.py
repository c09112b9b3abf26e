"""What an answer earns in main_grpo.py: for its labels, its form, its length; and the table of it. (no torch)"""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.encoding import Encoder
from data.files import REWARDS_FILE, write_text
from data.labels import Prediction
from data.metrics import similarity

if TYPE_CHECKING:
    from transformers import TrainerCallback

Completions = Sequence[Sequence[int]]  # B answers as token ids


def jaccard_reward(prediction: Prediction, gold: Sequence[str]) -> float:
    """|P∩G| / |P∪G| of predicted and gold labels; 1 for the answer that none applies, where that is right.

    >>> jaccard_reward(Prediction(("joy", "love"), valid=True), ("joy",))
    0.5
    >>> jaccard_reward(Prediction((), valid=True), ()), jaccard_reward(Prediction((), valid=False), ())  # "none", "hm"
    (1.0, 0.0)
    """
    return similarity(prediction, gold)


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
        weights: name -> weight; a reward of weight 0 is not computed.
    """

    encoder: Encoder
    stop_ids: Sequence[int]
    budget: int
    limit: int
    weights: dict[str, float]

    def jaccard(self, completion_ids: Completions, gold: Sequence[Sequence[str]], **_) -> list[float]:
        """`jaccard_reward` of each of B answers; `gold` has the labels of its text."""
        return [jaccard_reward(self._read(ids)[0], labels) for ids, labels in zip(completion_ids, gold, strict=True)]

    def format(self, completion_ids: Completions, **_) -> list[float]:
        """`format_reward` of each of B answers."""
        return [format_reward(*self._read(ids)) for ids in completion_ids]

    def length(self, completion_ids: Completions, **_) -> list[float]:
        """`length_reward` of each of B answers."""
        return [length_reward(len(ids), self.budget, self.limit, self._is_finished(ids)) for ids in completion_ids]

    def functions(self) -> list[Callable[..., list[float]]]:
        """Those with a weight."""
        return [getattr(self, name) for name, weight in self.weights.items() if weight]

    def totals(self, completion_ids: Completions, gold: Sequence[Sequence[str]]) -> list[float]:
        """The weighted sum for each of B answers."""
        parts = [
            [self.weights[function.__name__] * value for value in function(completion_ids=completion_ids, gold=gold)]
            for function in self.functions()
        ]
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
    "jaccard": "rewards/jaccard/mean",
    "format": "rewards/format/mean",
    "length": "rewards/length/mean",
    "completion_length": "completions/mean_length",
    "cut_off": "completions/clipped_ratio",
    "zero_variance_groups": "frac_reward_zero_std",
    "groups_replaced": "groups_replaced",
    "entropy": "entropy",
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
