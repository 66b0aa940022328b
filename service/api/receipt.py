"""A deadline for receiving a request, which uvicorn does not have: connections that send little by little are ended.

Without it, some hundred connections that never finish their headers hold a socket each for as long as they like. The
headers must arrive within `receipt_seconds`, and the body within as many again plus a second for every 16 KiB, so
that a large upload over a slow line still has its time (the rule of Apache's mod_reqtimeout). Who is late is told so
with 408 and the connection is closed. HTTP that cannot be read is answered in our own shape too.
"""

from __future__ import annotations

import asyncio
import http
import json
import logging
import secrets
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from indexer.errors import TandemError
from service.shapes import error_body

log = logging.getLogger(__name__)

# A body may take a second longer for each so many bytes that have arrived: the slowest that an upload may be.
BYTES_A_SECOND = 16 * 1024


def receipt_protocol(seconds: float) -> type[H11Protocol]:
    """A protocol class for uvicorn's `http` option, with this deadline."""

    class Receipt(ReceiptProtocol):
        receipt_seconds = seconds

    return Receipt


class ReceiptProtocol(H11Protocol):
    """One connection. The timer runs whenever a request has begun to arrive, or should, and is not whole."""

    receipt_seconds: float = 10.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._timed: object = None  # what the timer runs for: a request's cycle, or None for headers
        self._received = 0  # bytes since then

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first headers."""
        super().connection_made(transport)
        # asyncio does this for sockets that name their protocol, and those that our listener accepts do not. Without it
        # a body waits for the client to acknowledge the headers, which clients put off for 40 ms (RFC 1122, 4.2.3).
        connection = transport.get_extra_info("socket")
        if connection is not None and connection.family in (socket.AF_INET, socket.AF_INET6):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what came, and see what is still missing."""
        self._received += len(data)
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Answered; what is missing now belongs to the next request."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The timer must not hold on to a connection that is gone."""
        self._stop()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are not HTTP, or headers over 64 KiB, in the shape of every error."""
        self._refuse(400, TandemError("This is not an HTTP request that can be read.", expected="HTTP/1.1."))

    def _watch(self) -> None:
        if self.transport.is_closing() or not self._is_missing_something():
            self._stop()
            return
        arriving = self.cycle if self._body_is_missing() else None
        if self._timer is None or arriving is not self._timed:
            self._stop()
            self._timed, self._received = arriving, 0
            self._timer = self.loop.call_later(self.receipt_seconds, self._look)

    def _is_missing_something(self) -> bool:
        if self._body_is_missing():
            return True
        answering = self.cycle is not None and not self.cycle.response_complete
        # Between two requests uvicorn's own timer for idle connections runs.
        return not answering and self.timeout_keep_alive_task is None

    def _body_is_missing(self) -> bool:
        return self.cycle is not None and self.cycle.more_body

    def _look(self) -> None:
        """The time is up, unless it is a body that goes on arriving fast enough."""
        self._timer = None
        if self.transport.is_closing():
            return
        extra, self._received = self._received / BYTES_A_SECOND, 0
        if extra >= 1 and self._body_is_missing() and not self.cycle.response_complete:
            self._timer = self.loop.call_later(extra, self._look)
            return
        if self.cycle is None and not self.conn.trailing_data[0]:
            # A browser opens connections in advance; one that was not used is no mistake.
            self.transport.close()
            return
        log.info("a request was not received within %g seconds", self.receipt_seconds)
        self._refuse(
            408,
            TandemError(
                "The request did not arrive in time.",
                expected=f"All of it within {self.receipt_seconds:g} seconds.",
                do="Send it again.",
                code="timeout",
            ),
        )

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, status: int, error: TandemError) -> None:
        """Answer, if an answer has not begun, and close; whoever still works on the request sees its client leave."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE) and not self._answer_has_begun():
            request_id = secrets.token_hex(8)
            body = json.dumps(error_body(error, request_id)).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
                (b"cache-control", b"no-store"),
                (b"x-request-id", request_id.encode()),
            ]
            reason = http.HTTPStatus(status).phrase.encode()
            response = h11.Response(status_code=status, headers=headers, reason=reason)
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _answer_has_begun(self) -> bool:
        return self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete
