"""How many bytes tensors hold while something is computed: at every moment, and of what kind they are.

Each storage that an operation returns is counted from then on until the last tensor on it is gone. This holds for
tensors without contents, too (`data/engine/weightless.py`): what a step takes is known without its arithmetic. It is
what an allocator is asked for, to the byte; what it keeps for itself, in gaps and in reserve, is not in it.

PyTorch's own `torch.distributed._tools.mem_tracker.MemTracker` does the same by module, but allows each module one call
in a step, where answers are drawn by many, and does not tell logits from other tensors.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from data.engine.weightless import weightless

IS_NONZERO = torch.ops.aten.is_nonzero.default
# what asks a tensor for its number; in inference mode, the first two are not made of the last
NUMBERS = (IS_NONZERO, torch.ops.aten.item.default, torch.ops.aten._local_scalar_dense.default)
BY_PLACES = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default)  # whose second argument says where


class LiveMemory(TorchDispatchMode):
    """Within this context, the memory of all tensors that are made is counted.

    New tensors of real numbers have no contents, whatever they are made of: no shape depends on one. Whole numbers,
    such as places in a row, have. A tensor without contents that is asked for a number gives 1 (True), so that what is
    logged of a step, or decided by it, needs none.

    Args:
        kind_of: a new tensor -> what it is counted as.

    Attributes:
        now: kind -> bytes held now.
        peak: the same at the moment of the most bytes since `watched` began.
    """

    def __init__(self, kind_of: Callable[[Tensor], str], _dispatch_key=None):
        super().__init__(_dispatch_key)
        self.kind_of = kind_of
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._held: dict[int, tuple[str, int]] = {}  # storage -> its kind and size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in NUMBERS and isinstance(args[0], FakeTensor):
            return func is IS_NONZERO or torch.ones((), dtype=args[0].dtype).item()
        if func in BY_PLACES:
            args = (args[0], [place for each in args[1] for place in _places(each)], *args[2:])
        result = func(*args, **(kwargs or {}))
        if not func.is_view and not func._schema.is_mutable:
            result = tree_map_only(Tensor, _weightless_if_real, result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return result

    def count_as(self, kind: str, tensors: Iterable[Tensor]) -> None:
        """Count these as `kind` from now on, also those that were there before."""
        for tensor in tensors:
            self._count(tensor, kind)

    @contextmanager
    def watched(self) -> Iterator[Counter[str]]:
        """Gives a counter that behind this context holds the peak within it."""
        self.peak = Counter(self.now)
        found: Counter[str] = Counter()
        with self:
            yield found
        found.update(self.peak)

    def _count(self, tensor: Tensor, kind: str | None = None) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._held:
            self._held[key] = kind or self.kind_of(tensor), storage.nbytes()
            weakref.finalize(storage, self._let_go, key)
        elif kind is None or self._held[key][0] == kind:
            return
        else:
            former, size = self._held[key]
            self.now[former] -= size
            self._held[key] = kind, size
        kind, size = self._held[key]
        self.now[kind] += size
        if self.now.total() > self.peak.total():
            self.peak = Counter(self.now)

    def _let_go(self, key: int) -> None:
        kind, size = self._held.pop(key)
        self.now[kind] -= size


def _weightless_if_real(tensor: Tensor) -> Tensor:
    return weightless(tensor) if tensor.is_floating_point() and not isinstance(tensor, FakeTensor) else tensor


def _places(index: Tensor | None) -> Iterable[Tensor | None]:
    """What is chosen by yes and no as places: how many these are, PyTorch would ask a copy without contents."""
    chooses = index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor)
    return index.nonzero().unbind(dim=1) if chooses else [index]
