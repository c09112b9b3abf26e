"""The tables of `scripts/compare.py`: systems side by side, in Markdown. (no torch)

`summaries` is in each function the content of baseline_comparison.json (`scripts.compare.summary` says what is in it),
and `args` are the script's flags.
"""

from collections.abc import Callable, Sequence
from typing import Any

from data.arguments import UserError
from data.metrics import LABEL_METRICS
from data.report.tables import in_chinese, markdown_table
from data.significance import FEW, METRICS

COLUMNS = (
    "n", "runs", "accuracy", "f1_macro", "f1_micro", "jaccard", "auc", "ece", "invalid_rate", "rouge1_f1",
    "rouge2_f1", "rougeL_f1", "bleu", "truncation_rate", "unfinished_rate", "examples_per_second",
)  # fmt: skip
NUMBERS_OF_TRAINING: dict[str, Callable[[float], str]] = {
    "all_parameters": lambda count: f"{count / 1e6:,.1f}M",
    "trainable_parameters": lambda count: f"{count / 1e6:,.3f}M",
    "size_mb": lambda size: f"{size:,.1f}",
    "train_seconds": lambda seconds: f"{seconds:,.0f}",
    "peak_memory_mib": lambda size: f"{size:,.0f}",
}
TRAINING_COLUMNS = ("what", *NUMBERS_OF_TRAINING)
KNOWN_COLUMNS = tuple(dict.fromkeys((*COLUMNS, *LABEL_METRICS, "brier", *TRAINING_COLUMNS)))


def table(summaries: dict[str, dict[str, Any]], columns: Sequence[str] = COLUMNS, language: str = "en") -> str:
    """The scores as a Markdown table, one line a name, without the columns that none of them has.

    Raises:
        UserError: a column that is neither known nor a number in any of the results.
    """
    found = {"runs"}.union(*(content["mean"] for content in summaries.values()))
    for column in columns:
        if column not in found and column not in KNOWN_COLUMNS:
            known = ", ".join(dict.fromkeys((*KNOWN_COLUMNS, *sorted(found))))
            raise UserError(f"--columns {column}: unknown; known are {known}")
    columns = [column for column in columns if column in found]
    rows = [[name, *(_cell(content, column) for column in columns)] for name, content in summaries.items()]
    return _drawn(["name", *columns], rows, language)


def _drawn(titles: Sequence[str], rows: Sequence[Sequence[str]], language: str) -> str:
    return markdown_table([in_chinese(t) for t in titles] if language == "zh" else titles, rows, padded=True)


def _cell(content: dict[str, Any], column: str) -> str:
    if column == "runs":
        return str(len(content["runs"]))
    value, deviation = content["mean"].get(column), content["std"].get(column)
    if value is None:
        return "-"
    if column == "n" or (deviation is None and isinstance(value, int)):
        return str(value)
    return f"{value:.4f}" if deviation is None else f"{value:.4f} ± {deviation:.4f}"


def training_table(summaries: dict[str, dict[str, Any]], columns: Sequence[str], language: str) -> str | None:
    """What the runs are and what they took, without the columns that none of them has; None where there are none."""
    known = {name: content.get("training", {"mean": {}, "std": {}}) for name, content in summaries.items()}
    columns = [c for c in columns if c in TRAINING_COLUMNS and any(t.get(c) or c in t["mean"] for t in known.values())]
    rows = [[name, *(_training_cell(training, column) for column in columns)] for name, training in known.items()]
    return _drawn(["name", *columns], rows, language) if columns else None


def _training_cell(training: dict[str, Any], column: str) -> str:
    if column == "what":
        return training.get("what") or "-"
    value, deviation = training["mean"].get(column), training["std"].get(column)
    if value is None:
        return "-"
    written = NUMBERS_OF_TRAINING[column]
    shown = f"{written(value)} ± {written(deviation)}" if deviation else written(value)
    return f"{shown} ({training['size_of']})" if column == "size_mb" else shown


def interval_table(summaries: dict[str, dict[str, Any]], metrics: Sequence[str], language: str) -> str | None:
    """The ends of the intervals, one line a name; None where there are none."""
    known = {name: content.get("intervals", {}) for name, content in summaries.items()}
    if not metrics or not any(known.values()):
        return None
    rows = [[name, *(_interval(ends.get(metric)) for metric in metrics)] for name, ends in known.items()]
    return _drawn(["name", *metrics], rows, language)


def _interval(ends: Sequence[float] | None, form: str = ".4f") -> str:
    return f"{ends[0]:{form}} … {ends[1]:{form}}" if ends else "-"


def against_table(against: dict[str, dict[str, Any]], metrics: Sequence[str], language: str) -> str | None:
    """A line for each system and metric, and one for McNemar's test; None where nothing was tested."""
    rows = []
    for name, content in against.items():
        for metric in metrics:
            result = content["metrics"][metric]
            title = in_chinese(metric) if language == "zh" else metric
            interval = _interval(result["interval"], "+.4f")
            rows.append([name, title, f"{result['difference']:+.4f}", interval, *_ps(result)])
        if split := content["mcnemar"]:
            counts = f"+{split['better']} -{split['worse']}"
            rows.append([name, "McNemar", counts, "-", *_ps(split)])
    if not rows:
        return None
    titles = ["name", "metric", "difference", "interval", "p", "p (Holm)"]
    if len(against) == 1:  # nothing to correct
        titles, rows = titles[:-1], [row[:-1] for row in rows]
    return _drawn(titles, rows, language)


def _ps(result: dict[str, Any]) -> list[str]:
    return [f"{p:.4f}" if p >= 0.0001 else "< 0.0001" for p in (result["p"], result["p_holm"])]


def headings(summaries: dict[str, dict[str, Any]], args) -> dict[str, str]:
    """What stands above each table."""
    level = f"{100 * args.level:g} %"
    rare = {label for content in summaries.values() for label in content.get("bootstrap", {}).get("rare_labels", ())}
    tested = sum("against" in content for content in summaries.values())
    if args.language == "zh":
        few = f"；有 {len(rare)} 个标签的样本不足 {FEW} 条，宏平均 F1 的区间因此偏低"
        corrected = f"；p (Holm) 已按 {tested} 个系统校正"
        return {
            "training": "方法与训练开销：",
            "intervals": f"{level} 置信区间（对测试样本做 {args.rounds:,} 次自助抽样）{few if rare else ''}：",
            "tests": f"与 {args.baseline} 在同一批样本上比较，{level} 置信区间{corrected if tested > 1 else ''}：",
        }
    few = f" (labels in fewer than {FEW} of them: {len(rare)}; so those of macro F1 lie low)"
    corrected = f"; p (Holm) is corrected for {tested} systems"
    return {
        "training": "What it is, and what it took:",
        "intervals": f"{level} intervals, of {args.rounds:,} bootstrap rounds over the rows{few if rare else ''}:",
        "tests": f"Against {args.baseline} on the same rows, {level} intervals{corrected if tested > 1 else ''}:",
    }


def pages(summaries: dict[str, dict[str, Any]], args) -> str:
    """All tables, each but the first under its heading."""
    metrics = [column for column in args.columns if column in METRICS]
    against = {name: content["against"] for name, content in summaries.items() if "against" in content}
    parts = {
        "training": training_table(summaries, args.columns, args.language),
        "intervals": interval_table(summaries, metrics, args.language),
        "tests": against_table(against, metrics, args.language),
    }
    titles = headings(summaries, args)
    below = [f"{titles[kind]}\n\n{drawn}" for kind, drawn in parts.items() if drawn]
    return "\n\n".join([table(summaries, args.columns, args.language), *below])
