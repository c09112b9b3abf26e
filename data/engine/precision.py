"""Which number format a model is computed in: `--precision auto` takes the one in which this machine is faster.

A GPU multiplies bf16 as fast as fp16 where it knows it at all, and bf16 needs no loss scaling. Processors differ far
more: with AMX or AVX-512's bf16 instructions they multiply bf16 two to ten times as fast as fp32, without them at a
quarter of its speed. So there it is measured, on products of the sizes that the model has.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TextIO

import psutil

from data.arguments import UserError, is_first_process, one_line
from data.contract import Format, Precision
from data.engine.model_files import loading, tensor_shapes, weight_files
from data.engine.models import DTYPES, adapter_stack, dtype_of

TOKENS = 256  # rows of the products that are measured
MOST_COLUMNS = 2048  # of a matrix: a larger one is as fast, and takes longer
ROUNDS = 5
# what bf16 has to be faster by: its sums and exponentials are computed in fp32 and rounded, which products do not show
WORTH_BF16 = 1.2
MOST_WEIGHTS = 0.7  # share of the machine's memory that they may take


@dataclass(frozen=True)
class Choice:
    """A number format, and why; no reason where it was asked for."""

    format: Format
    reason: str = ""

    def say(self, file: TextIO | None = None) -> None:
        """A line about it, once in a distributed run.

        Args:
            file: where to; None = standard output.
        """
        if self.reason and is_first_process():
            print(f"precision {self.format}: {self.reason}", file=file)


def pick_precision(asked: Precision, model_path: str, device: str, trains: bool = False) -> Choice:
    """The number format for a model on a device.

    Args:
        asked: a format, or "auto".
        model_path: hub id or directory of the model, which may be an adapter.
        device: where it will compute, as PyTorch names it.
        trains: it will be trained, for which fp16 needs the loss scaling of GPUs.

    Raises:
        UserError: no such format, fp16 where it cannot be trained in, or a model without a readable configuration.
    """
    import torch

    kind = torch.device(device).type
    if asked not in ("auto", *DTYPES):
        raise UserError(f"--precision {one_line(asked, 60)}: must be auto, {', '.join(DTYPES)}")
    if asked != "auto":
        if asked == "fp16" and trains and kind != "cuda":
            raise UserError("--precision fp16: needs a GPU to train; use auto, bf16 or fp32")
        return Choice(asked)
    if kind == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Choice("bf16", f"which {torch.cuda.get_device_name(device)} computes")
        return Choice("fp16", f"{torch.cuda.get_device_name(device)} does not compute bf16")
    hidden, intermediate, parameters = _sizes(model_path)
    needed = 4 * parameters / 2**30
    memory = psutil.virtual_memory().total / 2**30
    if needed > MOST_WEIGHTS * memory:
        return Choice("bf16", f"in fp32 its weights alone would take {needed:.0f} of {memory:.0f} GiB")
    return _faster(hidden, intermediate, device)


def _sizes(model_path: str) -> tuple[int, int, int]:
    """Width of a model, that inside its MLPs, and the number of its weights (0 of one that is still on a hub)."""
    from transformers import AutoConfig

    base = adapter_stack(model_path)[0]
    with loading(f"--model_path {base}: no configuration"):
        config = AutoConfig.from_pretrained(base, trust_remote_code=False).get_text_config()
    hidden = config.hidden_size
    shapes = tensor_shapes(weight_files(Path(base)))
    return hidden, getattr(config, "intermediate_size", None) or 4 * hidden, sum(map(math.prod, shapes.values()))


@cache
def _faster(hidden: int, intermediate: int, device: str) -> Choice:
    """The faster one of bf16 and fp32, by products of the sizes of an MLP layer; once in a process."""
    import torch

    what = "this processor" if torch.device(device).type == "cpu" else "this GPU"
    rates = _rates(min(hidden, MOST_COLUMNS), min(intermediate, MOST_COLUMNS), device)
    if "bf16" not in rates:
        return Choice("fp32", f"{what} does not compute bf16")
    chosen, other = ("bf16", "fp32") if rates["bf16"] > WORTH_BF16 * rates["fp32"] else ("fp32", "bf16")
    return Choice(chosen, f"{what} multiplies {rates[chosen]:.0f} GFLOP/s in it, {rates[other]:.0f} in {other}")


def _rates(hidden: int, intermediate: int, device: str) -> dict[str, float]:
    """GFLOP/s of (TOKENS, hidden) x (hidden, intermediate) in fp32 and, where the device has it, bf16.

    The formats take turns, and of each the fastest round counts: what else the machine does slows both alike.
    """
    import torch

    factors = {}
    for name in ("fp32", "bf16"):
        try:
            kind = {"dtype": dtype_of(name), "device": device}
            factors[name] = torch.randn(TOKENS, hidden, **kind), torch.randn(intermediate, hidden, **kind)
            torch.nn.functional.linear(*factors[name])
        except (RuntimeError, TypeError):  # as MPS before macOS 14
            if name == "fp32":
                raise
            factors.pop(name, None)
    seconds = dict.fromkeys(factors, math.inf)
    for _ in range(ROUNDS):
        for name, (tokens, weight) in factors.items():
            begin = time.perf_counter()
            torch.nn.functional.linear(tokens, weight)[0, 0].item()  # which waits for a GPU
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
    return {name: 2e-9 * TOKENS * hidden * intermediate / each for name, each in seconds.items()}


@contextmanager
def in_fp32(model) -> Iterator[None]:
    """Within this context a model's weights are in fp32, which holds those of all formats; behind it as before."""
    weights = [p for p in model.parameters() if p.is_floating_point()]
    before = [p.dtype for p in weights]
    for weight in weights:
        weight.data = weight.data.float()
    try:
        yield
    finally:
        for weight, dtype in zip(weights, before, strict=True):
            weight.data = weight.data.to(dtype)
