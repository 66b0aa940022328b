"""How many threads the models may use: what the process was given, not what the machine has.

PyTorch counts the cores that the process is allowed to run on. A container is mostly limited in another way, by a quota
of processor time (Docker's --cpus, Kubernetes' limits), and threads over that quota wait for each other at every layer.
Fields: kernel documentation, cgroup-v2 "CPU interface files" and the CFS bandwidth control of version 1.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier, Thread

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


def work_alone() -> None:
    """Have PyTorch use no other threads for what the calling thread does.

    It sets the count for new threads too: `set_for_new_threads` takes that back.
    """
    import torch

    # A thread takes the usual count when it first looks at it; only then can it have its own.
    torch.get_num_threads()
    torch.set_num_threads(1)


def set_for_new_threads(count: int) -> None:
    """Have threads that start from now on use so many for PyTorch's work; those that run keep theirs."""
    import torch

    setter = Thread(target=torch.set_num_threads, args=(count,))
    setter.start()
    setter.join()


def lone_workers(count: int, name: str) -> ThreadPoolExecutor:
    """So many threads that take work from one queue, each piece of which is done by one thread alone.

    PyTorch's own threads share every single operation and meet after each; over small ones that costs more than it
    saves, and searches that run side by side wait for each other.
    """
    import torch

    usual, pool, all_here = torch.get_num_threads(), ThreadPoolExecutor(count, name), Barrier(count)

    def start() -> None:
        work_alone()
        all_here.wait()

    for started in [pool.submit(start) for _ in range(count)]:
        started.result()
    set_for_new_threads(usual)
    return pool


def told_threads(wanted: int) -> str:
    """The number of threads in effect and what decided it; `wanted` is the setting."""
    import torch

    threads = torch.get_num_threads()
    why = "the setting threads"
    if not wanted:
        why = "the container's limit" if threads == container_limit() else "the cores this process may use"
    return f"{threads} thread{'s' * (threads != 1)} ({why})"
