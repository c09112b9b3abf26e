"""The numbers of a report, raw: all that its page shows is in what `report_data` returns. (no torch)

Everything about predictions is computed from predictions.jsonl anew; what an analysis or a training has measured comes
from the files it left. The page only formats this.
"""

import platform
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from importlib import metadata
from typing import Any

import numpy

from data.calibration import calibration_scores
from data.confidence import NoConfidenceError, analyse
from data.metrics import label_metrics
from data.prediction_rows import is_right_row, promised_scores
from data.report.commands import commands, remedies
from data.report.heat_map import static_rows
from data.report.sources import Source, same_rows
from data.report.tables import is_number
from data.report.written import runs_data
from data.significance import METRICS, bootstrap_intervals, mcnemar, paired_bootstrap

LEVEL = 0.95  # of the intervals
LIBRARIES = ("torch", "transformers", "trl", "peft", "scikit-learn", "numpy", "matplotlib", "jinja2")
MISTAKES = 5  # the most frequent ones that the summary may name
FLIPS = 3  # examples of each perturbation
HEAT_TEXTS = 6  # of which the report shows heat maps


def report_data(sources: Sequence[Source], worst: int, seed: int = 42, now: datetime | None = None) -> dict[str, Any]:
    """All numbers of a report.

    Args:
        sources: its runs; the first is what the others are compared with.
        worst: how many wrong rows, or summaries, of each run to show at most.
        seed: of the bootstrap's draws.
        now: when the report was made; None = now.

    Returns:
        `written`: whether the runs write summaries; `runs` (see `run_data`) and `comparison` (see `compared`), or
        those of `data.report.written`; `versions` (of this installation), `date`, `seed` and
        `level` of the intervals.

    Raises:
        UserError: a broken file.
    """
    if written := sources[0].task.sampling is not None:
        numbers = runs_data(sources, worst)
    else:
        runs = [run_data(source, worst, seed) for source in sources]
        numbers = {"runs": runs, "comparison": compared(sources, runs, seed)}
    return numbers | {
        "written": written,
        "versions": {"Python": platform.python_version()} | {name: metadata.version(name) for name in LIBRARIES},
        "date": (now or datetime.now()).strftime("%Y-%m-%d %H:%M"),
        "seed": seed,
        "level": LEVEL,
    }


def run_data(source: Source, worst: int, seed: int) -> dict[str, Any]:
    """The numbers of one run; what was not measured is None, and `remedies` says what would measure it."""
    run, task = source.run, source.task
    scored = run.labelled
    gold = [tuple(row["gold"]) for row in scored]
    predictions = [p for p, row in zip(run.predictions, run.rows, strict=True) if row["gold"] is not None]
    contract, scores = run.contract, _scores(source, gold, predictions)
    found = {
        "name": source.name,
        "folder": run.folder,
        "task": task.name,
        "kind": task.kind,
        "labels": list(task.labels),
        "base_model": contract.base_model if contract else None,
        "objective": contract.objective if contract else None,
        "trained": bool(source.args or source.train_results),
        "reinforced": source.rewards is not None,
        "n": len(run.rows),
        "n_scored": len(scored),
        "scores": scores,
        "intervals": bootstrap_intervals(gold, predictions, task, METRICS, seed=seed, level=LEVEL) if gold else None,
        "most_frequent": _most_frequent(gold),
        "per_label": per_label(source, scores),
        "confusion": confusion(scores) if scores and task.kind == "single_label" else None,
        "cooccurrence": cooccurrence(scored, source) if gold and task.kind == "multi_label" else None,
        "mistakes": mistakes(scored, task.kind),
        "confidence": _confidence(source),
        "promised": contract.coverage.level if contract and contract.coverage else None,
        "has_probabilities": run.has_probabilities,
        "errors": worst_errors(scored, worst),
        "training": source.state if any("loss" in entry for entry in source.state.get("log_history", [])) else None,
        "train_results": source.train_results,
        "rewards": source.rewards,
        "reward_metric": source.train_results.get("metric_for_best") or task.default_metric,
        "robustness": source.robustness,
        "flips": flips(source.robustness) if source.robustness else None,
        "attention": source.attention,
        "heat": static_rows(source.attention, HEAT_TEXTS) if source.attention else None,
        "data": source.data_report or None,
        "imbalance": imbalance(source),
        "test_rows": test_rows(source),
        "examples_per_second": source.results.get("examples_per_second"),
        "commands": commands(source),
        "versions": contract.library_versions if contract else None,
        "sha256": run.sha256,
    }
    return found | {"remedies": remedies(source, found)}


def _scores(source: Source, gold, predictions) -> dict[str, Any] | None:
    if not gold:
        return None
    scores = label_metrics(gold, predictions, source.task)
    probabilities = source.run.probabilities(source.task)
    if probabilities is not None:
        kept = [row["gold"] is not None for row in source.run.rows]
        scores |= calibration_scores(probabilities[kept], gold, source.task)
    return scores | promised_scores(gold, predictions)


def _most_frequent(gold: Sequence[tuple[str, ...]]) -> dict[str, Any] | None:
    """What is right most often if each text gets the same answer, and how often that is."""
    if not gold:
        return None
    labels, count = Counter(gold).most_common(1)[0]
    return {"labels": list(labels), "share": count / len(gold)}


def _confidence(source: Source) -> dict[str, Any] | None:
    try:
        return analyse(source.run)
    except NoConfidenceError:
        return None


# --- labels ---------------------------------------------------------------------------------------------------------


def per_label(source: Source, scores: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Of each label, the best F1 first: precision, recall, F1 and support where there is gold, and how many rows with
    gold (all rows, where none has any) were predicted to have it, `predicted`."""
    rows = source.run.labelled or source.run.rows
    predicted = Counter(label for row in rows for label in set(row["labels"]))
    measured = scores["per_label"] if scores else {}
    table = [{"label": label, **measured.get(label, {}), "predicted": predicted[label]} for label in source.task.labels]
    return sorted(table, key=lambda row: (-row.get("f1", 0), -row.get("support", row["predicted"])))


def confusion(scores: dict[str, Any]) -> dict[str, Any]:
    """Single-label: how often each gold label (row) was answered as each label (column), and not at all (the last)."""
    matrix, unread = scores["confusion_matrix"], scores["unread"].values()
    counts = numpy.column_stack([matrix, list(unread)])
    return _with_shares(counts, counts.sum(axis=1)) | {"unread": sum(unread)}


def cooccurrence(rows: Sequence[dict[str, Any]], source: Source) -> dict[str, Any]:
    """Multi-label: which labels stand in for which.

    In a text, each gold label that was not found is counted with each label that was given wrongly; with the last
    column where none was given wrongly (it was only left out), while a label that was given wrongly where none was left
    out counts in the last row. The diagonal has the labels that were found.

    Returns:
        `counts` (K + 1, K + 1); `shares` of the texts with the gold label, which are its `totals` (both 0 in the last
        row); of each label the texts in which it was `missed` and `added`.
    """
    ids = source.task.ids
    size = len(ids)
    counts = numpy.zeros((size + 1, size + 1), dtype=int)
    missed, added, support = (numpy.zeros(size, dtype=int) for _ in range(3))
    for row in rows:
        gold, given = {ids[label] for label in row["gold"]}, {ids[label] for label in row["labels"]}
        for label in gold & given:
            counts[label, label] += 1
        for label in gold - given or {size}:
            for other in given - gold or {size}:
                counts[label, other] += 1
        for table, labels in ((missed, gold - given), (added, given - gold), (support, gold)):
            table[list(labels)] += 1
    counts[size, size] = 0  # texts without a mistake
    sides = {"missed": missed.tolist(), "added": added.tolist()}
    return _with_shares(counts, numpy.append(support, 0)) | sides


def _with_shares(counts, totals) -> dict[str, Any]:
    shares = numpy.divide(counts, totals[:, None], out=numpy.zeros(counts.shape), where=totals[:, None] > 0)
    return {"counts": counts.tolist(), "shares": shares.tolist(), "totals": totals.tolist()}


def mistakes(rows: Sequence[dict[str, Any]], kind: str) -> dict[str, list[dict[str, Any]]]:
    """The most frequent mistakes, each with its `count`, and `of` how many texts.

    Returns:
        For a single label a text `swapped`, of the texts with that label (`gold`, `given`); else `missed`, of the texts
        with the `label`, and `added`, of those that it was given to.
    """
    support = Counter(label for row in rows for label in row["gold"])
    if kind == "single_label":
        pairs = ((row["gold"][0], row["labels"][0]) for row in rows if row["labels"])
        swapped = Counter(pair for pair in pairs if pair[0] != pair[1]).most_common(MISTAKES)
        return {"swapped": [{"gold": a, "given": b, "count": n, "of": support[a]} for (a, b), n in swapped]}
    given = Counter(label for row in rows for label in set(row["labels"]))
    missed = Counter(label for row in rows for label in sorted(set(row["gold"]) - set(row["labels"])))
    added = Counter(label for row in rows for label in sorted(set(row["labels"]) - set(row["gold"])))
    return {
        name: [{"label": label, "count": n, "of": totals[label]} for label, n in counter.most_common(MISTAKES)]
        for name, counter, totals in (("missed", missed, support), ("added", added, given))
    }


def worst_errors(rows: Sequence[dict[str, Any]], worst: int) -> dict[str, Any]:
    """`total` wrong rows, and as `rows` the surest of them, at most `worst`; where none has a confidence the first."""
    wrong = [row for row in rows if not is_right_row(row)]
    ordered = sorted(wrong, key=lambda row: (row.get("confidence") is None, -(row.get("confidence") or 0.0)))
    names = ("id", "text", "gold", "labels", "confidence")
    return {"total": len(wrong), "rows": [{name: row.get(name) for name in names} for row in ordered[:worst]]}


def flips(robustness: dict[str, Any]) -> list[dict[str, Any]]:
    """A few texts of each perturbation whose answer changed, those of the least strength first."""
    found = []
    for kind in robustness["perturbations"].values():
        examples: dict[str, dict[str, Any]] = {}
        for at in sorted(kind["strengths"], key=lambda at: at["strength"]):
            for example in at["examples"]:
                examples.setdefault(example["text"], {"title": kind["title"], "strength": at["strength"]} | example)
        found += list(examples.values())[:FLIPS]
    return found


# --- data -----------------------------------------------------------------------------------------------------------


def imbalance(source: Source) -> dict[str, Any] | None:
    """The labels that most and fewest training rows have; a label that none has counts 0."""
    counts = source.data_report.get("train_label_counts")
    if not counts:
        return None
    counts = {label: counts.get(label, 0) for label in source.task.labels}
    most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
    ratio = counts[most] / counts[least] if counts[least] else None
    return {"most": most, "most_rows": counts[most], "least": least, "least_rows": counts[least], "ratio": ratio}


def test_rows(source: Source) -> dict[str, int]:
    """What the predicted rows themselves show: texts that come again, or with other gold labels, or cut, and so on."""
    rows = source.run.rows
    gold_of: dict[str, set] = {}
    for row in rows:
        gold = None if row["gold"] is None else frozenset(row["gold"])
        gold_of.setdefault(" ".join(row["text"].split()), set()).add(gold)
    return {
        "repeated": len(rows) - len(gold_of),
        "conflicting": sum(len(gold - {None}) > 1 for gold in gold_of.values()),
        "cut": sum(bool(row.get("truncated")) for row in rows),
        "invalid": sum(not row["valid"] for row in rows),
        "without_gold": len(rows) - len(source.run.labelled),
    }


# --- runs side by side ----------------------------------------------------------------------------------------------

HIGHER_IS_BETTER = {
    "accuracy": True, "f1_macro": True, "f1_micro": True, "jaccard": True, "auc": True, "ece": False, "brier": False,
    "invalid_rate": False,
}  # fmt: skip


def compared(sources: Sequence[Source], runs: Sequence[dict[str, Any]], seed: int) -> dict[str, Any]:
    """The runs' scores beside each other.

    Returns:
        `columns` (those that any run has); `same_rows` (whether all answered the same rows, so that a best one can be
        named); `best` (column -> indices of the runs with the best value, none where rows differ or all are equal); and
        `differences`, for each run None or, where it has the rows of the first, the paired bootstrap of its accuracy
        and macro F1 against it and McNemar's test.
    """
    scored = [run["scores"] for run in runs]
    columns = [c for c in HIGHER_IS_BETTER if any(s is not None and is_number(s.get(c)) for s in scored)]
    same = [same_rows(sources[0], other) for other in sources]
    best: dict[str, list[int]] = {}
    for column in columns if all(same) and len(runs) > 1 else ():
        values = {i: s[column] for i, s in enumerate(scored) if s is not None and column in s}
        top = (max if HIGHER_IS_BETTER[column] else min)(values.values())
        winners = [i for i, value in values.items() if value == top]
        best[column] = winners if len(winners) < len(runs) else []
    differences = [None]
    for source, comparable in zip(sources[1:], same[1:], strict=True):
        differences.append(_difference(source, sources[0], seed) if comparable and sources[0].run.labelled else None)
    return {"columns": columns, "same_rows": all(same), "best": best, "differences": differences}


def _difference(source: Source, first: Source, seed: int) -> dict[str, Any]:
    both = [
        [p for p, row in zip(each.run.predictions, each.run.rows, strict=True) if row["gold"] is not None]
        for each in (source, first)
    ]
    gold = [tuple(row["gold"]) for row in source.run.labelled]
    found = {
        metric: paired_bootstrap(gold, *both, source.task, metric, seed=seed, level=LEVEL)
        for metric in ("accuracy", "f1_macro")
    }
    return found | {"mcnemar": mcnemar(gold, *both)}
