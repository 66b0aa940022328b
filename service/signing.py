"""Links to sources that open without an access key for a while, for people who follow one from another front end.

Such a front end holds a key, and the browser of whoever reads there does not. A link carries the second until which it
opens and a code (HMAC-SHA256, RFC 2104, cut to 128 bits as its section 5 allows) over that second and its path. The
code is made with a secret of the home folder and the stored digest of the key that asked, and neither is ever sent.
So a link opens one passage in its document and nothing else, with what that key may read at the time: it ends when its
time is over, when the key is revoked or expires, and when the key loses the document.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from indexer.database import transaction
from indexer.errors import TandemError
from indexer.store import Store
from service.keys import Key, Keyring, digest

PREFIX = "/sources/"
SECRET_BYTES = 32
CODE_BYTES = 16
_NAME = "link_secret"


@dataclass(frozen=True, slots=True)
class Link:
    """What a request brings in place of a key: its path, and two values that are whatever was sent."""

    path: str
    until: str
    code: str


def read_link(scope: Mapping[str, Any]) -> Link | None:
    """The link that an ASGI request follows; None for every other request."""
    if scope["method"] != "GET" or not scope["path"].startswith(PREFIX):
        return None
    values = parse_qs(scope["query_string"].decode("latin-1"))
    until, code = values.get("until", [""])[0], values.get("code", [""])[0]
    return Link(scope["path"], until, code) if until and code else None


class Links:
    """Makes and checks links of one home folder, so that every process on it opens those of the others. Thread-safe."""

    def __init__(self, store: Store, keyring: Keyring, seconds: float) -> None:
        """Links open for so many seconds; 0: there are none."""
        self._store = store
        self._keyring = keyring
        self._seconds = seconds
        self._secret: bytes | None = None

    def __bool__(self) -> bool:
        return self._seconds > 0

    def sign(self, key: str, address: str) -> str:
        """The address of a source (a path with a query and a fragment) as a link for who holds this access key."""
        rest, mark, fragment = address.partition("#")
        path, _, query = rest.partition("?")
        until = str(int(time.time() + self._seconds))
        parts = [*([query] if query else []), f"until={until}", f"code={self._code(digest(key), path, until)}"]
        return f"{path}?{'&'.join(parts)}{mark}{fragment}"

    def check(self, link: Link) -> Key:
        """The key that the link was made for. Raises TandemError (unauthorized)."""
        found = None
        for known, key in self._keyring.entries():
            if hmac.compare_digest(self._code(known, link.path, link.until).encode(), link.code.encode()):
                found = key
        # The code is right only for a second that was written here, so it is a number by now.
        if found is None or found.is_expired() or not time.time() < int(link.until) <= time.time() + self._seconds + 1:
            raise TandemError(
                "This link to a source does not open, or not any more.",
                expected="A link whose time is not over, made for a key that is still good.",
                do="Ask the question again.",
                code="unauthorized",
            )
        return found

    def _code(self, key: bytes, path: str, until: str) -> str:
        # The digest has a fixed length and the second no line break, so no two messages are spelt alike.
        message = key + f"{until}\n{path}".encode("utf-8", "surrogatepass")
        return hmac.digest(self._home_secret(), message, "sha256")[:CODE_BYTES].hex()

    def _home_secret(self) -> bytes:
        if self._secret is None:
            with self._store.connection() as connection, transaction(connection):
                fresh = secrets.token_hex(SECRET_BYTES)
                connection.execute("INSERT OR IGNORE INTO meta VALUES (?, ?)", (_NAME, fresh))
                row = connection.execute("SELECT value FROM meta WHERE key = ?", (_NAME,)).fetchone()
            self._secret = bytes.fromhex(row[0])
        return self._secret
