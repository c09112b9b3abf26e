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
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from data.arguments import UserError, check_at_least, check_output_dir, flag, run
from data.contract import Contract, contract_for
from data.encoding import Encoder, Objective, reads_both_ways
from data.files import write_json, write_json_lines, write_text
from data.loading import Example, load_examples
from data.metrics import format_summary, label_metrics
from data.tasks import Prediction

CALIBRATION_FILE = "calibration.json"
Backend = Literal["hf", "bert"]
MAX_ROW_TOKENS = 4096  # of a packed row: more only makes masks larger
# PEFT imports bitsandbytes, which then warns of a slow path; only 4-bit weights take it, and they have the warning back
_of_four_bits = logging.getLogger("bitsandbytes.backends.cpu.ops")
_of_four_bits.setLevel(logging.ERROR)


@dataclass
class Args:
    model_path: str | None = flag(None, "hub id, or a directory: an untuned model, a run, or a merged model")
    task: str | None = flag(None, "task to ask an untuned model for: a built-in task, single_label or multi_label")
    label_path: str | None = flag(None, "labels.txt of your own task: one label a line, line number = id")
    test_data_path: str | None = flag(None, "file to predict on; with labels in it, it is scored too")
    text: str | None = flag(None, "one text to predict on, printed as JSON")
    output_dir: str | None = flag(None, "where predictions and scores go (default: <model_path>/test for a run)")
    backend: Backend | None = flag(
        None, "engine: hf = a language model in Transformers, bert = an encoder (default: what the model is)"
    )
    limit: int | None = flag(None, "use the first N rows only")
    skip_bad_rows: bool = flag(False, "list bad rows in rejected.jsonl instead of stopping at the first")
    batch_size: int = flag(32, "texts a batch")
    max_length: int | None = flag(None, "tokens of prompt and answer together (default: task.json's, else 512)")
    objective: Objective | None = flag(
        None, "how an untuned model answers: generate = it writes, score = labels are compared (default: generate)"
    )
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


def is_encoder(model_path: str) -> bool:
    """Whether a hub id or directory is an encoder such as BERT."""
    path = Path(base_model_path(model_path) or model_path)
    if not (path / "config.json").is_file():
        from transformers import AutoConfig

        try:
            return reads_both_ways(AutoConfig.from_pretrained(str(path)).model_type)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"--model_path {path}: no configuration: {str(error).splitlines()[0]}") from error
    try:
        return reads_both_ways(json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / 'config.json'}: names no model_type") from error


def pick_backend(model_path: str, backend: Backend | None = None) -> Backend:
    """The engine for this model: "bert" for an encoder, "hf" for a language model.

    Raises:
        UserError: another one was asked for.
    """
    needed: Backend = "bert" if is_encoder(model_path) else "hf"
    if backend not in (None, needed):
        kind = "an encoder" if needed == "bert" else "no encoder"
        raise UserError(f"--backend {backend}: {model_path} is {kind}, which {needed} runs")
    return needed


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


def load_model(
    model_path: str,
    precision: str = "bf16",
    device: str | None = None,
    attention: str | None = None,
    contract: Contract | None = None,
    quantized: bool = False,
):
    """Load a model for prediction or further training.

    Args:
        model_path: a hub id, a model directory, or an adapter directory (whose base model is loaded under it).
        precision: "bf16", "fp16" or "fp32".
        device: where to put it; None = the first GPU, else the CPU.
        attention: Transformers' name of the attention code ("sdpa", "eager", ...); None = its own choice.
        contract: what it is for; with objective "classify" it gets a head, new where the directory has none.
        quantized: keep the weights of linear layers in 4 bits (NF4, double quantisation), but for the head's.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: nothing there that loads, or no model for this objective.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    base = base_model_path(model_path)
    options = {"dtype": dtype, "attn_implementation": attention}
    if quantized:
        options |= {"quantization_config": _four_bits(), "device_map": {"": pick_device(device)}}
    try:
        if contract is not None and contract.objective == "classify":
            from data.classifier import classifier_class

            labels = dict(enumerate(contract.task.labels))
            config = AutoConfig.from_pretrained(
                base or model_path, num_labels=len(labels), id2label=labels,
                label2id={label: i for i, label in labels.items()},
            )  # fmt: skip
            model_class, options["config"] = classifier_class(config, contract.head or "linear"), config
        else:
            model_class = AutoModelForCausalLM
        model = model_class.from_pretrained(base or model_path, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--model_path {base or model_path}: does not load: {str(error).splitlines()[0]}") from error
    if hasattr(model, "score"):
        model.score.float()  # a new one; Transformers keeps those it reads in fp32
    if base is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, model_path, autocast_adapter_dtype=False)  # in the base dtype
    if model.get_output_embeddings() is not None:
        # Generation projects `hidden[:, -1:]`, a slice with gaps, for which the CPU's batched product copies the whole
        # vocabulary matrix once per row. `contiguous()` would not do: for one row the slice counts as such, and is
        # copied.
        model.get_output_embeddings().register_forward_pre_hook(
            lambda _, inputs: (inputs[0].clone(memory_format=torch.contiguous_format),)
        )
    return (model if quantized else model.to(pick_device(device))).eval()


def _four_bits():
    """QLoRA's number format (Dettmers et al., 2023): NF4 with quantised constants, computed in bf16."""
    import torch

    _of_four_bits.setLevel(logging.NOTSET)
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError("--tuning qlora: needs bitsandbytes (pip install -r requirements.txt)") from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head", "score", "classifier"],
    )


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
        task, label_path, cot, max_length, objective: only for an untuned model; a trained one knows (`contract_for`).
        batch_size: texts a batch.
        precision, device: see `load_model`.
        backend: see `pick_backend`.

    Raises:
        UserError: no model there, or a flag that contradicts its task.json.
    """

    backend: Backend = "hf"

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
        objective: Objective | None = None,
        backend: Backend | None = None,
    ):
        check_model_path(model_path)
        contract = contract_for(model_path, task, label_path, cot, max_length, objective)
        self.backend = pick_backend(model_path, backend)
        if contract.objective != "classify" and self.backend == "bert":
            raise UserError(f"--objective {contract.objective}: {model_path} is an encoder, which has to use classify")
        tokenizer = load_tokenizer(model_path)
        encoder = Encoder(contract.task, tokenizer, contract.cot, contract.max_length, contract.objective)
        model = load_model(model_path, precision, device, contract=contract)
        packed = contract.objective != "generate" and take_packed_rows(model, contract.max_length)
        self._set(model, encoder, contract, batch_size, packed)

    @classmethod
    def from_model(
        cls, model, encoder: Encoder, contract: Contract, batch_size: int = 32, packed: bool = False
    ) -> "Predictor":
        """A predictor around a model that is loaded already, such as one in training.

        `packed` says whether it is set up for packed rows; generation never is.
        """
        predictor = cls.__new__(cls)
        predictor._set(model, encoder, contract, batch_size, packed)
        return predictor

    def _set(self, model, encoder: Encoder, contract: Contract, batch_size: int, packed: bool) -> None:
        self.model, self.encoder, self.contract, self.batch_size = model, encoder, contract, batch_size
        self.task, self.packed = contract.task, packed

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
        if self.contract.objective == "generate":
            return self._batched(self._answers, texts, progress)
        return self.read(self.label_scores(texts, progress))

    def label_scores(self, texts: Sequence[str], progress: bool = False):
        """Scores (texts, labels) as a numpy array: a head's logits, or the labels' log-probabilities as answers.

        Raises:
            ValueError: an empty text, or a model that writes its answers.
        """
        import numpy

        if self.contract.objective == "generate":
            raise ValueError("a model that writes its answers has no scores of labels")
        scores = self._batched(self._scores, texts, progress)
        return numpy.array(scores).reshape(len(texts), len(self.task.labels))

    def read(self, scores) -> list[Prediction]:
        """Scores (texts, labels) -> predictions, by the contract's temperature and thresholds."""
        from data.calibration import decide, probabilities, set_probability

        shares = probabilities(scores, self.contract.activation, self.contract.temperature)
        return [
            Prediction(
                labels,
                valid=True,
                confidence=set_probability(row, labels, self.task, self.contract.activation),
                probabilities=dict(zip(self.task.labels, row.tolist(), strict=True)),
            )
            for row, labels in zip(shares, decide(shares, self.task, self.contract.thresholds), strict=True)
        ]

    def _batched(self, compute: Callable, texts: Sequence[str], progress: bool) -> list:
        """`compute` (prompts -> one value each) over batches of prompts of like length."""
        from tqdm import tqdm

        if any(not text.strip() for text in texts):
            raise ValueError("a text is empty")
        prompts = self.encoder.prompt_ids(texts) if texts else []
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)  # the largest batch first
        values: list[Any] = [None] * len(prompts)
        with tqdm(total=len(prompts), desc="predict", unit="text", disable=not progress) as bar:
            for begin in range(0, len(order), self.batch_size):
                rows = order[begin : begin + self.batch_size]
                for row, value in zip(rows, compute([prompts[i] for i in rows]), strict=True):
                    values[row] = value
                bar.update(len(rows))
        return values

    def _answers(self, prompts: list[list[int]]) -> list[Prediction]:
        """One batch of prompts, answered greedily."""
        from data.generation import generate_greedy, stop_token_ids

        stop_ids = stop_token_ids(self.model, self.encoder.end_id)
        generated, log_probs = generate_greedy(
            self.model, prompts, stop_ids, self.encoder.answer_tokens, self.encoder.tokenizer.pad_token_id
        )
        answers = []
        for ids, log_prob in zip(generated, log_probs, strict=True):
            parsed = self.task.parse(self.encoder.decode(ids), self.contract.cot)
            answers.append(replace(parsed, confidence=float(log_prob.exp())))
        return answers

    def _scores(self, prompts: list[list[int]]) -> list[list[float]]:
        """One batch of prompts, each with a score for every label."""
        import torch
        from accelerate.utils import send_to_device

        from data.classifier import text_batch, text_logits
        from data.scoring import candidate_batch, candidate_scores

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


def take_packed_rows(model, longest: int) -> bool:
    """Set a loaded model up for packed rows of sequences up to `longest` tokens. Returns whether it can take them."""
    from data.tree_attention import sharing_attention, sharing_obstacle

    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    if sharing_obstacle(bare, longest):
        return False
    bare.set_attn_implementation(sharing_attention(bare, str(bare.device)))
    return True


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
    texts, gold = [example.text for example in examples], [example.labels for example in examples]
    begin = time.perf_counter()
    if predictor.contract.objective == "generate":
        scores, predictions = None, predictor.predict_batch(texts, progress=True)
    else:
        scores = predictor.label_scores(texts, progress=True)
        predictions = predictor.read(scores)
    rate = len(examples) / (time.perf_counter() - begin)
    labelled = all(gold)
    results = {"n": len(examples)}
    if labelled:
        results = label_metrics(gold, predictions, predictor.task)
        if scores is not None:
            results |= probability_metrics(scores, gold, predictor.contract)
    results |= {"examples_per_second": round(rate, 2), "backend": predictor.backend, "seed": seed}
    if output_dir is not None:
        write_json_lines(Path(output_dir) / "predictions.jsonl", map(_prediction_row, examples, predictions))
        if labelled:
            write_json(Path(output_dir) / "test_results.json", results)
            write_text(Path(output_dir) / "test_summary.txt", format_summary(results, f"task {predictor.task.name}"))
    return results


def probability_metrics(scores, gold: Sequence[Sequence[str]], contract: Contract) -> dict[str, Any]:
    """`ece`, `brier` and `auc` of scores (texts, labels), and as `uncalibrated` the first two without calibration."""
    from data.calibration import calibration_scores, probabilities

    def measured(temperature: float) -> dict[str, float]:
        return calibration_scores(probabilities(scores, contract.activation, temperature), gold, contract.task)

    before = measured(1.0)
    return measured(contract.temperature) | {"uncalibrated": {name: before[name] for name in ("ece", "brier")}}


def calibrate_run(
    directory: str, examples: Sequence[Example], batch_size: int, precision: str
) -> dict[str, dict[str, float]]:
    """Fit temperature and thresholds of a finished run on labelled texts, and write them into its `task.json`.

    Returns:
        The metrics `before` and `after`, on these same texts; also in the run's `calibration.json`.
    """
    from data.calibration import calibrate

    predictor = Predictor(directory, batch_size=batch_size, precision=precision)
    contract = predictor.contract
    scores = predictor.label_scores([example.text for example in examples], progress=True)
    fitted, metrics = calibrate(scores, [example.labels for example in examples], contract.task, contract.activation)
    replace(contract, temperature=fitted.temperature, thresholds=fitted.thresholds).save(directory)
    write_json(Path(directory) / CALIBRATION_FILE, {"n": len(examples), **asdict(fitted), **metrics})
    return metrics


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
    contract = contract_for(args.model_path, args.task, args.label_path, args.cot, args.max_length, args.objective)
    output_dir = output_directory(args)
    rejected: list[dict[str, Any]] = []
    examples = load_test_examples(args, contract, rejected) if args.text is None else []
    predictor = Predictor(
        args.model_path, args.task, args.label_path, args.cot, args.max_length,
        args.batch_size, args.precision, args.device, args.objective, args.backend,
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
