"""Token ids of a task's prompts and targets: the only way from a text to what a model reads. (no torch)"""

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

from data.arguments import UserError
from data.labels import SEPARATOR
from data.tasks import Task

Objective = Literal["generate", "classify", "score"]
ENCODERS = frozenset(
    (
        "albert", "bert", "camembert", "convbert", "data2vec-text", "deberta", "deberta-v2", "distilbert", "electra",
        "ernie", "eurobert", "flaubert", "fnet", "funnel", "ibert", "longformer", "luke", "megatron-bert", "mobilebert",
        "modernbert", "mpnet", "mra", "nezha", "nomic_bert", "nystromformer", "rembert", "roberta",
        "roberta-prelayernorm", "roc_bert", "roformer", "squeezebert", "xlm", "xlm-roberta", "xlm-roberta-xl", "xmod",
        "yoso",
    )
)  # fmt: skip
_TEXT, _ANSWER = "\u2402", "\u2403"  # stand-ins for text and answer while the chat template is rendered
RATIONALE_TOKENS = 256  # room for the reasoning of a --cot answer
MAX_ANSWER_LABELS = 5  # room for a multi-label answer: GoEmotions, the widest task, never has more


def is_bidirectional(model_type: str) -> bool:
    """Whether this is an encoder: its tokens see what follows them, so it classifies, but writes and scores nothing."""
    return model_type in ENCODERS


class Encoder:
    """Task and text -> token ids. Training, evaluation and every backend read the same ids from here.

    A prompt is `head + text + tail`. The three are tokenised apart, so that all prompts of a task begin with the very
    same ids, a long text can be cut without touching the instruction, and markup written inside a text
    (`<|im_end|>`) is read as plain characters instead of ending the turn.

    Args:
        task: the task.
        tokenizer: a Hugging Face tokenizer.
        cot: ask for reasoning before the answer.
        max_length: tokens of prompt and answer together; longer texts lose their end.
        objective: "generate" and "score" keep room for an answer, "classify" has none.

    Raises:
        UserError: `max_length` leaves no room for a text.
    """

    def __init__(
        self, task: Task, tokenizer, cot: bool = False, max_length: int = 512, objective: Objective = "generate"
    ):
        self.task, self.tokenizer, self.cot, self.max_length = task, tokenizer, cot, max_length
        self.objective = objective
        head, tail = self._rendered()
        begin, end = ([], []) if self._chat else self._special_ids()
        self.head_ids: list[int] = begin + self.token_ids(head)
        self.tail_ids: list[int] = self.token_ids(tail) + (end if objective == "classify" else [])
        # " joy" is the usual token after "Answer:"; after a chat header or a Chinese colon the answer starts at once
        self._target_prefix = " " if not self._chat and tail[-1:].isascii() else ""
        needed = len(self.head_ids) + len(self.tail_ids) + self.answer_tokens
        if max_length <= needed:
            raise UserError(
                f"--max_length {max_length}: the prompt of task {task.name} takes "
                f"{needed - self.answer_tokens} tokens without its text and the answer up to {self.answer_tokens}; "
                f"must be over {needed}"
            )

    @property
    def _chat(self) -> bool:
        return self.task.use_chat_template and bool(self.tokenizer.chat_template)

    def _rendered(self) -> tuple[str, str]:
        """The prompt as text, without its text: what stands before it and what stands behind it."""
        if self._chat:
            prompt = self.tokenizer.apply_chat_template(
                self.task.messages(_TEXT, self.cot),
                tokenize=False,
                add_generation_prompt=True,
                enable_thinking=self.cot,
            )
            # templates of reasoning-only models open the reasoning themselves; our targets bring their own tag
            prompt = (
                prompt.removesuffix("\n").removesuffix("<think>") if prompt.rstrip().endswith("<think>") else prompt
            )
        else:
            prompt = self.task.plain_prompt(_TEXT, self.cot)
        head, _, tail = prompt.partition(_TEXT)
        return head, tail

    def token_ids(self, text: str) -> list[int]:
        """Token ids of words of our own; markup in them is read as markup."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _special_ids(self) -> tuple[list[int], list[int]]:
        """What this tokenizer puts before and behind a plain text, such as [CLS] and [SEP]."""
        mask = self.tokenizer("a", return_special_tokens_mask=True)
        ids, inside = mask["input_ids"], [i for i, special in enumerate(mask["special_tokens_mask"]) if not special]
        return (ids[: inside[0]], ids[inside[-1] + 1 :]) if inside else ([], [])

    @cached_property
    def end_id(self) -> int:
        """The token that ends an answer: what the chat template puts after a turn, else the tokenizer's own end."""
        if self._chat:
            turns = [*self.task.messages(_TEXT, self.cot), {"role": "assistant", "content": _ANSWER}]
            behind = self.tokenizer.apply_chat_template(turns, tokenize=False).rpartition(_ANSWER)[2]
            ids = self.token_ids(behind)
            if ids and ids[0] in self.tokenizer.added_tokens_decoder:
                return ids[0]
        if self.tokenizer.eos_token_id is None:
            raise UserError("--model_path: the tokenizer has no end-of-text token, so an answer could never end")
        return self.tokenizer.eos_token_id

    @cached_property
    def answer_tokens(self) -> int:
        """Room kept for the answer, end included: the longest one of `MAX_ANSWER_LABELS` labels."""
        if self.objective == "classify":
            return 0
        several = self.task.kind == "multi_label" and self.objective == "generate"
        count = min(MAX_ANSWER_LABELS, len(self.task.labels)) if several else 1
        # as it stands inside an answer
        lengths = {label: len(self.token_ids(" " + label)) for label in self.task.labels}
        first = max(len(self.token_ids(label)) - length for label, length in lengths.items())  # at its beginning, more?
        labels = sum(sorted(lengths.values())[-count:]) + max(first, 0) + (count - 1) * len(self.token_ids(","))
        frame = self.task.target(self.task.labels[:1], "")
        reasoning = RATIONALE_TOKENS + len(self.token_ids(frame)) if self.cot else 0
        return labels + reasoning + 1

    def prompts_and_cuts(self, texts: Sequence[str]) -> tuple[list[list[int]], list[bool]]:
        """Token ids of the prompts, and which texts have lost their end because they left no room for the answer.

        Spaces and line breaks around a text are no part of it: files, flags and the page spell one text alike.
        """
        if not texts:
            return [], []
        room = self.max_length - len(self.head_ids) - len(self.tail_ids) - self.answer_tokens
        texts = [text.strip() for text in texts]
        encoded = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [self.head_ids + ids[:room] + self.tail_ids for ids in encoded], [len(ids) > room for ids in encoded]

    def prompt_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of the prompts; see `prompts_and_cuts`."""
        return self.prompts_and_cuts(texts)[0]

    def target_ids(self, labels: Sequence[str], rationale: str | None = None) -> list[int]:
        """Token ids of an answer, its end token included."""
        return [*self.token_ids(self._target_prefix + self.task.target(labels, rationale)), self.end_id]

    def answer_text(self, labels: Sequence[str], closed: bool = True) -> str:
        """An answer of these labels as it stands behind a prompt, or behind the reasoning.

        Args:
            labels: in the order in which they are written.
            closed: False leaves out what stands behind the last label.
        """
        before, behind = ("<answer>", "</answer>") if self.cot else (self._target_prefix, "")
        return before + SEPARATOR.join(labels) + (behind if closed else "")

    def answer_ids(self, labels: Sequence[str], closed: bool = True) -> list[int]:
        """Token ids of `answer_text`, with the end token if it is `closed`."""
        return self.token_ids(self.answer_text(labels, closed)) + [self.end_id] * closed

    def reasoned_ids(self, prompt: Sequence[int], rationale: str) -> list[int]:
        """Token ids of a `cot` prompt with its reasoning, up to where the answer begins."""
        return [*prompt, *self.token_ids(self.task.reasoning(rationale))]

    def candidate_ids(self) -> list[list[int]]:
        """Token ids of each label as an answer of its own, end token included, in the task's order."""
        return [self.target_ids((label,)) for label in self.task.labels]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The answer as text, without its end token."""
        ids = list(token_ids)
        end = ids.index(self.end_id) if self.end_id in ids else len(ids)
        return self.tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False).strip()
