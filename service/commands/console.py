"""Printing for people and for programs: tables and bars on a terminal, plain lines elsewhere, JSON on request."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from indexer.errors import TandemError

if TYPE_CHECKING:
    from indexer.outcome import Progress

STAGES = {
    "scan": "Looking",
    "read": "Reading",
    "embed": "Embedding",
    "publish": "Publishing",
    "ask": "Asking",
    "pairs": "Pairing",
    "tune": "Tuning",
    "compare": "Comparing",
    "change": "Changing a fact",
    "delete": "Deleting documents",
}


def out(text: str = "") -> None:
    """A line of the result."""
    print(text)


def out_json(value: Any) -> None:
    """The result as one JSON document."""
    print(json.dumps(value, ensure_ascii=False, indent=2))


def note(message: str) -> None:
    """A line about what goes on; never mixed into the result."""
    print(message, file=sys.stderr, flush=True)


def fail(error: TandemError, as_json: bool = False) -> None:
    """The three parts of an error."""
    if as_json:
        from service.shapes import error_body

        out_json(error_body(error))
        return
    note(f"Error: {error.happened}")
    if error.expected:
        note(f"  Expected: {error.expected}")
    if error.do:
        note(f"  Do: {error.do}")


@contextmanager
def sync_progress() -> Iterator[Callable[[Progress], None]]:
    """A bar while documents are read and embedded; nothing where no one looks."""
    if not sys.stderr.isatty():
        yield lambda progress: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = ("[bold]{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bars(*columns, TextColumn("{task.fields[current]}"), console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def report(progress: Progress) -> None:
            if progress.stage not in tasks:
                label = STAGES.get(progress.stage, progress.stage)
                tasks[progress.stage] = bars.add_task(label, total=progress.total, current="")
            bars.update(
                tasks[progress.stage],
                completed=progress.done,
                total=max(progress.total, 1),
                current=progress.current[-60:],
            )

        yield report
