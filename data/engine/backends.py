"""What computes predictions: prompts as token ids go in, answers or scores of the labels come out.

`TransformersBackend` runs every model (for encoders it goes by the name of "bert"), `VllmBackend` those that write
their answers. Both are given the same ids and write under the same rules.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from math import exp
from typing import TYPE_CHECKING, Protocol

from data.answers import AnswerTrie
from data.arguments import UserError
from data.contract import Contract
from data.encoding import RATIONALE_TOKENS, Encoder, PromptEncoder
from data.engine.models import compile_layers, load_model
from data.engine.settings import BackendName, PredictionSettings
from data.labels import THINK, rationale_in
from data.marginals import Marginals, bounds
from data.predictions import Prediction

if TYPE_CHECKING:
    from data.engine.answer_tree import AnswerTree, Expansion
    from data.engine.constrained import ConstrainedWriter

MAX_BATCH_TOKENS = 32_768  # of padded prompts that free text is written behind: keys and values are kept of all
TEXT_BATCHES_AT_ONCE = 4  # of free text: more sorts better by length, and is lost by a kill
MAX_ROW_TOKENS = 4096  # of a packed row: more only makes masks larger
Prompts = Sequence[Sequence[int]]


class Backend(Protocol):
    """What `Predictor` asks for.

    Attributes:
        name: as `--backend` names it.
        window: prompts it is best given at once.
    """

    name: str
    window: int

    def answers(self, prompts: Prompts) -> list[Prediction]:
        """What the model writes behind each of B prompts: labels greedily, free text as the contract has it drawn.

        Args:
            prompts: B lists of token ids, each up to where the answer (with `cot`, the reasoning) begins.

        Returns:
            B predictions, with `completion` and `confidence`.
        """

    def scores(self, prompts: Prompts) -> list[list[float]]:
        """Scores (B, K) of the task's K labels for each of B prompts, in the order of the labels.

        Returns:
            A head's logits, or the labels' summed log-probabilities as answers, in nats.

        Raises:
            UserError: a backend that gives none.
        """

    def weighed(self, prompts: Prompts) -> list[Prediction]:
        """Those of `answers` (valid ones, without reasoning), with `pruned_mass`, and `probabilities`: a label has that
        of all answers that hold it together, before any temperature."""

    def close(self) -> None:
        """Give back what it holds; nothing can be computed after it."""


# --- what all backends do alike -------------------------------------------------------------------------------------


def read_answer(
    encoder: Encoder, contract: Contract, token_ids: Sequence[int], log_prob: float, rationale: str | None = None
) -> Prediction:
    """An answer's token ids -> prediction.

    Args:
        encoder, contract: what it was asked with.
        token_ids: the answer; what stands behind its end token is not read.
        log_prob: of the answer, in nats.
        rationale: the reasoning that stands before it.
    """
    completion = encoder.decode(token_ids)
    if rationale is not None:
        completion = contract.task.reasoning(rationale) + completion
    return replace(contract.task.parse(completion, contract.cot), confidence=exp(log_prob))


def weighed_answer(marginals: Marginals, encoder: Encoder, contract: Contract, tree: "Expansion") -> Prediction:
    """All answers to a text -> prediction; see `Backend.weighed`.

    Args:
        marginals: of the encoder's task.
        encoder, contract: what it was asked with.
        tree: its answers.
    """
    written = read_answer(encoder, contract, tree.greedy.token_ids, tree.greedy.log_prob)
    weights = ([(branch.token_ids, branch.probability) for branch in some] for some in (tree.whole, tree.closed))
    return replace(written, probabilities=marginals.of(*weights), pruned_mass=min(tree.pruned_mass, 1.0))


def read_text(
    encoder: PromptEncoder, contract: Contract, token_ids: Sequence[int], log_prob: float, finished: bool
) -> Prediction:
    """Free text's token ids -> prediction, whose `confidence` is the geometric mean of its tokens' probabilities.

    Args:
        encoder, contract: what it was asked with.
        token_ids: the text without what ended it.
        log_prob: of all of its tokens, and of its end where it came to it, in nats.
        finished: whether it came to its end, instead of being cut off.
    """
    prediction = contract.task.parse(encoder.decode(token_ids))
    confidence = exp(log_prob / max(len(token_ids) + finished, 1))
    return replace(prediction, valid=prediction.valid and finished, confidence=confidence)


def with_reasoning(
    encoder: Encoder, prompts: Prompts, think: Callable[[Prompts], list[str]]
) -> tuple[list[list[int]], list[str]]:
    """Let a model reason freely before its answer, which then may be constrained.

    Args:
        encoder: of a task with reasoning.
        prompts: B lists of token ids.
        think: prompts in which the reasoning is open -> what the model writes there, up to `</think>` or where it was
            cut off at `RATIONALE_TOKENS`.

    Returns:
        The prompts with the reasoning behind them, up to where the answer begins, and the reasoning without tags.
    """
    opened = [[*prompt, *encoder.token_ids(THINK)] for prompt in prompts]
    rationales = [rationale_in(thought) for thought in think(opened)]
    return [encoder.reasoned_ids(p, r) for p, r in zip(prompts, rationales, strict=True)], rationales


def prompts_a_batch(contract: Contract, batch_size: int) -> int:
    """Prompts that are surely computed at once: where free text is written, long ones take more memory than others."""
    if contract.sampling is None:
        return batch_size
    return max(1, min(batch_size, MAX_BATCH_TOKENS // contract.max_length))


def batches_of(prompts: Prompts, most_tokens: int) -> Iterator[list[Sequence[int]]]:
    """The prompts in order, as many at once as have `most_tokens` tokens together when padded; at least one.

    >>> list(batches_of([[1, 2, 3], [1], [1]], 6))
    [[[1, 2, 3], [1]], [[1]]]
    """
    batch: list[Sequence[int]] = []
    for prompt in prompts:
        if batch and max(map(len, [*batch, prompt])) * (len(batch) + 1) > most_tokens:
            yield batch
            batch = []
        batch.append(prompt)
    if batch:
        yield batch


# --- Transformers ---------------------------------------------------------------------------------------------------


class TransformersBackend:
    """A model in Transformers.

    Args:
        model: as `data.engine.models.load_model` gives it, or one in training.
        encoder, contract: what it was trained on.
        batch_size: prompts computed at once.
        constrained: write valid answers only.
        name: "hf", or "bert" for an encoder.
        seed, pruned_mass: see `PredictionSettings`.
    """

    def __init__(
        self, model, encoder: PromptEncoder, contract: Contract, batch_size: int, constrained: bool,
        name: BackendName = "hf", seed: int = 42, pruned_mass: float | None = None,
    ):  # fmt: skip
        self.seed, self.pruned_mass = seed, pruned_mass
        self.model, self.encoder, self.contract = model, encoder, contract
        self.constrained, self.name = constrained, name
        self.window = min(batch_size, TEXT_BATCHES_AT_ONCE * prompts_a_batch(contract, batch_size))

    @classmethod
    def load(
        cls, device: str | None, settings: PredictionSettings, encoder: Encoder, contract: Contract
    ) -> "TransformersBackend":
        """A backend with its model.

        Args:
            device: in the place of the settings' own: each of several processes has one.
            settings: see `PredictionSettings`.
            encoder, contract: what the model was trained on.

        Raises:
            UserError: a model that does not load, or cannot be compiled.
        """
        from data.engine.tree_attention import computes_spans, enable_packing
        from data.engine.unpadded import enable_unpadding

        model = load_model(
            settings.model_path, settings.precision, device, contract=contract, load_in_4bit=settings.load_in_4bit
        )
        writes = contract.objective == "generate"
        if not writes or (settings.constrained and contract.sampling is None):
            enable_packing(model, contract.max_length)
        if model.device.type == "cpu":  # a GPU would compute a dense mask, for texts that are of like length already
            enable_unpadding(model)
        if settings.compile:
            if writes and (not settings.constrained or contract.cot or not computes_spans(model)):
                raise UserError("--compile: is for heads, for labels that are compared, and on a CPU for valid answers "
                                "without reasoning; here the model keeps a cache that grows")  # fmt: skip
            compile_layers(model)
        return cls(
            model, encoder, contract, settings.batch_size, settings.constrained, settings.backend, settings.seed,
            settings.pruned_mass,
        )  # fmt: skip

    @cached_property
    def _writer(self) -> "ConstrainedWriter":
        from data.engine.constrained import ConstrainedWriter

        # behind reasoning, prompts differ from the text on
        return ConstrainedWriter(self.model, AnswerTrie(self.encoder), self.encoder.head_ids, self._pad_id)

    @cached_property
    def _tree(self) -> "AnswerTree":
        from data.engine.answer_tree import AnswerTree

        return AnswerTree(self.model, AnswerTrie(self.encoder), self.encoder.head_ids, self._pad_id)

    @cached_property
    def _marginals(self) -> Marginals:
        return Marginals(self.encoder, AnswerTrie(self.encoder))

    @property
    def _pad_id(self) -> int:
        return self.encoder.tokenizer.pad_token_id

    def answers(self, prompts: Prompts) -> list[Prediction]:
        """See `Backend.answers`."""
        if self.contract.sampling is not None:
            return self._texts(prompts)
        rationales: Sequence[str | None] = [None] * len(prompts)
        if not self.constrained:
            written, log_probs = self._greedy(prompts, self.encoder.answer_tokens)
        else:
            if self.contract.cot:
                prompts, rationales = with_reasoning(self.encoder, prompts, self._think)
            written, log_probs = self._writer.write(prompts)
        return [
            read_answer(self.encoder, self.contract, ids, log_prob, rationale)
            for ids, log_prob, rationale in zip(written, log_probs, rationales, strict=True)
        ]

    def _texts(self, prompts: Prompts) -> list[Prediction]:
        """Free text behind each prompt, in batches that fit the memory."""
        from data.engine.generation import draw_texts, stop_token_ids
        from data.engine.tree_attention import ordinary_attention

        stop_ids = stop_token_ids(self.model, self.encoder.end_id)
        predictions = []
        with ordinary_attention(self.model):
            for batch in batches_of(prompts, MAX_BATCH_TOKENS):
                drawn = draw_texts(self.model, batch, self.contract.sampling, stop_ids, self._pad_id, self.seed)
                predictions += [
                    read_text(self.encoder, self.contract, ids, log_prob, finished) for ids, log_prob, finished in drawn
                ]
        return predictions

    def _think(self, prompts: Prompts) -> list[str]:
        thoughts, _ = self._greedy(prompts, RATIONALE_TOKENS, stop_string="</think>")
        return [self.encoder.decode(ids) for ids in thoughts]

    def _greedy(
        self, prompts: Prompts, max_new_tokens: int, stop_string: str | None = None
    ) -> tuple[list[list[int]], list[float]]:
        """Token ids and log-probabilities of free continuations."""
        from data.engine.generation import generate_greedy, stop_token_ids
        from data.engine.tree_attention import ordinary_attention

        stop_ids = stop_token_ids(self.model, self.encoder.end_id)
        stop = (self.encoder.tokenizer, stop_string) if stop_string else None
        with ordinary_attention(self.model):
            written, log_probs = generate_greedy(self.model, prompts, stop_ids, max_new_tokens, self._pad_id, stop)
        return written, log_probs.tolist()

    def scores(self, prompts: Prompts) -> list[list[float]]:
        """See `Backend.scores`."""
        import torch
        from accelerate.utils import send_to_device

        from data.engine.scoring import batch_form, candidate_batch, candidate_scores, text_batch, text_logits

        form = batch_form(self.model)
        with torch.inference_mode():
            if self.contract.objective == "classify":
                batch = send_to_device(text_batch(prompts, form, self._pad_id), self.model.device)
                return text_logits(self.model, batch).tolist()
            candidates = self.encoder.candidate_ids()
            batch = candidate_batch(prompts, candidates, form == "packed", self._pad_id, MAX_ROW_TOKENS)
            return candidate_scores(self.model, send_to_device(batch, self.model.device), len(candidates)).tolist()

    def weighed(self, prompts: Prompts) -> list[Prediction]:
        """See `Backend.weighed`."""
        trees = self._tree.expand(prompts, *bounds(self.pruned_mass))
        return [weighed_answer(self._marginals, self.encoder, self.contract, tree) for tree in trees]

    def close(self) -> None:
        """See `Backend.close`."""
        import torch

        for holder in ("_writer", "_tree"):
            self.__dict__.pop(holder, None)
        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
