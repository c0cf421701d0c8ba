"""Peak memory of a piece of work, on a GPU or in this process.

On a GPU it is what torch allocated at most. On a CPU it is the largest resident set since
``reset``, less what was resident before (Linux; elsewhere the peak cannot be reset, so each
piece of work needs a process of its own). Linux' ``ru_maxrss`` is not used: a process begins with that of its parent.
Torch is imported only where it is asked, so that processes without it can be measured.
"""

import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def resident_bytes(key: str = "VmRSS") -> int:
    """Return the resident set of this process, or with ``VmHWM`` its peak."""
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset(device: "torch.device") -> None:
    """Begin a new peak."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)
    elif CLEAR.exists():
        CLEAR.write_text("5")


def peak_bytes(device: "torch.device", before_bytes: int) -> int:
    """Return the peak since ``reset``; on a CPU less what was resident before."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device)
    return resident_bytes("VmHWM") - before_bytes
