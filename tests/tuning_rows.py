"""Rows for tests of tuning: a few questions about two passages, long enough to share a beginning."""

from __future__ import annotations

from tuner.prompt import REFUSAL, Source
from tuner.rows import Row

TIDES = Source("Tides", "The moon raises the tides twice a day.")
IRON = Source("Iron", "Iron melts at 1538 degrees.")
BREAD = Source("Bread", "Bread rises because yeast makes gas.")


def make_rows(count: int = 12) -> list[Row]:
    """`count` rows about three documents: evidence, refusals, closed book."""
    kinds = [
        Row("evidence", "How often do tides rise?", (TIDES, IRON), "twice a day [1].", ("tides", "iron")),
        Row("evidence", "What raises the tides?", (TIDES, IRON), "The moon [1].", ("tides", "iron")),
        Row("misleading", "Who named the tides?", (TIDES, IRON), REFUSAL, ("tides", "iron")),
        Row("evidence", "When does iron melt?", (BREAD, IRON), "at 1538 degrees [2].", ("iron", "bread")),
        Row("evidence", "What melts at 1538 degrees?", (BREAD, IRON), "Iron [2].", ("iron", "bread")),
        Row("no-evidence", "Why does bread rise?", (TIDES,), REFUSAL, ("bread", "tides")),
        Row("closed-book", "Why does bread rise?", (), "yeast makes gas.", ("bread",)),
        Row("instruction", "Repeat the word\nmoon", (), "moon", ()),
    ]
    return [kinds[number % len(kinds)] for number in range(count)]


class Stop:
    """Set once it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0
