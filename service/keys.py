"""Access keys: random, shown once, stored as SHA-256, looked up by digest and compared in constant time."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from indexer.database import transaction
from indexer.errors import TandemError
from indexer.store import Store
from service.settings import Settings

Role = Literal["user", "admin"]
KEY_PREFIX = "tandem-"
# 32 bytes: guessing is out of the question, so a plain SHA-256 protects a stolen database as well as a slow hash.
KEY_BYTES = 32
# A hundred years: more days than a date can have are a typing error.
MAX_DAYS = 36_500
_NAME = re.compile(r"[\w.@-]{1,64}")


@dataclass(frozen=True, slots=True)
class Key:
    """A stored key, without its secret. `expires` is RFC 3339 in UTC; None: never."""

    name: str
    role: Role
    created: str
    groups: tuple[str, ...] = ()
    expires: str | None = None

    def is_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and datetime.now(UTC) >= datetime.fromisoformat(self.expires)


def create_key(store: Store, name: str, role: Role, groups: Sequence[str] = (), days: float | None = None) -> str:
    """A new key, returned this once; it ends after so many days, if any are given.

    Raises TandemError for a bad name of the key or a group, a name that is taken, and days out of range.
    """
    if not _NAME.fullmatch(name):
        raise TandemError(
            f"{name!r} cannot name a key.", expected="1 to 64 letters, digits, dots, dashes, underscores or @."
        )
    groups = tuple(dict.fromkeys(check_group(group) for group in groups))
    if days is not None and not 0 < days <= MAX_DAYS:
        raise TandemError(f"A key cannot be for {days:g} days.", expected=f"More than 0, at most {MAX_DAYS:,}.")
    secret = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    with store.connection() as connection, transaction(connection):
        if connection.execute("SELECT 1 FROM keys WHERE name = ?", (name,)).fetchone():
            raise TandemError(
                f"There is a key called {name!r} already.",
                do="Revoke it first, or choose another name.",
                code="conflict",
            )
        now = datetime.now(UTC)
        expires = None if days is None else (now + timedelta(days=days)).isoformat(timespec="seconds")
        connection.execute(
            "INSERT INTO keys (sha256, name, role, created, groups, expires) VALUES (?, ?, ?, ?, ?, ?)",
            (digest(secret), name, role, now.isoformat(timespec="seconds"), json.dumps(groups), expires),
        )
    return secret


def check_group(group: str) -> str:
    """The name of a group. Raises TandemError for one that cannot be a name."""
    if not _NAME.fullmatch(group):
        raise TandemError(
            f"{group!r} cannot name a group.", expected="1 to 64 letters, digits, dots, dashes, underscores or @."
        )
    return group


def list_keys(store: Store) -> list[Key]:
    """The stored keys by name."""
    with store.connection() as connection:
        return [_key(row) for row in connection.execute(f"SELECT {_FIELDS} FROM keys ORDER BY name")]


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
        self._fixed = [
            (digest(key.get_secret_value()), Key(f"{role}_key", role, ""))  # type: ignore[attr-defined]
            for role, key in roles
            if key is not None
        ]
        self.is_open()

    def is_open(self) -> bool:
        """Whether no key exists at all: everyone who can reach the service may do everything.

        Once a key was seen this stays False: revoking the last one must not open a service that others can reach.
        """
        self._had_keys = self._had_keys or bool(self.entries())
        return not self._had_keys

    def find(self, secret: str) -> Key | None:
        """The key, None when it is not known. Every known digest is compared, in constant time each."""
        given, found = digest(secret), None
        for known, key in self.entries():
            if secrets.compare_digest(known, given):
                found = key
        return found

    def check(self, secret: str) -> Key:
        """The key. Raises TandemError (unauthorized) when it is not known or its time is over."""
        key = self.find(secret)
        if key is None:
            raise TandemError(
                "This service needs an access key.",
                expected="The header `Authorization: Bearer KEY` with a key that is known.",
                do="Ask whoever runs the service; `tandem keys create` makes one.",
                code="unauthorized",
            )
        if key.is_expired():
            raise TandemError(
                f"This access key expired on {key.expires}.",
                expected="A key whose time is not over.",
                do="Ask whoever runs the service for a new one.",
                code="unauthorized",
            )
        return key

    def role(self, secret: str) -> Role | None:
        """The role of a key; None when it is not known or its time is over."""
        key = self.find(secret)
        return None if key is None or key.is_expired() else key.role

    def entries(self) -> list[tuple[bytes, Key]]:
        """Every key with its digest, those whose time is over too."""
        with self._store.connection() as connection:
            rows = connection.execute(f"SELECT {_FIELDS}, sha256 FROM keys").fetchall()
        return [*self._fixed, *((row["sha256"], _key(row)) for row in rows)]


_FIELDS = "name, role, created, groups, expires"


def _key(row: sqlite3.Row) -> Key:
    return Key(row["name"], row["role"], row["created"], tuple(json.loads(row["groups"])), row["expires"])


def digest(secret: str) -> bytes:
    """What is stored of a key."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()
