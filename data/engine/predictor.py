"""Texts -> predictions: the one object that every stage, script and user predicts with."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from math import isfinite
from operator import attrgetter
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from data.arguments import UserError, one_line
from data.calibration import decide, probabilities, scores_of, set_probability
from data.conformal import Promise, promised_sets
from data.contract import Contract, contract_for, decided_by
from data.encoding import Encoder
from data.engine.backends import Backend, TransformersBackend, prompts_a_batch
from data.engine.models import check_model_path, is_encoder, load_tokenizer, pick_device, worker_devices
from data.engine.precision import pick_precision
from data.engine.settings import BackendName, PredictionSettings, weighs_answers
from data.engine.vllm_backend import VllmBackend
from data.engine.workers import Workers
from data.predictions import Prediction
from data.row_values import RowError
from data.summaries.cases import case_of
from data.tasks import Task

ROWS_AT_ONCE = 512  # read, sorted by length, predicted and written together; more is lost by a kill
T = TypeVar("T")


class Predictor:
    """A model that reads labels in texts. Threads may share one; they are answered one after the other.

    Args:
        model_path: hub id or directory (see `data.engine.models.load_model`).
        task: only for an untuned model: what it is asked for.
        coverage: give sets of labels that hold this share of the gold labels (`data.conformal`); what the model's
            task.json promises.
        max_set_size: abstain where a set has more labels; None = never.
        settings: the other fields of `PredictionSettings`, which are inference.py's flags. With `workers`, a script
            that makes a predictor has to do so under `if __name__ == "__main__":`.

    Attributes:
        task: the labels, and how they are asked for.
        contract: what the model was trained on.
        encoder: texts -> the prompts' token ids.
        backend: what computes.
        promised: what the sets of labels are calibrated for; None = there are none.

    Raises:
        UserError: no model there, a setting that contradicts its task.json, or a backend that does not run it.
    """

    def __init__(
        self, model_path: str, task: str | None = None, coverage: float | None = None, max_set_size: int | None = None,
        **settings: Any,
    ):  # fmt: skip
        check_model_path(model_path)
        asked = PredictionSettings(model_path, task, **settings)
        contract = contract_for(
            model_path, task, asked.label_path, asked.cot, asked.max_length, asked.objective, asked.sampling,
            asked.allow_none,
        )  # fmt: skip
        asked = replace(asked, backend=pick_backend(model_path, asked.backend))
        if contract.objective != "classify" and asked.backend == "bert":
            raise UserError(f"--objective {contract.objective}: {model_path} is an encoder, which has to use classify")
        encoder = contract.encoder(load_tokenizer(model_path))
        contract = decided_by(contract, asked.decide)
        weighs = weighs_answers(asked, contract)
        if asked.compile and contract.sampling is not None:
            raise UserError(f"--compile: not for free text (task {contract.task.name}), which keeps a cache that grows")
        promised = check_promise(contract, coverage, max_set_size, model_path, asked)
        precision = pick_precision(asked.precision, model_path, pick_device(asked.device))
        asked = replace(asked, precision=precision.format)
        self._set(model_path, open_backend(asked, encoder, contract), encoder, contract, weighs)
        self.promised, self._max_set_size = promised, max_set_size
        precision.say(sys.stderr)

    @classmethod
    def from_model(
        cls, model, encoder: Encoder, contract: Contract, batch_size: int = 64, constrained: bool = False
    ) -> "Predictor":
        """A predictor around a model that is loaded already, such as one in training; of written labels it says what
        the answer is, whatever the contract decides by."""
        predictor = cls.__new__(cls)
        backend = TransformersBackend(model, encoder, contract, batch_size, constrained)
        predictor._set(contract.base_model or "the model", backend, encoder, contract, weighs=False)
        return predictor

    def _set(self, name: str, backend: Backend, encoder: Encoder, contract: Contract, weighs: bool) -> None:
        self._name, self._closed = name, False
        self.promised, self._max_set_size = None, None
        self.backend, self.encoder, self.contract, self.task = backend, encoder, contract, contract.task
        self._weighs = weighs
        self._lock = threading.Lock()

    def __enter__(self) -> "Predictor":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Give the model's memory back; nothing can be predicted after it."""
        with self._lock:  # what another thread predicts ends before
            self._closed = True
            self.backend.close()

    def predict(self, text: str) -> Prediction:
        """The labels of one text; see `predictions`."""
        return self.predict_batch([text])[0]

    def predict_batch(self, texts: Sequence[str], progress: bool = False) -> list[Prediction]:
        """The labels of each text, in the order of the texts; see `predictions`.

        Args:
            texts: the texts; batches are made of texts of like length.
            progress: show a progress bar.
        """
        return list(self.predictions(texts, len(texts) if progress else None))

    def predictions(self, texts: Iterable[str], total: int | None = None, done: int = 0) -> Iterator[Prediction]:
        """The labels of each text, one by one, in the order of the texts: there may be more than memory holds.

        Args:
            texts: the texts.
            total: their number, for a progress bar; None = no bar.
            done: how many of them were predicted earlier, and do not come again.

        Raises:
            ValueError: something else than a text with a word in it.
            RuntimeError: it is closed.
            UserError: the model gives scores that are not finite.
        """
        self._check_open()
        with tqdm(total=total, initial=done, desc="predict", unit="text", disable=total is None) as bar:
            # free text takes minutes a batch, and what is not written yet is lost by a kill
            at_once = self.backend.window if self.contract.sampling else max(ROWS_AT_ONCE, self.backend.window)
            for part in in_parts(_not_one_text(texts), at_once):
                yield from self._predict(part, bar, done)
                done += len(part)

    def _predict(self, texts: Sequence[str], bar: tqdm, first: int) -> list[Prediction]:
        if self.contract.objective != "generate":
            scores, cuts = self._by_length(self.backend.scores, sum, texts, bar, first)
            predictions = self.read(self._table(scores))
        elif self._weighs:
            weighed, cuts = self._by_length(self.backend.weighed, _number_in, texts, bar, first)
            predictions = self._decided(weighed)
        else:
            predictions, cuts = self._by_length(self.backend.answers, attrgetter("confidence"), texts, bar, first)
        if self.promised is not None:
            predictions = self._with_sets(predictions)
        return [replace(p, truncated=True) if cut else p for p, cut in zip(predictions, cuts, strict=True)]

    def _with_sets(self, predictions: Sequence[Prediction]) -> list[Prediction]:
        """Predictions with probabilities, and the sets of labels that are promised."""
        of_labels = [[p.probabilities[label] for label in self.task.labels] for p in predictions]
        most = self._max_set_size or len(self.task.labels)
        sets = promised_sets(of_labels, self.promised.cutoff, self.task)
        return [replace(p, label_set=s, abstained=len(s) > most) for p, s in zip(predictions, sets, strict=True)]

    def generate_summary(self, case_description: Sequence[str], consultation_process: Sequence[str]) -> str:
        """The experience and reflection that a model of summaries writes on one case; `predict` says more of it.

        Args:
            case_description: what is known of the person, part by part.
            consultation_process: what was said and done, turn by turn.

        Raises:
            ValueError: one of the two is no list of texts, or is empty, or holds an empty text.
            RuntimeError, UserError: see `predictions`.
        """
        try:
            return self.predict(case_of(case_description, consultation_process)).completion
        except RowError as error:
            raise ValueError(str(error)) from error

    def label_scores(self, texts: Sequence[str], progress: bool = False) -> np.ndarray:
        """Scores (texts, labels): a head's logits, or the labels' log-probabilities as answers.

        Raises:
            ValueError, RuntimeError, UserError: see `predictions`.
        """
        with tqdm(total=len(texts), desc="predict", unit="text", disable=not progress) as bar:
            return self._table(self._by_length(self.backend.scores, sum, _not_one_text(texts), bar)[0])

    def read(self, scores: np.ndarray) -> list[Prediction]:
        """Scores (texts, labels) -> predictions, by the contract's temperature and thresholds."""
        activation = self.contract.activation
        of_labels = probabilities(scores, activation, self.contract.temperature)
        return [
            Prediction(
                labels,
                valid=True,
                confidence=set_probability(row, labels, self.task, activation),
                probabilities=dict(zip(self.task.labels, row.tolist(), strict=True)),
            )
            for row, labels in zip(of_labels, decide(of_labels, self.task, self.contract.thresholds), strict=True)
        ]

    def _decided(self, weighed: Sequence[Prediction]) -> list[Prediction]:
        """What `Backend.weighed` gives, with the contract's temperature, as it decides.

        By thresholds, `completion` stays what the model writes, and `confidence` is of the labels that were decided: in
        a single-label task the label's probability, else that each label by itself is as decided.
        """
        contract, task = self.contract, self.task
        given = self._table([list(one.probabilities.values()) for one in weighed])
        if contract.temperature != 1:
            given = probabilities(scores_of(given, contract.activation), contract.activation, contract.temperature)
        named = [dict(zip(task.labels, row.tolist(), strict=True)) for row in given]
        predictions = [replace(one, probabilities=each) for one, each in zip(weighed, named, strict=True)]
        if contract.decide == "answer":
            return predictions
        return [
            replace(one, labels=labels, confidence=set_probability(row, labels, task, contract.activation))
            for one, labels, row in zip(predictions, decide(given, task, contract.thresholds), given, strict=True)
        ]

    def _table(self, scores: Sequence[Sequence[float]]) -> np.ndarray:
        return np.array(scores).reshape(len(scores), len(self.task.labels))

    def _by_length(
        self, compute: Callable[[list], list[T]], number_in: Callable[[T], float], texts: Sequence[str], bar: tqdm,
        first: int = 0,
    ) -> tuple[list[T], list[bool]]:  # fmt: skip
        """`compute` (prompts -> one value each) over batches of prompts of like length, in the order of the texts.

        Args:
            number_in: a number in such a value that is not finite where one of the model's is not.
            first: how many texts there were before these.

        Returns:
            The values, and whether each text lost its end.
        """
        check_texts(texts, self.task, first)
        with self._lock:
            self._check_open()
            prompts, cuts = self.encoder.prompts_and_cuts(texts)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)  # the largest batch first
        values: list[Any] = [None] * len(prompts)
        for rows in in_parts(order, self.backend.window):
            with self._lock:
                self._check_open()
                computed = compute([prompts[i] for i in rows])
            for row, value in zip(rows, computed, strict=True):
                if not isfinite(number_in(value)):
                    text = one_line(self.task.spelt(texts[row]), 60)
                    raise UserError(
                        f"{self._name}: its score of text {first + row + 1} ({text!r}) is not a finite number: its "
                        "weights are damaged, or too large for --precision"
                    )
                values[row] = value
            bar.update(len(rows))
        return values, cuts

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this Predictor is closed; open a new one")


def _number_in(weighed: Prediction) -> float:
    return weighed.confidence + sum(weighed.probabilities.values())


def check_texts(texts: Sequence[Any], task: Task, first: int = 0) -> None:
    """Raise a `ValueError` that names the first text, behind `first` earlier ones, that cannot be predicted."""
    for number, text in enumerate(texts, start=first + 1):
        if problem := task.problem(text):
            raise ValueError(f"text {number} {problem}")


def check_promise(
    contract: Contract, coverage: float | None, max_set_size: int | None, model_path: str,
    settings: PredictionSettings | None = None,
) -> Promise | None:  # fmt: skip
    """The promise under which sets of labels are given; None where `--coverage` asks for none.

    Raises:
        UserError: the model promises something else or nothing, or there are no probabilities under the settings
            (None = there are).
    """
    if coverage is None:
        if max_set_size is not None:
            raise UserError(f"--max_set_size {max_set_size}: does nothing without --coverage")
        return None
    if max_set_size is not None and max_set_size < 1:
        raise UserError(f"--max_set_size {max_set_size}: must be at least 1")
    if settings is not None and settings.load_in_4bit:
        raise UserError("--coverage: what is promised is of the weights as they are, not of --load_in_4bit")
    if settings is not None and not settings.constrained and contract.objective == "generate":
        raise UserError("--coverage: needs probabilities of valid answers, and --constrained off writes others, too")
    contract.check_promises()
    if settings is not None and contract.objective == "generate" and not weighs_answers(settings, contract):
        raise UserError("--coverage: needs probabilities of labels: --probabilities on (slow in vllm)")
    return contract.promise(coverage, model_path)


def _not_one_text(texts: Iterable[str]) -> Iterable[str]:
    """`texts`, which would be read letter by letter if they were one text."""
    if isinstance(texts, str):
        raise ValueError("one text, expected several; predict() takes one")
    return texts


def in_parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items; the last may be shorter.

    >>> list(in_parts("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part


def pick_backend(model_path: str, backend: BackendName | None = None) -> BackendName:
    """The backend for this model: "bert" for an encoder, "hf" or, if asked for, "vllm" for a language model.

    Raises:
        UserError: one was asked for that does not run it.
    """
    encoder = is_encoder(model_path)
    if backend is None:
        return "bert" if encoder else "hf"
    if encoder != (backend == "bert"):
        kind, needed = ("an encoder", "bert runs") if encoder else ("no encoder", "hf and vllm run")
        raise UserError(f"--backend {backend}: {model_path} is {kind}, which {needed}")
    return backend


def open_backend(settings: PredictionSettings, encoder: Encoder, contract: Contract) -> Backend:
    """Load the model: in vLLM, in this process, or in several.

    Raises:
        UserError: a model that does not load, or a backend that does not run it.
    """
    if settings.backend == "vllm":
        return VllmBackend(settings, encoder, contract)
    load = partial(TransformersBackend.load, settings=settings, encoder=encoder, contract=contract)
    if settings.workers == 1:
        return load(settings.device)
    devices = worker_devices(settings.workers, settings.device)
    return Workers(load, devices, prompts_a_batch(contract, settings.batch_size), settings.backend)
