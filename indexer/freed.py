"""Memory that was freed goes back to the operating system.

The allocator of glibc keeps what lies between blocks that are still used, and loading a model leaves much of that:
400 MB of the bundled one. Elsewhere (musl, macOS, Windows) there is nothing to call, and nothing is done.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any


def give_back() -> None:
    """Return what the allocator keeps and nobody uses; milliseconds."""
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Any | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
