"""How much memory a process has taken."""

import multiprocessing
import sys
from pathlib import Path

PROC_STATUS = Path("/proc/self/status")


def peak_memory() -> int:
    """Most bytes this process had at any time: on the GPU, if it has one, else in main memory, with its children's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    if not PROC_STATUS.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # not ru_maxrss: on Linux a process starts with the peak of the one that started it
    family = [PROC_STATUS, *(Path(f"/proc/{child.pid}/status") for child in multiprocessing.active_children())]
    lines = [line for each in family for line in each.read_text().splitlines() if line.startswith("VmHWM")]
    return sum(int(line.split()[1]) for line in lines) * 1024
