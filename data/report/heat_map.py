"""attention.json of `python -m scripts.attention`, drawn as a page to hover over, or as rows of another page.

The page asks no network for anything. Without its script it still shows every text with its first label's attention.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.report.words import TEMPLATES

HEAT_MAP_FILE = "attention.html"
TITLES = {
    "attention": "Attention",
    "rollout": "Attention rollout",
    "gradient_x_input": "Gradient × input",
    "deletion": "Deletion",
}
SIGNED = ("gradient_x_input", "deletion")
NOTE = (
    "Attention is not an explanation. It shows where the model looked, not why it answered: other weights can give the "
    "same answer (Jain & Wallace, 2019; Wiegreffe & Pinter, 2019). Rollout multiplies attention over the layers; in a "
    "deep decoder nearly all of it ends on the first token of the prompt, and what is left for the text is tiny. "
    "Gradient × input says how each word moves the label's score, but only to first order. Take these three as hints "
    "on what to test, not as reasons. Deletion tests: it says how far the score falls when the word is left out."
)
NOTE_ZH = (
    "注意力不是解释：它只表明模型看了哪里，并不说明为什么这样回答；换一组权重，答案可能完全相同"
    "（Jain & Wallace, 2019；Wiegreffe & Pinter, 2019）。梯度 × 输入也只是一阶近似。"
    "这三种数字只能提示该检验什么，不能当作理由。“删除”则是检验：删去这个词后，该标签的得分下降多少。"
)
_HAN, _KANA = (
    re.compile(r"[\u3000-\u303f\u3400-\u9fff\uff00-\uffef\U00020000-\U000323af]"),
    re.compile(r"[\u3040-\u30ff]"),
)


def static_rows(attention: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """Heat maps as plain data, for a page's own template: one row a text and label, of the first texts.

    The template writes, for each of a method's `words`, `before`, then `word` over a colour of its `opacity`, and last
    `rest`; escaping is the template's.

    Args:
        attention: the content of attention.json.
        most: the texts to take.

    Returns:
        Rows with `id`, `lang` ("zh", "ja" or "en", for the HTML attribute), `gold` (list or None), `labels` (those
        predicted), `label` (the one this row is about), `share_on_text` (method -> 0 to 1; not of deletion), `rest`
        (what stands behind the last word) and `methods`: method -> `title` and `words`, each of them `before` (the
        space before it), `word`, `weight` (as it was measured), `opacity` (0 to 1; 1 is the text's strongest) and
        `sign` (1, or -1 for what speaks against the label).

    """
    return [row for text in attention["texts"][:most] for row in _rows_of(text)]


def _rows_of(text: dict[str, Any]) -> Iterator[dict[str, Any]]:
    pieces, rest = text_pieces(text["text"], text["spans"])
    for label, explanation in text["explanations"].items():
        yield {
            "id": text["id"],
            "lang": language_of(text["text"]),
            "gold": text["gold"],
            "labels": text["labels"],
            "label": label,
            "share_on_text": text["share_on_text"][label],
            "methods": {
                method: {"title": title, "words": coloured(pieces, explanation[method])}
                for method, title in TITLES.items()
                if method in explanation
            },
            "rest": rest,
        }


def text_pieces(text: str, spans: Sequence[Sequence[int]]) -> tuple[list[tuple[str, str]], str]:
    """A text cut at its words.

    >>> text_pieces("so good!", [[0, 2], [3, 7]])
    ([('', 'so'), (' ', 'good')], '!')

    Returns:
        Each word with what stands before it, and what stands behind the last.
    """
    ends = [0, *(end for _, end in spans)]
    words = [(text[before:begin], text[begin:end]) for before, (begin, end) in zip(ends[:-1], spans, strict=True)]
    return words, text[ends[-1] :]


def coloured(pieces: Sequence[tuple[str, str]], weights: Sequence[float]) -> list[dict[str, Any]]:
    """`words` of `static_rows`."""
    largest = max(map(abs, weights), default=0.0) or 1.0
    return [
        {
            "before": before,
            "word": word,
            "weight": weight,
            "opacity": round(abs(weight) / largest, 3),
            "sign": -1 if weight < 0 else 1,
        }
        for (before, word), weight in zip(pieces, weights, strict=True)
    ]


def language_of(text: str) -> str:
    """The `lang` attribute of a text, by which a browser picks the shapes of its characters.

    >>> language_of("酒店很好"), language_of("とても良い"), language_of("fine")
    ('zh', 'ja', 'en')
    """
    if _KANA.search(text):
        return "ja"
    return "zh" if _HAN.search(text) else "en"


def heat_map_page(attention: dict[str, Any]) -> str:
    """attention.html: the texts that have weights of each layer and head, and the top words.

    Args:
        attention: the content of attention.json.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "ensure_ascii": False}
    shown = [text for text in attention["texts"] if any("by_head" in each for each in text["explanations"].values())]
    cards = [next(_rows_of(text)) | {"truncated": text["truncated"]} for text in shown]
    data = [{"explanations": text["explanations"], "share": text["share_on_text"]} for text in shown]
    return environment.get_template("heat_map.html.j2").render(
        attention=attention, cards=cards, data=data, signed=SIGNED, note=NOTE, note_zh=NOTE_ZH, language_of=language_of,
        labels=list(dict.fromkeys(label for text in shown for label in text["labels"])),
        name=Path(attention["model_path"]).name, titles={m: t for m, t in TITLES.items() if m in attention["methods"]},
    )  # fmt: skip
