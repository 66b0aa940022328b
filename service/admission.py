"""One queue in front of the model: first come, first served, bounded in length and in waiting time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from indexer.errors import TandemError

# How often a waiting request looks whether its client has gone.
POLL_SECONDS = 0.1


class Admission:
    """Lets one request at a time through; at most `depth` others wait, each at most `seconds`."""

    def __init__(self, depth: int, seconds: float) -> None:
        self._depth = depth
        self._seconds = seconds
        self._condition = threading.Condition()
        self._line: deque[object] = deque()

    def __len__(self) -> int:
        """Requests inside or waiting."""
        return len(self._line)

    @contextmanager
    def enter(self, cancel: threading.Event) -> Iterator[None]:
        """Wait for the turn. Raises TandemError (unavailable) when the line is full or the wait too long.

        Returns early, without the turn, once `cancel` is set: what follows sees the same event and stops.
        """
        ticket = object()
        with self._condition:
            if len(self._line) > self._depth:
                raise _busy(f"{self._depth} questions are waiting for the model already.")
            self._line.append(ticket)
        try:
            self._wait(ticket, cancel)
            yield
        finally:
            with self._condition:
                self._line.remove(ticket)
                self._condition.notify_all()

    def _wait(self, ticket: object, cancel: threading.Event) -> None:
        deadline = time.monotonic() + self._seconds
        with self._condition:
            while self._line[0] is not ticket and not cancel.is_set():
                if time.monotonic() > deadline:
                    raise _busy(f"The model was busy for {self._seconds:g} seconds.")
                self._condition.wait(POLL_SECONDS)


def _busy(happened: str) -> TandemError:
    return TandemError(happened, do="Ask again in a few seconds.", code="unavailable")
