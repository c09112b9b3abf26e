"""English texts: where they may be changed without a change of what they say (see perturbations.py). (no torch)

Words that negate are in no place of typos or swapped letters, and no other change adds or drops one.
"""

import re
from collections.abc import Iterator
from functools import cache

from data.perturbing.places import Place
from data.perturbing.synonyms_en import CONTRACTIONS, IDIOMS, NEGATED, SHORT_FORMS, SYNONYMS, WORDINGS

_WORD = re.compile(r"(?<![\w'’])[A-Za-z]+(?:['’][A-Za-z]+)*(?![\w'’])")
_NEGATION = re.compile(
    r"\b(?:not|no|never|none|nobody|nothing|nowhere|neither|nor|cannot|without|hardly|barely|scarcely|rarely|seldom|nope"
    r"|nah|dunno|\w+n['’]t|(?:do|does|did|ca|wo|is|was|are|were|ai|have|has|had|could|would|should)nt)\b",
    re.IGNORECASE,
)
# the keys beside, above and below on a QWERTY keyboard
_NEIGHBOURS = {
    "q": "wa", "w": "qeas", "e": "wrsd", "r": "etdf", "t": "ryfg", "y": "tugh", "u": "yihj", "i": "uojk", "o": "ipkl",
    "p": "ol", "a": "qwsz", "s": "wedaxz", "d": "ersfcx", "f": "rtdgvc", "g": "tyfhbv", "h": "yugjnb", "j": "uihknm",
    "k": "iojlm", "l": "opk", "z": "asx", "x": "zsdc", "c": "xdfv", "v": "cfgb", "b": "vghn", "n": "bhjm", "m": "njk",
}  # fmt: skip
_SHORTEST = 4  # letters of a word that may be mistyped and still be known
_VOWEL = re.compile(r"(?!one|use|uni|eu)[aeiou]|hono|hour", re.IGNORECASE)  # sounds that "an" stands before
_PARTICIPLE = re.compile(r"(?:been|got|gone|come|become|done|had|made|taken|gotta|\w+ed|\w+en)\b", re.IGNORECASE)
_SUBJECT = re.compile(
    r"\s+(?:i|you|he|she|it|we|they|this|that|these|those|there|the|a|an|my|your|his|her|our|their|even|just|people"
    r"|everyone|anyone|someone)\b",
    re.IGNORECASE,
)  # fmt: skip
_ASKING = re.compile(r"\b(?:why|how|what|who|where|when|which|y)\s+$", re.IGNORECASE)
_WHO = re.compile(r"\b(?:who|what|which)\s+$", re.IGNORECASE)  # these are subjects, too
_AFTER_SUBJECT = re.compile(r"\b(?:i|you|he|she|it|we|they|this|that|there|who)\s+$", re.IGNORECASE)
_MARK = re.compile(r"\.{2,}|…|!+|\?+|(?<=\w)[.,](?=\s|$)|[;:](?=\s|$)|(?<=\w)['’](?=\w)|[\"“”]|\s[-–—]+\s")
_BEGIN = re.compile(r"(?:^|[.!?…]\s+|\n\s*)[\"'“‘(*]*$")
_END = re.compile(r"[.!?…\n]|$")


def negations(text: str) -> int:
    """How many words of `text` negate."""
    return len(_NEGATION.findall(text))


def _words(text: str) -> Iterator[tuple[int, int, str]]:
    """Words of a text that negate nothing, with where they begin and end."""
    for found in _WORD.finditer(text):
        if not negations(found[0]):
            yield *found.span(), found[0]


# --- letters --------------------------------------------------------------------------------------------------------


def typos(text: str) -> Iterator[Place]:
    """Words of four letters and more, for a key beside the right one, a letter left out or typed twice."""
    for start, end, word in _words(text):
        if len(word) < _SHORTEST:
            continue
        options = []
        for i in range(1, len(word)):  # the first letter is seldom mistyped
            before, letter, behind = word[:i], word[i], word[i + 1 :]
            near = _NEIGHBOURS.get(letter.lower(), "")
            options += [before + (key.upper() if letter.isupper() else key) + behind for key in near]
            if near:
                options += [before + behind, before + 2 * letter + behind]
        yield Place(start, end, tuple(option for option in options if not negations(option)))


def swap(text: str) -> Iterator[Place]:
    """Words of four letters and more, for two letters inside that change places."""
    for start, end, word in _words(text):
        if len(word) >= _SHORTEST and word.isalpha():
            options = (word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(1, len(word) - 2))
            yield Place(start, end, tuple(option for option in options if not negations(option)))


def case(text: str) -> Iterator[Place]:
    """Words, for the same in small letters, in capitals, or with one capital."""
    for found in _WORD.finditer(text):
        word = found[0]
        yield Place(*found.span(), (word.lower(), word.upper(), word[0].upper() + word[1:].lower()))


def punctuation(text: str) -> Iterator[Place]:
    """Punctuation marks, for other common ways to write them; a question remains one."""
    spoken = len(text.rstrip())
    for found in _MARK.finditer(text):
        mark, (start, end) = found[0], found.span()
        if mark[0] in "!?":
            options = (mark[0], 2 * mark[0], 3 * mark[0], f" {mark}")
        elif mark == "…" or mark.startswith(".."):
            options = ("…", "...", "....", ".. ")
        elif mark == ".":
            options = ("", "..") if end >= spoken else ("..", " .", ";")
        elif mark == ",":
            options = ("", " ,", ",,", ";") if text[end:].strip() else ("",)
        elif mark in "'’":
            options = ("’" if mark == "'" else "'",)
        elif mark in '"“”':
            options = ("'", "") if mark == '"' else ('"',)
        elif mark in ";:":
            options = (",", f" {mark}")
        else:
            options = (" - ", " – ", "... ")
        yield Place(start, end, options)
    if spoken > 0 and text[spoken - 1].isalnum():
        yield Place(spoken, spoken, (".", "..", " ."))


# --- words ----------------------------------------------------------------------------------------------------------


def _lines(table: str) -> list[str]:
    return table.strip().splitlines()


@cache
def _synonyms() -> tuple[dict[str, tuple[str, ...]], re.Pattern]:
    """Word or phrase -> what may stand for it, and a pattern that finds the longest of them."""
    options: dict[str, list[str]] = {}
    for line in _lines(SYNONYMS):
        left, bar, right = line.partition(">")
        sources = [row.split() for row in left.split("|")]
        targets = [row.split() for row in right.split("|")] if bar else sources
        for source in sources:
            for target in targets:
                for word, other in zip(source, target, strict=True):
                    if word != other:
                        options.setdefault(word.replace("_", " "), []).append(other.replace("_", " "))
    for idiom in IDIOMS.split():
        options[idiom.replace("_", " ")] = []
    return {word: tuple(others) for word, others in options.items()}, _any_of(options)


@cache
def _wordings() -> tuple[dict[str, str], dict[str, str], re.Pattern]:
    """What is said -> another way to say it; the same at the beginning of a sentence; a pattern that finds both."""
    pairs = [
        [tuple(line.split("|")) for line in _lines(table)] for table in (CONTRACTIONS, SHORT_FORMS, WORDINGS, NEGATED)
    ]
    anywhere = dict(pair for table in pairs for pair in table)
    anywhere |= {long: short for short, long in pairs[3]}
    first = {long: short for short, long in pairs[0]} | {"it is": "it's", "that is": "that's", "there is": "there's"}
    return anywhere, first, _any_of(anywhere.keys() | first.keys())


def _any_of(words) -> re.Pattern:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    spelt = "|".join(re.escape(word).replace("'", "['’]").replace(r"\ ", " +") for word in longest_first)
    return re.compile(rf"(?<![\w'’-])(?:{spelt})(?![\w'’-])", re.IGNORECASE)


def _as_written(option: str, written: str) -> str:
    """`option` in capitals, or with a first one, as what was `written`."""
    if written.isupper() and len(written) > 2:
        return option.upper()
    return option[0].upper() + option[1:] if written[0].isupper() else option


def _plain(written: str) -> str:
    return " ".join(written.replace("’", "'").lower().split())


def synonyms(text: str) -> Iterator[Place]:
    """Words that have a synonym in our lists; the article before goes with it."""
    options, pattern = _synonyms()
    for found in pattern.finditer(text):
        start, end = found.span()
        others = [_as_written(other, found[0]) for other in options[_plain(found[0])]]
        article = re.search(r"\b(an?)( +)$", text[:start], re.IGNORECASE)
        if article:
            start = article.start()
            others = [_article(article[1], other) + article[2] + other for other in others]
        yield Place(start, end, tuple(others))


def _article(written: str, word: str) -> str:
    article = "an" if _VOWEL.match(word) else "a"
    return article.capitalize() if written[0].isupper() else article


def paraphrase(text: str) -> Iterator[Place]:
    """Short forms for long ones and the reverse, and words of structure; what is negated stays so."""
    anywhere, first, pattern = _wordings()
    for found in pattern.finditer(text):
        start, end, said = *found.span(), _plain(found[0])
        before, behind = text[:start], text[end:]
        follows = re.match(r"\s+[A-Za-z]", behind)
        if said in first:
            fits = bool(_BEGIN.search(before) and follows) and not _PARTICIPLE.match(behind.lstrip())
            option = first[said]
        elif said.endswith("n't"):
            fits, option = not _in_question(said, before, behind), anywhere[said]
        elif said.endswith("'s") and said != "let's":
            fits, option = bool(follows) and not _PARTICIPLE.match(behind.lstrip()), anywhere[said]
        else:
            fits, option = not (" not" in said and re.match(r"\s+only\b", behind)), anywhere[said]
        if fits:
            yield Place(start, end, (_as_written(option, found[0]),))


def _in_question(said: str, before: str, behind: str) -> bool:
    """Whether a word such as "isn't" stands before its subject, where it cannot be written out."""
    begins = bool(_BEGIN.search(before))
    if _SUBJECT.match(behind) and not _AFTER_SUBJECT.search(before):
        return begins or bool(_ASKING.search(before) or re.search(r"[,;]\s*$", before))
    if _ASKING.search(before):
        return not _WHO.search(before)
    commands = said in ("don't", "can't", "won't")  # which may begin a sentence that asks nothing
    return begins and not (commands and _END.search(behind)[0] != "?")
