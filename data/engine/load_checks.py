"""Whether a loaded model is what was saved: no tensor drawn at random unless it is to be learnt, and all finite."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.arguments import UserError, one_line
from data.engine.classifier import HEAD_INSIDE, head_names

Shape = Sequence[int]
SHOWN = 3  # tensors that an error names


def new_modules(model, report: dict[str, Any], model_path: str, allowed: bool) -> list[str]:
    """The modules of a just loaded model whose weights its files do not bring, so that they have to be learnt.

    These can be the head of a classifier, which stands outside the base model, and the pooler inside it, which models
    saved by a masked-language model lack.

    Args:
        model: as Transformers loaded it.
        report: what `from_pretrained(..., output_loading_info=True)` said.
        model_path: where it was loaded from.
        allowed: whether there may be any.

    Raises:
        UserError: the files lack something else, have it in another shape, or hold more layers than the model.
    """
    shapes = {name: _misshapen(name, stored, wanted) for name, stored, wanted in report["mismatched_keys"]}
    lacking = {*report["missing_keys"], *shapes}
    heads = head_names(model) if allowed and model.get_output_embeddings() is None else []
    if allowed:
        heads += [f"{model.base_model_prefix}.{HEAD_INSIDE}"]
    whole = {
        f"{place}.{name}"
        for place in {name.rpartition(".")[0] for name in lacking}
        if (names := [name for name, _ in model.get_submodule(place).named_parameters(recurse=False)])
        and all(f"{place}.{name}" in lacking for name in names)
        for name in names
    }
    bad = [name for name in lacking if name not in whole or not name.startswith(tuple(f"{head}." for head in heads))]
    if bad:
        shown = [shapes.get(name, name) for name in sorted(bad)]
        raise UserError(f"--model_path {model_path}: its weights lack {_counted(shown)}, which the model needs")
    stray = {name for name in report["unexpected_keys"] if re.search(r"\.\d+\.", name)}
    if stray:
        patterns = {re.sub(r"\.\d+\.", ".*.", name) for name in model.state_dict()}
        stray = {name for name in stray if re.sub(r"\.\d+\.", ".*.", name) in patterns}
        if stray:
            raise UserError(
                f"--model_path {model_path}: its weights hold {_counted(sorted(stray))}, of layers that config.json "
                "does not count"
            )
    return [head for head in heads if any(name.startswith(f"{head}.") for name in lacking)]


def _counted(names: Sequence[str]) -> str:
    shown = "; ".join(one_line(name, 120) for name in names[:SHOWN])
    return f"{len(names)} tensor{'s' * (len(names) > 1)}: {shown}{'; …' * (len(names) > SHOWN)}"


def parameter_names(model, module: str) -> set[str]:
    """The full names of the parameters of one of a model's modules."""
    return {f"{module}.{name}" for name, _ in model.get_submodule(module).named_parameters()}


def check_adapter_tensors(model, found: Mapping[str, Shape], weights: Path) -> None:
    """Raise a `UserError` where an adapter is not all of what its file holds, or not finite, or the file holds more.

    Args:
        model: the `PeftModel`; one on the meta device is as its adapter_config.json makes it, without weights.
        found: the tensors in the file.
        weights: the file.
    """
    from peft import get_peft_model_state_dict
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    own = dict(model.named_parameters())
    adapters = {name: parameter for name, parameter in own.items() if "lora_" in name or "modules_to_save" in name}
    if not any(parameter.is_meta for parameter in adapters.values()):
        check_finite(adapters, str(weights))
    if get_checkpoint_conversion_mapping(model.config.model_type) is not None:
        return  # PEFT renames what it reads for them
    wanted = {_saved_name(name): parameter for name, parameter in adapters.items()}
    if wanted.keys() != found.keys():  # PEFT's own list takes ten times as long
        # not the embeddings: PEFT would ask a hub whether the base model's are others
        wanted = get_peft_model_state_dict(model, save_embedding_layers=False)
    if lacking := sorted(wanted.keys() - found.keys()):
        raise UserError(f"{weights}: lacks {_counted(lacking)}")
    if stray := sorted(found.keys() - wanted.keys() - own.keys()):
        raise UserError(f"{weights}: holds {_counted(stray)}, for which its adapter_config.json has no place")
    if other := _of_other_shape(own | wanted, found):
        raise UserError(f"{weights}: has {_counted(other)}")


def _saved_name(name: str) -> str:
    """An adapter's parameter as PEFT's file names it."""
    return name.replace("modules_to_save.default.", "").replace(".default.", ".")


def check_shapes(model, found: Mapping[str, Shape], model_path: str) -> None:
    """Raise a `UserError` where a model's files lack some of its tensors, or have them in another shape.

    Args:
        model: the model, which may be on the meta device.
        found: the tensors in the files.
        model_path: names the model.
    """
    found = {**{f"{model.base_model_prefix}.{name}": shape for name, shape in found.items()}, **found}
    wanted = {name: tensor for name, tensor in model.state_dict().items() if name not in model.all_tied_weights_keys}
    if bad := sorted(wanted.keys() - found.keys()) or _of_other_shape(wanted, found):
        raise UserError(f"--model_path {model_path}: its weights lack {_counted(bad)}, which the model needs")


def _of_other_shape(wanted: Mapping[str, Tensor], found: Mapping[str, Shape]) -> list[str]:
    both = sorted(wanted.keys() & found.keys())
    return [
        _misshapen(name, found[name], wanted[name].shape) for name in both if tuple(found[name]) != wanted[name].shape
    ]


def _misshapen(name: str, found: Shape, wanted: Shape) -> str:
    return f"{name} of shape {tuple(found)} in place of {tuple(wanted)}"


def check_finite(weights: Mapping[str, Tensor], what: str) -> None:
    """Raise a `UserError`, `what` at its beginning, where any of these named weights holds NaN or infinity."""
    # a norm of all takes a fraction of the time; it may be infinite by itself, in fp16
    if not torch.nn.utils.get_total_norm([tensor.detach() for tensor in weights.values()]).isfinite():
        bad = sorted(name for name, tensor in weights.items() if not tensor.isfinite().all())
        if bad:
            raise UserError(f"{what}: has numbers that are not finite in {_counted(bad)}")
