"""Predict a file, write what was predicted, and score it; calibrate and score a finished run."""

import gc
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from itertools import islice, tee
from pathlib import Path
from typing import Any

from data.arguments import UserError
from data.calibration import better_decision, calibrate, probabilities, scores_of
from data.conformal import fit_promise
from data.contract import Contract
from data.engine.predictor import Predictor
from data.files import CALIBRATION_FILE, PREDICTIONS_FILE, SUMMARY_FILE, exclusive, write_json
from data.loading import Example, ExampleFile, TaskRow
from data.prediction_files import PredictionFile, Settings, remove_results, write_results
from data.prediction_rows import Cuts, rows_of


def evaluate(
    predictor: Predictor, examples: Sequence[TaskRow] | ExampleFile, output_dir: str | Path | None = None,
    seed: int = 42, settings: Settings | None = None, name: str = PREDICTIONS_FILE,
) -> dict[str, Any]:  # fmt: skip
    """Predict, score where there is gold, and write what a test leaves behind.

    Args:
        predictor: the model.
        examples: texts with their gold, or all without.
        output_dir: where `predictions.jsonl` and, where there is something to measure, `test_results.json` and
            `test_summary.txt` go; None = nowhere.
        seed: noted in the results.
        settings: what decides the predictions; a file of predictions begun with the same is continued. None = begin
            anew.
        name: name of the file of predictions.

    Returns:
        The content of `test_results.json`; of labels without gold `n` and `examples_per_second` only.
    """
    begin, done, file = time.perf_counter(), 0, None
    if output_dir is None:
        rows = iter(list(predicted_rows(predictor, examples)))
    else:
        file = PredictionFile(output_dir, examples, predictor.task, settings, name)
        done = file.done
        with closing(file):
            file.append(predicted_rows(predictor, examples, done))
        if file.rows != len(examples):
            raise UserError(
                f"{file.unfinished}: has {file.rows:,} rows, expected {len(examples):,}: the file of the texts was "
                "changed while it was predicted; begin anew"
            )
        rows = rows_of(file.unfinished, predictor.task)
    rate = (len(examples) - done) / (time.perf_counter() - begin)
    task = predictor.task
    cuts = Cuts(predictor.contract.max_length, task.what_is_lost)
    measured = task.measure(cuts.counted(rows), predictor.contract)
    scored = len(measured) > 1 and name == PREDICTIONS_FILE  # parts are scored when all are there
    results = measured | {"examples_per_second": round(rate, 2), "backend": predictor.backend.name, "seed": seed}
    if file is not None:
        if scored:
            write_results(output_dir, results, f"task {task.name}", task)
        elif name == PREDICTIONS_FILE:
            remove_results(output_dir)
        file.finish()
        cuts.say()
    return results


def predicted_rows(
    predictor: Predictor, examples: Sequence[TaskRow] | ExampleFile, done: int = 0
) -> Iterator[dict[str, Any]]:
    """Rows of predictions.jsonl, in the order of the examples, behind the first `done` of them."""
    left, again = tee(islice(examples, done, None))  # the texts run ahead of the rows by a part of the file
    predictions = predictor.predictions((example.asked for example in again), len(examples), done)
    for example, prediction in zip(left, predictions, strict=True):
        yield predictor.task.result_row(example, prediction)


def calibrate_run(
    directory: str, examples: Sequence[Example], batch_size: int, precision: str, coverage: float | None = None,
    device: str | None = None,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Fit temperature and thresholds of a finished run on labelled texts, and write them into its `task.json`.

    Where labels are written (without reasoning), it also chooses there what decides, the answer or the thresholds, by
    the task's default metric on these texts, of which thresholds see each only when they were fitted on others
    (`data.calibration.better_decision`). A line on the console says which.

    Args:
        directory: the run.
        examples: the texts with their gold labels.
        batch_size, precision, device: see `data.engine.settings.PredictionSettings`.
        coverage: share of the gold labels that sets of labels are calibrated to hold; None = nothing is promised.

    Returns:
        The metrics `before` and `after`, on these same texts; also in the run's `calibration.json`.

    Raises:
        UserError: a run whose answers are not labels alone.
    """
    predictor = Predictor(directory, batch_size=batch_size, precision=precision, device=device)
    contract = replace(predictor.contract, temperature=1.0, thresholds=None, decide="answer")
    task, gold = contract.task, [example.labels for example in examples]
    texts, chosen = [example.text for example in examples], {}
    if contract.objective == "generate":
        if not contract.writes_labels:
            raise UserError(f"{directory}: its answers are not labels alone, so there is nothing to calibrate")
        predictor.contract = contract  # of a run that was calibrated before, too
        weighed = predictor.predict_batch(texts, progress=True)
        scores = scores_of([list(one.probabilities.values()) for one in weighed], contract.activation)
        decide, metric = better_decision([one.labels for one in weighed], scores, gold, task, contract.activation)
        contract, chosen = replace(contract, decide=decide), {"decide": decide, task.default_metric: metric}
        compared = ", ".join(f"{way} {value:.4f}" for way, value in metric.items())
        print(f"labels are decided by {decide}: {task.default_metric} of {compared} (cross-fitted)")
    else:
        scores = predictor.label_scores(texts, progress=True)
    fitted, metrics = calibrate(scores, gold, task, contract.activation)
    promise = None
    if coverage is not None:
        of_labels = probabilities(scores, contract.activation, fitted.temperature)
        promise = fit_promise(of_labels, gold, task, coverage)
        chosen["coverage"] = asdict(promise)
    replace(contract, temperature=fitted.temperature, thresholds=fitted.thresholds, coverage=promise).save(directory)
    write_json(Path(directory) / CALIBRATION_FILE, {"n": len(examples), **asdict(fitted), **chosen, **metrics})
    return metrics


def is_promised(directory: str, coverage: float | None) -> bool:
    """Whether a finished run promises what is wanted; None = whatever it promises will do."""
    promise = Contract.load(directory).coverage
    return coverage is None or (promise is not None and promise.level == coverage)


def calibrate_once(
    directory: str, examples: Sequence[Example], batch_size: int, precision: str, coverage: float | None = None
) -> None:
    """Calibrate a finished run on its validation rows as `calibrate_run` does, and say on the console what came of it;
    unless it is done already, there are no rows, or the answers are more than labels."""
    contract = Contract.load(directory)
    done = (Path(directory) / CALIBRATION_FILE).is_file() and is_promised(directory, coverage)
    if done or not examples or (contract.objective == "generate" and not contract.writes_labels):
        return
    gc.collect()  # the trainer and its model hold each other; two models may not fit
    metrics = calibrate_run(directory, examples, batch_size, precision, coverage)
    shown = ("ece", "brier", "f1_macro")
    changes = (f"{n} {metrics['before'][n]:.4f} -> {metrics['after'][n]:.4f}" for n in shown)
    print(f"calibrated on {len(examples)} validation rows: {', '.join(changes)}")
    say_promise(directory)


def say_promise(directory: str) -> None:
    """A line on the console that says what a run promises, if it does."""
    promise = Contract.load(directory).coverage
    if promise is not None:
        print(
            f"sets of labels hold {promise.level:.4g} of the right ones: those from a probability of "
            f"{promise.cutoff:.4f} on, by {promise.rows:,} rows"
        )


def score_run(directory: str, examples: Sequence[Example], batch_size: int, precision: str, seed: int) -> None:
    """Score a finished run on labelled texts, as it was written: what inference.py would load is what is measured."""
    with exclusive(directory, PREDICTIONS_FILE):
        evaluate(Predictor(directory, batch_size=batch_size, precision=precision), examples, directory, seed)
    print((Path(directory) / SUMMARY_FILE).read_text(encoding="utf-8"))
