"""Run a stage under FSDP2 over gloo, without a GPU: torchrun … tests/fsdp_on_cpu.py main_SFT.py --flags

PyTorch's FSDP2 computes on CPUs, too. Accelerate alone leaves it out there: it takes FSDP for a kind of multi-GPU run.
So what it decides from its variables is decided here for processes on CPUs; all else is its own and ours.
"""

import runpy
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

_init = AcceleratorState.__init__


def _spread(state, *arguments, fsdp_plugin=None, **settings) -> None:
    _init(state, *arguments, fsdp_plugin=fsdp_plugin, **settings)
    if state.distributed_type == DistributedType.MULTI_CPU and fsdp_plugin is not None:
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        state.fsdp_plugin = fsdp_plugin


if __name__ == "__main__":
    AcceleratorState.__init__ = _spread
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    runpy.run_path(sys.argv[0], run_name="__main__")
