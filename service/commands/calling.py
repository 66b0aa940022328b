"""Requests of the command line to a running service: its address, its key, nothing that follows a redirect."""

from __future__ import annotations

import json
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from indexer.errors import TandemError
from service.given import given


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A key must not follow a redirect to another host."""

    def redirect_request(self, *arguments: Any) -> None:
        """Follow nothing; the answer itself is looked at."""


def base_address(url: str) -> str:
    """The address without a slash at its end. Raises TandemError when it is not HTTP."""
    address = urlsplit(url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise TandemError(f"{url!r} is no address of a service.", expected="As in http://127.0.0.1:8000.")
    return url.rstrip("/")


def service_key() -> str:
    """The key that is set for a service, the admin's first; empty when there is none. Raises TandemError."""
    return given("admin_key") or given("user_key")


def open_url(request: urllib.request.Request, key: str, seconds: float) -> Any:
    """The response, to be closed. Raises HTTPError for a status over 299, OSError when there is no answer."""
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    return urllib.request.build_opener(_NoRedirect).open(request, timeout=seconds)


def read_json(data: bytes) -> dict[str, Any]:
    """The JSON object; empty when it is none."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
