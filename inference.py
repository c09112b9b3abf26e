"""Load a model, predict, evaluate.

A model directory is a run of main_SFT.py (an adapter or a whole model, with its task.json), or an untuned model, for
which --task names the labels to ask for. A trained directory is asked exactly what it was trained on: prompt, labels
and length come from its task.json, and a flag that contradicts it is an error.

    # score a labelled file: predictions.jsonl, test_results.json, test_summary.txt
    python inference.py --model_path outputs/sft --test_data_path data/sample/test.tsv --output_dir outputs/sft/test

    # one text
    python inference.py --model_path outputs/sft --text "Thank you so much, you made my day!"

    # an untuned model
    python inference.py --model_path models/smollm2-135m-instruct --task goemotions-original \\
        --test_data_path data/sample/test.tsv --output_dir outputs/base

From Python:

    from inference import Predictor
    predictor = Predictor("outputs/sft")
    predictor.predict("Thank you so much!").labels     # ("gratitude",)
    predictor.predict_batch(["...", "..."])
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data.arguments import UserError, check_at_least, check_output_dir, flag, run
from data.contract import Contract, contract_for
from data.encoding import Encoder
from data.files import write_json, write_json_lines, write_text
from data.loading import Example, load_examples
from data.metrics import format_summary, label_metrics
from data.tasks import Prediction


@dataclass
class Args:
    model_path: str | None = flag(None, "hub id, or a directory: an untuned model, a run, or a merged model")
    task: str | None = flag(None, "task to ask an untuned model for: a built-in task, single_label or multi_label")
    label_path: str | None = flag(None, "labels.txt of your own task: one label a line, line number = id")
    test_data_path: str | None = flag(None, "file to predict on; with labels in it, it is scored too")
    text: str | None = flag(None, "one text to predict on, printed as JSON")
    output_dir: str | None = flag(None, "where predictions and scores go (default: <model_path>/test for a run)")
    backend: Literal["hf"] = flag("hf", "engine that runs the model: hf = Transformers")
    limit: int | None = flag(None, "use the first N rows only")
    skip_bad_rows: bool = flag(False, "list bad rows in rejected.jsonl instead of stopping at the first")
    batch_size: int = flag(32, "texts a batch")
    max_length: int | None = flag(None, "tokens of prompt and answer together (default: task.json's, else 512)")
    cot: bool | None = flag(None, "ask for reasoning before the answer (default: as trained)")
    precision: Literal["bf16", "fp16", "fp32"] = flag("bf16", "number format of the weights")
    device: str | None = flag(None, "cpu, cuda, cuda:1, mps ... (default: the first GPU, else the CPU)")
    seed: int = flag(42, "seed, noted in the results; decoding is greedy and draws nothing")

    def __post_init__(self):
        if self.model_path is None:
            raise UserError("--model_path is needed: a hub id or a directory")
        if (self.test_data_path is None) == (self.text is None):
            raise UserError("give either --test_data_path (a file) or --text (one text)")
        if self.text is not None and not self.text.strip():
            raise UserError("--text is empty")
        if self.text is not None and not self.text.isprintable() and any("\ud800" <= c <= "\udfff" for c in self.text):
            raise UserError("--text is not UTF-8")
        if self.output_dir is not None:
            check_output_dir(self.output_dir)
        check_at_least(self, batch_size=1, limit=1, max_length=1)


# --- loading --------------------------------------------------------------------------------------------------------


def check_model_path(model_path: str) -> None:
    """Raise a `UserError` when `model_path` is meant as a directory, but is none that holds a model.

    A name with at most one slash that does not begin like a path, or in a folder that is here, is taken for a hub id.
    """
    path = Path(model_path)
    if path.exists():
        if not any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
            raise UserError(
                f"--model_path {model_path}: holds neither config.json nor adapter_config.json, so no model"
            )
        return
    owner, slash, _ = model_path.partition("/")
    local = model_path.startswith((".", "/", "~")) or model_path.count("/") > 1 or owner in ("models", "outputs")
    if local or (slash and Path(owner).is_dir()):
        raise UserError(f"--model_path {model_path}: no such directory")


def base_model_path(model_path: str) -> str | None:
    """The base model an adapter directory names, or None where `model_path` is no adapter."""
    path = Path(model_path) / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        base = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: names no base model, so it is no adapter that PEFT wrote") from error
    try:
        check_model_path(base)
    except UserError as error:
        raise UserError(f"{path}: its base model {base!r} is not there; a relative path counts from here") from error
    return base


def pick_device(device: str | None = None) -> str:
    """`device`, or the best there is."""
    import torch

    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"--device {device}: not to be had here ({str(error).splitlines()[0]})") from error
        return device
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def load_tokenizer(model_path: str):
    """The tokenizer of a directory or hub id, with a padding token (a run keeps its own copy beside the adapter)."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model_path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--model_path {model_path}: no tokenizer: {str(error).splitlines()[0]}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(model_path: str, precision: str = "bf16", device: str | None = None, attention: str | None = None):
    """Load a causal language model for prediction or further training.

    Args:
        model_path: a hub id, a model directory, or an adapter directory (whose base model is loaded under it).
        precision: "bf16", "fp16" or "fp32".
        device: where to put it; None = the first GPU, else the CPU.
        attention: Transformers' name of the attention code ("sdpa", "eager", ...); None = its own choice.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: nothing there that loads.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    base = base_model_path(model_path)
    try:
        model = AutoModelForCausalLM.from_pretrained(base or model_path, dtype=dtype, attn_implementation=attention)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--model_path {base or model_path}: does not load: {str(error).splitlines()[0]}") from error
    if base is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, model_path, autocast_adapter_dtype=False)  # in the base dtype
    # Generation projects `hidden[:, -1:]`, a slice with gaps, for which the CPU's batched product copies the whole
    # vocabulary matrix once per row. `contiguous()` would not do: for one row the slice counts as such, and is copied.
    model.get_output_embeddings().register_forward_pre_hook(
        lambda _, inputs: (inputs[0].clone(memory_format=torch.contiguous_format),)
    )
    return model.to(pick_device(device)).eval()


def compile_layers(model) -> None:
    """Have each decoder layer compiled where it is first called; they are alike, so this is one compilation.

    Raises:
        UserError: no C++ compiler here, or no such layers.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    from transformers.modeling_layers import GradientCheckpointingLayer

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError("--compile: needs a C++ compiler (g++ or clang++), and none was found") from error
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise UserError("--compile: this model has no layers that Transformers could compile one by one")
    for layer in layers:
        layer.compile(dynamic=True)


# --- prediction -----------------------------------------------------------------------------------------------------


class Predictor:
    """A model that reads labels in texts.

    Args:
        model_path: hub id or directory (see `load_model`).
        task, label_path, cot, max_length: only for an untuned model; a trained one knows them (`contract_for`).
        batch_size: texts a batch.
        precision, device: see `load_model`.

    Raises:
        UserError: no model there, or a flag that contradicts its task.json.
    """

    def __init__(
        self,
        model_path: str,
        task: str | None = None,
        label_path: str | None = None,
        cot: bool | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        precision: str = "bf16",
        device: str | None = None,
    ):
        check_model_path(model_path)
        contract = contract_for(model_path, task, label_path, cot, max_length)
        tokenizer = load_tokenizer(model_path)
        encoder = Encoder(contract.task, tokenizer, contract.cot, contract.max_length)
        self._set(load_model(model_path, precision, device), encoder, contract, batch_size)

    @classmethod
    def from_model(cls, model, encoder: Encoder, contract: Contract, batch_size: int = 32) -> "Predictor":
        """A predictor around a model that is loaded already, such as one in training."""
        predictor = cls.__new__(cls)
        predictor._set(model, encoder, contract, batch_size)
        return predictor

    def _set(self, model, encoder: Encoder, contract: Contract, batch_size: int) -> None:
        self.model, self.encoder, self.contract, self.batch_size = model, encoder, contract, batch_size
        self.task = contract.task

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
        from tqdm import tqdm

        if any(not text.strip() for text in texts):
            raise ValueError("a text is empty")
        prompts = self.encoder.prompt_ids(texts) if texts else []
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)  # the largest batch first
        predictions: list[Prediction | None] = [None] * len(prompts)
        with tqdm(total=len(prompts), desc="predict", unit="text", disable=not progress) as bar:
            for begin in range(0, len(order), self.batch_size):
                rows = order[begin : begin + self.batch_size]
                for row, prediction in zip(rows, self._answers([prompts[i] for i in rows]), strict=True):
                    predictions[row] = prediction
                bar.update(len(rows))
        return predictions

    def _answers(self, prompts: list[list[int]]) -> list[Prediction]:
        """One batch of prompts, answered greedily."""
        stop_ids = stop_token_ids(self.model, self.encoder.end_id)
        generated, log_probs = generate_greedy(
            self.model, prompts, stop_ids, self.encoder.answer_tokens, self.encoder.tokenizer.pad_token_id
        )
        answers = []
        for ids, log_prob in zip(generated, log_probs, strict=True):
            parsed = self.task.parse(self.encoder.decode(ids), self.contract.cot)
            answers.append(replace(parsed, confidence=float(log_prob.exp())))
        return answers


def stop_token_ids(model, end_id: int) -> list[int]:
    """The answer's own end, and whatever else this model ends a text with."""
    own = model.generation_config.eos_token_id
    others = own if isinstance(own, list) else [] if own is None else [own]
    return list(dict.fromkeys([end_id, *others]))


def generate_greedy(model, prompts: Sequence[Sequence[int]], stop_ids: list[int], max_new_tokens: int, pad_id: int):
    """Continue each prompt with its most probable token until a stop token or `max_new_tokens`.

    What all prompts begin with is computed once; the rest of the shorter ones is padded on its left.

    Args:
        model: a causal language model.
        prompts: B lists of token ids.
        stop_ids: tokens that end an answer.
        max_new_tokens: length at which an answer is cut off.
        pad_id: the padding token.

    Returns:
        B lists of generated token ids (up to the stop token, without it), and log-probabilities (B,) of the
        answers, stop token included.
    """
    import torch

    watch = _GreedyLogProbs()
    output = _generate(model, prompts, 1, stop_ids, max_new_tokens, pad_id, watch)  # (B, new)
    steps = torch.stack(watch.steps, dim=1)  # (B, new)
    generated, log_probs = [], []
    for row, ids in enumerate(output.tolist()):
        length = next((i for i, token in enumerate(ids) if token in stop_ids), len(ids))
        generated.append(ids[:length])
        log_probs.append(steps[row, : length + 1].sum())
    return generated, torch.stack(log_probs)


def sample_answers(
    model, prompts: Sequence[Sequence[int]], samples: int, stop_ids: list[int], max_new_tokens: int, pad_id: int,
    temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0,
) -> list[list[int]]:  # fmt: skip
    """Draw several continuations of each prompt, with torch's random numbers.

    What all prompts begin with is computed once, the rest of a prompt once for its samples.

    Args:
        model, prompts, stop_ids, max_new_tokens, pad_id: see `generate_greedy`.
        samples: continuations of each prompt (G).
        temperature: divides the logits.
        top_p: draw from the smallest set of tokens with at least this probability.
        top_k: draw from the most probable `top_k` tokens; 0 = from all.

    Returns:
        B * G lists of token ids, those of a prompt one behind the other; each ends with its stop token unless it was
        cut off.
    """
    import torch
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers = LogitsProcessorList()
    if temperature != 1:
        warpers.append(TemperatureLogitsWarper(temperature))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))

    def draw(input_ids, scores):
        """Scores (B, V) -> the same shape, in which the drawn token is the greatest.

        By the inverse of the cumulative distribution: one random number a row, where torch.multinomial takes one for
        each token of the vocabulary.
        """
        exact = torch.float32 if scores.device.type == "mps" else torch.float64  # MPS has no float64
        cumulative = warpers(input_ids, scores.float()).softmax(dim=-1).cumsum(dim=-1, dtype=exact)
        point = torch.rand(len(scores), 1, device=scores.device, dtype=exact) * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, point, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.zeros_like(scores).scatter_(1, drawn, 1.0)

    rows = _generate(model, prompts, samples, stop_ids, max_new_tokens, pad_id, draw).tolist()
    return [ids[: next((i for i, token in enumerate(ids, start=1) if token in stop_ids), len(ids))] for ids in rows]


def _generate(
    model, prompts: Sequence[Sequence[int]], samples: int, stop_ids: list[int], max_new_tokens: int, pad_id: int,
    process: Callable,
):  # fmt: skip
    """`samples` continuations of each prompt, (B * samples, new), padded behind their stop tokens.

    Each token is the one with the greatest score that `process` (input ids, scores (B, V) -> scores) leaves.
    """
    import torch
    from transformers import GenerationConfig, LogitsProcessorList

    shared = shared_length(prompts) if keeps_whole_cache(model) else 0
    gaps = [max(map(len, prompts)) - len(p) for p in prompts]
    rows = [[*p[:shared], *[pad_id] * gap, *p[shared:]] for p, gap in zip(prompts, gaps, strict=True)]
    masks = [[1] * shared + [0] * gap + [1] * (len(p) - shared) for p, gap in zip(prompts, gaps, strict=True)]
    input_ids = torch.tensor(rows, device=model.device)  # (B, T)
    mask = torch.tensor(masks, device=model.device)  # (B, T)
    config = GenerationConfig(  # what a model's own generation_config would turn: greedy means greedy
        do_sample=False, num_beams=1, repetition_penalty=1.0, no_repeat_ngram_size=0, temperature=1.0, top_p=1.0,
        top_k=50, min_new_tokens=0, suppress_tokens=[], use_cache=True,
        max_new_tokens=max_new_tokens, eos_token_id=stop_ids, pad_token_id=pad_id,
    )  # fmt: skip
    with torch.inference_mode():
        cache = prefix_cache(model, input_ids[:1, :shared], len(prompts)) if shared else None
        if samples > 1:
            cache = _prompt_cache(model, input_ids, mask, shared, cache) if keeps_whole_cache(model) else None
            if cache is not None:
                cache.batch_repeat_interleave(samples)
            input_ids, mask = input_ids.repeat_interleave(samples, dim=0), mask.repeat_interleave(samples, dim=0)
        output = model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([process]),
            past_key_values=cache,
        )
    return output[:, input_ids.shape[1] :]


def shared_length(prompts: Sequence[Sequence[int]]) -> int:
    """How many tokens all prompts begin with; each keeps at least one of its own.

    >>> shared_length([[5, 6, 7, 8], [5, 6, 9]])
    2
    """
    from data.packing import common_prefix_length

    # in sorted order, the first and the last are the two that differ soonest
    return min(common_prefix_length(min(prompts), max(prompts)), min(map(len, prompts)) - 1)


def keeps_whole_cache(model) -> bool:
    """Whether every layer attends to all earlier tokens, so that a computed prefix can be reused as it is."""
    config = model.config.get_text_config()
    layers = getattr(config, "layer_types", None)
    return set(layers) == {"full_attention"} if layers else getattr(config, "sliding_window", None) is None


def prefix_cache(model, prefix, batch_size: int):
    """Keys and values of `prefix` (1, S), repeated for `batch_size` rows."""
    cache = model(input_ids=prefix, use_cache=True, logits_to_keep=1).past_key_values
    cache.batch_repeat_interleave(batch_size)
    return cache


def _prompt_cache(model, input_ids, mask, shared: int, cache):
    """Keys and values of all but the last token of prompts (B, T), of which `cache` holds the first `shared`."""
    if shared == input_ids.shape[1] - 1:
        return cache
    positions = mask.cumsum(dim=1) - 1
    positions = positions.masked_fill(mask == 0, 0)[:, shared:-1]
    return model(
        input_ids=input_ids[:, shared:-1], attention_mask=mask[:, :-1], position_ids=positions, past_key_values=cache,
        use_cache=True, logits_to_keep=1,
    ).past_key_values  # fmt: skip


class _GreedyLogProbs:
    """Notes the log-probability of each step's most probable token, without keeping the (B, vocabulary) scores."""

    def __init__(self):
        self.steps = []  # tensors (B,)

    def __call__(self, input_ids, scores):
        scores = scores.float()
        self.steps.append(scores.max(dim=-1).values - scores.logsumexp(dim=-1))
        return scores


# --- evaluation -----------------------------------------------------------------------------------------------------


def evaluate(
    predictor: Predictor, examples: Sequence[Example], output_dir: str | Path | None = None, seed: int = 42
) -> dict[str, Any]:
    """Predict, score where there is gold, and write what DESIGN's table promises.

    Args:
        predictor: the model.
        examples: texts with their gold labels, or all without.
        output_dir: where `predictions.jsonl`, and with gold `test_results.json` and `test_summary.txt` go; None =
            nowhere.
        seed: noted in the results.

    Returns:
        The content of `test_results.json`; `n` and `examples_per_second` only where there is no gold.
    """
    begin = time.perf_counter()
    predictions = predictor.predict_batch([example.text for example in examples], progress=True)
    rate = len(examples) / (time.perf_counter() - begin)
    labelled = all(example.labels for example in examples)
    results = {"n": len(examples)}
    if labelled:
        results = label_metrics([example.labels for example in examples], predictions, predictor.task)
    results |= {"examples_per_second": round(rate, 2), "backend": "hf", "seed": seed}
    if output_dir is not None:
        write_json_lines(Path(output_dir) / "predictions.jsonl", map(_prediction_row, examples, predictions))
        if labelled:
            write_json(Path(output_dir) / "test_results.json", results)
            write_text(Path(output_dir) / "test_summary.txt", format_summary(results, f"task {predictor.task.name}"))
    return results


def score_run(directory: str, examples: Sequence[Example], batch_size: int, precision: str, seed: int) -> None:
    """Score a finished run on labelled texts, as it was written: what this script would load is what is measured."""
    evaluate(Predictor(directory, batch_size=batch_size, precision=precision), examples, directory, seed)
    print((Path(directory) / "test_summary.txt").read_text(encoding="utf-8"))


def _prediction_row(example: Example, prediction: Prediction) -> dict[str, Any]:
    fields = asdict(prediction)
    return {
        "id": example.id,
        "text": example.text,
        "gold": list(example.labels) or None,
        **{name: fields[name] for name in ("labels", "probabilities", "confidence", "valid", "completion")},
    }


# --- the command ----------------------------------------------------------------------------------------------------


def main(args: Args) -> None:
    check_model_path(args.model_path)
    contract = contract_for(args.model_path, args.task, args.label_path, args.cot, args.max_length)
    output_dir = output_directory(args)
    rejected: list[dict[str, Any]] = []
    examples = load_test_examples(args, contract, rejected) if args.text is None else []
    predictor = Predictor(
        args.model_path, args.task, args.label_path, args.cot, args.max_length,
        args.batch_size, args.precision, args.device,
    )  # fmt: skip
    if args.text is not None:
        print(json.dumps(asdict(predictor.predict(args.text)), ensure_ascii=False))
        return
    if rejected:
        write_json_lines(output_dir / "rejected.jsonl", rejected)
    evaluate(predictor, examples, output_dir, args.seed)
    summary = output_dir / "test_summary.txt"
    if all(example.labels for example in examples):
        print(summary.read_text(encoding="utf-8"))
    print(f"written to {output_dir}")


def output_directory(args: Args) -> Path:
    """`--output_dir`, or a folder of the run's own."""
    if args.output_dir is None and args.text is None and not (Path(args.model_path) / "task.json").is_file():
        raise UserError("--output_dir is needed for an untuned model: where predictions and scores are to go")
    return Path(args.output_dir or Path(args.model_path) / "test")


def load_test_examples(args: Args, contract: Contract, rejected: list[dict[str, Any]]) -> list[Example]:
    """The rows of `--test_data_path`, at most `--limit`."""
    bad_rows = rejected if args.skip_bad_rows else None
    examples = load_examples(
        args.test_data_path, contract.task, "--test_data_path", labels_required=False, rejected=bad_rows
    )
    return examples[: args.limit]


if __name__ == "__main__":
    # Edit here, or pass the same names as flags: a flag wins.
    settings = dict()
    run(main, Args, settings)
