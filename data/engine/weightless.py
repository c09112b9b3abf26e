"""Models whose weights have shapes and no contents: what computes with them computes shapes, in no memory.

PyTorch's `FakeTensor`s do so. Whatever meets one becomes one, and all else stays as it is: token ids, masks and places
in a row keep their contents, on which the shapes depend.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK, OUTER_BLOCK = 64, 256  # weights in 4 bits that share a scale; scales that share one of theirs
_fake = FakeTensorMode(allow_non_fake_inputs=True)


def weightless_model(
    model_class: type, config: Any, dtype: torch.dtype, attention: str | None = None, load_in_4bit: bool = False
) -> "PreTrainedModel":
    """A model as its configuration makes it, without contents, on the CPU.

    Args:
        model_class: a class with Transformers' `_from_config`, or one of its `AutoModelFor...`.
        config: the model's configuration.
        dtype, attention: see `data.engine.models.load_model`.
        load_in_4bit: count the weights of linear layers as NF4 with double quantisation has them, but for the heads'.
    """
    make = getattr(model_class, "from_config", None) or model_class._from_config
    with _fake:
        model = make(config, dtype=dtype, attn_implementation=attention)
        if hasattr(model, "score"):
            for weight in model.score.parameters():  # as `load_model` has them
                weight.data = weight.data.float()
    if load_in_4bit:
        _in_four_bits(model, dtype)
    model.new_modules = []
    model._apply = lambda fn, recurse=True: model  # it stays where it is: PyTorch cannot move what has no contents
    return model


def weightless(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and format, without contents."""
    return _fake.from_tensor(tensor.detach())


def without_contents(model: nn.Module) -> None:
    """Take the contents away from what was put on a weightless model, such as an adapter."""
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is None or isinstance(tensor, FakeTensor):
                    continue
                own[name] = weightless(tensor)
                if own is module._parameters:
                    own[name] = nn.Parameter(own[name], requires_grad=tensor.requires_grad)


def _in_four_bits(model: nn.Module, dtype: torch.dtype) -> None:
    """Put bitsandbytes' layers in the places of linear ones, as `load_in_4bit` of Transformers does."""
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn import Linear4bit

    kept = {id(model.get_output_embeddings()), *(id(module) for module in _heads(model))}
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is not nn.Linear or id(layer) in kept:
                continue
            count = layer.weight.numel()
            scales = -(-count // BLOCK)
            outer = QuantState(_empty(-(-scales // OUTER_BLOCK)), code=_empty(256), blocksize=OUTER_BLOCK,
                               dtype=torch.float32)  # fmt: skip
            state = QuantState(
                _empty(scales, dtype=torch.uint8), shape=layer.weight.shape, code=_empty(16), blocksize=BLOCK,
                quant_type="nf4", dtype=dtype, offset=_empty(), state2=outer,
            )  # fmt: skip
            packed = Linear4bit(1, 1, bias=False, compute_dtype=dtype, quant_type="nf4")
            packed.in_features, packed.out_features = layer.in_features, layer.out_features
            packed.weight = nn.Parameter(_empty(-(-count // 2), 1, dtype=torch.uint8), requires_grad=False)
            packed.weight.quant_state, packed.weight.quant_type = state, "nf4"
            packed.weight.compress_statistics, packed.weight.bnb_quantized = True, True
            packed.quant_state, packed.bias = state, layer.bias
            setattr(parent, name, packed)
    model.is_loaded_in_4bit = True  # by which TRL and PEFT know it


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    with _fake:
        return torch.empty(shape, dtype=dtype)


def quantisation_state(model: nn.Module) -> list[Tensor]:
    """The tensors beside the parameters that 4-bit weights consist of."""
    states = [p.quant_state for p in model.parameters() if getattr(p, "quant_state", None) is not None]
    return [t for state in states for t in (state.absmax, state.code, state.offset, state.state2.absmax,
                                            state.state2.code)]  # fmt: skip


def _heads(model: nn.Module) -> list[nn.Module]:
    """The linear layers outside of a classifier's base model."""
    if model.get_output_embeddings() is not None:
        return []
    inside = {id(module) for module in model.base_model.modules()}
    return [module for module in model.modules() if id(module) not in inside]


# --- the attention of a GPU -------------------------------------------------------------------------------------------


class _FusedAttention(torch.autograd.Function):
    """What fused attention keeps and gives, FlashAttention as FlexAttention; nothing is computed."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query (B, H, N, D), key (B, K, M, D), value (B, K, M, V) -> (B, H, N, V)."""
        output = query.new_empty(*query.shape[:-1], value.shape[-1])
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return output

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, *_ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _fused_attention(module, query: Tensor, key: Tensor, value: Tensor, *masks: Any, **other: Any):
    """In the form in which Transformers calls an attention; returns (B, N, H, V), and no weights."""
    if torch.is_autocast_enabled("cpu"):
        query, key, value = (each.to(torch.get_autocast_dtype("cpu")) for each in (query, key, value))
    return _FusedAttention.apply(query, key, value).transpose(1, 2).contiguous(), None


@contextmanager
def fused_attention(planned: bool) -> Iterator[None]:
    """Within this context, if `planned`, a weightless model's attention takes the memory that it takes on a GPU: the
    code that PyTorch chooses on a CPU would keep the scores of all pairs."""
    names = ("sdpa", "flex_attention") if planned else ()
    for name in names:
        ALL_ATTENTION_FUNCTIONS[name] = _fused_attention
    try:
        yield
    finally:
        for name in names:
            del ALL_ATTENTION_FUNCTIONS[name]
