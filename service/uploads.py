"""Uploaded files: a corpus of their own in the home folder, in which a file is replaced by one of the same name.

A file is written beside its place, flushed, and renamed into it, so that an upload that was acknowledged is on the
disk whole, and one that was cut off leaves the file before. Its groups are stored first, under the SHA-256 of what
they are for (indexer/readers.py): at no moment can its text be read by someone whom they do not name.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from indexer.database import transaction
from indexer.errors import TandemError
from indexer.folders import file_sha256, locked
from indexer.loaders import is_supported
from indexer.scan import PAIRS_SUFFIX
from indexer.store import Store
from service.settings import Settings

FOLDER = "uploads"
# A file name has at most 255 bytes on the file systems there are; the temporary name needs some of them.
NAME_BYTES = 200
BLOCK = 1 << 20
INCOMING = ".incoming-"
# An upload that takes longer was given up.
INCOMING_SECONDS = 86_400.0
# Control characters, format characters (zero-width and bidirectional ones are these), surrogates, private use and
# unassigned characters, line and paragraph separators: names with them are not what they look like.
HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


class Readable(Protocol):
    """A file to read from."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; empty at the end."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A stored file: its name, whether there was one of this name, and the groups of which a reader needs one."""

    name: str
    replaced: bool
    groups: tuple[str, ...]


def uploads_folder(home: Path) -> Path:
    """Where uploaded files lie."""
    return home.resolve() / FOLDER


def check_name(name: str, settings: Settings) -> str:
    """The name under which a file is stored, composed (NFC). Raises TandemError for one that is no plain file name."""
    name = unicodedata.normalize("NFC", name.strip())
    odd = not name or name.startswith(".") or name.endswith(".") or any(part in name for part in "/\\")
    if odd or any(unicodedata.category(character) in HIDDEN for character in name):
        raise TandemError(
            "The name of the file cannot be used.",
            expected="A plain file name: no folder, no invisible characters, no dot at its beginning or end.",
            do="Rename the file.",
        )
    if len(name.encode()) > NAME_BYTES:
        raise TandemError(
            "The name of the file is too long.", expected=f"At most {NAME_BYTES} bytes.", code="too_large"
        )
    endings = tuple(settings.upload_types.lower().split())
    known = is_supported(name) and not name.endswith(PAIRS_SUFFIX)
    if not known or (endings and not name.lower().endswith(endings)):
        raise TandemError(
            "A file of this type cannot be uploaded.",
            expected=f"One that ends in {', '.join(endings)}." if endings else "A type that Tandem can read.",
            do="The manual's page on documents and formats lists them.",
        )
    return name


def store_upload(
    settings: Settings, store: Store, name: str, content: Readable, groups: Sequence[str] | None
) -> Upload:
    """Store a file; without groups (None) it keeps those of the file that it replaces.

    Raises TandemError for a name as check_name does, one that differs from another's only in case, an empty file, one
    over `upload_bytes`, and a full disk.
    """
    name = check_name(name, settings)
    folder = uploads_folder(settings.home)
    fresh = folder / f"{INCOMING}{secrets.token_hex(8)}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            sha256 = _write(fresh, content, settings.upload_bytes)
            with locked(settings.home / f"{FOLDER}.lock"):
                _clear(folder)
                _check_case(folder, name)
                target = folder / name
                replaced = target.is_file()
                if groups is None:
                    groups = _groups_of(store, name, file_sha256(target)) if replaced else ()
                _note_groups(store, name, sha256, groups)
                fresh.replace(target)
                _flush(folder)
        finally:
            fresh.unlink(missing_ok=True)
    except OSError as error:
        raise TandemError(
            f"The file could not be stored: {error.strerror}.", do="Free some space on the disk.", code="unavailable"
        ) from error
    return Upload(name, replaced, tuple(groups))


def delete_upload(settings: Settings, name: str) -> bool:
    """Remove a file; whether there was one. What is indexed of it answers until the index is brought in step."""
    with locked(settings.home / f"{FOLDER}.lock"):
        folder = uploads_folder(settings.home)
        if name not in list_uploads(settings.home):
            return False
        (folder / name).unlink()
        _flush(folder)
        return True


def list_uploads(home: Path) -> list[str]:
    """The names of the uploaded files."""
    folder = uploads_folder(home)
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))


def forget_groups(settings: Settings, store: Store) -> None:
    """Drop the groups of files that are neither on the disk nor in any generation that is kept."""
    with locked(settings.home / f"{FOLDER}.lock"), store.connection() as connection, transaction(connection):
        connection.execute(
            """DELETE FROM file_groups WHERE path NOT IN (SELECT value FROM json_each(?)) AND NOT EXISTS
            (SELECT 1 FROM files f WHERE f.path = file_groups.path AND f.sha256 = file_groups.sha256)""",
            (json.dumps(list_uploads(settings.home)),),
        )


def _write(path: Path, content: Readable, most: int) -> str:
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        while block := content.read(BLOCK):
            size += len(block)
            if size > most:
                raise TandemError("The file is too large.", expected=f"At most {most:,} bytes.", code="too_large")
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    if not size:
        raise TandemError("The file is empty.", expected="A file with text in it.")
    return digest.hexdigest()


def _check_case(folder: Path, name: str) -> None:
    for other in folder.iterdir():
        if other.name != name and other.name.casefold() == name.casefold():
            raise TandemError(
                "There is a file whose name differs from this one only in upper and lower case.",
                expected="Names that are different on every disk.",
                do="Use its name to replace it, or another one.",
                code="conflict",
            )


def _groups_of(store: Store, name: str, sha256: str) -> tuple[str, ...]:
    with store.connection() as connection:
        row = connection.execute(
            "SELECT groups FROM file_groups WHERE path = ? AND sha256 = ?", (name, sha256)
        ).fetchone()
    return tuple(json.loads(row[0])) if row else ()


def _note_groups(store: Store, name: str, sha256: str, groups: Sequence[str]) -> None:
    with store.connection() as connection, transaction(connection):
        connection.execute("DELETE FROM file_groups WHERE path = ? AND sha256 = ?", (name, sha256))
        if groups:
            connection.execute("INSERT INTO file_groups VALUES (?, ?, ?)", (name, sha256, json.dumps(list(groups))))


def _clear(folder: Path) -> None:
    """Remove what uploads left that were cut off."""
    for path in folder.glob(f"{INCOMING}*"):
        if time.time() - path.stat().st_mtime > INCOMING_SECONDS:
            path.unlink(missing_ok=True)


def _flush(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
