"""Put the test results of several runs side by side: a table on the console and `baseline_comparison.json`.

    # systems that were scored on the same test file, each under a name of your own
    python -m scripts.compare zero-shot=outputs/zero-shot frozen=outputs/frozen head=outputs/classify \\
        scoring=outputs/score --output_dir outputs

    # several seeds of one system: runs of the same name become one line, mean ± standard deviation (n - 1)
    python -m scripts.compare lora=outputs/a lora=outputs/b full=outputs/c --markdown_path table.md

    # named by their folders: outputs/train/sst2-lora-seed0, -seed42 and -seed123 are three runs of sst2-lora
    python -m scripts.compare --group_seeds outputs/train/*

    # titles in Chinese
    python -m scripts.compare 只训练分类头=outputs/head 训练全部参数=outputs/full --language zh
"""

import re
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from data.arguments import UserError, check_output_dir, flag, run
from data.files import RESULTS_FILE, exclusive, write_json, write_text
from data.metrics import LABEL_METRICS
from data.report.run_files import read_run_file
from data.report.tables import in_chinese, is_number, markdown_table

COLUMNS = (
    "n", "runs", "accuracy", "f1_macro", "f1_micro", "jaccard", "auc", "ece", "invalid_rate", "examples_per_second",
)  # fmt: skip
KNOWN_COLUMNS = tuple(dict.fromkeys((*COLUMNS, *LABEL_METRICS, "brier")))
COMPARISON_FILE = "baseline_comparison.json"
_SEED_SUFFIX = re.compile(r"(?P<system>.+)(?:-seed|_seed|-s)\d+")


@dataclass
class Args:
    runs: list[str] = flag(
        [], f"folders with {RESULTS_FILE}, each as name=folder or just folder; the same name: one line"
    )
    group_seeds: bool = flag(
        False, "name a plain folder by what stands before its -seed0, _seed0 or -s0; leave out what has no results"
    )
    columns: list[str] = flag(list(COLUMNS), "columns of the table; one that no run has is left out")
    language: Literal["en", "zh"] = flag("en", "language of the table's titles; the JSON keeps its names")
    output_dir: str | None = flag(None, "where baseline_comparison.json goes (default: nowhere)")
    markdown_path: str | None = flag(None, "file that the table is written to, too (default: none)")

    def __post_init__(self):
        if not self.runs:
            raise UserError(f"--runs is needed: folders with a {RESULTS_FILE}, each as name=folder")
        if self.output_dir is not None:
            check_output_dir(self.output_dir)
        if self.markdown_path is not None:
            if Path(self.markdown_path).is_dir():
                raise UserError(f"--markdown_path {self.markdown_path}: is a folder")
            check_output_dir(str(Path(self.markdown_path).parent), "--markdown_path")


# --- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One run: the name of its system, its folder, the content of its test_results.json."""

    name: str
    folder: str
    results: dict[str, Any]


def named_folders(specs: Sequence[str], group_seeds: bool) -> list[tuple[str, str]]:
    """`"lora=outputs/a"` -> its name and folder; a plain folder is its own name, less the seed with `group_seeds`.

    >>> named_folders(["lora=a", "out/full-seed0"], group_seeds=True)
    [('lora', 'a'), ('full', 'out/full-seed0')]
    """
    pairs = [(name, folder) for name, _, folder in (spec.rpartition("=") for spec in specs)]
    if not group_seeds:
        return [(name or folder, folder) for name, folder in pairs]
    systems = {folder: _without_seed(folder) for name, folder in pairs if not name}
    paths_of = defaultdict(set)  # a short name that two paths have would make one system of two
    for path in systems.values():
        paths_of[path.name].add(path)
    short = {folder: path.name if len(paths_of[path.name]) == 1 else str(path) for folder, path in systems.items()}
    return [(name or short[folder], folder) for name, folder in pairs]


def _without_seed(folder: str) -> Path:
    path = Path(folder)
    match = _SEED_SUFFIX.fullmatch(path.name)
    return path.with_name(match["system"]) if match else path


def with_results(specs: Sequence[str]) -> list[str]:
    """`specs` without what a pattern like outputs/train/* finds beside finished runs: tables, runs without results."""
    unfinished = [spec for spec in specs if Path(spec).is_dir() and not (Path(spec) / RESULTS_FILE).exists()]
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
        new = Run(name, folder, read_run_file(folder, RESULTS_FILE))
        for other in systems[name]:
            if Path(other.folder).resolve() == Path(folder).resolve():
                raise UserError(f"--runs: {name} has {folder} twice")
            if other.results.get("n") != new.results.get("n"):
                raise UserError(
                    f"--runs: {name} was not scored on the same rows: {other.folder} has n {other.results.get('n')}, "
                    f"{folder} has n {new.results.get('n')}"
                )
        systems[name].append(new)
    return dict(systems)


# --- comparing ------------------------------------------------------------------------------------------------------


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """What the runs of one name come to.

    Returns:
        `runs` (folders); `mean` and sample standard deviation `std` of each number that all of them have (`std` is
        None for a single run); of a single run also its whole `results`.
    """
    names = [name for name in runs[0].results if name != "seed" and all(is_number(r.results.get(name)) for r in runs)]
    values = {name: [run.results[name] for run in runs] for name in names}
    content = {
        "runs": [run.folder for run in runs],
        "mean": {name: statistics.mean(column) for name, column in values.items()},
        "std": {name: statistics.stdev(column) if len(runs) > 1 else None for name, column in values.items()},
    }
    return content if len(runs) > 1 else content | {"results": runs[0].results}


def table(summaries: dict[str, dict[str, Any]], columns: Sequence[str] = COLUMNS, language: str = "en") -> str:
    """A Markdown table, one line a name, without the columns that none of them has; titles in English or Chinese.

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
    titles = ["name", *columns]
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


def main(args: Args) -> None:
    summaries = {name: summary(runs) for name, runs in read_runs(args.runs, args.group_seeds).items()}
    text = table(summaries, args.columns, args.language)
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
