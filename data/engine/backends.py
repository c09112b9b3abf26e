"""What computes predictions: prompts as token ids go in, answers or scores of the labels come out.

`TransformersEngine` runs every model (for encoders it goes by the name of "bert"), `VllmEngine` those that write their
answers. Both are given the same ids and write under the same rules.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from math import exp
from typing import Protocol

from data.answers import AnswerTrie, answer_grammar
from data.arguments import UserError
from data.contract import Contract
from data.encoding import RATIONALE_TOKENS, Encoder
from data.labels import THINK, Prediction, rationale_in

MAX_ROW_TOKENS = 4096  # of a packed row: more only makes masks larger
Prompts = Sequence[Sequence[int]]


class Engine(Protocol):
    """What `inference.Predictor` asks of a backend.

    Attributes:
        name: as `--backend` names it.
        window: prompts it is best given at once.
    """

    name: str
    window: int

    def answers(self, prompts: Prompts) -> list[Prediction]:
        """What the model writes behind each prompt, greedily."""

    def scores(self, prompts: Prompts) -> list[list[float]]:
        """A score of every label for each prompt: a head's logits, or log-probabilities of the labels as answers."""

    def close(self) -> None:
        """Give back what it holds."""


def read_answer(
    encoder: Encoder, contract: Contract, token_ids: Sequence[int], log_prob: float, rationale: str | None = None
) -> Prediction:
    """An answer's token ids -> prediction; `rationale` is the reasoning that stands before them."""
    completion = encoder.decode(token_ids)
    if rationale is not None:
        completion = contract.task.reasoning(rationale) + completion
    return replace(contract.task.parse(completion, contract.cot), confidence=exp(log_prob))


class TransformersEngine:
    """A model in Transformers.

    Args:
        model: as `data.engine.models.load_model` gives it, or one in training.
        encoder, contract: what it was trained on.
        batch_size: prompts computed at once.
        packed: it is set up for packed rows.
        constrained: write valid answers only.
    """

    def __init__(
        self, model, encoder: Encoder, contract: Contract, batch_size: int, packed: bool, constrained: bool, name="hf"
    ):
        self.model, self.encoder, self.contract, self.packed = model, encoder, contract, packed
        self.constrained, self.name, self.window = constrained, name, batch_size

    @classmethod
    def load(
        cls, device: str | None, model_path: str, encoder: Encoder, contract: Contract, batch_size: int, name: str,
        constrained: bool, probabilities: bool, precision: str, quantized: bool, compiled: bool,
    ) -> "TransformersEngine":  # fmt: skip
        """An engine with its model.

        Args:
            device, precision, quantized: see `data.engine.models.load_model`.
            model_path: hub id or directory.
            encoder, contract, batch_size, name, constrained: see above.
            probabilities: scores are wanted of a model that writes its answers, too.
            compiled: compile the model's layers, which needs rows without a cache that grows.

        Raises:
            UserError: a model that does not load, or cannot be compiled.
        """
        from data.engine.models import compile_layers, load_model, take_packed_rows

        model = load_model(model_path, precision, device, contract=contract, quantized=quantized)
        writes = contract.objective == "generate"
        packed = (not writes or constrained or probabilities) and take_packed_rows(model, contract.max_length)
        engine = cls(model, encoder, contract, batch_size, packed, constrained, name)
        if compiled:
            from data.engine.tree_attention import computes_spans

            if writes and (not constrained or contract.cot or not computes_spans(model)):
                raise UserError("--compile: is for heads, for labels that are compared, and on a CPU for valid answers "
                                "without reasoning; here the model keeps a cache that grows")  # fmt: skip
            compile_layers(model)
        return engine

    @cached_property
    def _writer(self):
        from data.engine.generation import ConstrainedWriter

        # behind reasoning, prompts differ from the text on
        return ConstrainedWriter(
            self.model, AnswerTrie(self.encoder), self.encoder.head_ids, self.encoder.tokenizer.pad_token_id
        )

    def answers(self, prompts: Prompts) -> list[Prediction]:
        from data.engine.generation import generate_greedy, stop_token_ids
        from data.engine.tree_attention import ordinary_attention

        encoder, pad_id = self.encoder, self.encoder.tokenizer.pad_token_id
        stop_ids = stop_token_ids(self.model, encoder.end_id)
        rationales: list[str | None] = [None] * len(prompts)
        if self.constrained and self.contract.cot:
            opened = [[*prompt, *encoder.token_ids(THINK)] for prompt in prompts]
            with ordinary_attention(self.model):
                thoughts, _ = generate_greedy(
                    self.model, opened, stop_ids, RATIONALE_TOKENS, pad_id, (encoder.tokenizer, "</think>")
                )
            rationales = [rationale_in(encoder.decode(ids)) for ids in thoughts]
            prompts = [encoder.reasoned_ids(p, r) for p, r in zip(prompts, rationales, strict=True)]
        if self.constrained:
            written, log_probs = self._writer.write(prompts)
        else:
            with ordinary_attention(self.model):
                written, sums = generate_greedy(self.model, prompts, stop_ids, encoder.answer_tokens, pad_id)
            log_probs = sums.tolist()
        return [
            read_answer(encoder, self.contract, ids, log_prob, rationale)
            for ids, log_prob, rationale in zip(written, log_probs, rationales, strict=True)
        ]

    def scores(self, prompts: Prompts) -> list[list[float]]:
        import torch
        from accelerate.utils import send_to_device

        from data.engine.classifier import text_batch, text_logits
        from data.engine.scoring import candidate_batch, candidate_scores

        device, pad_id = self.model.device, self.encoder.tokenizer.pad_token_id
        lowered = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if lowered else self.model.dtype
        attention = self.model.config._attn_implementation
        with torch.inference_mode():
            if self.contract.objective == "classify":
                batch = send_to_device(text_batch(prompts, self.packed, pad_id), device)
                return text_logits(self.model, batch, attention, dtype).tolist()
            candidates = self.encoder.candidate_ids()
            batch = send_to_device(candidate_batch(prompts, candidates, self.packed, pad_id, MAX_ROW_TOKENS), device)
            return candidate_scores(self.model, batch, len(candidates), attention, dtype).tolist()

    def close(self) -> None:
        import gc

        import torch

        self.__dict__.pop("_writer", None)
        self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class VllmEngine:
    """vLLM: whole models, or an adapter over its base, with prefix caching and structured outputs.

    Args:
        model_path: a hub id or directory.
        base: the base model where `model_path` is an adapter.
        encoder, contract: what it was trained on.
        precision: number format of the weights.
        constrained: write valid answers only.
        tensor_parallel_size: GPUs the model is spread over.
        seed: vLLM's seed; greedy decoding draws nothing.

    Raises:
        UserError: vLLM is not here, or does not take this model.
    """

    name = "vllm"
    window = 4096  # vLLM batches them itself

    def __init__(
        self, model_path: str, base: str | None, encoder: Encoder, contract: Contract, precision: str,
        constrained: bool, tensor_parallel_size: int = 1, seed: int = 42,
    ):  # fmt: skip
        if contract.objective != "generate":
            raise UserError(
                f"--backend vllm: runs models that write their answers; {model_path} was trained with objective "
                f"{contract.objective}, which hf runs"
            )
        # the labels of a task are few, so this process can be the engine, too: it dies with it, and errors come through
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; 40 % of the memory otherwise
        try:
            from vllm import LLM, SamplingParams
            from vllm.lora.request import LoRARequest
            from vllm.sampling_params import StructuredOutputsParams
        except ImportError as error:
            raise UserError(
                "--backend vllm: needs vLLM (pip install -r requirements-vllm.txt, on a CPU scripts/setup_vllm_cpu.sh)"
            ) from error
        self.encoder, self.contract, self.constrained = encoder, contract, constrained
        lora = {}
        if base is not None:
            lora = {"enable_lora": True, "max_lora_rank": _served_rank(model_path)}
        try:
            self._engine = LLM(
                model=base or model_path, tokenizer=model_path, seed=seed, max_model_len=contract.max_length,
                dtype={"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[precision],
                tensor_parallel_size=tensor_parallel_size, enable_prefix_caching=True, **lora,
            )  # fmt: skip
        except (ValueError, RuntimeError, OSError) as error:
            reason = (str(error) or repr(error)).splitlines()[0]
            raise UserError(f"--backend vllm: does not take {model_path}: {reason}") from error
        self._adapter = LoRARequest("adapter", 1, model_path) if base is not None else None
        self._params = SamplingParams
        rule = StructuredOutputsParams(grammar=answer_grammar(encoder)) if constrained else None
        self._answer = SamplingParams(
            temperature=0, max_tokens=encoder.answer_tokens, stop_token_ids=[encoder.end_id], logprobs=0,
            detokenize=False, structured_outputs=rule,
        )  # fmt: skip

    def answers(self, prompts: Prompts) -> list[Prediction]:
        encoder = self.encoder
        rationales: list[str | None] = [None] * len(prompts)
        if self.constrained and self.contract.cot:
            thinking = self._params(
                temperature=0, max_tokens=RATIONALE_TOKENS, stop_token_ids=[encoder.end_id], stop=["</think>"]
            )
            opened = [[*prompt, *encoder.token_ids(THINK)] for prompt in prompts]
            rationales = [rationale_in(output.text) for output in self._generate(opened, thinking)]
            prompts = [encoder.reasoned_ids(p, r) for p, r in zip(prompts, rationales, strict=True)]
        predictions = [
            read_answer(encoder, self.contract, output.token_ids, output.cumulative_logprob, rationale)
            for output, rationale in zip(self._generate(prompts, self._answer), rationales, strict=True)
        ]
        if self.constrained and (strays := [p.completion for p in predictions if not p.valid]):
            raise UserError(f"--backend vllm: its structured outputs let {strays[0]!r} pass; use --constrained off")
        return predictions

    def _generate(self, prompts: Prompts, params) -> list:
        inputs = [{"prompt_token_ids": list(ids)} for ids in prompts]
        outputs = self._engine.generate(inputs, params, use_tqdm=False, lora_request=self._adapter)
        return [output.outputs[0] for output in outputs]

    def scores(self, prompts: Prompts) -> list[list[float]]:
        raise UserError("--backend vllm: gives no scores of labels; hf does")

    def close(self) -> None:
        import gc

        self._engine = None
        gc.collect()


def _served_rank(model_path: str) -> int:
    """The least of the ranks vLLM is compiled for that holds this adapter's."""
    import json
    from pathlib import Path

    config = json.loads((Path(model_path) / "adapter_config.json").read_text(encoding="utf-8"))
    rank = max([config["r"], *config.get("rank_pattern", {}).values()])
    return next((served for served in (8, 16, 32, 64, 128, 256, 320, 512) if served >= rank), rank)
