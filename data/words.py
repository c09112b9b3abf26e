"""A text's words as people count them, and token weights -> word weights. (no torch)"""

from collections.abc import Sequence

import numpy
import regex

Span = tuple[int, int]  # (begin, end) in characters

# a Chinese character; letters and digits in a row, with apostrophes and decimal points inside; a sign, or several alike
_LETTERS = r"(?:(?!\p{Han})[\w\p{M}])+"
_WORD = regex.compile(rf"\p{{Han}}\p{{M}}*|{_LETTERS}(?:(?:['’]|(?<=\d)[.,](?=\d)){_LETTERS})*|(?!\s)(\X)\1*")


def word_spans(text: str) -> list[Span]:
    """Where the words of a text stand: all but its white space, in order.

    A Chinese character is a word of its own, and so is a punctuation mark or an emoji, repeated or not.

    >>> [text[begin:end] for text in ["Don't go!!! 很好。"] for begin, end in word_spans(text)]
    ["Don't", 'go', '!!!', '很', '好', '。']
    """
    return [match.span() for match in _WORD.finditer(text)]


def word_shares(tokens: Sequence[Span], words: Sequence[Span]) -> numpy.ndarray:
    """Which share of each token belongs to each word, (T, W): token weights (…, T) @ shares = word weights (…, W).

    Of a token in several words, each gets a share by its characters; a row adds up to 1, or to 0 for a token in none.

    Args:
        tokens: where the T tokens stand in the text; of several that one character is split into, all where it is.
        words: where the W words stand.
    """
    tokens_at, words_at = (numpy.array(spans, dtype=float).reshape(-1, 2) for spans in (tokens, words))
    begins = numpy.maximum(tokens_at[:, None, 0], words_at[None, :, 0])
    ends = numpy.minimum(tokens_at[:, None, 1], words_at[None, :, 1])
    common = (ends - begins).clip(min=0)  # (T, W) characters
    return common / common.sum(axis=1, keepdims=True).clip(min=1)
