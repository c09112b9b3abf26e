"""The numbers of a report on runs that write summaries, raw, and what they come to in words. (no torch)

`data.report.sections` has those of runs that read labels; both kinds go through the same page, with other sections.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from data.report.commands import commands
from data.report.sources import Source
from data.report.words import Words
from data.summaries.cases import written_in
from data.summaries.task import FINISHED

SECTIONS = ("summary", "scores", "training", "cases", "data", "commands")
COLUMNS = (
    "rouge1_f1", "rouge2_f1", "rougeL_f1", "bleu", "words_mean", "distinct_2", "source_overlap_4", "truncation_rate",
    "unfinished_rate", "empty_rate",
)  # fmt: skip
LONGEST_SUMMARY, LONGEST_CASE = 6000, 3000  # characters that are shown


def runs_data(sources: Sequence[Source], most: int) -> dict[str, Any]:
    """All numbers of such a report but those of the installation.

    Args:
        sources: its runs.
        most: how many summaries of each run to show at most.

    Returns:
        `runs` (see `run_data`), `comparison` (see `compared`).
    """
    runs = [run_data(source, most) for source in sources]
    return {"runs": runs, "comparison": compared(sources, runs)}


def run_data(source: Source, most: int) -> dict[str, Any]:
    """The numbers of one run; what was not measured is None."""
    run, contract = source.run, source.run.contract
    scores = source.task.measure(run.rows, contract)
    return {
        "name": source.name,
        "folder": run.folder,
        "task": source.task.name,
        "labels": [],
        "base_model": contract.base_model if contract else None,
        "sampling": contract.sampling if contract else None,
        "trained": bool(source.args or source.train_results),
        "n": len(run.rows),
        "n_scored": 0,  # none is right or wrong
        "scores": scores,
        "cases": cases(source, scores, most),
        "confidence": None,
        "training": source.state if any("loss" in entry for entry in source.state.get("log_history", [])) else None,
        "train_results": source.train_results,
        "rewards": None,
        "robustness": None,
        "data": source.data_report or None,
        "imbalance": None,
        "test_rows": test_rows(source),
        "examples_per_second": source.results.get("examples_per_second"),
        "commands": commands(source),
        "versions": contract.library_versions if contract else None,
        "sha256": run.sha256,
    }


def cases(source: Source, scores: dict[str, Any], most: int) -> list[dict[str, Any]]:
    """Cases with what was written of them, at most `most`: those with the lowest ROUGE-L first, where it is known."""
    known = [each["rougeL_f1"] for each in scores.get("per_case", ())] or [None] * len(source.run.rows)
    found = []
    for row, rouge in zip(source.run.rows, known, strict=True):
        written = written_in(row)
        found.append(
            {
                "id": written.case.id, "text": written.case.text, "written": written.text,
                "reference": written.case.summary, "rougeL_f1": rouge, "truncated": bool(written.truncated),
                "finished": row[FINISHED], "turns": len(written.case.consultation_process),
            }
        )  # fmt: skip
    return sorted(found, key=lambda each: each["rougeL_f1"] or 0.0)[:most]


def test_rows(source: Source) -> dict[str, int]:
    """What the rows themselves show: cases that come again, were cut, have no reference, and summaries that failed."""
    written = [written_in(row) for row in source.run.rows]
    times = Counter(each.case.text for each in written)
    return {
        "repeated": len(written) - len(times),
        "cut_cases": sum(bool(each.truncated) for each in written),
        "unfinished": sum(not row[FINISHED] for row in source.run.rows),
        "without_reference": sum(each.case.summary is None for each in written),
    }


def compared(sources: Sequence[Source], runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The runs' scores beside each other.

    Returns:
        `columns` (those that any run has); `same_rows`: whether all are of the same cases; `reference`: what is said of
        the counsellors' own summaries, None where they are not known or the cases differ; `differences`: None of each
        run, as nothing is tested.
    """
    scored = [run["scores"] for run in runs]
    columns = [column for column in COLUMNS if any(scores.get(column) is not None for scores in scored)]
    asked = [[written_in(row).case for row in source.run.rows] for source in sources]
    same = all(each == asked[0] for each in asked)
    reference = scored[0].get("reference") if same else None
    return {"columns": columns, "same_rows": same, "reference": reference,
            "differences": [None] * len(runs)}  # fmt: skip


def paragraphs(run: dict[str, Any], say: Words) -> list[str]:
    """What is most worth knowing of a run of `run_data`."""
    gap = "" if say.language == "zh" else " "
    return [gap.join(sentences) for sentences in (_about(run, say), _how_good(run, say))]


def _about(run: dict[str, Any], say: Words) -> Iterator[str]:
    base, scores = run["base_model"], run["scores"]
    how = "trained" if run["trained"] else "model"
    name = Path(base).name if base else None
    yield say(f"wrote_{how if base else 'unknown'}", base=name, task=run["task"], n=say.count(run["n"]))
    length = {"words": say.count(scores["words_mean"]), "characters": say.count(scores["characters_mean"])}
    yield say("long", **length)
    if (own := scores.get("reference")) is not None:
        yield say("own_long", words=say.count(own["words_mean"]))


def _how_good(run: dict[str, Any], say: Words) -> Iterator[str]:
    scores = run["scores"]
    if "rouge1_f1" in scores:
        names = ("rouge1_f1", "rouge2_f1", "rougeL_f1", "bleu")
        yield say("shared_words", **{name: say.number(scores[name]) for name in names})
    else:
        yield say("no_reference")
    if (copied := scores["source_overlap_4"]) is not None:
        yield say("copied_words", share=say.percent(copied))
    yield say("nobody_read")
