"""See how sure runs are of their answers, and how right they are to be: a table on the console and
`confidence_analysis.json` beside each run's predictions.

    # a trained run (its predictions lie in it, or in its folder `test`)
    python -m scripts.confidence outputs/sft

    # several runs, and then a line for each; with pictures beside each run's predictions
    python -m scripts.confidence outputs/zero-shot outputs/sft outputs/grpo --plots

    # the 100 texts of which it is least sure, to be labelled by hand next
    python -m scripts.confidence outputs/sft --examples 100

The confidence of an answer is the probability that the model gives it as a whole. An answer is right if its labels are
exactly the gold ones.

    at 90 %  accuracy if at least the least sure 10 % of the texts go to a person; equally sure answers stay together
    ECE      how far confidence and accuracy are apart on average, over 15 intervals of confidence; MCE in the worst
    Brier    mean of (1 - confidence)^2 of right answers and confidence^2 of wrong ones; 0 is best
    AURC     mean share of wrong answers among those at least as sure; the lower, the better it knows its mistakes

These are of whole answers. In test_results.json, `brier` is of the labels' probabilities, and so is `ece` where a text
has several labels. There, a line for each label says how many texts have it and how many are given it, its mean
probability, and ECE and AUC of that (after classify, score, or inference.py --probabilities).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.arguments import UserError, check_at_least, flag, one_line, run
from data.confidence import CONFIDENCE_FILE, COVERAGES, EXAMPLES, analyse
from data.files import PREDICTIONS_FILE, exclusive, write_json
from data.predicted_runs import PredictedRun, read_run
from data.report.charts import histogram_figure, reliability_figure, risk_coverage_figure, save
from data.report.tables import markdown_table

SHOWN = 5  # rows of each run on the console
RELIABILITY_PICTURE, COVERAGE_PICTURE, HISTOGRAM_PICTURE = (
    "reliability.png",
    "risk_coverage.png",
    "confidence_histogram.png",
)


@dataclass
class Args:
    runs: list[str] = flag([], f"folders with a {PREDICTIONS_FILE}, or with such a folder `test` in them")
    examples: int = flag(EXAMPLES, f"rows in each list of {CONFIDENCE_FILE}: the least sure, the most surely wrong")
    plots: bool = flag(
        False, f"also draw {RELIABILITY_PICTURE}, {COVERAGE_PICTURE} and {HISTOGRAM_PICTURE} beside the predictions"
    )

    def __post_init__(self):
        if not self.runs:
            raise UserError(f"--runs is needed: folders with a {PREDICTIONS_FILE}")
        check_at_least(self, examples=0)


def read_runs(folders: Sequence[str]) -> list[PredictedRun]:
    """The runs in these folders.

    Raises:
        UserError: see `read_run`, or one is given twice.
    """
    runs, names = [], {}
    for folder in folders:
        runs.append(read_run(folder))
        name = names.setdefault(runs[-1].path.resolve(), folder)
        if len(names) < len(runs):
            raise UserError(f"--runs: {folder} has the same predictions as {name}")
    return runs


# --- console --------------------------------------------------------------------------------------------------------


def in_words(folder: str, analysis: dict[str, Any]) -> str:
    """What there is to know about a run, for people."""
    counts = {
        "without_confidence": "more without a confidence, left out",
        "without_gold": "of them without gold labels",
    }
    facts = "".join(f", {analysis[name]:,} {words}" for name, words in counts.items() if analysis[name])
    table = {
        "mean confidence": _percent(analysis["mean_confidence"]),
        "answers that are more than 90 % sure": _percent(analysis["share_above_0.9"]),
    }
    if analysis["accuracy"] is not None:
        table |= _of_gold(analysis)
    width = max(map(len, table)) + 2
    lines = [f"{folder}: task {analysis['task']}, {analysis['n']:,} texts{facts}", ""]
    lines += [f"  {name:<{width}}{value}" for name, value in table.items()]
    lines += ["", *_histogram(analysis["histogram"])]
    if analysis["per_label"] is not None:
        lines += ["", *_labels(analysis["per_label"])]
    if analysis["accuracy"] is None:
        lines += ["", "  no gold labels, so how right it is cannot be said"]
    elif analysis["most_confidently_wrong"]:
        lines += ["", "  most confidently wrong", *map(_example, analysis["most_confidently_wrong"][:SHOWN])]
    return "\n".join(lines)


def _of_gold(analysis: dict[str, Any]) -> dict[str, str]:
    table = {"accuracy": _percent(analysis["accuracy"])}
    for row in analysis["at_coverage"]:
        if row["at_most"] == 1:
            continue
        value = "- (too many are equally sure)"
        if row["accuracy"] is not None:
            value = f"{_percent(row['accuracy'])}   (sure to {row['least_confidence']:.3f} or more)"
        table[f"  if the least sure {1 - row['at_most']:.0%} go to a person".replace("%", " %")] = value
    return table | {
        "calibration error, mean (ECE)": f"{analysis['ece']:.4f}",
        "calibration error, worst interval (MCE)": f"{analysis['mce']:.4f}",
        "Brier score of the answers": f"{analysis['brier']:.4f}",
        "area under risk and coverage (AURC)": f"{analysis['risk_coverage']['area']:.4f}",
    }


def _histogram(intervals: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"  {'confidence':<14}{'texts':>8}{'right':>10}"]
    for row in intervals:
        lines.append(f"  {row['from']:.1f} to {row['to']:.1f}    {row['n']:>8,}{_percent(row['accuracy']):>10}")
    return lines


def _example(row: dict[str, Any]) -> str:
    answer, gold = (", ".join(labels) or "nothing" for labels in (row["labels"], row["gold"]))
    text = f"{one_line(row['id'], 40)}: {one_line(row['text'], 100)}"
    return f"  {row['confidence']:.3f}  {answer} (gold: {gold})  {text}"


def _labels(per_label: dict[str, dict[str, Any]]) -> list[str]:
    head = ("label", "texts with it", "given to", "mean probability", "ECE", "AUC")
    rows = []
    for label, row in per_label.items():
        shares = (_percent(row[name]) for name in ("share_predicted", "mean_probability"))
        rows.append([label, f"{row['support']:,}", *shares, _number(row["ece"]), _number(row["auc"])])
    return [f"  {line}" for line in markdown_table(head, rows, padded=True).splitlines()]


def side_by_side(analyses: dict[str, dict[str, Any]]) -> str:
    """A line for each run, by its name."""
    shares = [share for share in COVERAGES if share < 1]
    head = ["run", "texts", "confidence", "> 0.9", "accuracy", *(f"at {100 * share:.0f} %" for share in shares)]
    rows = []
    for name, analysis in analyses.items():
        parts = {row["at_most"]: row["accuracy"] for row in analysis["at_coverage"] or ()}
        accuracies = (analysis["accuracy"], *(parts.get(share) for share in shares))
        area = (analysis["risk_coverage"] or {}).get("area")
        errors = (analysis["ece"], analysis["mce"], analysis["brier"], area)
        cells = [
            *map(_percent, (analysis["mean_confidence"], analysis["share_above_0.9"], *accuracies)),
            *map(_number, errors),
        ]
        rows.append([name, f"{analysis['n']:,}", *cells])
    return markdown_table([*head, "ECE", "MCE", "Brier", "AURC"], rows, padded=True)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def draw(analysis: dict[str, Any], folder: str) -> list[str]:
    """The pictures of a run, beside its predictions; those of right and wrong answers only where there is gold.

    Returns:
        The names of the files.
    """
    figures = {
        RELIABILITY_PICTURE: reliability_figure(analysis),
        COVERAGE_PICTURE: risk_coverage_figure({"this run": analysis}),
        HISTOGRAM_PICTURE: histogram_figure(analysis),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    for name, figure in drawn.items():
        save(figure, Path(folder) / name)
    return list(drawn)


def main(args: Args) -> None:
    runs = read_runs(args.runs)
    analyses = {run.folder: analyse(run, args.examples) for run in runs}  # all of them, before anything is written
    for folder, analysis in analyses.items():
        print(in_words(folder, analysis), end="\n\n")
        with exclusive(folder, CONFIDENCE_FILE):
            write_json(Path(folder) / CONFIDENCE_FILE, analysis)
            names = [CONFIDENCE_FILE, *(draw(analysis, folder) if args.plots else ())]
        print(f"written to {folder}: {', '.join(names)}\n")
    if len(analyses) > 1:
        print(side_by_side(analyses))
        if len({tuple(sorted((row["id"], row["text"]) for row in run.rows)) for run in runs}) > 1:
            print("warning: these runs did not predict the same texts")


if __name__ == "__main__":
    run(main, Args, {}, positional="runs")
