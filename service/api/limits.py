"""How often one key may ask: 429 with the seconds until it may again. And nothing new once the service is ending.

What counts is work: every request that is not a plain GET, and searches. Looking at documents, jobs or the page does
not. The counters are kept in memory, so each process of several has its own.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence

from limits import RateLimitItem, parse_many
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.types import ASGIApp, Receive, Scope, Send

from indexer.errors import TandemError
from service.observation import key_name, note_turned_away
from service.running import Service

FREE = frozenset({"GET", "HEAD", "OPTIONS"})
WORK = frozenset({"/search"})


class Rates:
    """Counts the requests of each key within moving windows of time. Thread-safe."""

    def __init__(self, rate: str) -> None:
        """`rate` as in "60/minute" or "10/second;1000/day": all of them hold. Raises ValueError for anything else."""
        self._items: Sequence[RateLimitItem] = parse_many(rate)
        self._windows = MovingWindowRateLimiter(MemoryStorage())
        self._lock = threading.Lock()

    def count(self, key: str) -> None:
        """Count a request. Raises TandemError (rate_limited); a request that is refused does not count."""
        with self._lock:
            full = [item for item in self._items if not self._windows.test(item, key)]
            if not full:
                for item in self._items:
                    self._windows.hit(item, key)
                return
            free_at = max(self._windows.get_window_stats(item, key).reset_time for item in full)
        note_turned_away("rate")
        seconds = max(1, math.ceil(free_at - time.time()))
        raise TandemError(
            "This key has sent too many requests.",
            expected=f"At most {' and '.join(str(item) for item in full)}.",
            do=f"Wait {seconds} seconds.",
            code="rate_limited",
            retry_after=seconds,
        )


class Limits:
    """ASGI middleware inside of the gate, which has told whose request it is."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._rates = Rates(service.settings.rate) if service.settings.rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on. Raises TandemError (rate_limited or unavailable) for the gate to answer."""
        if scope["type"] == "http" and (scope["method"] not in FREE or scope["path"] in WORK):
            if self._service.draining:
                note_turned_away("stopping")
                raise TandemError("The service is being stopped.", do="Ask again in a few seconds.", code="unavailable")
            if self._rates:
                self._rates.count(key_name())
        await self._app(scope, receive, send)
