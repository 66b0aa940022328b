"""What a sync tells: how far it is, and what it did."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Progress:
    """Counts of a running sync; `total` and `done` are files while they are read, then chunks to embed."""

    stage: str = "scan"
    done: int = 0
    total: int = 0
    current: str = ""


@dataclass(slots=True)
class Outcome:
    """What a sync did. `added` to `unchanged` count files; a rebuild counts its files as changed."""

    generation: int = 0
    added: int = 0
    changed: int = 0
    renamed: int = 0
    deleted: int = 0
    unchanged: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    chunks: int = 0
    embedded: int = 0
    seconds: float = 0.0


Report = Callable[[Progress], None]


class Cancelled(Exception):
    """The sync was asked to stop; nothing was published."""
