"""Blocking work for an asynchronous server: stopped when its client leaves, streamed as server-sent events."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event

from indexer.errors import TandemError
from service.api.errors import internal_error
from service.shapes import error_body

log = logging.getLogger(__name__)
T = TypeVar("T")
HEARTBEAT_SECONDS = 15.0
# A client that left is noticed this soon; the generator then stops at its next token.
WATCH_SECONDS = 0.05

Event = tuple[str, Any]


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


def event_stream(
    request: Request, events: Callable[[threading.Event], Iterator[Event]], heartbeat: float = HEARTBEAT_SECONDS
) -> EventSourceResponse:
    """Server-sent events of `events(cancel)`, run in a thread; an exception becomes a last `error` event."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return EventSourceResponse(_encoded(request, events, heartbeat), headers=headers)


async def _encoded(
    request: Request, events: Callable[[threading.Event], Iterator[Event]], heartbeat: float
) -> AsyncIterator[bytes]:
    cancel, queue, loop = threading.Event(), asyncio.Queue[Event | None](), asyncio.get_running_loop()

    def put(event: Event | None) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(queue.put_nowait, event)

    task = asyncio.create_task(_in_own_thread(_produce, events, cancel, put, request.state.request_id))
    try:
        while True:
            try:
                event = await asyncio.wait_for(queue.get(), heartbeat)
            except TimeoutError:
                yield KEEPALIVE_COMMENT
                continue
            if event is None:
                break
            yield format_sse_event(event=event[0], data_str=json.dumps(event[1], ensure_ascii=True))
        await task
    finally:
        # Reached as well when the client closes the connection: the server cancels this generator.
        cancel.set()


def _produce(
    events: Callable[[threading.Event], Iterator[Event]],
    cancel: threading.Event,
    put: Callable[[Event | None], None],
    request_id: str,
) -> None:
    iterator = events(cancel)
    try:
        for event in iterator:
            put(event)
            if cancel.is_set():
                break
    except TandemError as error:
        put(("error", error_body(error, request_id)))
    except Exception:
        log.exception("request %s failed", request_id)
        put(("error", internal_error(request_id)))
    finally:
        iterator.close()  # type: ignore[attr-defined]
        put(None)
