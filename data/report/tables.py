"""Tables for people, in Markdown. (no torch)"""

import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

LARGEST = sys.float_info.max**0.5
# what metrics are called in tables and charts
SCORES = {
    "n": "texts", "accuracy": "accuracy", "f1_macro": "macro F1", "f1_micro": "micro F1", "jaccard": "Jaccard",
    "invalid_rate": "invalid answers", "ece": "calibration error (ECE)", "brier": "Brier score", "auc": "AUC",
    "coverage": "right labels in their set", "mean_set_size": "labels a set", "abstained_rate": "abstained",
    "accuracy_answered": "accuracy where it did not abstain",
    "rouge1_f1": "ROUGE-1", "rouge2_f1": "ROUGE-2", "rougeL_f1": "ROUGE-L", "bleu": "BLEU",
    "words_mean": "words a summary", "distinct_2": "distinct-2", "source_overlap_4": "fours of words from the case",
    "empty_rate": "empty summaries", "unfinished_rate": "unfinished summaries",
    "truncation_rate": "cases not seen whole",
}  # fmt: skip
CHINESE = {
    "name": "模型", "n": "条数", "runs": "运行次数", "accuracy": "准确率", "precision": "精确率", "recall": "召回率",
    "f1": "F1", "jaccard": "Jaccard", "auc": "AUC", "ece": "校准误差 (ECE)", "brier": "Brier 分数",
    "invalid_rate": "无效答案", "rouge1_f1": "ROUGE-1", "rouge2_f1": "ROUGE-2", "rougeL_f1": "ROUGE-L",
    "bleu": "BLEU", "truncation_rate": "未读全的个案", "unfinished_rate": "未写完的摘要",
    "examples_per_second": "条/秒",
    "micro": "微平均", "macro": "宏平均", "weighted": "加权平均", "what": "方法", "all_parameters": "参数",
    "trainable_parameters": "训练的参数", "size_mb": "大小 (MB)", "train_seconds": "训练 (秒)",
    "peak_memory_mib": "内存峰值 (MiB)", "metric": "指标", "difference": "差值", "interval": "区间", "p": "p",
    "p (Holm)": "p (Holm)",
}  # fmt: skip


def in_chinese(column: str) -> str:
    """The Chinese title of a column; one that has none keeps its name.

    >>> in_chinese("accuracy"), in_chinese("f1_macro"), in_chinese("rouge_l")
    ('准确率', '宏平均 F1', 'rouge_l')
    """
    score, _, average = column.rpartition("_")
    if column not in CHINESE and score in CHINESE and average in CHINESE:
        return f"{CHINESE[average]} {CHINESE[score]}"
    return CHINESE.get(column, column)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], padded: bool = False) -> str:
    """A table, one line a row.

    Args:
        head: the columns' titles.
        rows: the cells of each row, in which a | is escaped.
        padded: whether cells are filled up to the width of their column, for eyes that see the Markdown itself.
    """
    lines = [head, *rows]
    widths = [max(_width(line[column]) for line in lines) if padded else 0 for column in range(len(head))]
    cells = [[cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)] for line in lines]
    drawn = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([drawn[0], f"|{'|'.join('-' * (max(width, 1) + 2) for width in widths)}|", *drawn[1:]])


def _width(cell: str) -> int:
    """The columns of a console that a cell takes: two for a Chinese character."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in cell)


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number that a table or a curve can show: its square is finite, too."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST
