"""All that is plotted: training curves, rewards of GRPO runs, how sure runs are, scores of perturbed texts. (no torch)

Figures are matplotlib's own, which pyplot does not know: nothing stays open, and no window or backend is asked for.
matplotlib and pandas are imported when something is drawn.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.files import STATE_FILE
from data.report.run_files import read_run_file
from data.report.tables import SCORES, is_number
from data.summaries.task import SummaryTask

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINING_CURVES = "training_curves.png"
METRICS = (
    "f1_macro",
    "f1_micro",
    "accuracy",
    "jaccard",
    *SummaryTask.metrics,
)  # of the validation rows, among the training curves
REWARDS = {
    "reward": "weighted sum", "jaccard": "Jaccard", "exact_match": "exact match", "f1_macro": "macro F1",
    "f1_micro": "micro F1", "format": "format", "length": "length",
}  # fmt: skip
HEIGHT, DPI = 3.8, 130  # of a figure, in inches; dots an inch
NARROW = 4.6  # inches: the width of a figure that can be read on a phone
RIGHT, WRONG = "tab:blue", "tab:orange"  # which few people cannot tell apart
STEADY = 0.05  # share of the texts below which the accuracy of the surest jumps
LINES = ("-", "--", "-.", ":")  # told apart without colours, too


def save(figure, path: str | os.PathLike) -> None:
    """Write a figure in the format that the end of `path` names (.png, .svg, .pdf), whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    figure.savefig(unfinished, format=path.suffix[1:], dpi=DPI)
    os.replace(unfinished, path)


def logged(state: dict[str, Any], name: str) -> dict[int, float]:
    """Step -> a value of the trainer's log, where it is a finite number.

    Args:
        state: the content of trainer_state.json (`read_run_file`).
        name: what the trainer logs it as, such as "loss" or "eval_f1_macro".
    """
    return {entry["step"]: entry[name] for entry in state.get("log_history", []) if is_number(entry.get(name))}


# --- training curves ------------------------------------------------------------------------------------------------


def draw_training_curves(output_dir: str | Path) -> None:
    """`training_curves.png` of a run from its trainer_state.json; nothing where no loss was logged."""
    figure = training_figure(read_run_file(output_dir, STATE_FILE, missing_ok=True))
    if figure is not None:
        save(figure, Path(output_dir) / TRAINING_CURVES)


def training_figure(state: dict[str, Any]) -> "Figure | None":
    """Loss, label metrics of the validation rows and learning rate over the steps, as far as they were logged.

    Args:
        state: the content of trainer_state.json.

    Returns:
        A matplotlib `Figure`, or None where no loss was logged.
    """
    from matplotlib.figure import Figure

    panels = {
        "loss": {"training": logged(state, "loss"), "validation": logged(state, "eval_loss")},
        "validation rows": _together({SCORES[name]: logged(state, f"eval_{name}") for name in METRICS}),
        "learning rate": {"learning rate": logged(state, "learning_rate")},
    }
    if not any(panels["loss"].values()):
        return None
    panels = {title: curves for title, curves in panels.items() if any(curves.values())}
    figure = Figure(figsize=(4.6 * len(panels), HEIGHT), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        _draw_panel(axes, title, curves, best=state.get("best_global_step"))
    return figure


def _draw_panel(axes, title: str, curves: dict[str, dict[int, float]], best: int | None) -> None:
    """A panel of the training curves; that of the validation rows has a ring around the scores of the best step."""
    from matplotlib.ticker import MaxNLocator

    for name, curve in curves.items():
        if curve:
            marker = "o" if len(curve) < 20 else None
            axes.plot(list(curve), list(curve.values()), label=name, marker=marker, markersize=3)
    if title == "validation rows" and (points := [curve[best] for curve in curves.values() if best in curve]):
        ring = {"color": "black", "marker": "o", "fillstyle": "none", "markersize": 8, "linestyle": "none"}
        axes.plot([best] * len(points), points, label=f"best (step {best})", **ring)
    axes.set(title=title, xlabel="step")
    axes.grid(alpha=0.3)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if title != "learning rate":
        axes.legend()


def _together(curves: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    """Curves that are the same as one, under all their names: with one label a text, micro F1 is accuracy."""
    names: dict[tuple, list[str]] = {}
    for name, curve in curves.items():
        names.setdefault(tuple(curve.items()), []).append(name)
    return {", ".join(group): dict(curve) for curve, group in names.items()}


# --- rewards --------------------------------------------------------------------------------------------------------


def reward_figure(rewards: Sequence, validation: Sequence[dict[int, float]], metric: str, window: int) -> "Figure":
    """Rewards of the answers, and beside them a label metric of the validation rows, over the steps.

    Several runs become one curve: their mean, and a band of one standard deviation (n - 1) around it.

    Args:
        rewards: of each run, what `data.report.run_files.read_rewards` gives.
        validation: of each run, step -> the metric.
        metric: its name.
        window: logged steps whose mean is drawn as a reward.

    Returns:
        A matplotlib `Figure`.
    """
    import pandas
    from matplotlib.figure import Figure

    smooth = [table.rolling(window, min_periods=1).mean() for table in rewards]
    figure = Figure(figsize=(10, HEIGHT), layout="constrained")
    left, right = figure.subplots(1, 2)
    for column, label in REWARDS.items():
        if all(column in table for table in smooth):
            _draw_mean(left, pandas.concat([table[column] for table in smooth], axis=1), label)
    _draw_mean(right, pandas.concat([pandas.Series(curve, dtype=float) for curve in validation], axis=1), None, "o")
    left.set(title="rewards of the answers", xlabel="step", ylabel="reward")
    right.set(title="validation rows, greedy answers", xlabel="step", ylabel=metric)
    if len(rewards) > 1:
        figure.suptitle(f"mean of {len(rewards)} runs ± standard deviation", fontsize=10)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.title.set_fontsize(10)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)  # off the curves
    return figure


def _draw_mean(axes, table, label: str | None, marker: str | None = None) -> None:
    """Mean over the columns of `table`, with a band of one standard deviation where there are several."""
    table = table.sort_index()
    mean = table.mean(axis=1)
    (line,) = axes.plot(mean.index, mean, label=label, marker=marker)
    if table.shape[1] > 1:
        deviation = table.std(axis=1)
        axes.fill_between(mean.index, mean - deviation, mean + deviation, color=line.get_color(), alpha=0.2, lw=0)


# --- confidence -----------------------------------------------------------------------------------------------------


def reliability_figure(analysis: dict[str, Any]) -> "Figure | None":
    """How many answers are right among those of like confidence, and below how many these are.

    Args:
        analysis: what `data.confidence.analyse` gives.

    Returns:
        A matplotlib `Figure`, or None where no row had gold labels.
    """
    from matplotlib.figure import Figure

    bins = analysis["reliability"]
    if bins is None:
        return None
    figure = Figure(figsize=(NARROW, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    sure, right, counts = ([each[name] for each in bins] for name in ("confidence", "accuracy", "n"))
    upper.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="as sure as they are right")
    for low, high, name, color in ((right, sure, "too sure", WRONG), (sure, right, "too modest", RIGHT)):
        gaps = [(x, a, b) for x, a, b in zip(sure, low, high, strict=True) if a < b]
        upper.vlines(*zip(*gaps, strict=True), color=color, linewidth=5, alpha=0.4, label=name) if gaps else None
    upper.plot(sure, right, color="black", marker="o", markersize=4, linewidth=1, label="the answers")
    upper.set(title="are answers as right as they are sure?", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1.02))
    edges = [each["from"] for each in bins]
    lower.bar(edges, counts, [each["to"] - each["from"] for each in bins], align="edge", color="grey", ec="white")
    lower.set(xlabel="confidence", ylabel="answers")
    upper.legend(loc="upper left", fontsize=8)
    _finish(upper, lower)
    return figure


def risk_coverage_figure(analyses: dict[str, dict[str, Any]]) -> "Figure | None":
    """Accuracy of the answers that a model gives itself if the texts of which it is least sure go to a person.

    The axis of the accuracy is cut off below what there is from 5 % of the texts on.

    Args:
        analyses: name of a run -> what `data.confidence.analyse` gives.

    Returns:
        A matplotlib `Figure`, or None where no run had rows with gold labels.
    """
    from matplotlib.figure import Figure

    curves = {name: each["risk_coverage"] for name, each in analyses.items() if each["risk_coverage"] is not None}
    if not curves:
        return None
    figure = Figure(figsize=(NARROW, HEIGHT + 0.18 * len(curves)), layout="constrained")
    axes = figure.subplots()
    lines = [
        axes.plot([100 * share for share in curve["coverage"]], curve["accuracy"], linestyle=LINES[i % len(LINES)])[0]
        for i, curve in enumerate(curves.values())
    ]
    axes.set(title="accuracy if the least sure go to a person", ylabel="share that is right", xlim=(0, 100))
    axes.set_xlabel("% of the texts that the model answers itself")
    # one wrong answer among the very surest would squeeze all the rest
    steady = [y for c in curves.values() for x, y in zip(c["coverage"], c["accuracy"], strict=True) if x >= STEADY]
    axes.set_ylim(bottom=min(steady) - 0.05 * (max(steady) - min(steady) + 0.1))
    names = [f"{name} (area {curve['area']:.3f})" for name, curve in curves.items()]
    legend = figure.legend(lines, names, loc="outside lower left", fontsize=8, frameon=False)  # off the curves
    for text in legend.get_texts():
        text.set_parse_math(False)  # a folder's name may hold a $
    _finish(axes)
    return figure


def histogram_figure(analysis: dict[str, Any]) -> "Figure":
    """How many answers are how sure; where all rows have gold labels, the right and the wrong ones.

    Args:
        analysis: what `data.confidence.analyse` gives.

    Returns:
        A matplotlib `Figure`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(NARROW, HEIGHT), layout="constrained")
    axes = figure.subplots()
    rows = analysis["histogram"]
    edges, widths, counts = [r["from"] for r in rows], [r["to"] - r["from"] for r in rows], [r["n"] for r in rows]
    bar = {"align": "edge", "edgecolor": "white"}
    if analysis["without_gold"]:
        axes.bar(edges, counts, widths, **bar)
    else:
        right = [round(row["n"] * (row["accuracy"] or 0)) for row in rows]
        axes.bar(edges, right, widths, color=RIGHT, label="right", **bar)
        wrong = [n - r for n, r in zip(counts, right, strict=True)]
        axes.bar(edges, wrong, widths, bottom=right, color=WRONG, hatch="//", label="wrong", **bar)
        axes.legend(fontsize=8)
    axes.set(title="how sure the answers are", xlabel="confidence", ylabel="answers", xlim=(0, 1))
    _finish(axes)
    return figure


def _finish(*panels) -> None:
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        axes.title.set_fontsize(10)


# --- robustness -----------------------------------------------------------------------------------------------------


def robustness_figure(result: dict[str, Any], metric: str = "accuracy") -> "Figure":
    """What is left of a score under each perturbation and strength, beside a line for the texts as they are.

    Narrow enough for the screen of a phone: bars lie, and names stand above them.

    Args:
        result: the content of robustness_result.json.
        metric: "accuracy" or "f1_macro".

    Returns:
        A matplotlib `Figure`; bars of one colour are of one strength, whiskers are their intervals.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    groups = list(result["perturbations"].values())
    strengths = sorted({numbers["strength"] for group in groups for numbers in group["strengths"]})
    step = len(strengths) + 1.3  # bars, and a line for their name
    figure = Figure(figsize=(4.2, 0.9 + 0.16 * step * len(groups)), layout="constrained")
    axes = figure.subplots()
    for rank, strength in enumerate(strengths):
        places, values, below, above = [], [], [], []
        for place, group in enumerate(groups):
            for numbers in group["strengths"]:
                if numbers["strength"] == strength:
                    low, high = numbers[f"{metric}_interval"]
                    value = numbers[metric]
                    places.append(place * step + rank)
                    values.append(value)
                    below.append(max(value - low, 0))
                    above.append(max(high - value, 0))
        shade = colormaps["Blues"](0.4 if len(strengths) == 1 else 0.25 + 0.3 * rank / (len(strengths) - 1))
        axes.barh(places, values, 0.9, color=shade, label=f"{strength:.0%} changed")
        whiskers = {"fmt": "none", "ecolor": "0.25", "elinewidth": 0.9, "capsize": 1.5}
        axes.errorbar(values, places, xerr=[below, above], **whiskers)
    clean = result["clean"]
    axes.axvline(clean[metric], color="tab:red", lw=1.2, label=f"as they are: {clean[metric]:.3f}")
    axes.axvspan(*clean[f"{metric}_interval"], color="tab:red", alpha=0.12, lw=0, zorder=0)  # behind the bars
    for place, group in enumerate(groups):
        axes.text(0.01, place * step - 0.95, group["title"]["en"], fontsize=9, va="center")
    axes.set(xlim=(0, 1), ylim=(len(groups) * step - 0.8, -1.7), yticks=[], xlabel=SCORES[metric])
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    return figure
