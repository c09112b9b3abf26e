"""The words and numbers of a report, in English or Chinese; texts and labels of users stay as they are. (no torch)"""

import re
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

Language = Literal["en", "zh"]
_FIGURE_FORMS = {
    r"best \(step (\d+)\)": r"最佳（第 \1 步）",
    r"(.*) \(area ([\d.]+)\)": r"\1（面积 \2）",
    r"(\d+)% changed": r"改动 \1%",
    r"as they are: ([\d.]+)": r"未改动：\1",
}
TEMPLATES = Path(__file__).resolve().parent / "template"


@cache
def messages() -> dict[str, dict[Language, str]]:
    """Name of a message -> language -> its words, with {gaps} to be filled in."""
    return tomllib.loads((TEMPLATES / "messages.toml").read_text(encoding="utf-8"))


@cache
def figure_words() -> dict[str, str]:
    """A text in a figure of `data.report.charts` -> the same in Chinese."""
    return tomllib.loads((TEMPLATES / "figures_zh.toml").read_text(encoding="utf-8"))


class Words:
    """The words and numbers of a report in one language."""

    def __init__(self, language: Language):
        self.language = language

    def __call__(self, message: str, /, **values: Any) -> str:
        """A message, its gaps filled in.

        >>> Words("en")("warnings"), Words("zh")("warnings")
        ('Beware', '注意')
        """
        return messages()[message][self.language].format(**values)

    @staticmethod
    def number(value: float | None, digits: int = 3) -> str:
        """A number with a fixed count of digits; a dash where there is none.

        >>> Words.number(0.12345), Words.number(-0.5, 1), Words.number(None)
        ('0.123', '−0.5', '–')
        """
        return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")

    @staticmethod
    def count(value: float | None) -> str:
        """A whole number.

        >>> Words.count(16548)
        '16,548'
        """
        return "–" if value is None else f"{value:,.0f}"

    def percent(self, share: float | None) -> str:
        """A share of 1 in percent.

        >>> Words("en").percent(0.8431), Words("zh").percent(1.0)
        ('84.3\\xa0%', '100.0%')
        """
        return "–" if share is None else f"{100 * share:.1f}{'%' if self.language == 'zh' else chr(160) + '%'}"

    @staticmethod
    def points(difference: float) -> str:
        """A difference of shares in percentage points, with its sign.

        >>> Words.points(0.0213), Words.points(-0.2)
        ('+2.1', '−20.0')
        """
        return f"{100 * difference:+.1f}".replace("-", "−")

    @staticmethod
    def probability(p: float) -> str:
        """A p value.

        >>> Words.probability(0.0004), Words.probability(0.25)
        ('< 0.001', '0.250')
        """
        return "< 0.001" if p < 0.001 else f"{p:.3f}"

    def labels(self, labels: Sequence[str]) -> str:
        """Labels in a sentence.

        >>> Words("en").labels(["joy", "love"]), Words("zh").labels(["正面"])
        ('“joy”, “love”', '“正面”')
        """
        return self.list(f"“{label}”" for label in labels) or self("none")

    def list(self, parts: Iterable[str]) -> str:
        return ("、" if self.language == "zh" else ", ").join(parts)

    def in_figure(self, text: str) -> str:
        """A text of a figure of `data.report.charts`, in this language; what has no translation stays as it is.

        >>> Words("zh").in_figure("best (step 200)"), Words("zh").in_figure("my run (area 0.043)")
        ('最佳（第 200 步）', 'my run（面积 0.043）')
        """
        if self.language == "en":
            return text
        known = figure_words()
        if text in known:
            return known[text]
        for pattern, form in _FIGURE_FORMS.items():
            if match := re.fullmatch(pattern, text):
                return match.expand(form)
        return text
