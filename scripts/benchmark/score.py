"""Scores of a task's labels: one sequence for each text and label against one tree for a batch of texts."""

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.arguments import check_at_least, flag
from data.engine.predictor import Predictor
from data.files import write_json
from data.loading import load_examples
from data.report.tables import markdown_table
from data.tasks import BUILT_IN_TASKS
from scripts.benchmark.race import CASES, Contestant, RaceArgs, Turns, check_known, checked, race, train_file

CASE = CASES["28-labels"]


@dataclass
class ScoreArgs(RaceArgs):
    model_path: str | None = flag(None, "model to score with: hub id or directory, untuned or trained to score")
    contestants: list[str] = flag(["each", "ours"], "which of each, ours")
    texts: int = flag(8, "texts a turn")

    def __post_init__(self):
        super().__post_init__()
        check_known(self, contestants=CONTESTANTS)
        check_at_least(self, texts=1)


def _take_turns(turns: Turns, args: ScoreArgs, packed: bool) -> None:
    predictor = Predictor(
        args.model_path, CASE.task, batch_size=args.texts, precision=args.precision, objective="score"
    )
    texts = [example.text for example in load_examples(train_file(args.data_dir, CASE), predictor.task)]
    if not packed:
        model = predictor.backend.model
        model.set_attn_implementation("sdpa")
        model.computes_packed_rows = False
    for begin in range(0, len(texts), args.texts):
        turns.wait()
        scores = predictor.label_scores(texts[begin : begin + args.texts])
        turns.done(scores=scores.tolist())


def each(turns: Turns, args: ScoreArgs) -> None:
    """One sequence for each text and label."""
    _take_turns(turns, args, packed=False)


def ours(turns: Turns, args: ScoreArgs) -> None:
    """One tree for all."""
    _take_turns(turns, args, packed=True)


CONTESTANTS = {"each": each, "ours": ours}


def score(args: ScoreArgs) -> None:
    args = checked(args)
    train_file(args.data_dir, CASE)
    turns = race(
        {which: Contestant(CONTESTANTS[which], args=args) for which in args.contestants},
        args.warmup + args.rounds, "score",
    )  # fmt: skip
    labels = len(BUILT_IN_TASKS[CASE.task].labels)
    results: dict[str, Any] = {"what": f"{args.texts} texts x {labels} labels, {CASE.what}",
                               "precision": args.precision, "contestants": {}}  # fmt: skip
    for which, entries in turns.items():
        seconds = statistics.median(entry["seconds"] for entry in entries[args.warmup :])
        results["contestants"][which] = {
            "seconds": seconds,
            "texts_per_second": args.texts / seconds,
            "all_seconds": [entry["seconds"] for entry in entries[args.warmup :]],
            "peak_gib": entries[-1]["peak_bytes"] / 2**30,
        }
    if len(turns) == len(CONTESTANTS):
        pairs = zip(_flat(turns["each"]), _flat(turns["ours"]), strict=True)
        results["largest_difference"] = max(abs(a - b) for a, b in pairs)
    print(table(results))
    write_json(Path(args.output_dir) / "benchmark_score.json", results)
    print(f"written to {Path(args.output_dir) / 'benchmark_score.json'}")


def _flat(entries: list[dict[str, Any]]) -> list[float]:
    return [value for entry in entries for row in entry["scores"] for value in row]


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table, one line a contestant."""
    head = ["labels scored", "seconds a batch", "texts/s", "ratio", "peak memory"]
    rows = []
    base = results["contestants"].get("each")
    for which, figures in results["contestants"].items():
        ratio = f"{base['seconds'] / figures['seconds']:.1f}×" if base else "–"
        seconds, speed = f"{figures['seconds']:.2f}", f"{figures['texts_per_second']:.1f}"
        rows.append([which, seconds, speed, ratio, f"{figures['peak_gib']:.1f} GiB"])
    text = markdown_table(head, rows)
    if "largest_difference" in results:
        text += f"\n\nlargest difference of a score: {results['largest_difference']:.2e}"
    return text
