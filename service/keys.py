"""Access keys: random, shown once, stored as SHA-256, looked up by digest and compared in constant time."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from indexer.database import transaction
from indexer.errors import TandemError
from indexer.store import Store
from service.settings import Settings

Role = Literal["user", "admin"]
KEY_PREFIX = "tandem-"
# 32 bytes: guessing is out of the question, so a plain SHA-256 protects a stolen database as well as a slow hash.
KEY_BYTES = 32
_NAME = re.compile(r"[\w.@-]{1,64}")


@dataclass(frozen=True, slots=True)
class Key:
    """A stored key, without its secret."""

    name: str
    role: Role
    created: str


def create_key(store: Store, name: str, role: Role) -> str:
    """A new key, returned this once. Raises TandemError for a bad name or one that is taken."""
    if not _NAME.fullmatch(name):
        raise TandemError(
            f"{name!r} cannot name a key.", expected="1 to 64 letters, digits, dots, dashes, underscores or @."
        )
    secret = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    with store.connection() as connection, transaction(connection):
        if connection.execute("SELECT 1 FROM keys WHERE name = ?", (name,)).fetchone():
            raise TandemError(
                f"There is a key called {name!r} already.",
                do="Revoke it first, or choose another name.",
                code="conflict",
            )
        created = datetime.now(UTC).isoformat(timespec="seconds")
        connection.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", (_digest(secret), name, role, created))
    return secret


def list_keys(store: Store) -> list[Key]:
    """The stored keys by name."""
    with store.connection() as connection:
        return [Key(*row) for row in connection.execute("SELECT name, role, created FROM keys ORDER BY name")]


def revoke_key(store: Store, name: str) -> None:
    """Forget a key; the next request with it is refused. Raises TandemError not_found."""
    with store.connection() as connection, transaction(connection):
        if connection.execute("DELETE FROM keys WHERE name = ?", (name,)).rowcount == 0:
            raise TandemError(
                f"There is no key called {name!r}.", do="`tandem keys list` shows them.", code="not_found"
            )


class Keyring:
    """Who may do what: the keys of the store and of the settings. Read at every request, so revoking is immediate."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        roles: list[tuple[Role, object]] = [("user", settings.user_key), ("admin", settings.admin_key)]
        self._had_keys = False
        self._fixed = [(_digest(key.get_secret_value()), role) for role, key in roles if key is not None]  # type: ignore[attr-defined]
        self.is_open()

    def is_open(self) -> bool:
        """Whether no key exists at all: everyone who can reach the service may do everything.

        Once a key was seen this stays False: revoking the last one must not open a service that others can reach.
        """
        self._had_keys = self._had_keys or bool(self._keys())
        return not self._had_keys

    def role(self, secret: str) -> Role | None:
        """The role of a key, None when it is not known. Every known digest is compared, in constant time each."""
        digest, found = _digest(secret), None
        for known, role in self._keys():
            if secrets.compare_digest(known, digest):
                found = role
        return found

    def _keys(self) -> list[tuple[bytes, Role]]:
        with self._store.connection() as connection:
            return [*self._fixed, *((row[0], row[1]) for row in connection.execute("SELECT sha256, role FROM keys"))]


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
