"""A copy of the index and its corpora that can be changed and indexed again while the real ones stay as they are.

The database is copied whole and the corpora file by file (as hard links where the disk allows it, so a changed file is
always written anew, never in place). Vectors are kept by the hash of what was embedded, so only what is changed is
embedded again.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from indexer.database import DATABASE
from indexer.embedding import Embedder
from indexer.errors import TandemError
from indexer.folders import write_file
from indexer.store import Store
from indexer.sync import forget, known_corpora, sync
from service.assembly import chunk_size
from service.settings import Settings

# A file in which a text can be replaced by another and stays what it was.
_TEXT_SUFFIXES = {".md", ".markdown", ".txt", ".rst", ".html", ".htm", ".jsonl", ".json", ".csv", ".tsv", ".xml"}
# More than this is not copied; a fact can be changed in a small corpus as well.
MOST_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The copies: a store over the copied home, and where each corpus was copied to."""

    store: Store
    corpora: tuple[Path, ...]
    settings: Settings
    embedder: Embedder

    def file_of(self, document: str) -> Path | None:
        """The copied text file that holds this document (a path; what follows # is a record), or None."""
        name = document.partition("#")[0]
        for corpus in self.corpora:
            path = corpus / name
            if path.is_file() and path.suffix.lower() in _TEXT_SUFFIXES:
                return path
        return None

    def rewrite(self, path: Path, data: bytes) -> None:
        """Replace a copied file."""
        write_file(path, data)

    def delete(self, path: Path) -> None:
        """Remove a copied file."""
        path.unlink()

    def index(self) -> float:
        """Bring the copied index in step with the copied files; seconds. Raises TandemError."""
        started = time.perf_counter()
        sync(self.store, self.corpora, self.embedder, chunk_size(self.settings), allow_empty=True)
        return time.perf_counter() - started


@contextmanager
def sandbox(settings: Settings, store: Store, embedder: Embedder) -> Iterator[Sandbox]:
    """Copies that are gone after the block. Raises TandemError when the corpora are too large or not there."""
    corpora = [folder for folder in known_corpora(store) if folder.is_dir()]
    size = sum(path.stat().st_size for folder in corpora for path in folder.rglob("*") if path.is_file())
    if size > MOST_BYTES or not corpora:
        raise TandemError(
            f"The corpora cannot be copied: {size / 2**30:.1f} GiB in {len(corpora)} folders.",
            expected=f"At most {MOST_BYTES >> 30} GiB, in folders that are there.",
            do="Compare over an index of fewer documents.",
            code="too_large",
        )
    with tempfile.TemporaryDirectory(prefix="tandem-compare-", dir=settings.home) as name:
        root = Path(name).resolve()
        home = root / "home"
        home.mkdir()
        with closing(sqlite3.connect(settings.home / DATABASE)) as source:
            source.execute("VACUUM INTO ?", (str(home / DATABASE),))
        copied = []
        for number, folder in enumerate(corpora):
            # The folder's own name is kept, because titles and contexts may be made of it.
            target = root / str(number) / folder.name
            shutil.copytree(folder, target, copy_function=_link)
            copied.append(target)
        inner = Store(home)
        try:
            copy = Sandbox(inner, tuple(copied), settings, embedder)
            copy.index()
            for folder in corpora:
                forget(inner, folder)
            yield copy
        finally:
            inner.close()


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
