"""What a tokenizer and its chat template put around a text and its answer. (no torch)

A template is a program that came with the model: it may fail, run for ever, or leave the question out.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Literal

from data.arguments import UserError, one_line
from data.spelling import Spelling
from data.tasks import Task

SECONDS = 10.0  # a template needs a few milliseconds
MOST_CHARACTERS = 10_000_000
_STAND_INS = (range(0x2402, 0x2427), range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))  # control pictures, private use


@dataclass(frozen=True)
class PromptIds:
    """The words around a text and its answer as token ids. It is kept in task.json: a template may print the date.

    Attributes:
        head: token ids before the text.
        tail: token ids behind it.
        answer_prefix: what stands between prompt and answer.
        end: id of the token that ends an answer; None where none is written.

    Raises:
        ValueError: a token id that no tokenizer gives.
    """

    __pydantic_config__ = {"strict": True, "extra": "forbid"}  # noqa: RUF012  (of `Contract.load`)

    head: tuple[int, ...]
    tail: tuple[int, ...]
    answer_prefix: Literal["", " "]
    end: int | None

    def __post_init__(self):
        if not all(0 <= token < 2**31 for token in self.token_ids):
            raise ValueError("a token id is below 0 or over 31 bits")

    @property
    def token_ids(self) -> tuple[int, ...]:
        """All of them."""
        return (*self.head, *self.tail, *(() if self.end is None else (self.end,)))


def spelt_prompt(task: Task, spelling: Spelling, cot: bool, writes: bool) -> PromptIds:
    """The words around a text and its answer, as the tokenizer spells them now.

    Args:
        task: the task.
        spelling: of the model's tokenizer.
        cot: ask for reasoning before the answer.
        writes: whether an answer is to be written behind the prompt; else a head reads it.

    Raises:
        UserError: the chat template fails or does not print the text once, or no token could end an answer.
    """
    tokenizer = spelling.tokenizer
    chat = task.use_chat_template and bool(tokenizer.chat_template)
    text, answer = _stand_ins(task.prompt("", cot), str(tokenizer.chat_template))
    if chat:
        prompt = _rendered(tokenizer, task.messages(text, cot), add_generation_prompt=True, enable_thinking=cot)
        # templates of reasoning-only models open the reasoning themselves; our targets bring their own tag
        prompt = prompt.removesuffix("\n").removesuffix("<think>") if prompt.rstrip().endswith("<think>") else prompt
        if (count := prompt.count(text)) != 1:
            raise UserError(f"{_template(tokenizer)} prints the text of a question {count} times; expected once")
    else:
        prompt = task.plain_prompt(text, cot)
    head, _, tail = prompt.partition(text)
    begin, end = ([], []) if chat else _special_ids(tokenizer)
    head_ids, tail_ids = spelling.ids([head, tail])
    return PromptIds(
        head=(*begin, *head_ids),
        tail=(*tail_ids, *(() if writes else end)),
        # " joy" is the usual token after "Answer:"; after a chat header or a Chinese colon the answer starts at once
        answer_prefix=" " if not chat and tail[-1:].isascii() else "",
        end=_end_of_answers(task.messages(text, cot) if chat else None, answer, spelling) if writes else None,
    )


def _end_of_answers(question: Sequence[dict[str, str]] | None, answer: str, spelling: Spelling) -> int:
    """The token that ends an answer: what the chat template puts after a turn, else the tokenizer's own end.

    Args:
        question: the turn before the answer; None where there is no template.
        answer: stands for the answer.
        spelling: of the model's tokenizer.
    """
    tokenizer = spelling.tokenizer
    if question is not None:
        turns = _rendered(tokenizer, [*question, {"role": "assistant", "content": answer}])
        _, printed, behind = turns.rpartition(answer)
        ids = spelling.ids([behind])[0] if printed else []
        if ids and ids[0] in tokenizer.added_tokens_decoder:
            return ids[0]
    if tokenizer.eos_token_id is None:
        raise UserError("--model_path: the tokenizer has no end-of-text token, so an answer could never end")
    return tokenizer.eos_token_id


def _special_ids(tokenizer) -> tuple[list[int], list[int]]:
    """What this tokenizer puts before and behind a plain text, such as [CLS] and [SEP]."""
    mask = tokenizer("a", return_special_tokens_mask=True)
    ids, inside = mask["input_ids"], [i for i, special in enumerate(mask["special_tokens_mask"]) if not special]
    return (ids[: inside[0]], ids[inside[-1] + 1 :]) if inside else ([], [])


def _stand_ins(*texts: str) -> tuple[str, str]:
    """Two characters that stand in none of `texts`: they mark places in a prompt while it is rendered."""
    used = set(chain.from_iterable(texts))
    first, second = islice((chr(code) for code in chain(*_STAND_INS) if chr(code) not in used), 2)
    return first, second


def _rendered(tokenizer, messages: Sequence[dict[str, str]], **options: Any) -> str:
    """`messages` as the tokenizer's chat template prints them; `options` are those of `apply_chat_template`."""
    outcome: list[str | Exception] = []

    def render() -> None:
        try:
            outcome.append(tokenizer.apply_chat_template(list(messages), tokenize=False, **options))
        except Exception as error:  # of a program of others: any
            outcome.append(error)

    thread = threading.Thread(target=render, daemon=True)  # one that loops must not keep this process alive
    thread.start()
    thread.join(SECONDS)
    if not outcome:
        raise UserError(f"{_template(tokenizer)} has not come to its end in {SECONDS:g} seconds")
    if isinstance(outcome[0], Exception):
        raise UserError(f"{_template(tokenizer)} fails ({one_line(outcome[0])})") from outcome[0]
    if len(outcome[0]) > MOST_CHARACTERS:
        raise UserError(f"{_template(tokenizer)} prints {len(outcome[0]):,} characters around one question")
    return outcome[0]


def _template(tokenizer) -> str:
    return " ".join(filter(None, ("--model_path", tokenizer.name_or_path))) + ": the model's chat template"
