"""A corpus folder to the list of files in it that can be indexed, and what is known about each.

Symlinks are followed only to files and folders that lie inside the corpus folder, and no folder is entered twice.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import TandemError
from indexer.loaders import is_supported

HASH_BLOCK = 1 << 20
# Pairs are questions about the documents, with their answers: indexing them would be answering from the key.
PAIRS_SUFFIX = ".pairs.jsonl"


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file found in a corpus; `path` is relative to the corpus folder, with forward slashes."""

    corpus: str
    path: str
    size: int
    mtime_ns: int

    @property
    def location(self) -> Path:
        """Where it lies on this machine."""
        return Path(self.corpus, self.path)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that could not be looked at, and why."""

    path: str
    reason: str


def check_corpus(folder: Path) -> Path:
    """The absolute path of an existing corpus folder, else TandemError."""
    if not folder.exists():
        raise TandemError(
            f"The corpus folder {folder} does not exist.",
            expected="A folder with documents in it.",
            do="Check the name; nothing that is already indexed was changed.",
            code="not_found",
        )
    if not folder.is_dir():
        raise TandemError(
            f"{folder} is a file.", expected="A folder with documents in it.", do="Name the folder that holds the file."
        )
    return folder.resolve()


def scan(corpus: Path) -> tuple[list[SourceFile], list[Skipped]]:
    """Every supported file below the corpus folder (absolute path), sorted by path; hidden ones are left out."""
    found: list[SourceFile] = []
    skipped: list[Skipped] = []
    for path in _walk(corpus, corpus, {os.path.realpath(corpus)}, skipped):
        name = path.relative_to(corpus).as_posix()
        if not is_supported(path) or name.endswith(PAIRS_SUFFIX):
            continue
        try:
            name.encode("utf-8")
            status = path.stat()
        except (OSError, UnicodeEncodeError) as error:
            skipped.append(Skipped(name.encode("utf-8", "replace").decode(), f"cannot be read: {error}"))
            continue
        found.append(SourceFile(str(corpus), name, status.st_size, status.st_mtime_ns))
    return sorted(found, key=lambda file: file.path), skipped


def _walk(folder: Path, corpus: Path, entered: set[str], skipped: list[Skipped]) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        skipped.append(Skipped(folder.relative_to(corpus).as_posix(), f"cannot be read: {error.strerror}"))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = Path(entry.path)
        name, real = path.relative_to(corpus).as_posix(), os.path.realpath(path)
        if entry.is_symlink() and not Path(real).is_relative_to(os.path.realpath(corpus)):
            skipped.append(Skipped(name, "a symbolic link that leaves the corpus folder"))
        elif entry.is_dir():
            if real not in entered:
                entered.add(real)
                yield from _walk(path, corpus, entered, skipped)
        elif entry.is_file():
            yield path
        elif entry.is_symlink():
            skipped.append(Skipped(name, "a symbolic link to nothing"))


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
