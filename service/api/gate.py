"""What every request passes before anything reads its body: host, origin, key, role, size; and headers on the way out.

With no keys the service answers loopback only. A page in the owner's browser could still reach it, so a foreign Host
(DNS rebinding) and a foreign Origin (cross-site requests) are refused.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indexer.errors import TandemError
from service.api.errors import STATUS, encode_error, error_headers, internal_error
from service.keys import Role
from service.running import Service

log = logging.getLogger(__name__)

# The chat page itself holds no data; it asks for a key when a request is refused.
PUBLIC_PATHS = frozenset({"/", "/healthz", "/readyz"})
PUBLIC_PREFIX = "/static/"
ADMIN = frozenset({("POST", "/reindex"), ("DELETE", "/jobs")})
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it here with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers["X-Request-Id"] = request_id
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, self._limited(receive), send_with_headers)
        except TandemError as error:
            await _refuse(STATUS[error.code], error_headers(error), encode_error(error, request_id), send_with_headers)
        except Exception:
            # Here and not in a handler of the framework, which would answer outside of this class, without its headers.
            log.exception("request %s failed", request_id)
            if status:
                raise
            await _refuse(500, {}, json.dumps(internal_error(request_id)).encode(), send_with_headers)
        finally:
            took = (time.perf_counter() - started) * 1000
            log.info("%s %s %s %.0f ms [%s]", scope["method"], _shown(scope["path"]), status, took, request_id)

    def _check(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        _check_length(headers.get("content-length"), self._service.settings.body_bytes)
        keyring = self._service.keyring
        is_open = keyring.is_open()
        if is_open:
            _check_host(headers.get("host", ""))
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIX):
            return
        _check_origin(headers)
        role: Role | None = "admin" if is_open else keyring.role(_bearer(headers))
        scope["state"]["role"] = role
        if role is None:
            raise TandemError(
                "This service needs an access key.",
                expected="The header `Authorization: Bearer KEY` with a key that is known.",
                do="Ask whoever runs the service; `tandem keys create` makes one.",
                code="unauthorized",
            )
        if role != "admin" and (scope["method"], "/" + path.split("/")[1]) in ADMIN:
            raise TandemError(
                "This needs an administrator's key.", do="Use a key with the role admin.", code="forbidden"
            )

    def _limited(self, receive: Receive) -> Receive:
        left = self._service.settings.body_bytes

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                # The framework passes on this exception alone from where it reads a body.
                raise HTTPException(413, _at_most(self._service.settings.body_bytes))
            return message

        return limited


def _bearer(headers: Headers) -> str:
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


def _check_length(length: str | None, most: int) -> None:
    # More digits than any limit has are too many to be worth reading.
    if length is not None and length.isdecimal() and (len(length) > 15 or int(length) > most):
        raise TandemError("The request body is too large.", expected=_at_most(most), code="too_large")


def _at_most(most: int) -> str:
    return f"At most {most:,} bytes."


def _check_host(host: str) -> None:
    address = _split(f"//{host}")
    if address is None or address.hostname not in LOOPBACK_HOSTS:
        raise TandemError(
            "The Host header does not name this machine.",
            expected="127.0.0.1 or localhost while the service has no access keys.",
            do="Create a key with `tandem keys create` to serve other names.",
            code="forbidden",
        )


def _check_origin(headers: Headers) -> None:
    origin = headers.get("origin")
    if origin is None:
        return
    address = _split(origin)
    if address is None or address.netloc != headers.get("host"):
        raise TandemError(
            "A page of another site may not use this service.", expected="Requests from its own page.", code="forbidden"
        )


def _split(address: str) -> SplitResult | None:
    try:
        return urlsplit(address)
    except ValueError:
        return None


def _shown(path: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in path[:200])


async def _refuse(status: int, headers: Mapping[str, str], body: bytes, send: Send) -> None:
    headers = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
