"""A hub id or a directory -> a loaded model: whole, under adapters, in 4 bits, with a head."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data.arguments import UserError
from data.contract import Contract
from data.encoding import is_bidirectional
from data.files import ADAPTER_FILE

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

# PEFT imports bitsandbytes, which then warns of a slow path; only 4-bit weights take it, and they have the warning back
_of_four_bits = logging.getLogger("bitsandbytes.backends.cpu.ops")
_of_four_bits.setLevel(logging.ERROR)


def check_model_path(model_path: str) -> None:
    """Raise a `UserError` when `model_path` is meant as a directory, but is none that holds a model.

    A name with at most one slash that does not begin like a path, or in a folder that is here, is taken for a hub id.
    """
    path = Path(model_path)
    if path.exists():
        if not any((path / name).is_file() for name in ("config.json", ADAPTER_FILE)):
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
    path = Path(model_path) / ADAPTER_FILE
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
    if not (path / "config.json").is_file():
        from transformers import AutoConfig

        try:
            return is_bidirectional(AutoConfig.from_pretrained(str(path)).model_type)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"--model_path {path}: no configuration: {str(error).splitlines()[0]}") from error
    try:
        return is_bidirectional(json.loads((path / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / 'config.json'}: names no model_type") from error


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


def load_tokenizer(model_path: str) -> "PreTrainedTokenizerBase":
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
    load_in_4bit: bool = False,
) -> "PreTrainedModel | PeftModel":
    """Load a model for prediction or further training.

    Args:
        model_path: a hub id, a model directory, or an adapter directory (what is below it is loaded under it).
        precision: "bf16", "fp16" or "fp32".
        device: where to put it; None = the first GPU, else the CPU.
        attention: Transformers' name of the attention code ("sdpa", "eager", ...); None = its own choice.
        contract: what it is for; with objective "classify" it gets a head, new where the directory has none.
        load_in_4bit: keep the weights of linear layers in 4 bits (NF4, double quantisation), but for the head's.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: nothing there that loads, or no model for this objective.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    base, *adapters = adapter_stack(model_path)
    options = {"dtype": dtype, "attn_implementation": attention}
    if load_in_4bit:
        options |= {"quantization_config": _four_bits(), "device_map": {"": pick_device(device)}}
        if len(adapters) > 1:
            raise UserError(f"--model_path {model_path}: an adapter over an adapter; merge_lora.py has to merge them "
                            "before its weights can be kept in 4 bits")  # fmt: skip
    try:
        if contract is not None and contract.objective == "classify":
            from data.engine.classifier import classifier_class

            labels = dict(enumerate(contract.task.labels))
            config = AutoConfig.from_pretrained(
                base, num_labels=len(labels), id2label=labels, label2id={label: i for i, label in labels.items()},
            )  # fmt: skip
            model_class, options["config"] = classifier_class(config, contract.head or "linear"), config
        else:
            model_class = AutoModelForCausalLM
        model = model_class.from_pretrained(base, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--model_path {base}: does not load: {str(error).splitlines()[0]}") from error
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
    return (model if load_in_4bit else model.to(pick_device(device))).eval()


def with_adapters(model, base: str, adapters: Sequence[str], contract: Contract | None = None) -> "PeftModel":
    """The adapters over `model`: the last on top of it, those below folded into its weights.

    Args:
        model: the whole model they begin with.
        base: where it was loaded from.
        adapters: their directories, from the lowest.
        contract: that of the last, which knows the model it was trained on.

    Raises:
        UserError: an adapter that was trained on another model.
    """
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError

    for adapter in adapters:
        try:
            model = PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)  # in the base dtype
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--model_path {adapter}: does not fit its base model {base}: {reason}") from error
        if adapter != adapters[-1]:
            model = model.merge_and_unload()
    exact = model.dtype != torch.float16  # which has no room for some of what bf16 holds
    if contract is not None and exact and contract.base_fingerprint not in (None, fingerprint(model)):
        raise UserError(f"{adapters[-1]}: was trained on another base model than {base}: its weights differ")
    return model


def fingerprint(model) -> str:
    """16 hex digits that tell the weights under an adapter from others of the same shape.

    SHA-256 of the vectors (scales and biases) of the model without its heads, in bf16: no adapter and no 4-bit format
    changes them, but any fine-tuning does.
    """
    import torch

    digest = hashlib.sha256()
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name, parameter in sorted(bare.base_model.named_parameters()):
        if parameter.dim() == 1 and "lora_" not in name:
            digest.update(name.replace(".base_layer", "").encode())
            digest.update(parameter.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]


def _four_bits() -> "BitsAndBytesConfig":
    """QLoRA's number format (Dettmers et al., 2023): NF4 with quantised constants, computed in bf16."""
    import torch

    _of_four_bits.setLevel(logging.NOTSET)
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise UserError("4-bit weights need bitsandbytes (pip install -r requirements.txt)") from error
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
