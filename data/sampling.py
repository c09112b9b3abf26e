"""How an answer that is not one of a list is drawn. (no torch)"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Sampling:
    """How free text is drawn, token by token; the defaults are those of Qwen2-Instruct. It is kept in task.json.

    Attributes:
        max_new_tokens: at which a text is cut off, its end included. So much of `max_length` is kept for it.
        temperature: divides the logits; 0 = the most probable token, always.
        top_p: draw from the smallest set of tokens with at least this probability (Holtzman et al., 2020).
        top_k: draw from the most probable `top_k` tokens; 0 = from all.
        repetition_penalty: divides positive logits, and multiplies negative ones, of tokens that stand in the prompt or
            the text so far (Keskar et al., 2019); 1 = none.

    Raises:
        ValueError: values with which nothing could be drawn.
    """

    __pydantic_config__ = {"strict": True, "extra": "forbid", "allow_inf_nan": False}  # noqa: RUF012  (task.json)

    max_new_tokens: int = 1024
    temperature: float = 0.7
    top_p: float = 0.8
    top_k: int = 20
    repetition_penalty: float = 1.05

    def __post_init__(self):
        if not 1 <= self.max_new_tokens < 2**31:
            raise ValueError(f"max_new_tokens {self.max_new_tokens}: must be at least 1 and below 2**31")
        if self.temperature != 0 and not 0.01 <= self.temperature <= 100:  # vLLM draws with no less than 0.01
            raise ValueError(f"temperature {self.temperature}: must be 0 (the most probable token) or from 0.01 to 100")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p}: must be above 0 and at most 1")
        if not 0 <= self.top_k < 2**31:
            raise ValueError(f"top_k {self.top_k}: must be 0 (all tokens) or more")
        if not 0.1 <= self.repetition_penalty <= 10:
            raise ValueError(f"repetition_penalty {self.repetition_penalty}: must be from 0.1 to 10")


def seed_of(prompt: Sequence[int], seed: int) -> int:
    """The seed of what is drawn behind a prompt, from 0 to 2**63 - 1: it depends on these two alone."""
    return int.from_bytes(hashlib.sha256(f"{seed} {list(prompt)}".encode()).digest()[:8], "big") >> 1
