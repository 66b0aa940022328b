"""One queue in front of the model, bounded in length and in waiting time, in which the keys take turns.

Within a key the order is first come, first served; between keys it is one each in turn (round robin, as in Nagle's
"On packet switches with infinite storage", RFC 970, section 4), so that a key with a hundred questions does not keep
one with a single question waiting behind all of them. A full line turns away the newest of whoever has most waiting.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from indexer.errors import TandemError
from service.observation import note_turned_away

# How often a waiting request looks whether its client has gone.
POLL_SECONDS = 0.1


@dataclass(eq=False, slots=True)
class _Ticket:
    """A place in the line."""

    key: str
    turned_away: bool = False


class Admission:
    """Lets `at_once` requests through together; at most `depth` others wait, each at most `seconds`."""

    def __init__(self, depth: int, seconds: float, at_once: int = 1) -> None:
        self._depth = depth
        self._seconds = seconds
        self._at_once = at_once
        self._condition = threading.Condition()
        self._inside: set[_Ticket] = set()
        # Who waits, by key; the key whose turn is next comes first.
        self._waiting: OrderedDict[str, deque[_Ticket]] = OrderedDict()

    def __len__(self) -> int:
        """Requests inside or waiting."""
        with self._condition:
            return self._count() + len(self._inside)

    @property
    def waiting(self) -> int:
        """Requests that wait for their turn."""
        with self._condition:
            return self._count()

    @contextmanager
    def enter(self, cancel: threading.Event, key: str = "") -> Iterator[None]:
        """Wait for the turn of one of the requests of `key`.

        Raises TandemError (unavailable) when the line is full or the wait too long. Returns early, without the turn,
        once `cancel` is set: what follows sees the same event and stops.
        """
        ticket = _Ticket(key)
        with self._condition:
            self._make_room(key)
            self._waiting.setdefault(key, deque()).append(ticket)
            self._next()
        try:
            self._wait(ticket, cancel)
            yield
        finally:
            with self._condition:
                self._leave(ticket)

    def _count(self) -> int:
        return sum(map(len, self._waiting.values()))

    def _make_room(self, key: str) -> None:
        if len(self._inside) < self._at_once or self._count() < self._depth:
            return
        longest = max(self._waiting, key=lambda name: len(self._waiting[name]))
        # Only for one who has at least two fewer: else the two would turn each other away for ever.
        if len(self._waiting[longest]) <= len(self._waiting.get(key, ())) + 1:
            raise _busy(f"{self._depth} questions are waiting for the model already.")
        newest = self._waiting[longest][-1]
        newest.turned_away = True
        self._remove(newest)
        self._condition.notify_all()

    def _wait(self, ticket: _Ticket, cancel: threading.Event) -> None:
        deadline = time.monotonic() + self._seconds
        with self._condition:
            while ticket not in self._inside and not cancel.is_set():
                if ticket.turned_away:
                    raise _busy(f"{self._depth} questions are waiting for the model, most of them of this key.")
                if time.monotonic() > deadline:
                    raise _busy(f"The model was busy for {self._seconds:g} seconds.")
                self._condition.wait(min(POLL_SECONDS, self._seconds))

    def _next(self) -> None:
        """Give a turn that is free to the next key. There is one for each that ends, so one is all there can be."""
        if len(self._inside) >= self._at_once or not self._waiting:
            return
        key, tickets = self._waiting.popitem(last=False)
        self._inside.add(tickets.popleft())
        if tickets:
            self._waiting[key] = tickets
        self._condition.notify_all()

    def _leave(self, ticket: _Ticket) -> None:
        if ticket in self._inside:
            self._inside.remove(ticket)
            self._next()
        elif not ticket.turned_away:
            self._remove(ticket)

    def _remove(self, ticket: _Ticket) -> None:
        self._waiting[ticket.key].remove(ticket)
        if not self._waiting[ticket.key]:
            del self._waiting[ticket.key]


def _busy(happened: str) -> TandemError:
    note_turned_away("queue")
    return TandemError(happened, do="Ask again in a few seconds.", code="unavailable")
