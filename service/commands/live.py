"""What a person sees and does while a long run goes on: lines for a log, and Ctrl-C that waits for a checkpoint."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.commands.console import note
from tuner.schedule import Progress

# How often a line is written where no one looks at a bar, as a share of the steps.
_LINES = 20


def step_lines() -> Callable[[Progress, str], None]:
    """A note at each validation and, so that a log shows where it is, at every twentieth of the steps."""
    seen = 0

    def line(progress: Progress, text: str) -> None:
        nonlocal seen
        if len(progress.validation) > seen:
            seen = len(progress.validation)
            note(f"Step {progress.step} of {progress.steps}: held-out loss {progress.validation[-1][1]:.4f}.")
        if not sys.stderr.isatty() and progress.step % max(1, progress.steps // _LINES) == 0:
            left = progress.seconds / progress.step * (progress.steps - progress.step)
            note(f"Step {progress.step} of {progress.steps}: {text}, about {left:.0f} s left.")

    return line


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C (or SIGTERM) sets; the second one ends the process as usual."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def stop(number: int, frame: object) -> None:
        note("Stopping after this step; once more ends at once.")
        stopped.set()
        for known, handler in before.items():
            signal.signal(known, handler)

    for number in before:
        signal.signal(number, stop)
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
