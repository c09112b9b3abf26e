"""Put all that is known of runs into one page, `report.html`, that a browser opens without a network.

    # a run: its predictions lie in it, or in its folder `test`, where report.html goes, too
    python -m scripts.report outputs/sft

    # several, under names of your own; the others are compared with the first
    python -m scripts.report untuned=outputs/base sft=outputs/sft grpo=outputs/grpo --output_dir outputs/report

    # in Chinese
    python -m scripts.report outputs/sft --language zh --title 酒店评论

The page has a summary in plain words, metrics with intervals, confusion matrix or label co-occurrence, labels,
confidence, training and reward curves, robustness, attention, wrong answers to browse, data warnings, commands and
versions. That of runs which write summaries has their scores, training curves, and the summaries to read beside those
of the counsellors. What was not measured is left out, and the page names the command that measures it. Scores are
computed anew from predictions.jsonl.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from data.arguments import UserError, check_at_least, check_output_dir, flag, run
from data.files import PREDICTIONS_FILE, exclusive, write_text
from data.report.page import REPORT_FILE, render
from data.report.sections import report_data
from data.report.sources import read_sources
from data.report.words import Language, Words


@dataclass
class Args:
    runs: list[str] = flag(
        [],
        f"folders with a {PREDICTIONS_FILE}, or with such a folder `test` in them, each as name=folder or just folder",
    )
    output_dir: str | None = flag(
        None, f"where {REPORT_FILE} goes (default: beside the predictions of a single run; needed for several)"
    )
    title: str | None = flag(None, "title of the page (default: one that names the runs)")
    language: Language = flag("en", "language of the page; texts and labels stay as they are")
    worst: int = flag(
        200,
        "wrong answers of each run to browse, at most: the surest ones; of summaries, those with the lowest ROUGE-L",
    )
    seed: int = flag(42, "of the draws behind the intervals")

    def __post_init__(self):
        if not self.runs:
            raise UserError(f"--runs is needed: folders with a {PREDICTIONS_FILE}, each as name=folder or just folder")
        if self.output_dir is None and len(self.runs) > 1:
            raise UserError(f"--output_dir is needed: where the {REPORT_FILE} of {len(self.runs)} runs goes")
        if self.output_dir is not None:
            check_output_dir(self.output_dir)
        check_at_least(self, worst=0, seed=0)


def main(args: Args) -> None:
    sources = read_sources(args.runs)
    output_dir = args.output_dir or sources[0].run.folder
    with exclusive(output_dir, REPORT_FILE):
        report = report_data(sources, args.worst, args.seed)
        command = shlex.join(["python", "-m", "scripts.report", *sys.argv[1:]])
        write_text(Path(output_dir) / REPORT_FILE, render(report, Words(args.language), args.title, command))
    print(f"written to {Path(output_dir) / REPORT_FILE}")


if __name__ == "__main__":
    run(main, Args, {}, positional="runs")
