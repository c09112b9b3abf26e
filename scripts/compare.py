"""Put the test results of several runs side by side: a table on the console and `baseline_comparison.json`.

    # systems that were scored on the same test file, each under a name of your own
    python -m scripts.compare zero-shot=outputs/zero-shot frozen=outputs/frozen head=outputs/classify \\
        scoring=outputs/score --output_dir outputs

    # each of them tested against one
    python -m scripts.compare zero-shot=outputs/zero-shot head=outputs/classify scoring=outputs/score \\
        --baseline zero-shot

    # several seeds of one system: runs of the same name become one line, mean ± standard deviation (n - 1)
    python -m scripts.compare lora=outputs/a lora=outputs/b full=outputs/c --markdown_path table.md

    # named by their folders: outputs/train/sst2-lora-seed0, -seed42 and -seed123 are three runs of sst2-lora
    python -m scripts.compare --group_seeds outputs/train/*

    # titles in Chinese
    python -m scripts.compare 只训练分类头=outputs/head 训练全部参数=outputs/full --language zh

Up to four tables:

    scores     from each test_results.json
    training   what a run is and what it took: parameters, size of its weights, seconds, memory
    intervals  where predictions.jsonl lies beside the scores: percentile bootstrap over the rows, that is, what other
               texts of the same kind might have given; of several seeds, of their mean
    tests      with --baseline: the difference of each system from it on the same rows, its interval, and how often
               chance alone would make one of this size: p of the paired bootstrap, and of the exact McNemar test of
               whole label sets that are right. Seeds are tested as one, by their mean; McNemar's test, which takes one
               answer a text, is left out for them. p (Holm) is corrected for the number of systems, not of metrics:
               decide on one metric before you look.

What another training of the same system would give is not in the intervals: that is ± over its seeds.
"""

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.arguments import UserError, check_output_dir, flag, run
from data.files import PREDICTIONS_FILE, RESULTS_FILE, exclusive, write_json, write_text
from data.predicted_runs import (
    PredictedRun,
    check_same_rows,
    evaluated,
    named_folder,
    read_run,
    trained_directory,
    written_task,
)
from data.prediction_rows import is_right_row
from data.predictions import Prediction
from data.report.comparison import COLUMNS, NUMBERS_OF_TRAINING, TRAINING_COLUMNS, pages, table
from data.report.run_files import read_run_file
from data.report.tables import is_number
from data.report.training_facts import training_facts
from data.significance import METRICS, holm, mcnemar, mean_intervals, mean_paired_bootstrap, rare_labels
from data.tasks import Task

COMPARISON_FILE = "baseline_comparison.json"
MOST_ROUNDS = 1_000_000
_SEED_SUFFIX = re.compile(r"(?P<system>.+)(?:-seed|_seed|-s)\d+")


@dataclass
class Args:
    runs: list[str] = flag(
        [],
        f"folders with {RESULTS_FILE}, or with a folder `test` that has it, each as name=folder or just folder; the "
        "same name: one line",
    )
    group_seeds: bool = flag(
        False, "name a plain folder by what stands before its -seed0, _seed0 or -s0; leave out what has no results"
    )
    baseline: str | None = flag(
        None, "name of the system that each of the others is tested against, on the same rows (default: no tests)"
    )
    rounds: int = flag(
        1000, f"how often the bootstrap draws the rows; 0 = no intervals, and {PREDICTIONS_FILE} is not read"
    )
    level: float = flag(0.95, "share of the drawn scores that an interval holds")
    seed: int = flag(42, "seed of the bootstrap")
    columns: list[str] = flag(
        [*COLUMNS, *TRAINING_COLUMNS], "columns of the tables, and metrics to test; one that no run has is left out"
    )
    language: Literal["en", "zh"] = flag("en", "language of the tables' titles; the JSON keeps its names")
    output_dir: str | None = flag(None, "where baseline_comparison.json goes (default: nowhere)")
    markdown_path: str | None = flag(None, "file that the tables are written to, too (default: none)")

    def __post_init__(self):
        if not self.runs:
            raise UserError(f"--runs is needed: folders with a {RESULTS_FILE}, each as name=folder")
        if self.rounds and not 100 <= self.rounds <= MOST_ROUNDS:
            raise UserError(f"--rounds {self.rounds}: must be 0, or from 100 to {MOST_ROUNDS}")
        if not 0.5 <= self.level <= 0.999:
            raise UserError(f"--level {self.level}: must be from 0.5 to 0.999")
        if not 0 <= self.seed < 2**32:
            raise UserError(f"--seed {self.seed}: must be from 0 to {2**32 - 1}")
        if self.baseline is not None:
            self._check_baseline()
        if self.output_dir is not None:
            check_output_dir(self.output_dir)
        if self.markdown_path is not None:
            if Path(self.markdown_path).is_dir():
                raise UserError(f"--markdown_path {self.markdown_path}: is a folder")
            check_output_dir(str(Path(self.markdown_path).parent), "--markdown_path")

    def _check_baseline(self) -> None:
        names = dict.fromkeys(name for name, _ in named_folders(self.runs, self.group_seeds))
        if self.baseline not in names:
            raise UserError(f"--baseline {self.baseline}: no such name; the runs are {', '.join(names)}")
        if len(names) == 1:
            raise UserError(f"--baseline {self.baseline}: is the only system; there is none to test against it")
        if not self.rounds:
            raise UserError(f"--baseline {self.baseline}: tests draw rows, which --rounds 0 leaves out")


# --- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run: the name of its system, its folder, the content of its test_results.json."""

    name: str
    folder: str
    results: dict[str, Any]

    @property
    def place(self) -> Path:
        """Where the results lie: in the folder itself, or in `test` in it."""
        return evaluated(self.folder, RESULTS_FILE)


def named_folders(specs: Sequence[str], group_seeds: bool) -> list[tuple[str, str]]:
    """`"lora=outputs/a"` -> its name and folder; a plain folder is its own name, less the seed with `group_seeds`.

    >>> named_folders(["lora=a", "out/full-seed0"], group_seeds=True)
    [('lora', 'a'), ('full', 'out/full-seed0')]
    """
    pairs = [named_folder(spec) for spec in specs]
    if not group_seeds:
        return pairs
    systems = {folder: _without_seed(folder) for name, folder in pairs if name == folder}
    paths_of = defaultdict(set)  # a short name that two paths have would make one system of two
    for path in systems.values():
        paths_of[path.name].add(path)
    short = {folder: path.name if len(paths_of[path.name]) == 1 else str(path) for folder, path in systems.items()}
    return [(short[folder] if name == folder else name, folder) for name, folder in pairs]


def _without_seed(folder: str) -> Path:
    path = Path(folder)
    match = _SEED_SUFFIX.fullmatch(path.name)
    return path.with_name(match["system"]) if match else path


def with_results(specs: Sequence[str]) -> list[str]:
    """`specs` without what a pattern like outputs/train/* finds beside finished runs: tables, runs without results."""
    unfinished = [
        spec for spec in specs if Path(spec).is_dir() and not (evaluated(spec, RESULTS_FILE) / RESULTS_FILE).exists()
    ]
    for folder in unfinished:
        print(f"warning: {folder}: has no {RESULTS_FILE}, left out")
    kept = [spec for spec in specs if spec not in unfinished and not Path(spec).is_file()]
    if not kept:
        raise UserError(f"--runs: none of the folders has a {RESULTS_FILE}")
    return kept


def read_runs(specs: Sequence[str], group_seeds: bool) -> dict[str, list[Run]]:
    """Name -> its runs, in the order in which they were given.

    Raises:
        UserError: no results in a folder, a folder twice under one name, or test sets that differ under one name.
    """
    if group_seeds:
        specs = with_results(specs)
    systems: dict[str, list[Run]] = defaultdict(list)
    for name, folder in named_folders(specs, group_seeds):
        new = Run(name, folder, read_run_file(evaluated(folder, RESULTS_FILE), RESULTS_FILE))
        for other in systems[name]:
            if other.place.resolve() == new.place.resolve():
                raise UserError(f"--runs: {name} has {folder} twice")
            if other.results.get("n") != new.results.get("n"):
                raise UserError(
                    f"--runs: {name} was not scored on the same rows: {other.folder} has n {other.results.get('n')}, "
                    f"{folder} has n {new.results.get('n')}"
                )
        systems[name].append(new)
    return dict(systems)


@dataclass(frozen=True)
class Answers:
    """What the runs of one name answered to the n rows that have gold labels, all of them to the same ones."""

    first: PredictedRun
    task: Task
    gold: list[tuple[str, ...]]
    runs: list[list[Prediction]]


def read_answers(name: str, runs: Sequence[Run]) -> Answers | None:
    """The answers of a system's runs; None where a run has no predictions.jsonl, or, with a warning, other rows, or
    summaries in the place of labels.

    Raises:
        UserError: predictions that are broken, or not those that were scored.
    """
    if not all((run.place / PREDICTIONS_FILE).is_file() for run in runs):
        return None
    if any(written_task(run.place) for run in runs):
        print(f"warning: {name} has no intervals: they are those of labels, and its answers are summaries")
        return None
    read = [read_run(run.place) for run in runs]
    for scored, predicted in zip(runs, read, strict=True):
        predicted.task()  # checks the rows
        _check_scored(scored, predicted)
    try:
        _check_comparable(read)
    except UserError as error:
        print(f"warning: {name} has no intervals: {error}")
        return None
    gold = [tuple(row["gold"]) for row in read[0].labelled]
    return Answers(read[0], read[0].task(), gold, [_labelled_predictions(predicted) for predicted in read])


def _labelled_predictions(predicted: PredictedRun) -> list[Prediction]:
    pairs = zip(predicted.rows, predicted.predictions, strict=True)
    return [prediction for row, prediction in pairs if row["gold"] is not None]


def _check_scored(scored: Run, predicted: PredictedRun) -> None:
    """Raise a `UserError` where a run's results are of other rows than those beside them."""
    rows, accuracy = predicted.labelled, scored.results.get("accuracy")
    right = sum(map(is_right_row, rows))
    same_count = scored.results.get("n") in (None, len(rows))
    if not rows or not same_count or (accuracy is not None and abs(right / len(rows) - accuracy) > 1e-6):
        raise UserError(
            f"{scored.place}: {RESULTS_FILE} is not of the rows in {PREDICTIONS_FILE}: it has n "
            f"{scored.results.get('n')} and accuracy {accuracy}, of {len(rows)} labelled rows {right} are right; "
            "predict them again, or give --rounds 0"
        )


def _check_comparable(read: Sequence[PredictedRun]) -> None:
    """Raise a `UserError` where runs predicted other rows than the first of them, or other labels."""
    check_same_rows(read)
    first = read[0].task()
    for other in read[1:]:
        if different := set(first.labels) ^ set(other.task().labels):
            raise UserError(
                f"{other.path}: label {min(different)!r} is not in both its task and that of {read[0].path}"
            )


# --- comparing ------------------------------------------------------------------------------------------------------


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """What the runs of one name come to.

    Returns:
        `runs` (folders); `mean` and sample standard deviation `std` of each number that all of them have (`std` is
        None for a single run); of a single run also its whole `results`; under `training`, where there is something to
        tell, the same of `NUMBERS_OF_TRAINING`, and in words `what` they are and what `size_mb` is the size of.
    """
    names = [name for name in runs[0].results if name != "seed" and all(is_number(r.results.get(name)) for r in runs)]
    content = {"runs": [run.folder for run in runs], **_folded([run.results for run in runs], names)}
    if len(runs) == 1:
        content["results"] = runs[0].results
    facts = [training_facts(trained_directory(run.place) or run.place) for run in runs]
    if any(facts):
        numbers = [name for name in NUMBERS_OF_TRAINING if all(is_number(each.get(name)) for each in facts)]
        words = {"what": _joined(map(_what, facts)), "size_of": _joined(each.get("size_of") for each in facts)}
        content["training"] = words | _folded(facts, numbers)
    return content


def _folded(tables: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, float | None]]:
    values = {name: [table[name] for table in tables] for name in names}
    return {
        "mean": {name: statistics.mean(column) for name, column in values.items()},
        "std": {name: statistics.stdev(column) if len(tables) > 1 else None for name, column in values.items()},
    }


def _what(facts: dict[str, Any]) -> str:
    """`{"objective": "classify", "head": "mlp", "base_model": "a/b"}` -> "classify, mlp head, b"."""
    head = f"{facts['head']} head" if "head" in facts else None
    base = Path(facts["base_model"]).name if "base_model" in facts else None
    return ", ".join(filter(None, (facts.get("objective"), facts.get("method"), head, facts.get("tuning"), base)))


def _joined(words: Iterable[str | None]) -> str | None:
    return " / ".join(dict.fromkeys(filter(None, words))) or None


def intervals(answers: Answers, args: Args) -> dict[str, Any]:
    """`intervals`: metric -> its two ends; `bootstrap`: how they were made, and labels that few of the rows have."""
    found = mean_intervals(answers.gold, answers.runs, answers.task, METRICS, args.rounds, args.seed, args.level)
    how = {"rows": len(answers.gold), "rounds": args.rounds, "level": args.level, "seed": args.seed}
    rare = {"rare_labels": rare_labels(answers.gold, answers.task)}
    return {"intervals": {metric: list(ends) for metric, ends in found.items()}, "bootstrap": how | rare}


def against_baseline(answers: dict[str, Answers | None], args: Args) -> dict[str, dict[str, Any]]:
    """Each system but the baseline -> what it comes to against it; those with other rows are warned of and left out.

    Returns:
        name -> `baseline`; `systems`: how many were tested, for which `p_holm` is corrected; `metrics`: metric ->
        `difference`, `interval`, `p`, `p_holm`; `mcnemar`: `better`, `worse`, `p`, `p_holm`, or None where one of the
        two has several runs.

    Raises:
        UserError: the baseline has no predictions.
    """
    base = answers.get(args.baseline)
    if base is None:
        raise UserError(f"--baseline {args.baseline}: not all of its runs have a {PREDICTIONS_FILE} of the same rows")
    found = {}
    for name, other in answers.items():
        if name == args.baseline:
            continue
        try:
            if other is None:
                raise UserError(f"not all of its runs have a {PREDICTIONS_FILE} of the same rows")
            _check_comparable([base.first, other.first])
        except UserError as error:
            print(f"warning: {name} is not tested against {args.baseline}: {error}")
            continue
        single = len(base.runs) == len(other.runs) == 1
        found[name] = {
            "baseline": args.baseline,
            "metrics": mean_paired_bootstrap(
                base.gold, other.runs, base.runs, base.task, METRICS, args.rounds, args.seed, args.level
            ),
            "mcnemar": mcnemar(base.gold, other.runs[0], base.runs[0]) if single else None,
        }
    for metric in METRICS:
        _correct({name: content["metrics"][metric] for name, content in found.items()})
    _correct({name: content["mcnemar"] for name, content in found.items() if content["mcnemar"]})
    return {name: content | {"systems": len(found)} for name, content in found.items()}


def _correct(results: dict[str, dict[str, Any]]) -> None:
    for name, p in holm({name: result["p"] for name, result in results.items()}).items():
        results[name]["p_holm"] = p


def main(args: Args) -> None:
    systems = read_runs(args.runs, args.group_seeds)
    summaries = {name: summary(runs) for name, runs in systems.items()}
    table(summaries, args.columns)  # a column that there is not is known before the rows are read
    if args.baseline in systems:
        for other in systems[args.baseline]:
            if written_task(other.place):
                raise UserError(f"--baseline {args.baseline}: tests compare labels, and its answers are summaries")
    answers = {name: read_answers(name, runs) if args.rounds else None for name, runs in systems.items()}
    for name, answered in answers.items():
        if answered is not None:
            summaries[name] |= intervals(answered, args)
    if args.baseline is not None:
        for name, content in against_baseline(answers, args).items():
            summaries[name]["against"] = content
    text = pages(summaries, args)
    print(text)
    sizes = {name: content["mean"].get("n") for name, content in summaries.items()}
    if len(set(sizes.values())) > 1:
        print(f"warning: not scored on the same rows: {', '.join(f'{name} on {n}' for name, n in sizes.items())}")
    if args.markdown_path is not None:
        write_text(args.markdown_path, f"{text}\n")
    if args.output_dir is not None:
        with exclusive(args.output_dir, COMPARISON_FILE):
            write_json(Path(args.output_dir) / COMPARISON_FILE, summaries)


if __name__ == "__main__":
    run(main, Args, {}, positional="runs")
