"""Put the test results of several runs side by side: a table on the console and `baseline_comparison.json`.

python -m scripts.compare untuned=outputs/base fine-tuned=outputs/sft --output_dir outputs
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.arguments import UserError, check_output_dir, flag, run
from data.files import write_json

COLUMNS = ("n", "f1_macro", "f1_micro", "jaccard", "accuracy", "invalid_rate", "examples_per_second")


@dataclass
class Args:
    runs: list[str] = flag([], "folders with test_results.json, each as name=folder or just folder")
    output_dir: str | None = flag(None, "where baseline_comparison.json goes (default: nowhere)")

    def __post_init__(self):
        if not self.runs:
            raise UserError("--runs is needed: folders with a test_results.json, each as name=folder")
        if self.output_dir is not None:
            check_output_dir(self.output_dir)


def read_results(spec: str) -> tuple[str, dict[str, Any]]:
    """`"fine-tuned=outputs/sft"` -> its name and the content of its test_results.json."""
    name, _, folder = spec.rpartition("=")
    path = Path(folder) / "test_results.json"
    try:
        return name or folder, dict(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error


def table(results: dict[str, dict[str, Any]]) -> str:
    """A Markdown table, one line a run."""
    rows = [["run", *COLUMNS]]
    for name, scores in results.items():
        rows.append([name, *(_shown(scores.get(column)) for column in COLUMNS)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def main(args: Args) -> None:
    named = [read_results(spec) for spec in args.runs]
    results = dict(named)
    if len(results) < len(named):
        raise UserError("--runs: two of them have the same name")
    print(table(results))
    if args.output_dir is not None:
        write_json(Path(args.output_dir) / "baseline_comparison.json", results)


if __name__ == "__main__":
    # `python -m scripts.compare a b` is short for `--runs a b`
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        sys.argv.insert(1, "--runs")
    run(main, Args, {})
