"""Blocking work for an asynchronous server: stopped when its client leaves, streamed as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from indexer.errors import TandemError
from service.api.errors import internal_error
from service.shapes import error_body

log = logging.getLogger(__name__)
T = TypeVar("T")
HEARTBEAT_SECONDS = 15.0
# A client that left is noticed this soon; the generator then stops at its next token.
WATCH_SECONDS = 0.05
# How long a stream may fail with a status of its own before it begins.
PATIENCE_SECONDS = 1.0

# A name and what is sent as JSON; without a name it is a plain message, and a text is then sent as it stands.
Event = tuple[str | None, Any]
# Makes the last event of a stream that failed: from the error, or None for a bug, and the id of the request.
Failure = Callable[[TandemError | None, str], Event]


def error_event(error: TandemError | None, request_id: str) -> Event:
    """The event `error` with the one error body."""
    return "error", internal_error(request_id) if error is None else error_body(error, request_id)


async def run_while_connected(request: Request, work: Callable[[threading.Event], T]) -> T:
    """Run `work(cancel)` in a thread; `cancel` is set when the client goes away."""
    cancel = threading.Event()
    watcher = asyncio.create_task(_watch(request, cancel))
    try:
        return await _in_own_thread(work, cancel)
    finally:
        cancel.set()
        watcher.cancel()


async def _watch(request: Request, cancel: threading.Event) -> None:
    while not cancel.is_set():
        if await request.is_disconnected():
            cancel.set()
            return
        await asyncio.sleep(WATCH_SECONDS)


async def _in_own_thread(work: Callable[..., T], *arguments: Any) -> T:
    # Not the shared pool of 40: work that waits, for the model or for a job, would keep every other route waiting.
    return await to_thread.run_sync(work, *arguments, limiter=CapacityLimiter(1))


class _Stream(EventSourceResponse):
    """Events of a queue. However it ends, also before its first event, the thread that fills the queue is told."""

    def __init__(self, feed: _Feed, first: _Item | None, heartbeat: float) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(feed.encoded(first, heartbeat), headers=headers)
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. The server cancels this when the client closes the connection."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._feed.cancel.set()


def event_stream(
    request: Request, events: Callable[[threading.Event], Iterator[Event]], heartbeat: float = HEARTBEAT_SECONDS
) -> EventSourceResponse:
    """Server-sent events of `events(cancel)`, run in a thread; an exception becomes a last `error` event."""
    return _Stream(_Feed(events, error_event, request.state.request_id), None, heartbeat)


async def open_stream(
    request: Request, events: Callable[[threading.Event], Iterator[Event]], failure: Failure
) -> EventSourceResponse:
    """As event_stream, for clients that go by the status: what fails at once is raised and not told in a stream.

    An error that takes longer than PATIENCE_SECONDS becomes a last event, made by `failure`.
    """
    feed = _Feed(events, failure, request.state.request_id)
    feed.start()
    first: _Item | None = None
    with contextlib.suppress(TimeoutError):
        first = await asyncio.wait_for(feed.queue.get(), PATIENCE_SECONDS)
    if isinstance(first, _Failed) and first.error is not None:
        raise first.error
    return _Stream(feed, first, HEARTBEAT_SECONDS)


@dataclass(frozen=True, slots=True)
class _Failed:
    """The end of a stream by an error, None for a bug."""

    error: TandemError | None


@dataclass(frozen=True, slots=True)
class _End:
    """The end of a stream."""


_Item = Event | _Failed | _End


class _Feed:
    """Runs `events(cancel)` in a thread and hands what it yields to the event loop."""

    def __init__(self, events: Callable[[threading.Event], Iterator[Event]], failure: Failure, request_id: str) -> None:
        self.cancel = threading.Event()
        self.queue: asyncio.Queue[_Item] = asyncio.Queue()
        self._events = events
        self._failure = failure
        self._request_id = request_id
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the running event loop."""
        loop = asyncio.get_running_loop()

        def put(item: _Item) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self.queue.put_nowait, item)

        self._task = asyncio.create_task(_in_own_thread(_produce, self._events, self.cancel, put))

    async def encoded(self, first: _Item | None, heartbeat: float) -> AsyncIterator[bytes]:
        """The events as they are sent, `first` before those of the queue."""
        if self._task is None:
            self.start()
        item = first
        while not isinstance(item, _End):
            if isinstance(item, _Failed):
                yield _written(self._failure(item.error, self._request_id))
            elif item is not None:
                yield _written(item)
            try:
                item = await asyncio.wait_for(self.queue.get(), heartbeat)
            except TimeoutError:
                item = None
                yield KEEPALIVE_COMMENT
        if self._task is not None:
            await self._task


def _written(event: Event) -> bytes:
    name, data = event
    text = data if name is None and isinstance(data, str) else json.dumps(data, ensure_ascii=True)
    return format_sse_event(event=name, data_str=text)


def _produce(
    events: Callable[[threading.Event], Iterator[Event]], cancel: threading.Event, put: Callable[[_Item], None]
) -> None:
    # Whatever fails, also making the iterator or closing it, ends the stream: who reads it waits for its end.
    try:
        with contextlib.closing(cast(Generator[Event, None, None], events(cancel))) as iterator:
            for event in iterator:
                put(event)
                if cancel.is_set():
                    break
    except TandemError as error:
        put(_Failed(error))
    except Exception:
        log.exception("a stream failed")
        put(_Failed(None))
    finally:
        put(_End())
