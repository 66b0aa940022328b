"""The most memory that this process has held so far."""

from __future__ import annotations

import resource
import sys


def peak_bytes(device: str) -> int:
    """Bytes: of the GPU on cuda, otherwise the largest resident size of the process."""
    if device == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated())
    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
