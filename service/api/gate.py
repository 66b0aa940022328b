"""What every request passes before anything reads its body: host, origin, key, role, size; and headers on the way out.

With no keys the service answers loopback only. A page in the owner's browser could still reach it, so a foreign Host
(DNS rebinding) and a foreign Origin (cross-site requests) are refused.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indexer.errors import TandemError
from service.api.access import access_of
from service.api.errors import STATUS, encode_error, error_headers, internal_error
from service.keys import Key
from service.observation import note_key
from service.running import Service
from service.signing import Links, read_link

log = logging.getLogger(__name__)

# The chat page itself holds no data; it asks for a key when a request is refused.
PUBLIC_PATHS = frozenset({"/", "/healthz", "/readyz"})
PUBLIC_PREFIX = "/static/"
ADMIN = frozenset(
    {
        ("POST", "/reindex"),
        ("GET", "/jobs"),  # they name documents and count them
        ("DELETE", "/jobs"),
        ("POST", "/documents"),
        ("DELETE", "/documents"),
        ("POST", "/adapters"),
        ("GET", "/feedback"),
        ("GET", "/metrics"),
    }
)
# The one route whose body is a file. What a form adds to the file is less than this.
UPLOAD = ("POST", "/documents")
FORM_BYTES = 65_536
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
        self._links = Links(service.store, service.keyring, service.settings.link_minutes * 60)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it here with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, request_id = 0, scope["state"]["request_id"]

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, _limited(receive, self._most_bytes(scope)), send_with_headers)
        except TandemError as error:
            # Here, where no route has looked at the body, too large is the body and not the question in it.
            body = encode_error(error, request_id, scope["path"])
            await _refuse(STATUS[error.code], error_headers(error), body, send_with_headers)
        except Exception:
            # Here and not in a handler of the framework, which would answer outside of this class, without its headers.
            log.exception("request %s failed", request_id)
            if status:
                raise
            await _refuse(500, {}, json.dumps(internal_error(request_id, scope["path"])).encode(), send_with_headers)

    def _check(self, scope: Scope) -> None:
        headers, path = Headers(scope=scope), scope["path"]
        _check_length(headers.get("content-length"), self._most_bytes(scope))
        keyring = self._service.keyring
        is_open = keyring.is_open()
        if is_open:
            _check_host(headers.get("host", ""))
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIX):
            return
        _check_origin(headers)
        secret = _bearer(headers)
        link = read_link(scope) if self._links and not secret else None
        # A link opens what its key would, and is no key: it has one route, and makes no administrator.
        check: Callable[[], Key] = partial(self._links.check, link) if link else partial(keyring.check, secret)
        key = None if is_open else check()
        access = access_of(key, self._service.settings, lambda: is_open or check())
        if link:
            access = replace(access, role="user")
        elif self._links and not is_open:
            access = replace(access, link=partial(self._links.sign, secret))
        scope["state"]["access"], scope["state"]["role"] = access, access.role
        if key is not None:
            note_key(key.name, key.groups)
        if access.role != "admin" and (scope["method"], "/" + path.split("/")[1]) in ADMIN:
            raise TandemError(
                "This needs an administrator's key.", do="Use a key with the role admin.", code="forbidden"
            )

    def _most_bytes(self, scope: Scope) -> int:
        settings = self._service.settings
        return settings.upload_bytes + FORM_BYTES if (scope["method"], scope["path"]) == UPLOAD else settings.body_bytes


def _limited(receive: Receive, most: int) -> Receive:
    left = most

    async def limited() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            # The framework passes on this exception alone from where it reads a body.
            raise HTTPException(413, _at_most(most))
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


async def _refuse(status: int, headers: Mapping[str, str], body: bytes, send: Send) -> None:
    headers = {"content-type": "application/json", "content-length": str(len(body)), **headers}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
