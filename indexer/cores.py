"""How many threads the models may use: what the process was given, not what the machine has.

PyTorch counts the cores that the process is allowed to run on. A container is mostly limited in another way, by a quota
of processor time (Docker's --cpus, Kubernetes' limits), and threads over that quota wait for each other at every layer.
Fields: kernel documentation, cgroup-v2 "CPU interface files" and the CFS bandwidth control of version 1.
"""

from __future__ import annotations

import math
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def container_limit(root: Path = _CGROUP) -> int | None:
    """Cores that the quota of this container comes to, rounded up; None where there is no quota."""
    try:
        if (root / "cpu.max").is_file():
            quota, period = (root / "cpu.max").read_text("ascii").split()
        else:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text("ascii")
            period = (root / "cpu" / "cpu.cfs_period_us").read_text("ascii")
        return max(1, math.ceil(int(quota) / int(period))) if int(quota) > 0 and int(period) > 0 else None
    except (OSError, ValueError):
        return None  # no cgroups, or "max": no quota


def keep_to_container() -> None:
    """Have PyTorch use no more threads than the container's quota has cores."""
    import torch

    limit = container_limit()
    if limit is not None and limit < torch.get_num_threads():
        torch.set_num_threads(limit)


def told_threads(wanted: int) -> str:
    """The number of threads in effect and what decided it; `wanted` is the setting."""
    import torch

    threads = torch.get_num_threads()
    why = "the setting threads"
    if not wanted:
        why = "the container's limit" if threads == container_limit() else "the cores this process may use"
    return f"{threads} thread{'s' * (threads != 1)} ({why})"
