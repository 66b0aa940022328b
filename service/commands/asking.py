"""tandem ask --url: a question to a service that runs, without loading anything here."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, cast, get_args

from indexer.errors import ErrorCode, TandemError
from service.commands.calling import base_address, open_url, read_json, service_key
from service.commands.console import note, out, out_json

# An answer may wait its turn; the service itself ends what takes too long.
SECONDS = 600.0
_MOST_BYTES = 1 << 20


def run_ask_running(url: str, body: dict[str, Any], *, as_json: bool) -> dict[str, Any]:
    """Send `body` to /ask of the service at `url` and show the answer as it comes; returns /ask's body.

    Raises TandemError for an address that is not HTTP, when no service answers there, and with what it says.
    """
    base = base_address(url)
    whole: dict[str, Any] | None = None
    for name, data in _events(base, body, service_key()):
        if name == "error":
            raise _told(data, base)
        if name == "done":
            whole = data
        elif name == "token" and not as_json:
            sys.stdout.write(str(data["text"]))
            sys.stdout.flush()
    if whole is None:
        raise _silent(base, "the answer broke off")
    if as_json:
        out_json(whole)
    else:
        out()
        _show_sources(whole, base)
    return whole


def _events(base: str, body: dict[str, Any], key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Server-sent events as (name, data): one line of each, as the service writes them."""
    sent = json.dumps(body | {"stream": True}).encode("utf-8")
    request = urllib.request.Request(f"{base}/ask", sent, {"Content-Type": "application/json"})
    try:
        with open_url(request, key, SECONDS) as response:
            name = ""
            for line in response:
                field, _, value = line.decode("utf-8", "replace").rstrip("\r\n").partition(": ")
                if field == "event":
                    name = value
                elif field == "data":
                    yield name, read_json(value.encode("utf-8"))
    except urllib.error.HTTPError as error:
        with error:
            raise _told(read_json(error.read(_MOST_BYTES)), base) from None
    except (OSError, ValueError) as error:
        raise _silent(base, str(error)) from error


def _told(body: dict[str, Any], base: str) -> TandemError:
    """The error that the service told."""
    error = body.get("error")
    if not isinstance(error, dict) or "message" not in error:
        return _silent(base, "the answer is not Tandem's")
    code = str(error.get("code", ""))
    known = cast(ErrorCode, code) if code in get_args(ErrorCode) else "unavailable"
    do = str(error.get("do", ""))
    if code == "unauthorized":
        do = "Set TANDEM_USER_KEY or TANDEM_ADMIN_KEY to a key of that service."
    return TandemError(str(error["message"]), expected=str(error.get("expected", "")), do=do, code=known)


def _silent(base: str, reason: str) -> TandemError:
    return TandemError(
        f"No answer came from {base}: {reason}.",
        expected="A running service.",
        do="Start `tandem serve` there, correct the address, or leave --url out.",
        code="unavailable",
    )


def _show_sources(body: dict[str, Any], base: str) -> None:
    for citation in body["citations"]:
        where = f"{citation['document']}, page {citation['page']}" if citation["page"] else citation["document"]
        out()
        out(f"[{citation['n']}] {where}: {citation['title']}")
        out(f'    "{" ".join(citation["quote"].split())}"')
    out()
    adapter = f" with {body['adapter']}" if body["adapter"] else ""
    usage, times = body["usage"], body["timings_ms"]
    first = "" if times["first_token"] is None else f"first token {times['first_token'] / 1000:.2f} s, "
    note(
        f"{body['mode']}{adapter} of {base}; {usage['prompt_tokens']} + {usage['completion_tokens']} tokens; {first}"
        f"{times['total'] / 1000:.2f} s in all"
    )
