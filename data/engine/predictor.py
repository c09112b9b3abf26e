"""Texts -> predictions: the one object that every stage, script and user predicts with."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from data.arguments import UserError
from data.calibration import decide, probabilities, set_probability
from data.contract import Contract, contract_for
from data.encoding import Encoder
from data.engine.backends import Backend, BackendName, PredictionSettings, TransformersBackend
from data.engine.models import check_model_path, is_encoder, load_tokenizer, worker_devices
from data.engine.vllm_backend import VllmBackend
from data.engine.workers import Workers
from data.labels import Prediction

ROWS_AT_ONCE = 512  # read, sorted by length, predicted and written together; more is lost by a kill
DEMO_TEXTS = (
    "You made my day, thank you so much!",
    "I can't believe they cancelled it again. This is infuriating.",
    "Does anyone know when the shop opens tomorrow?",
    "I miss my grandmother more every winter.",
    "这家酒店的服务太好了，下次还来。",
    "房间又小又吵，一晚上没睡好。",
)
T = TypeVar("T")


class Predictor:
    """A model that reads labels in texts. Threads may share one; they are answered one after the other.

    Args:
        model_path: hub id or directory (see `data.engine.models.load_model`).
        task: only for an untuned model: what it is asked for.
        settings: the other fields of `PredictionSettings`, which are inference.py's flags. With `workers`, a script
            that makes a predictor has to do so under `if __name__ == "__main__":`.

    Attributes:
        task: the labels, and how they are asked for.
        contract: what the model was trained on.
        encoder: texts -> the prompts' token ids.
        backend: what computes.

    Raises:
        UserError: no model there, a setting that contradicts its task.json, or a backend that does not run it.
    """

    def __init__(self, model_path: str, task: str | None = None, **settings: Any):
        check_model_path(model_path)
        asked = PredictionSettings(model_path, task, **settings)
        contract = contract_for(model_path, task, asked.label_path, asked.cot, asked.max_length, asked.objective)
        asked = replace(asked, backend=pick_backend(model_path, asked.backend))
        if contract.objective != "classify" and asked.backend == "bert":
            raise UserError(f"--objective {contract.objective}: {model_path} is an encoder, which has to use classify")
        encoder = contract.encoder(load_tokenizer(model_path))
        self._set(open_backend(asked, encoder, contract), encoder, contract, asked.probabilities)

    @classmethod
    def from_model(
        cls, model, encoder: Encoder, contract: Contract, batch_size: int = 64, constrained: bool = False
    ) -> "Predictor":
        """A predictor around a model that is loaded already, such as one in training."""
        predictor = cls.__new__(cls)
        backend = TransformersBackend(model, encoder, contract, batch_size, constrained)
        predictor._set(backend, encoder, contract, probabilities=False)
        return predictor

    def _set(self, backend: Backend, encoder: Encoder, contract: Contract, probabilities: bool) -> None:
        self.backend, self.encoder, self.contract, self.task = backend, encoder, contract, contract.task
        self._probabilities = probabilities and not contract.cot  # behind no reasoning, a label is no answer
        self._lock = threading.Lock()

    def __enter__(self) -> "Predictor":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Give the model's memory back; nothing can be predicted after it."""
        self.backend.close()

    def predict(self, text: str) -> Prediction:
        """The labels of one text."""
        return self.predict_batch([text])[0]

    def predict_batch(self, texts: Sequence[str], progress: bool = False) -> list[Prediction]:
        """The labels of each text, in the order of the texts.

        Args:
            texts: the texts; batches are made of texts of like length.
            progress: show a progress bar.

        Raises:
            ValueError: an empty text.
        """
        return list(self.predictions(texts, len(texts) if progress else None))

    def predictions(self, texts: Iterable[str], total: int | None = None, done: int = 0) -> Iterator[Prediction]:
        """The labels of each text, one by one, in the order of the texts: there may be more than memory holds.

        Args:
            texts: the texts.
            total: their number, for a progress bar; None = no bar.
            done: how many of them were predicted earlier, and do not come again.

        Raises:
            ValueError: an empty text.
        """
        with tqdm(total=total, initial=done, desc="predict", unit="text", disable=total is None) as bar:
            for part in in_parts(texts, max(ROWS_AT_ONCE, self.backend.window)):
                yield from self._predict(part, bar)

    def _predict(self, texts: Sequence[str], bar: tqdm) -> list[Prediction]:
        if self.contract.objective != "generate":
            return self.read(self._scored(texts, bar))
        predictions = self._by_length(self.backend.answers, texts, bar)
        if self._probabilities:
            of_labels = probabilities(self._scored(texts, None), "softmax", self.contract.temperature)
            predictions = [
                replace(prediction, probabilities=dict(zip(self.task.labels, row.tolist(), strict=True)))
                for prediction, row in zip(predictions, of_labels, strict=True)
            ]
        return predictions

    def label_scores(self, texts: Sequence[str], progress: bool = False) -> np.ndarray:
        """Scores (texts, labels): a head's logits, or the labels' log-probabilities as answers.

        Raises:
            ValueError: an empty text.
        """
        with tqdm(total=len(texts), desc="predict", unit="text", disable=not progress) as bar:
            return self._scored(texts, bar)

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

    def _scored(self, texts: Sequence[str], bar: tqdm | None) -> np.ndarray:
        return np.array(self._by_length(self.backend.scores, texts, bar)).reshape(len(texts), len(self.task.labels))

    def _by_length(self, compute: Callable[[list], list[T]], texts: Sequence[str], bar: tqdm | None) -> list[T]:
        """`compute` (prompts -> one value each) over batches of prompts of like length, in the order of the texts."""
        if any(not text.strip() for text in texts):
            raise ValueError("a text is empty")
        with self._lock:
            prompts = self.encoder.prompt_ids(texts) if texts else []
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)  # the largest batch first
        values: list[Any] = [None] * len(prompts)
        for rows in in_parts(order, self.backend.window):
            with self._lock:
                computed = compute([prompts[i] for i in rows])
            for row, value in zip(rows, computed, strict=True):
                values[row] = value
            if bar is not None:
                bar.update(len(rows))
        return values


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
    return Workers(load, devices, settings.batch_size, settings.backend)
