"""What all tasks do alike: a template becomes a question, and what two tasks differ in is told apart. (no torch)"""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any


class Prompted(ABC):
    """Mixin of tasks, which are dataclasses with `template` and `use_chat_template`."""

    template: str
    use_chat_template: bool

    @abstractmethod
    def prompt(self, text: str, cot: bool = False) -> str:
        """The question about one text, without any chat markup."""

    @property
    def template_hash(self) -> str:
        """First 16 hex digits of the template's SHA-256: two runs with the same hash asked the same question."""
        return hashlib.sha256(self.template.encode()).hexdigest()[:16]

    def stored(self) -> dict[str, Any]:
        """What task.json says of the task: the fields that make two tasks differ, and what it has of the data."""
        kept = (each.name for each in fields(self) if each.compare or each.metadata.get("stored"))
        return {name: getattr(self, name) for name in kept}

    def messages(self, text: str, cot: bool = False) -> list[dict[str, str]]:
        """The question as a chat of one user turn."""
        return [{"role": "user", "content": self.prompt(text, cot)}]

    def plain_prompt(self, text: str, cot: bool = False) -> str:
        """The question for a model without a chat template: the prompt, ending where the answer begins."""
        prompt = self.prompt(text, cot)
        complete = not self.use_chat_template or prompt.endswith((":", "："))
        return prompt if complete else prompt + "\n\nAnswer:"
