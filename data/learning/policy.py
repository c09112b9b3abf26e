"""The model that main_grpo.py trains, its adapter, and whether the engine that is to draw answers is there.

`args` is in each function the stage's own `Args`.
"""

import importlib.util
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from data.arguments import UserError
from data.contract import Contract
from data.engine.models import adapter_stack, compile_layers, load_model, with_adapters
from data.files import ADAPTER_FILE, read_json
from data.learning.trainers import check_positions, lora_config, run_device, share_prefixes

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def load_policy(args, longest: int) -> "PreTrainedModel | PeftModel":
    """The model to train, set up for packed rows where it takes them.

    An adapter (a LoRA run of main_SFT.py) learns on; any other start gets a new one, unless `--tuning full`.

    Args:
        args: the stage's flags.
        longest: tokens of the longest prompt with its answer.

    Raises:
        UserError: it does not load, is too short, or its adapter was trained on another model.
    """
    base, *adapters = adapter_stack(args.model_path)
    # as in SFT: plain matrix products go backwards faster on short texts than the CPU's fused attention
    attention = "eager" if run_device(args) == "cpu" else None
    precision = "fp32" if args.tuning == "full" else args.precision
    model = load_model(base, precision, device="cpu", attention=attention, without_weights=args.plan)
    if args.freeze_embeddings:
        model.get_input_embeddings().requires_grad_(False)
    check_positions(model, longest, args.model_path)
    share_prefixes(args, model, longest)
    if args.compile:
        compile_layers(model)
    if adapters and args.plan:
        model = _with_adapter_like(model, adapters[-1])
    elif adapters:
        model = with_adapters(model, base, adapters, Contract.load(args.model_path), trainable=True)
    return model.train()


def _with_adapter_like(model, adapter: str) -> "PeftModel":
    """`model` with an adapter on it that is new, and of the same shape as the one in a directory."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig.from_pretrained(adapter)
    settings.inference_mode = False
    return get_peft_model(model, settings)


def with_new_adapter(args, model) -> "PreTrainedModel | PeftModel":
    """`model` with a new adapter on it, unless it has one or `--tuning full` asks for none; as TRL does for its own."""
    if hasattr(model, "peft_config") or args.tuning == "full":
        return model
    from peft import get_peft_model
    from transformers import set_seed

    set_seed(args.seed)  # a trainer does so before it makes one
    if args.gradient_checkpointing:
        model.enable_input_require_grads()
    return get_peft_model(model, lora_config(args, model))


def check_vllm(args) -> None:
    """Raise a `UserError` when `--use_vllm` asks for an engine that is not here, or a server that does not answer."""
    if args.use_vllm == "off":
        return
    if importlib.util.find_spec("vllm") is None:
        raise UserError(f"--use_vllm {args.use_vllm}: vLLM is not installed; see requirements-vllm.txt")
    if args.use_vllm == "server":
        address = f"http://{args.vllm_server_host}:{args.vllm_server_port}/health"
        try:
            urllib.request.urlopen(address, timeout=10).close()
        except OSError as error:
            raise UserError(
                f"--use_vllm server: no answer from {address} ({error}); see scripts/serve_vllm.sh"
            ) from error


def check_adapter_flags(args) -> None:
    """Raise a `UserError` when a flag asks for another adapter than the one the start brings, or for none."""
    if args.tuning == "full":
        raise UserError(f"--tuning full: {args.model_path} is an adapter, which learns on; merge it first")
    settings = read_json(Path(args.model_path) / ADAPTER_FILE)
    for name, key in (("lora_r", "r"), ("lora_alpha", "lora_alpha")):
        if getattr(args, name) not in (None, settings.get(key)):
            raise UserError(f"--{name} {getattr(args, name)}: the adapter in {args.model_path} has {settings.get(key)}")
