"""Token ids of cases and summaries: what `data/encoding.py` has for texts and labels. (no torch)"""

from collections.abc import Sequence

from data.encoding import PromptEncoder
from data.rendering import PromptIds
from data.spelling import Spelling
from data.summaries.cases import Case
from data.summaries.task import SummaryTask


def longest_answer(task: SummaryTask, tokenizer, cases: Sequence[Case]) -> int:
    """Tokens of the longest of the cases' summaries, with its end, and one that may stand before it."""
    spelling = Spelling(tokenizer)
    return max(map(len, spelling.plain_ids([task.target(case.gold) for case in cases]))) + 2


class SummaryEncoder(PromptEncoder):
    """Cases -> prompts, summaries -> answers; see `PromptEncoder`.

    Args:
        task, tokenizer, max_length, prompt: see `PromptEncoder`.
        max_new_tokens: room for a summary, its end included.

    Raises:
        UserError: see `PromptEncoder`.
    """

    room_in_words = "--max_new_tokens"

    def __init__(
        self, task: SummaryTask, tokenizer, max_length: int, max_new_tokens: int, prompt: PromptIds | None = None
    ):
        self._max_new_tokens = max_new_tokens
        super().__init__(task, tokenizer, max_length=max_length, prompt=prompt)

    def _check_answers(self) -> None:
        """Nothing: a tokenizer that reads cases writes any summary."""

    @property
    def answer_tokens(self) -> int:
        """Room kept for the summary, end included."""
        return self._max_new_tokens

    def target_ids(self, gold: Sequence[str], rationale: str | None = None) -> list[int]:
        """Token ids of a summary to train on, and the end token; markup in it is read as plain characters."""
        text = self.prompt.answer_prefix + self.task.target(gold)
        return [*self._spelling.plain_ids([text])[0], self.end_id]
