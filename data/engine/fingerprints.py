"""Which weights lie under an adapter: a short name for them, that other weights of the same shape do not have."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from data.arguments import UserError
from data.engine.model_files import CONFIG_FILE, loading, weight_files

if TYPE_CHECKING:
    from safetensors import safe_open
    from torch import Tensor


def fingerprint(model) -> str:
    """`<vectors>-<matrices>`, 16 hex digits each, that tell the weights under an adapter from others of the same shape.

    The first are the SHA-256 of the vectors (scales and biases) of the model without its heads, in bf16: no adapter and
    no 4-bit format changes them, but fine-tuning of all weights does. The second are that of the first row of each
    matrix, which the merging of an adapter changes, too. Where weights are kept in 4 bits, the rows are read from the
    files they were made of; the second part is left out where those have other names. Modules that were drawn at random
    are in neither.
    """
    import torch

    vectors, rows = hashlib.sha256(), {}
    bare = model.get_base_model() if hasattr(model, "get_base_model") else model
    new = tuple(f"{name}." for name in getattr(bare, "new_modules", ()))
    prefix = f"{bare.base_model_prefix}." if bare.base_model is not bare else ""
    stored = _StoredRows(bare)
    for name, parameter in sorted(bare.base_model.named_parameters()):
        if "lora_" in name or f"{prefix}{name}".startswith(new):
            continue
        name = name.replace(".base_layer", "")
        if parameter.dim() == 1:
            vectors.update(name.encode())
            vectors.update(_as_bytes(parameter))
        else:
            rows[name] = first_row(parameter) if parameter.is_floating_point() else stored.row(f"{prefix}{name}")
    known = vectors.hexdigest()[:16]
    if any(row is None for row in rows.values()):
        return known
    matrices = hashlib.sha256(" ".join(rows).encode())
    matrices.update(_as_bytes(torch.cat([row.to(bare.device) for row in rows.values()])) if rows else b"")
    return f"{known}-{matrices.hexdigest()[:16]}"


def first_row(weight: "Tensor") -> "Tensor":
    """The first row (C,) of a matrix (R, C), or of the first of several."""
    while weight.dim() > 1:
        weight = weight[0]
    return weight


def check_fingerprint(stored: str | None, model, what: str) -> None:
    """Raise a `UserError`, `what` at its beginning, where `model` has other weights than those `stored` stands for.

    Args:
        stored: as `fingerprint` gave it, or without its second part, which was not there in earlier versions; None and
            weights in fp16, which has no room for some of what bf16 holds, are not compared.
        model: the model, with an adapter on it or without.
        what: names the run that was trained on these weights.
    """
    import torch

    if stored is None or model.dtype == torch.float16:
        return
    found = fingerprint(model)
    if not is_same_fingerprint(stored, found):
        raise UserError(f"{what}: its weights differ (fingerprint {found}, expected {stored})")


def is_same_fingerprint(one: str, other: str) -> bool:
    """Whether two fingerprints agree in the parts that both have."""
    parts = min(one.count("-"), other.count("-")) + 1
    return one.split("-")[:parts] == other.split("-")[:parts]


def _as_bytes(weights: "Tensor") -> bytes:
    import torch

    return weights.detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes()


class _StoredRows:
    """First rows of matrices as they stand in a model's files.

    Args:
        model: as Transformers loaded it.
    """

    def __init__(self, model) -> None:
        self._model = model
        self._files: dict[str, safe_open] | None = None

    def row(self, name: str) -> "Tensor | None":
        """The first row (C,) of a matrix, or None where no file has one of this name."""
        if self._files is None:
            self._files = dict(self._found())
        # a bare base model is saved without the prefix
        name = name if name in self._files else name.removeprefix(f"{self._model.base_model_prefix}.")
        if name not in self._files:
            return None
        tensor = self._files[name].get_slice(name)
        return first_row(tensor[:1]) if len(tensor.get_shape()) > 1 else None

    def _found(self) -> "Iterator[tuple[str, safe_open]]":
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
        from safetensors import safe_open

        place = Path(self._model.name_or_path)
        if not place.is_dir():
            revision = getattr(self._model.config, "_commit_hash", None)
            try:
                cached = try_to_load_from_cache(str(place), CONFIG_FILE, revision=revision)
            except HFValidationError:  # a directory that is gone
                return
            if not isinstance(cached, str):
                return
            place = Path(cached).parent
        for path in weight_files(place):
            with loading(str(path)):
                tensors = safe_open(path, framework="pt")  # open as long as these rows are asked for
            yield from ((name, tensors) for name in tensors.keys())  # noqa: SIM118
