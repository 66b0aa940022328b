"""tandem doctor --url: look at a running service from outside, as its users and its load balancer see it."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from indexer.database import DATABASE
from indexer.errors import TandemError
from indexer.store import Store
from service.commands.calling import base_address, open_url, read_json, service_key
from service.commands.findings import Finding
from service.settings import Settings

SECONDS = 10.0
MOST_BYTES = 1 << 20


def check_running(settings: Settings, url: str) -> Iterator[Finding]:
    """What is found of the service at `url`. Raises TandemError for an address that is not HTTP."""
    base = base_address(url)
    status, body = _get(f"{base}/healthz")
    alive = status == 200 and body.get("status") == "ok"
    yield Finding(
        "alive", alive, f"{base}/healthz: {_shown(status, body)}", "Start `tandem serve` there, or correct the address."
    )
    if not alive:
        return
    theirs, ours = str(body.get("version", "")), version("tandem-qa")
    yield Finding("version", theirs == ours, f"{theirs} there, {ours} here", "Use the same version in both places.")
    status, body = _get(f"{base}/readyz")
    yield Finding("ready", status == 200, _shown(status, body), "Wait, or mend what the reason says.")
    if status == 200:
        yield from _generation(settings, body.get("generation"))
    status, body = _get(f"{base}/modes", service_key())
    named = ", ".join(str(mode.get("name")) for mode in body.get("modes", ()) if mode.get("available"))
    yield Finding(
        "modes",
        status == 200 and bool(named),
        f"available: {named}" if status == 200 else _shown(status, body),
        "Set TANDEM_ADMIN_KEY or TANDEM_USER_KEY to a key of that service." if status == 401 else "",
    )


def _generation(settings: Settings, theirs: object) -> Iterator[Finding]:
    if not (settings.home / DATABASE).is_file():
        yield Finding("generation", True, f"{theirs} there; there is no index here to compare it with")
        return
    store = Store(settings.home)
    try:
        with store.read() as snapshot:
            ours = snapshot.generation.number
    except TandemError:
        yield Finding("generation", True, f"{theirs} there; nothing is indexed here")
        return
    finally:
        store.close()
    yield Finding(
        "generation",
        theirs == ours,
        f"{theirs} there, {ours} in the home folder {settings.home}",
        "Run this where TANDEM_HOME is the home folder of that service, or index again.",
    )


def _get(url: str, key: str = "") -> tuple[int, dict[str, Any]]:
    """Status and JSON body; status 0 with a `reason` when there was no answer."""
    try:
        with open_url(urllib.request.Request(url), key, SECONDS) as response:
            return response.status, read_json(response.read(MOST_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            return error.code, read_json(error.read(MOST_BYTES))
    except (OSError, ValueError) as error:
        return 0, {"reason": str(error)}


def _shown(status: int, body: dict[str, Any]) -> str:
    error = body.get("error")
    told = error.get("message") if isinstance(error, dict) else body.get("reason") or body.get("status")
    return f"{status or 'no answer'}: {told or 'this is not Tandem'}"
