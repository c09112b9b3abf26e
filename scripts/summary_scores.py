"""Score summaries of counselling cases that a model wrote: a table on the console, and `summary_scores.json`.

    python -m scripts.summary_scores outputs/summary/test/summaries.jsonl

The file is JSON Lines, or a JSON list, of cases (data/README.md, "Counselling cases") with `summary`, what the model
wrote, and, if known, `truncated`, whether it did not see the whole case. `experience_and_reflection`, the counsellor's
own summary, is the reference where it stands there too.

    ROUGE-1, -2, -L     words, pairs of words, longest common subsequence that a summary shares with its reference
    BLEU                one to four words in a row that they share, over all cases at once
    different words     of all summaries together, as a share of all their words (distinct-1); and pairs (distinct-2)
    copied              words, pairs and fours of words in a row that stand so in the case

A Chinese character is a word. All are shown in percent; in the file, from 0 to 1, with a ROUGE-L of each case.
`data/summaries/metrics.py` defines them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.arguments import UserError, check_output_dir, flag, one_line, run
from data.files import exclusive, write_json
from data.report.tables import markdown_table
from data.summaries.cases import WrittenSummary, read_written
from data.summaries.metrics import ROUGE, summary_metrics

SCORES_FILE = "summary_scores.json"
SHOWN = 5  # of the worst summaries
SHARES = {  # of the texts alone
    "distinct_1": "different words", "distinct_2": "different pairs of words",
    "source_overlap_1": "copied words", "source_overlap_2": "copied pairs of words",
    "source_overlap_4": "copied fours of words", "empty_rate": "empty",
}  # fmt: skip


@dataclass
class Args:
    file: str | None = flag(None, "the cases with what a model wrote of them; --file itself may be left out")
    output_dir: str | None = flag(None, f"where {SCORES_FILE} goes; not set = beside the file")

    def __post_init__(self):
        if not self.file:
            raise UserError("--file is needed: cases with what a model wrote of them")
        if self.output_dir is not None:
            check_output_dir(self.output_dir)


def in_words(scores: dict[str, Any], rows: Sequence[WrittenSummary]) -> str:
    """What there is to know about the summaries, for people."""
    cut = f", {_percent(scores['truncation_rate'])} not seen whole by the model" if "truncation_rate" in scores else ""
    lines = [f"{scores['n']:,} cases{cut}", ""]
    if "bleu" in scores:
        lines += [_reference_table(scores), ""]
    lines.append(_table({"summary": scores} | ({"reference": scores["reference"]} if "reference" in scores else {})))
    if "per_case" in scores:
        lines += ["", "the lowest ROUGE-L", *_worst(scores["per_case"], rows)]
    return "\n".join(lines)


def _reference_table(scores: dict[str, Any]) -> str:
    lines = [
        [
            f"ROUGE-{name.removeprefix('rouge')}",
            *(_percent(scores[f"{name}_{what}"]) for what in ("f1", "precision", "recall")),
        ]
        for name in ROUGE
    ]
    return markdown_table(
        ["", "F1", "precision", "recall"], [*lines, ["BLEU", _percent(scores["bleu"]), "", ""]], padded=True
    )


def _table(columns: dict[str, dict[str, Any]]) -> str:
    lines = [
        [f"{unit}, {what}", *(f"{each[f'{unit}_{what}']:,.1f}" for each in columns.values())]
        for unit in ("words", "characters") for what in ("mean", "median")
    ]  # fmt: skip
    lines += [[words, *(_percent(each[name]) for each in columns.values())] for name, words in SHARES.items()]
    return markdown_table(["", *columns], lines, padded=True)


def _worst(per_case: Sequence[dict[str, Any]], rows: Sequence[WrittenSummary]) -> list[str]:
    pairs = sorted(zip(per_case, rows, strict=True), key=lambda pair: pair[0]["rougeL_f1"])[:SHOWN]
    return [
        f"  {_percent(scores['rougeL_f1']):>7}  {one_line(scores['id'], 40)}: {one_line(row.text, 100) or '(empty)'}"
        for scores, row in pairs
    ]


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def main(args: Args) -> None:
    rows = list(read_written(args.file, "--file"))
    output_dir = Path(args.output_dir or Path(args.file).parent)
    check_output_dir(str(output_dir))
    truncated = None if rows[0].truncated is None else [bool(row.truncated) for row in rows]
    scores = summary_metrics([row.case for row in rows], [row.text for row in rows], truncated)
    print(in_words(scores, rows))
    with exclusive(output_dir, SCORES_FILE):
        write_json(output_dir / SCORES_FILE, {"file": args.file, **scores})
    print(f"\nwritten to {output_dir / SCORES_FILE}")


if __name__ == "__main__":
    run(main, Args, {}, positional="file")
