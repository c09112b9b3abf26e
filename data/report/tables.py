"""Tables for people, in Markdown. (no torch)"""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

LARGEST = sys.float_info.max**0.5
# what metrics are called in tables and charts
SCORES = {
    "n": "texts", "accuracy": "accuracy", "f1_macro": "macro F1", "f1_micro": "micro F1", "jaccard": "Jaccard",
    "invalid_rate": "invalid answers", "ece": "calibration error (ECE)", "brier": "Brier score", "auc": "AUC",
}  # fmt: skip


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], padded: bool = False) -> str:
    """A table, one line a row.

    Args:
        head: the columns' titles.
        rows: the cells of each row, in which a | is escaped.
        padded: whether cells are filled up to the width of their column, for eyes that see the Markdown itself.
    """
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) if padded else 0 for column in range(len(head))]
    cells = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    drawn = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([drawn[0], f"|{'|'.join('-' * (max(width, 1) + 2) for width in widths)}|", *drawn[1:]])


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number that a table or a curve can show: its square is finite, too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
