"""A tokenizer's two ways from characters to token ids: words of ours, and words of others. (no torch)"""

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from data.arguments import UserError
from data.labels import holds_tags

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BRACKETED = re.compile(r"\s*(<.+>|\[.+\])\s*", re.DOTALL)  # tokens may also be added for words, or for white space


class Spelling:
    """Characters -> token ids.

    Args:
        tokenizer: a Hugging Face tokenizer.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of words of our own; markup in them is read as markup."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def plain_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of words of others; markup in them is read as plain characters."""
        texts = list(texts)
        rows = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        if self._stubborn and self.tokenizer.is_fast:
            for i, ids in enumerate(rows):
                if not self._stubborn.isdisjoint(ids):
                    rows[i] = self._without_markup.encode(texts[i], add_special_tokens=False).ids
        return rows

    def plain_spans(self, text: str) -> list[tuple[int, int]]:
        """Where in a text each of its `plain_ids` stands, (begin, end) in characters; one of white space has no width.

        Raises:
            UserError: a tokenizer that cannot say so.
        """
        if not self.tokenizer.is_fast:
            raise UserError("--model_path: its tokenizer does not say where in a text its tokens stand")
        options = {"split_special_tokens": True, "return_offsets_mapping": True}
        encoded = self.tokenizer(text, add_special_tokens=False, **options)
        ids, spans = encoded["input_ids"], encoded["offset_mapping"]
        if not self._stubborn.isdisjoint(ids):
            plain = self._without_markup.encode(text, add_special_tokens=False)
            ids, spans = plain.ids, plain.offsets
        words = self.tokenizer.batch_decode([[token] for token in ids], clean_up_tokenization_spaces=False)
        return [(begin, end if word.strip() else begin) for (begin, end), word in zip(spans, words, strict=True)]

    @cached_property
    def markup(self) -> frozenset[int]:
        """Tokens that steer a model instead of saying something: special ones, and such as `_stubborn` holds."""
        added = self.tokenizer.added_tokens_decoder.items()
        return self._stubborn | {i for i, token in added if token.special and _BRACKETED.fullmatch(token.content)}

    @cached_property
    def _stubborn(self) -> frozenset[int]:
        """Markup that Transformers does not call special, and so makes of any text: tags of chat templates and ours."""
        template = str(self.tokenizer.chat_template or "")
        return frozenset(
            i
            for i, token in self.tokenizer.added_tokens_decoder.items()
            if not token.special
            and _BRACKETED.fullmatch(token.content)
            and (
                token.content.strip().startswith(("<|", "<｜"))
                or token.content in template
                or holds_tags(token.content)
            )
        )

    @cached_property
    def _without_markup(self) -> "Tokenizer":
        """The same tokenizer, to which all markup is special, and so is split into characters."""
        from tokenizers import Tokenizer

        content = json.loads(self.tokenizer.backend_tokenizer.to_str())
        for token in content["added_tokens"]:
            token["special"] |= token["id"] in self._stubborn
        plain = Tokenizer.from_str(json.dumps(content))
        plain.no_truncation()
        plain.no_padding()
        plain.encode_special_tokens = True
        return plain
