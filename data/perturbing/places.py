"""Places of a text at which it may be changed, and what may stand there instead, in any language. (no torch)"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # as a class of regular expressions
# links, addresses, names of users and places in forums, hashtags, masks such as [NAME], tags of HTML, names of emoji,
# faces made of marks, and the /s of what is not meant
_FIXED = re.compile(
    r"https?://\S+|www\.\S+|\S+@\S+\.\w+|[@#]\w+|\[\w+\]|(?<!\w)/?[ru]/\w+|</?\w[^<>]*>|&\w+;|:\w+:"
    r"|(?<!\w)[:;=xX8]['’]?-?[()DPpOo/\\|*3]+(?!\w)|<3+|(?<!\S)/[a-z]+\b|\^_*\^|[Tt]_+[Tt]"
)
_SENTENCE_END = re.compile(
    r"[.!?。！？…~～]+[\"'”’」)）]*(?=\s|$|[" + HAN + r"])|(?<=[^\s.!?。！？…~～\"'”’」)）])\s*$"
)
_WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}  # ASCII and the same in full width (U+FF01 to U+FF5E)
_NARROW = {wide: code for code, wide in _WIDE.items()}
_RUN = re.compile(
    r"[0-9]+(?:[.,:][0-9]+)*|[０-９]+(?:[．，：][０-９]+)*|[A-Za-z]+|[Ａ-Ｚａ-ｚ]+|([!-/:-@\[-`{-~！-／：-＠［-｀｛-～])\1*"
)
# things and plants, none of which says how somebody feels
_NEUTRAL_EMOJI = tuple("📌📷📚📱💻📅🕒🚌🚲📝🔍📦🏠🌿🍃🪑🧭📎🖥📖")


class Place(NamedTuple):
    """`text[start:end]` may become one of `options`; where start is end, something is put in."""

    start: int
    end: int
    options: tuple[str, ...]


def may_change(text: str, places: Sequence[Place]) -> list[Place]:
    """`places` without those in what no writer would change, such as links, and without options that change nothing."""
    fixed = [found.span() for found in _FIXED.finditer(text)]
    kept = []
    for place in places:
        if any((start < place.end and place.start < end) or (start < place.start < end) for start, end in fixed):
            continue
        found = text[place.start : place.end]
        options = tuple(dict.fromkeys(option for option in place.options if option != found))
        if options:
            kept.append(Place(place.start, place.end, options))
    return kept


def emoji(text: str) -> Iterator[Place]:
    """The ends of sentences, for an emoji that says nothing of anybody's mood."""
    for found in _SENTENCE_END.finditer(text):
        end = len(text[: found.end()].rstrip()) if not found[0].strip() else found.end()
        space = " " if not re.search(f"[{HAN}。！？～…]$", text[:end]) else ""
        yield Place(end, end, tuple(space + each for each in _NEUTRAL_EMOJI))


def width(text: str, letters: bool) -> Iterator[Place]:
    """Numbers, punctuation marks and, if asked for, words of Latin letters, for their twins of the other width.

    A mark within a word or a number ("don't", "4.5", "e-mail") has no place of its own.
    """
    for found in _RUN.finditer(text):
        start, end, run = *found.span(), found[0]
        if run[0].isalpha() and not letters:
            continue
        inside = start > 0 and end < len(text) and text[start - 1].isalnum() and text[end].isalnum()
        if not run[0].isalnum() and inside and text[start - 1].isascii() and text[end].isascii():
            continue
        yield Place(start, end, (run.translate(_WIDE if run.isascii() else _NARROW),))
