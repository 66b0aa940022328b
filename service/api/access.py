"""What the sender of a request may do and read. Every route that touches documents asks here.

The gate notes it before anything else sees the request; a route without it fails and shows nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fastapi import Request

from indexer.errors import TandemError
from indexer.filters import Filter
from indexer.readers import Reader
from service.keys import Key, Role
from service.settings import Settings

EVERYTHING = Filter()


@dataclass(frozen=True, slots=True)
class Access:
    """The role and the reader that the sender is; None reads everything.

    `check` raises once the key is not good; `link` makes the address of a source one that opens without the key, where
    that is wanted (service/signing.py).
    """

    role: Role
    reader: Reader | None
    check: Callable[[], object] = lambda: None
    link: Callable[[str], str] = lambda address: address

    @property
    def is_admin(self) -> bool:
        """Whether it is an administrator."""
        return self.role == "admin"

    def filter(self, where: Filter = EVERYTHING) -> Filter:
        """These conditions, for documents that the sender may read."""
        return replace(where, reader=self.reader)


def access_of(key: Key | None, settings: Settings, check: Callable[[], object]) -> Access:
    """What a key opens. None is a service without keys: whoever reaches it may do everything."""
    if key is None or key.role == "admin":
        return Access("admin", None, check)
    return Access(key.role, Reader(key.groups, tuple(settings.groups.items())), check)


def allowed(request: Request) -> Access:
    """What the sender of this request may do and read."""
    access = request.state.access
    if not isinstance(access, Access):
        raise TandemError("This needs an access key.", code="unauthorized")
    return access
