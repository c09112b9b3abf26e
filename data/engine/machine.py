"""What a run was computed on, as far as it may change its result."""

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

CODE = Path(__file__).parents[2]
CPUINFO = Path("/proc/cpuinfo")


def machine() -> dict[str, Any]:
    """Processor and its widest instructions, GPU, threads of this process, processes, Python, commit of this code.

    What is not known is None; the commit of a tree with changes ends with "+".
    """
    import torch

    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _processor() -> str | None:
    if CPUINFO.is_file():
        names = [line.partition(":")[2] for line in CPUINFO.read_text().splitlines() if line.startswith("model name")]
        if names:
            return names[0].strip()
    return platform.processor() or None


def _commit() -> str | None:
    """None where this code is no checkout of its own, or there is no git."""
    if not (CODE / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(["git", "-C", CODE, *words], capture_output=True, text=True, check=True, timeout=30).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.strip() + ("+" if changes else "")
