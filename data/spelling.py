"""A tokenizer's two ways from characters to token ids: words of ours, and words of others. (no torch)"""

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

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
        # not verbose: a text that is longer than the model reads will be cut, so no warning that it breaks the model
        rows = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
        for i, ids in enumerate(rows):
            if not self._commands.isdisjoint(ids):
                rows[i] = [token for token, _ in self._harmless(texts[i], ids)]
        return rows

    def _harmless(self, text: str, ids: list[int]) -> list[tuple[int, tuple[int, int] | None]]:
        """Token ids of a text, none of them a command, and where each stands; `ids` are what was made of it."""
        spans: Sequence[tuple[int, int] | None] = [None] * len(ids)
        if self.tokenizer.is_fast:
            plain = self._without_markup.encode(text, add_special_tokens=False)
            ids, spans = plain.ids, plain.offsets
        # a tokenizer that is not fast cannot be told to split them
        return [pair for pair in zip(ids, spans, strict=True) if pair[0] not in self._commands]

    def plain_spans(self, text: str) -> list[tuple[int, int]]:
        """Where in a text each of its `plain_ids` stands, (begin, end) in characters; one of white space has no width.

        Raises:
            UserError: a tokenizer that cannot say so.
        """
        if not self.tokenizer.is_fast:
            raise UserError("--model_path: its tokenizer does not say where in a text its tokens stand")
        options = {"split_special_tokens": True, "return_offsets_mapping": True, "verbose": False}
        encoded = self.tokenizer(text, add_special_tokens=False, **options)
        ids, spans = encoded["input_ids"], encoded["offset_mapping"]
        if not self._commands.isdisjoint(ids):
            harmless = self._harmless(text, ids)
            ids, spans = [token for token, _ in harmless], [span for _, span in harmless]
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
    def _commands(self) -> frozenset[int]:
        """What no text of others may become: markup, and special tokens of any name, but the one for what is unknown.

        Transformers takes special tokens out of a text, but a vocabulary may have them among its words (Unigram's has).
        """
        tokenizer = self.tokenizer
        special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        return (self.markup | special) - ({tokenizer.unk_token_id} - {tokenizer.eos_token_id})

    @cached_property
    def _without_markup(self) -> "Tokenizer":
        """The same tokenizer, to which commands are special, and so split into characters; to its vocabulary they have
        names that are in no text."""
        from tokenizers import Tokenizer

        content = json.loads(self.tokenizer.backend_tokenizer.to_str())
        names = {}
        for token in content["added_tokens"]:
            if token["id"] in self._commands:
                names[token["content"]] = f"{token['content']}\0{secrets.token_hex(16)}"
                token.update(special=True, content=names[token["content"]])
        _rename(content["model"], names)
        plain = Tokenizer.from_str(json.dumps(content))
        plain.no_truncation()
        plain.no_padding()
        plain.encode_special_tokens = True
        return plain


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Give pieces of a tokenizer's vocabulary, which is changed in place, other names; no merge makes them then."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(piece, piece): token for piece, token in vocab.items()}
    else:  # of Unigram
        model["vocab"] = [[names.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [(a, b) for a, b in model["merges"] if names.keys().isdisjoint((a, b, a + b))]
