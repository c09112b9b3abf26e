"""Let several runs answer together: their predictions of the same test file become one, by mean probability or by vote.

    # three seeds of a classifier: predictions.jsonl, test_results.json and test_summary.txt in outputs/ensemble
    python -m scripts.ensemble outputs/a outputs/b outputs/c --output_dir outputs/ensemble

    # majority vote, the first run counting twice; runs of an untuned model, which have no task.json
    python -m scripts.ensemble outputs/a outputs/b outputs/c --output_dir outputs/ensemble --how vote \\
        --weights 2 1 1 --task sst2

A run is a folder with a predictions.jsonl; its task.json is there or, for <run>/test, one folder above.

    mean  the mean of the runs' probabilities decides; in a multi-label task against the mean of the runs' thresholds
          where all of them have some, else against 0.5
    vote  single-label: the label that most runs gave, of several the one that the earliest run gave; multi-label: the
          labels that at least half of the runs gave, or else those given most often
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy

from data.arguments import UserError, check_output_dir, flag, run
from data.calibration import calibration_scores, decide, set_probability
from data.files import PREDICTIONS_FILE, TASK_FILE, exclusive
from data.labels import LabelTask
from data.loading import Example
from data.metrics import label_metrics
from data.predicted_runs import PredictedRun, check_same_rows, read_run
from data.prediction_files import new_predictions, remove_results, write_results
from data.prediction_rows import check_row
from data.predictions import Prediction
from data.tasks import Task, check_has_labels, check_same_labels, resolve_task

TABLE = {
    "accuracy": "accuracy", "f1_macro": "macro F1", "f1_micro": "micro F1", "jaccard": "Jaccard", "auc": "AUC",
    "ece": "ECE",
}  # fmt: skip
_ROUNDING = 1e-9  # sums of weights that differ by less are equal


@dataclass
class Args:
    runs: list[str] = flag([], f"folders with a {PREDICTIONS_FILE} of the same test file, at least two")
    output_dir: str | None = flag(None, "where the ensemble's predictions and scores go")
    how: Literal["auto", "mean", "vote"] = flag(
        "auto", "mean of probabilities, or vote of labels; auto = mean where all runs have probabilities"
    )
    weights: list[float] = flag([], "how much each run counts, one number per run; none = all the same")
    task: str | None = flag(None, "the runs' task, where none of them has a task.json")
    label_path: str | None = flag(None, "labels.txt of your own task, where none of the runs has a task.json")

    def __post_init__(self):
        if len(self.runs) < 2:
            raise UserError(f"--runs: {len(self.runs)} given; an ensemble needs at least two folders with predictions")
        if self.output_dir is None:
            raise UserError("--output_dir is needed: where the ensemble's predictions and scores go")
        check_output_dir(self.output_dir)
        places = [Path(folder).resolve() for folder in self.runs]
        for i, folder in enumerate(self.runs):
            if places[i] in places[:i]:
                raise UserError(f"--runs: {folder} is given twice; --weights lets a run count more")
            if places[i] == Path(self.output_dir).resolve():
                raise UserError(f"--output_dir {self.output_dir}: is one of the runs, whose predictions would be lost")
        if self.weights and len(self.weights) != len(self.runs):
            raise UserError(f"--weights: {len(self.weights)} numbers for {len(self.runs)} runs; give one per run")
        for weight in self.weights:
            if not 0 <= weight < math.inf:
                raise UserError(f"--weights {weight}: must be at least 0 and finite")
        if self.weights and not sum(self.weights):
            raise UserError("--weights: all are 0, so no run counts")


# --- reading --------------------------------------------------------------------------------------------------------


def common_task(args: Args, members: Sequence[PredictedRun]) -> Task:
    """The task of all members: their task.json's, else the one that the flags name.

    Raises:
        UserError: two of these contradict each other, or there is none of them.
    """
    asked = resolve_task(args.task, args.label_path)
    if asked is not None:
        check_has_labels(asked, args.task, None, "an ensemble")
    known = [(str(member.contract_path), member.contract.task) for member in members if member.contract is not None]
    if not known:
        if asked is None:
            raise UserError(f"--task or --label_path is needed: none of the runs has a {TASK_FILE}")
        return asked
    first, task = known[0]
    for path, other in known[1:]:
        check_same_labels(path, other.labels, first, task.labels)
        if other.kind != task.kind:
            raise UserError(f"{path}: is a {other.kind} task, {first} is {task.kind}")
    if asked is not None:
        source = f"--label_path {args.label_path}" if args.label_path else f"--task {args.task}"
        check_same_labels(source, asked.labels, first, task.labels)
        if args.task not in (None, task.name, task.kind):
            raise UserError(f"--task {args.task} contradicts {first}: trained as {task.name}")
    return task


# --- combining ------------------------------------------------------------------------------------------------------


def voted(answers: Sequence[Sequence[str]], weights: Sequence[float], task: Task) -> tuple[str, ...]:
    """What the runs' answers to one text come to by vote.

    Args:
        answers: labels that each run gave; a run that gave none does not vote, unless the task allows none.
        weights: how much each run counts; together 1.
        task: the labels.

    Returns:
        Labels in the task's order; none where no run gave any, or, where the task allows none, no label has half of
        the votes.
    """
    single = task.kind == "single_label"
    ballots = [answer[:1] if single else answer for answer in answers]
    votes = {
        label: sum(weight for ballot, weight in zip(ballots, weights, strict=True) if label in ballot)
        for label in task.labels
    }
    most = max(votes.values())
    favourites = [label for label in task.labels if votes[label] > 0 and votes[label] >= most - _ROUNDING]
    if single:
        return next((tuple(ballot) for ballot in ballots if ballot and ballot[0] in favourites), ())
    chosen = tuple(label for label in task.labels if votes[label] >= 0.5 - _ROUNDING)
    return chosen or (() if task.allow_none else tuple(favourites))


def mean_thresholds(members: Sequence[PredictedRun], weights: Sequence[float]) -> dict[str, float] | None:
    """The mean of the members' thresholds, label by label, or None unless all of them have some."""
    if any(member.contract is None or member.contract.thresholds is None for member in members):
        return None
    tables = [member.contract.thresholds for member in members]
    return {
        label: sum(weight * table[label] for table, weight in zip(tables, weights, strict=True)) for label in tables[0]
    }


def combine(
    members: Sequence[PredictedRun], weights: Sequence[float], task: Task, how: str
) -> tuple[list[Prediction], numpy.ndarray | None]:
    """The ensemble's predictions, and its probabilities (n, K) or None.

    Raises:
        UserError: `how` is "mean", and a member lacks probabilities.
    """
    for member in members:
        if how == "mean" and not member.has_probabilities:
            row = next(row for row in member.rows if row["probabilities"] is None)
            raise UserError(f"--how mean: {member.path}: id {row['id']!r} has no probabilities; use vote")
    if how == "vote" or not all(member.has_probabilities for member in members):
        answers = zip(*([row["labels"] for row in member.rows] for member in members), strict=True)
        chosen = (voted(answer, weights, task) for answer in answers)
        return [Prediction(labels, valid=bool(labels) or task.allow_none) for labels in chosen], None
    means = sum(weight * member.probabilities(task) for member, weight in zip(members, weights, strict=True))
    probabilities = numpy.clip(means, 0, 1)  # the last digit of a sum
    decided = decide(probabilities, task, mean_thresholds(members, weights))
    # labels compete where they share what there is: not under heads that may find several, nor in written answers
    activation = "softmax" if numpy.allclose(probabilities.sum(axis=1), 1, atol=1e-4) else "sigmoid"
    return [
        Prediction(
            labels,
            valid=bool(labels) or task.allow_none,
            confidence=set_probability(row, labels, task, activation),
            probabilities=dict(zip(task.labels, row.tolist(), strict=True)),
        )
        for labels, row in zip(decided, probabilities, strict=True)
    ], probabilities


# --- scoring --------------------------------------------------------------------------------------------------------


def scores_of(predictions: Sequence[Prediction], probabilities, gold: Sequence[Sequence[str]], task: Task) -> dict:
    """Label metrics, and where there are probabilities (n, K) also how good these are."""
    scores = label_metrics(gold, predictions, task)
    return scores if probabilities is None else scores | calibration_scores(probabilities, gold, task)


def side_by_side(scores: dict[str, dict[str, Any]]) -> str:
    """A line each for the members and the ensemble."""
    columns = {c: title for c, title in TABLE.items() if any(row.get(c) is not None for row in scores.values())}
    width = max(len(name) for name in scores) + 2
    lines = [" " * width + "".join(f"{title:>10}" for title in columns.values())]
    for name, row in scores.items():
        cells = ("-" if row.get(column) is None else f"{row[column]:.4f}" for column in columns)
        lines.append(f"{name:<{width}}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def main(args: Args) -> None:
    members = [read_run(folder) for folder in args.runs]
    task = common_task(args, members)
    check_same_rows(members)
    for member in members:
        for row in member.rows:
            check_row(row, str(member.path), task)
    weights = args.weights or [1.0] * len(members)
    predictions, probabilities = combine(members, [weight / sum(weights) for weight in weights], task, args.how)
    of_texts = zip(*(member.rows for member in members), strict=True)
    rows = (_prediction_row(rows, prediction, task) for rows, prediction in zip(of_texts, predictions, strict=True))
    gold = [row["gold"] for row in members[0].rows]
    with exclusive(args.output_dir, PREDICTIONS_FILE), new_predictions(args.output_dir, rows) as written:
        for _ in written:
            pass
        if None in gold:
            remove_results(args.output_dir)
        else:
            how = "vote" if probabilities is None else "mean"
            scores = {m.folder: scores_of(m.predictions, m.probabilities(task), gold, task) for m in members}
            results = scores_of(predictions, probabilities, gold, task)
            print(side_by_side(scores | {f"ensemble ({how})": results}))
            facts = {"backend": "ensemble", "how": how, "runs": args.runs, "weights": weights, "seed": None}
            title = f"task {task.name}, {len(args.runs)} runs together ({how})"
            write_results(args.output_dir, {**results, "examples_per_second": None, **facts}, title, task)
    print(f"written to {args.output_dir}")


def _prediction_row(rows: Sequence[dict[str, Any]], prediction: Prediction, task: LabelTask) -> dict[str, Any]:
    """The ensemble's row for a text, from those of its members."""
    gold = rows[0]["gold"]
    example = Example(rows[0]["id"], rows[0]["text"], None if gold is None else tuple(gold))
    cut = any(row.get("truncated", False) for row in rows)
    return task.result_row(example, replace(prediction, truncated=cut))


if __name__ == "__main__":
    run(main, Args, {}, positional="runs")
