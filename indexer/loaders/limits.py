"""What one file may cost. Every number here is a stated limit that an error message names."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits on the parsing of one file.

    The defaults let a 1,000-page PDF, a 100 MB spreadsheet archive or a 200 MB log through on a slow machine, and stop
    what only an attack or a defect needs.
    """

    wall_seconds: float = 60.0
    cpu_seconds: int = 60
    memory_bytes: int = 2 << 30
    """Address space of the child process (RLIMIT_AS), the interpreter and its libraries included."""
    input_bytes: int = 200_000_000
    """Size on disk; a larger file is refused before it is read."""
    inflated_bytes: int = 400_000_000
    """What a .gz file, or all parts read from one zip container, may inflate to."""
    characters: int = 20_000_000
    """Text of one document; each record of a .jsonl file is a document of its own."""
