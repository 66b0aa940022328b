"""A corpus folder to the list of files in it that can be indexed, and what is known about each.

Symlinks are followed only to files and folders that lie inside the corpus folder, and no folder is entered twice.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from indexer.database import DATABASE
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
            do="Check the name; the index is as it was. `tandem index --forget DIR` removes a corpus from it.",
            code="not_found",
        )
    if not folder.is_dir():
        raise TandemError(
            f"{folder} is a file.", expected="A folder with documents in it.", do="Name the folder that holds the file."
        )
    return folder.resolve()


def scan(corpus: Path) -> tuple[list[SourceFile], list[Skipped]]:
    """Every supported file below the corpus folder (absolute path), sorted by path; hidden ones are left out.

    A symbolic link is followed where its target lies in the corpus and is not found in its own place (it is hidden).
    """
    walk = _Walk(corpus)
    walk.run()
    return sorted(walk.found, key=lambda file: file.path), walk.skipped


class _Walk:
    """Folders and files first, then links, so that what is there twice is named by its own path."""

    def __init__(self, corpus: Path) -> None:
        self.found: list[SourceFile] = []
        self.skipped: list[Skipped] = []
        self._root = os.fspath(corpus)
        self._real_root = os.path.realpath(corpus)
        self._seen: set[tuple[int, int]] = set()
        self._links: list[str] = []

    def run(self) -> None:
        self._folder("")
        while self._links:
            links, self._links = sorted(self._links), []
            for name in links:
                self._link(name)

    def _folder(self, top: str) -> None:
        """Everything below a folder; `top` and all names are relative to the corpus. No recursion: depth is free."""
        waiting = [top]
        while waiting:
            folder = waiting.pop()
            try:
                status = os.stat(os.path.join(self._root, folder))
                if (status.st_dev, status.st_ino) in self._seen:
                    continue
                self._seen.add((status.st_dev, status.st_ino))
                with os.scandir(os.path.join(self._root, folder)) as entries:
                    children = [entry for entry in entries if not entry.name.startswith(".")]
            except OSError as error:
                self._skip(folder or ".", f"cannot be read: {error.strerror}")
                continue
            if any(entry.name == DATABASE for entry in children):
                # A home folder that lies in a corpus: its weights are full of JSON that is no document.
                continue
            for entry in children:
                name = f"{folder}/{entry.name}" if folder else entry.name
                if entry.is_symlink():
                    self._links.append(name)
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append(name)
                elif entry.is_file(follow_symlinks=False):
                    self._file(name)

    def _link(self, name: str) -> None:
        real = os.path.realpath(os.path.join(self._root, name))
        if real != self._real_root and not real.startswith(self._real_root.rstrip("/") + "/"):
            self._skip(name, "a symbolic link that leaves the corpus folder")
        elif os.path.isdir(real):
            self._folder(name)
        elif os.path.isfile(real):
            self._file(name)
        else:
            self._skip(name, "a symbolic link to nothing")

    def _file(self, name: str) -> None:
        if not is_supported(name) or name.endswith(PAIRS_SUFFIX):
            return
        try:
            name.encode("utf-8")
            status = os.stat(os.path.join(self._root, name))
        except (OSError, UnicodeEncodeError) as error:
            self._skip(name, f"cannot be read: {error}")
            return
        key = (status.st_dev, status.st_ino)
        if key in self._seen and os.path.islink(os.path.join(self._root, name)):
            return
        self._seen.add(key)
        self.found.append(SourceFile(self._root, name, status.st_size, status.st_mtime_ns))

    def _skip(self, name: str, reason: str) -> None:
        self.skipped.append(Skipped(name.encode("utf-8", "replace").decode(), reason))


def wanted(path: Path, corpora: Iterable[Path]) -> bool:
    """Whether a change of this path can change what a scan of the corpora finds."""
    for corpus in corpora:
        if path.is_relative_to(corpus):
            parts = path.relative_to(corpus).parts
            hidden = any(part.startswith(".") for part in parts)
            # What is no file may be a folder that came or went with all that is in it.
            return not hidden and not path.name.endswith(PAIRS_SUFFIX) and (is_supported(path) or not path.is_file())
    return False


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            digest.update(block)
    return digest.hexdigest()
