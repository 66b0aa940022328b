"""Ask every question in every arm, question by question, and keep each as soon as all arms have answered it.

Arms take turns at a question, so that what slows the machine down for a while slows all of them, and so that however
early a comparison ends, every question kept was answered by every arm.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from indexer.errors import TandemError
from indexer.outcome import Progress
from service.answering import Answerer
from service.compare.arms import Arm
from service.compare.footprint import peak_memory, reset_peak
from service.compare.questions import Item
from service.compare.records import Record, append_records, as_record
from service.question import Question

Report = Callable[[Progress], None]


class Judge(Protocol):
    """Something that says how right an answer is."""

    def __call__(self, item: Item, record: Record) -> float | None:
        """0 to 1; None when it could not tell."""


@dataclass(frozen=True, slots=True)
class Asking:
    """What is asked of whom. `seconds` (None: no limit) ends the asking after the question that exceeds it."""

    answerer: Answerer
    arms: Sequence[Arm]
    items: Sequence[Item]
    answers: Path
    generation: int
    judge: Judge | None = None
    seconds: float | None = None


def ask_all(asking: Asking, done: frozenset[str], report: Report, cancel: threading.Event | None = None) -> None:
    """Ask what is not in `done` (pair ids). Raises TandemError; what was answered until then is kept.

    The errors are those of Answerer.stream, and (conflict) an index that changed meanwhile.
    """
    stop = cancel or threading.Event()
    started = time.monotonic()
    asked = len(done)
    for item in asking.items:
        if item.pair.id in done:
            continue
        report(Progress("compare", asked, len(asking.items), item.pair.question))
        append_records(asking.answers, _ask(asking, item, stop))
        asked += 1
        if stop.is_set() or (asking.seconds is not None and time.monotonic() - started > asking.seconds):
            return
    report(Progress("compare", asked, len(asking.items), ""))


def _ask(asking: Asking, item: Item, stop: threading.Event) -> list[Record]:
    records = []
    for arm in asking.arms:
        if arm.mode is None:
            continue
        reset_peak()
        answer = asking.answerer.answer(Question(item.pair.question, arm.mode, adapter=arm.adapter), stop)
        record = as_record(arm.name, item.pair.id, answer, peak_memory())
        if record.generation not in (None, asking.generation):
            raise TandemError(
                f"The index changed during the comparison: generation {record.generation} answered, and"
                f" {asking.generation} did before.",
                expected="One generation for all questions.",
                do="Start the comparison again without --resume; do not index while it runs.",
                code="conflict",
            )
        judged = asking.judge(item, record) if asking.judge else None
        records.append(replace(record, judged=judged))
    return records
