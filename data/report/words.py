"""The words and numbers of a report, in English or Chinese; texts and labels of users stay as they are. (no torch)"""

import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

Language = Literal["en", "zh"]
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
        """A p value, as it is read behind the letter.

        >>> Words.probability(0.0004), Words.probability(0.25)
        ('< 0.001', '= 0.250')
        """
        return "< 0.001" if p < 0.001 else f"= {p:.3f}"

    def labels(self, labels: Sequence[str]) -> str:
        return self.list(labels) or self("none")

    def list(self, parts: Iterable[str]) -> str:
        return ("、" if self.language == "zh" else ", ").join(parts)

    def in_figures(self) -> dict[str, str]:
        """Text in a figure -> text in this language."""
        return figure_words() if self.language == "zh" else {}
