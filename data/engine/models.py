"""A hub id or a directory -> a loaded model: whole, under adapters, in 4 bits, with a head."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.arguments import UserError, one_line
from data.contract import Contract, Format
from data.encoding import is_bidirectional
from data.engine.model_files import (
    ADAPTER_WEIGHTS,
    CONFIG_FILE,
    adapter_settings,
    check_adapter,
    check_hub,
    check_model_files,
    check_sizes,
    loading,
)
from data.files import ADAPTER_FILE, read_json

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}  # as PyTorch and vLLM call them

# PEFT imports bitsandbytes, which then warns of a slow path; only 4-bit weights take it, and they have the warning back
_of_four_bits = logging.getLogger("bitsandbytes.backends.cpu.ops")
_of_four_bits.setLevel(logging.ERROR)


def check_model_path(model_path: str) -> None:
    """Raise a `UserError` when `model_path` is meant as a directory, but is none that holds a model, or a broken one.

    A name with at most one slash that does not begin like a path, or in a folder that is here, is taken for a hub id.
    """
    path = Path(model_path)
    try:
        is_here = path.exists()
    except OSError as error:
        raise UserError(f"--model_path {one_line(model_path, 100)}: cannot be read ({error.strerror})") from error
    if is_here:
        if not any((path / name).is_file() for name in (CONFIG_FILE, ADAPTER_FILE)):
            raise UserError(
                f"--model_path {model_path}: holds neither config.json nor adapter_config.json, so no model"
            )
        if not (path / ADAPTER_FILE).is_file():
            check_model_files(path)
        return
    owner, slash, _ = model_path.partition("/")
    local = model_path.startswith((".", "/", "~")) or model_path.count("/") > 1 or owner in ("models", "outputs")
    if local or (slash and Path(owner).is_dir()):
        raise UserError(f"--model_path {one_line(model_path, 200)}: no such directory")
    check_hub(model_path)


def base_model_path(model_path: str) -> str | None:
    """The base model an adapter directory names, or None where `model_path` is no adapter."""
    path = Path(model_path) / ADAPTER_FILE
    if not path.is_file():
        return None
    base = adapter_settings(path)["base_model_name_or_path"]
    try:
        check_model_path(base)
    except UserError as error:
        if "no such directory" not in str(error) or Path(base).exists():
            raise UserError(f"{path}: its base model: {error}") from error
        raise UserError(
            f"{path}: its base model '{one_line(base, 200)}' is not there; a relative path counts from here"
        ) from error
    check_adapter(model_path)
    return base


def adapter_stack(model_path: str) -> list[str]:
    """The whole model, the adapter over it, the adapter over that, …, up to `model_path`."""
    stack = [model_path]
    while (base := base_model_path(stack[0])) is not None:
        if base in stack:
            raise UserError(f"{Path(stack[0]) / ADAPTER_FILE}: an adapter that is its own base model ({base})")
        stack.insert(0, base)
    return stack


def is_encoder(model_path: str) -> bool:
    """Whether a hub id or directory is an encoder such as BERT."""
    path = Path(adapter_stack(model_path)[0])
    if not (path / CONFIG_FILE).is_file():
        from transformers import AutoConfig

        with loading(f"--model_path {path}: no configuration"):
            return is_bidirectional(AutoConfig.from_pretrained(str(path), trust_remote_code=False).model_type)
    model_type = read_json(path / CONFIG_FILE, fields={"model_type": str}).get("model_type")
    if model_type is None:
        raise UserError(f"{path / CONFIG_FILE}: names no model_type")
    return is_bidirectional(model_type)


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


def worker_devices(workers: int, device: str | None = None) -> list[str]:
    """A device for each of several processes: `device`, or the GPUs in turn, or what else there is."""
    import torch

    if device is None and torch.cuda.is_available():
        return [f"cuda:{i % torch.cuda.device_count()}" for i in range(workers)]
    return [device or pick_device()] * workers  # each looks for itself whether it can have it


def dtype_of(format: Format) -> "torch.dtype":
    """PyTorch's name of a number format."""
    import torch

    return getattr(torch, DTYPES[format])


def load_tokenizer(model_path: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a directory or hub id, with a padding token (a run keeps its own copy beside the adapter)."""
    from transformers import AutoTokenizer

    with loading(f"--model_path {model_path}: no tokenizer", model_path):
        tokenizer = AutoTokenizer.from_pretrained(model_path, trust_remote_code=False)
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) <= max(len(tokenizer.added_tokens_decoder), len(tokenizer.all_special_tokens)):
        # what Transformers makes up where the file of the vocabulary is not there
        raise UserError(f"--model_path {model_path}: no tokenizer: its vocabulary is empty (is tokenizer.json there?)")
    if tokenizer.pad_token is None:
        raise UserError(f"--model_path {model_path}: its tokenizer has neither a padding nor an end-of-text token")
    return tokenizer


def load_model(
    model_path: str,
    precision: Format = "bf16",
    device: str | None = None,
    attention: str | None = None,
    contract: Contract | None = None,
    load_in_4bit: bool = False,
    new_head: bool = False,
    without_weights: bool = False,
) -> "PreTrainedModel | PeftModel":
    """Load a model for prediction or further training.

    Args:
        model_path: a hub id, a model directory, or an adapter directory (what is below it is loaded under it).
        precision: "bf16", "fp16" or "fp32".
        device: where to put it; None = the first GPU, else the CPU.
        attention: Transformers' name of the attention code ("sdpa", "eager", ...); None = its own choice.
        contract: what it is for; with objective "classify" it gets a head.
        load_in_4bit: keep the weights of linear layers in 4 bits (NF4, double quantisation), but for the head's.
        new_head: draw the head, and the pooler of an encoder, where the directory has none: to be learnt, or because an
            adapter that is still to be put on it brings them. `model.new_modules` names what was drawn.
        without_weights: read the configuration alone, and no adapters; see `data.engine.weightless`.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: nothing there that loads whole, weights that are not finite in a head or an adapter, or no model for
            this objective.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from data.engine.classifier import classifier_class, head_names
    from data.engine.load_checks import check_finite, new_modules
    from data.engine.weightless import weightless_model

    base, *adapters = adapter_stack(model_path)
    options = {"dtype": dtype_of(precision), "attn_implementation": attention}
    if load_in_4bit and not without_weights:
        options |= {"quantization_config": four_bits(precision), "device_map": {"": pick_device(device)}}
        if len(adapters) > 1:
            raise UserError(f"--model_path {model_path}: an adapter over an adapter; merge_lora.py has to merge them "
                            "before its weights can be kept in 4 bits")  # fmt: skip
    classifies = contract is not None and contract.objective == "classify"
    head = _head_settings(contract) if classifies else {}
    with loading(f"--model_path {base}: does not load", base):
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, **head)
        check_sizes(config, base)
        model_class = classifier_class(config, contract.head or "linear") if classifies else AutoModelForCausalLM
        if without_weights:
            return weightless_model(model_class, config, dtype_of(precision), attention, load_in_4bit)
        model, report = model_class.from_pretrained(
            base, config=config, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True,
            trust_remote_code=False, **options,
        )  # fmt: skip
    model.new_modules = new_modules(model, report, base, new_head or (classifies and bool(adapters)))
    if classifies:
        heads = ((head, model.get_submodule(head)) for head in head_names(model))
        check_finite({f"{head}.{name}": p for head, m in heads for name, p in m.named_parameters()}, base)
    if hasattr(model, "score"):
        model.score.float()  # a new one; Transformers keeps those it reads in fp32
    if adapters:
        model = with_adapters(model, base, adapters, contract)
    if model.get_output_embeddings() is not None:
        # Generation projects `hidden[:, -1:]`, a slice with gaps, for which the CPU's batched product copies the whole
        # vocabulary matrix once per row. `contiguous()` would not do: for one row the slice counts as such, and is
        # copied.
        model.get_output_embeddings().register_forward_pre_hook(
            lambda _, inputs: (inputs[0].clone(memory_format=torch.contiguous_format),)
        )
    if load_in_4bit:
        return model.eval()
    device = pick_device(device)
    with loading(f"--model_path {base}: cannot be put on {device}"):
        return model.to(device).eval()


def _head_settings(contract: Contract) -> dict[str, Any]:
    """What Transformers' configuration says about a head; its pipelines have nothing else to make probabilities by."""
    labels = dict(enumerate(contract.task.labels))
    one = "single_label_classification" if len(labels) > 1 else None
    return {
        "num_labels": len(labels),
        "id2label": labels,
        "label2id": {label: i for i, label in labels.items()},
        "problem_type": "multi_label_classification" if contract.activation == "sigmoid" else one,
    }


def with_adapters(
    model, base: str, adapters: Sequence[str], contract: Contract | None = None, trainable: bool = False
) -> "PeftModel":
    """The adapters over `model`: the last on top of it, those below folded into its weights.

    Args:
        model: the whole model they begin with, of `load_model`.
        base: where it was loaded from.
        adapters: their directories, from the lowest.
        contract: that of the last, which knows the model it was trained on.
        trainable: have the last learn on, in fp32.

    Raises:
        UserError: an adapter that is broken, or was trained on another model.
    """
    from peft import PeftModel

    from data.engine.fingerprints import check_fingerprint
    from data.engine.load_checks import check_adapter_tensors, parameter_names

    for adapter in adapters:
        top = adapter == adapters[-1]
        tensors = check_adapter(adapter)
        brought = {name.removeprefix("base_model.model.") for name in tensors}
        still_new = [name for name in model.new_modules if not parameter_names(model, name) <= brought]
        if still_new and top:
            raise UserError(
                f"{adapter}: brings no {', '.join(still_new)}, which its base model {base} lacks, too; each start "
                "would draw another, so train it again"
            )
        with loading(f"--model_path {adapter}: does not fit its base model {base}"):
            model = PeftModel.from_pretrained(
                model, adapter, is_trainable=trainable and top,
                autocast_adapter_dtype=trainable and top,  # else in the base's format
            )  # fmt: skip
        check_adapter_tensors(model, tensors, Path(adapter) / ADAPTER_WEIGHTS)
        if not top:
            model = model.merge_and_unload()
            model.new_modules = still_new
    if contract is not None:
        other = f"{adapters[-1]}: was trained on another base model than {base}"
        check_fingerprint(contract.base_fingerprint, model, other)
    return model


def four_bits(precision: Format) -> "BitsAndBytesConfig":
    """QLoRA's number format (Dettmers et al., 2023): NF4 with quantised constants, computed in `precision`."""
    _of_four_bits.setLevel(logging.NOTSET)
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError("4-bit weights need bitsandbytes (pip install -r requirements.txt)") from error
    from transformers import BitsAndBytesConfig

    from data.engine.classifier import HEAD_INSIDE

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype_of(precision),
        llm_int8_skip_modules=["lm_head", "score", "classifier", "pre_classifier", rf".*\.{HEAD_INSIDE}"],
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
