"""Spellings that make no difference. (no torch)"""

import unicodedata


def composed(text: str) -> str:
    """Accents in one character with their letter where Unicode has it (NFC): an "é" may also come as two.

    >>> len("e\\u0301"), len(composed("e\\u0301"))
    (2, 1)
    """
    return unicodedata.normalize("NFC", text)


def folded(text: str) -> str:
    """Case, spaces and encodings of accents that make no difference taken out."""
    return composed(" ".join(composed(text).split()).casefold())
