"""See whether sets of labels keep their promise: a table, and `coverage_analysis.json` beside the predictions.

    # a run's predictions, with gold labels and probabilities (inference.py --probabilities where answers are written)
    python -m scripts.coverage outputs/sft/test

    # other promises, more splits
    python -m scripts.coverage outputs/sft/test --levels 0.9 0.99 --resplits 1000

The rows are split in two at random, again and again. On one half the sets are calibrated, as main_SFT.py --coverage and
scripts.calibrate do it (data/conformal.py); on the other they are tried.

    coverage     share of the right labels that stand in their text's set, mean and standard deviation over the splits
    set          labels in a set
    more than 3  share of the texts that inference.py --max_set_size 3 abstains from
    refitted     coverage where the temperature, too, is fitted on the half that the sets are calibrated on. What is
                 promised then is no longer exact in theory; this says by how much it is off

Where the most probable label is right more often than was promised, sets of one label hold more than they have to.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from data.arguments import UserError, check_at_least, flag, run
from data.calibration import fit_temperature, probabilities, scores_of
from data.conformal import TOP_ALONE, check_rows, fit_promise, missed_share, promised_sets
from data.contract import Contract
from data.files import exclusive, write_json
from data.predicted_runs import PredictedRun, read_run
from data.report.tables import markdown_table
from data.tasks import Task

ANALYSIS_FILE = "coverage_analysis.json"
SIZES = (1, 2, 3, 5)  # that --max_set_size may have
Gold = Sequence[tuple[str, ...]]


@dataclass
class Args:
    runs: list[str] = flag([], "folders with a predictions.jsonl, or with such a folder test in them")
    levels: list[float] = flag([0.8, 0.9, 0.95], "what is promised")
    resplits: int = flag(200, "how often the rows are split")
    seed: int = flag(42, "seed of the splits")

    def __post_init__(self):
        if not self.runs:
            raise UserError("--runs is needed: folders with a predictions.jsonl")
        check_at_least(self, resplits=1, seed=0)


def rows_of_run(run: PredictedRun, task: Task) -> tuple[numpy.ndarray, Gold]:
    """Probabilities (n, K) and gold labels of the rows that have both.

    Raises:
        UserError: there are none.
    """
    of_labels = run.probabilities(task)
    if of_labels is None:
        raise UserError(f"{run.path}: has no probabilities (inference.py --probabilities gives them)")
    labelled = [row["gold"] is not None for row in run.rows]
    if not any(labelled):
        raise UserError(f"{run.path}: has no gold labels")
    return of_labels[labelled], [tuple(row["gold"]) for row in run.labelled]


def analyse(of_labels, gold: Gold, contract: Contract, level: float, resplits: int, seed: int) -> dict[str, Any]:
    """One row of the table.

    Args:
        of_labels: probabilities (n, K).
        gold: gold labels of the n texts.
        contract: what they were predicted under.
        level: what is promised.
        resplits: how often the rows are split.
        seed: of the splits.

    Returns:
        `level`, `rows` of a calibration; `coverage`, `mean_set_size` and, by size, `abstained`, each as `mean` and
        `std` over the splits; the same as `refitted` of the coverage where the temperature is fitted, too.
    """
    draw, task, half = numpy.random.default_rng(seed), contract.task, len(gold) // 2
    scores = scores_of(of_labels, contract.activation) * contract.temperature
    coverage, refitted, sizes = [], [], []
    for _ in range(resplits):
        order = draw.permutation(len(gold))
        first, second = order[:half], order[half:]
        sets = _tried(of_labels, gold, task, level, first, second)
        coverage.append(_covered(gold, second, sets))
        sizes.append([len(each) for each in sets])
        of_first = [gold[row] for row in first]
        temperature = fit_temperature(scores[first], of_first, task, contract.activation)
        again = probabilities(scores, contract.activation, temperature)
        refitted.append(_covered(gold, second, _tried(again, gold, task, level, first, second)))
    counts = numpy.array(sizes)  # (resplits, rows)
    return {
        "level": level,
        "rows": half,
        "coverage": _spread(coverage),
        "mean_set_size": _spread(counts.mean(axis=1)),
        "abstained": {str(size): _spread((counts > size).mean(axis=1)) for size in SIZES if size < len(task.labels)},
        "refitted": _spread(refitted),
    }


def _tried(of_labels, gold: Gold, task: Task, level: float, first, second) -> list[tuple[str, ...]]:
    """The sets of the rows `second`, calibrated on the rows `first`."""
    cutoff = fit_promise(of_labels[first], [gold[row] for row in first], task, level).cutoff
    return promised_sets(of_labels[second], cutoff, task)


def _covered(gold: Gold, rows, sets: Sequence[tuple[str, ...]]) -> float:
    return float(numpy.mean([1 - missed_share(gold[row], found) for row, found in zip(rows, sets, strict=True)]))


def _spread(values) -> dict[str, float]:
    return {"mean": float(numpy.mean(values)), "std": float(numpy.std(values))}


def table(analyses: Sequence[dict[str, Any]]) -> str:
    """A line for each level."""
    sizes = list(analyses[0]["abstained"])
    head = ["promised", "coverage", "set", *(f"more than {size}" for size in sizes), "refitted"]
    lines = []
    for row in analyses:
        abstained = [f"{100 * row['abstained'][size]['mean']:.1f} %" for size in sizes]
        lines.append(
            [f"{100 * row['level']:g} %", _percent(row["coverage"]), f"{row['mean_set_size']['mean']:.2f}", *abstained,
             _percent(row["refitted"])]
        )  # fmt: skip
    return markdown_table(head, lines, padded=True)


def _percent(spread: dict[str, float]) -> str:
    return f"{100 * spread['mean']:.1f} ± {100 * spread['std']:.1f} %"


def main(args: Args) -> None:
    for folder in args.runs:
        found = read_run(folder)
        task = found.task()
        contract = found.contract or Contract(task)
        of_labels, gold = rows_of_run(found, task)
        for level in args.levels:
            check_rows(level, len(gold) // 2, f"rows in half of {found.path}")
        analyses = [analyse(of_labels, gold, contract, level, args.resplits, args.seed) for level in args.levels]
        top = _covered(gold, range(len(gold)), promised_sets(of_labels, TOP_ALONE, task))
        print(f"{found.folder}: task {task.name}, {len(gold):,} texts; the most probable label alone covers {top:.1%}")
        print(f"{table(analyses)}\n")
        content = {"n": len(gold), "resplits": args.resplits, "seed": args.seed, "predictions": found.sha256}
        with exclusive(found.folder, ANALYSIS_FILE):
            write_json(Path(found.folder) / ANALYSIS_FILE, content | {"top_alone": top, "levels": analyses})
        print(f"written to {Path(found.folder) / ANALYSIS_FILE}")


if __name__ == "__main__":
    run(main, Args, {}, positional="runs")
