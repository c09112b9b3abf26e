"""Perturbations: changes of a text that leave what it says as it is, to see whether a model's answer stays. (no torch)

A perturbation knows a text's places (words, marks, ends of sentences) and what may stand there instead; the frame here
draws which of them are changed. So that copies can be compared,
- the same text under the same seed is changed in the same way, whatever other texts there are;
- a larger strength changes what a smaller one changes, and more;
- strength 0 changes nothing, and no text becomes empty.
"""

import hashlib
import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from data.arguments import UserError
from data.perturbing import chinese, english
from data.perturbing.places import HAN, Place, emoji, may_change, width

Language = Literal["en", "zh"]
_LETTERS = re.compile(rf"[{HAN}]|[^\W\d_{HAN}]+")


@dataclass(frozen=True)
class Perturbation:
    """One kind of change.

    Attributes:
        name: as flags and files call it.
        title: what people read, by language of the reader ("en", "zh").
        places: language of a text -> the function that finds its places.
    """

    name: str
    title: dict[str, str]
    places: dict[str, Callable[[str], Iterable[Place]]] = field(repr=False)

    def __call__(self, text: str, strength: float, generator: random.Random, language: Language | None = None) -> str:
        """The changed text.

        Args:
            text: any text.
            strength: share of the places that are changed, 0 to 1; over 0 at least one of them is.
            generator: what draws the places and the changes.
            language: of the text; None = as `language_of` finds.

        Returns:
            `text` itself where it has no place, such as in a language that this perturbation does not know.

        Raises:
            ValueError: a strength that is not from 0 to 1.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength {strength}: must be from 0 to 1")
        find = self.places.get(language or language_of(text))
        if strength == 0 or find is None:
            return text
        places = may_change(text, list(find(text)))
        generator.shuffle(places)  # before the strength counts, so that weaker copies are on the way to stronger ones
        changes = [(place, generator.choice(place.options)) for place in places]
        chosen = changes[: max(1, round(strength * len(changes)))]
        changed = text
        for place, option in sorted(chosen, key=lambda change: change[0].start, reverse=True):
            changed = changed[: place.start] + option + changed[place.end :]
        return changed if changed.strip() else text


PERTURBATIONS = {
    each.name: each
    for each in (
        Perturbation(
            "synonyms",
            {"en": "synonyms", "zh": "近义词"},
            {"en": english.synonyms, "zh": chinese.synonyms},
        ),
        Perturbation(
            "paraphrase",
            {"en": "other wording", "zh": "换种说法"},
            {"en": english.paraphrase, "zh": chinese.paraphrase},
        ),
        Perturbation("typos", {"en": "typing errors", "zh": "键盘误触"}, {"en": english.typos}),
        Perturbation("same_sound", {"en": "same-sound characters", "zh": "同音字"}, {"zh": chinese.same_sound}),
        Perturbation("look_alike", {"en": "look-alike characters", "zh": "形近字"}, {"zh": chinese.look_alike}),
        Perturbation("swap", {"en": "swapped characters", "zh": "字符换位"}, {"en": english.swap, "zh": chinese.swap}),
        Perturbation(
            "punctuation",
            {"en": "punctuation", "zh": "标点变化"},
            {"en": english.punctuation, "zh": chinese.punctuation},
        ),
        Perturbation("case", {"en": "upper and lower case", "zh": "大小写"}, {"en": english.case}),
        Perturbation(
            "width",
            {"en": "full and half width", "zh": "全角半角"},
            {"en": partial(width, letters=False), "zh": partial(width, letters=True)},
        ),
        Perturbation("emoji", {"en": "emoji added", "zh": "加表情符号"}, {"en": emoji, "zh": emoji}),
    )
}


def language_of(text: str) -> Language:
    """ "zh" where at least half of the words are Chinese characters (each counts as half a word), else "en".

    >>> language_of("iPhone 的屏幕很好"), language_of("She said 你好 to me, and nothing else")
    ('zh', 'en')
    """
    found = _LETTERS.findall(text)
    characters = sum(len(word) == 1 and re.match(f"[{HAN}]", word) is not None for word in found)
    return "zh" if characters and characters / 2 >= len(found) - characters else "en"


def main_language(texts: Sequence[str]) -> Language:
    """The language of most of the texts."""
    return "zh" if 2 * sum(language_of(text) == "zh" for text in texts) > len(texts) else "en"


def fitting(language: Language) -> list[str]:
    """The names of the perturbations that know a language."""
    return [name for name, each in PERTURBATIONS.items() if language in each.places]


def negations(text: str) -> int:
    """How many words of `text` negate, in either language and either width."""
    text = unicodedata.normalize("NFKC", text)
    return english.negations(text) + chinese.negations(text)


def perturb(name: str, text: str, strength: float, seed: int = 42, language: Language | None = None) -> str:
    """`text` under the perturbation `name`; what is drawn depends on seed, name and text, and on nothing else.

    Raises:
        UserError: an unknown name, or a package that it needs is not installed.
        ValueError: see `Perturbation`.
    """
    if name not in PERTURBATIONS:
        raise UserError(f"perturbation {name!r}: unknown; known are {', '.join(PERTURBATIONS)}")
    digest = hashlib.sha256(f"{seed}\0{name}\0{text}".encode(errors="surrogatepass")).digest()
    return PERTURBATIONS[name](text, strength, random.Random(int.from_bytes(digest[:8], "big")), language)
