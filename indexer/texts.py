"""Texts that a program adds, changes and deletes by id: a corpus of the store that is no folder.

Such a corpus has a name without `/`, a text is one document whose path is its id, and every call is one generation: all
of it is there or nothing is. Everything else (search, citations, filters, rebuilding with another embedder,
`tandem index --forget NAME`) treats its documents like those of a folder.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from indexer.chunking import ChunkSize, split
from indexer.database import exclusive
from indexer.embedding import Embedder
from indexer.embedqueue import EmbedQueue
from indexer.errors import TandemError
from indexer.publish import prune, publish, sync_running
from indexer.records import Document, content_hash, document_id
from indexer.rewrite import needs_file
from indexer.scan import SourceFile
from indexer.staging import Staging, drop_staged, next_number, unflushed
from indexer.store import Snapshot, Store, current_generation
from indexer.sync import chunking_stamp

# Two programs may add texts at once: the second waits for the first, but not for a sync that takes minutes.
WAIT_SECONDS = 30.0
POLL_SECONDS = 0.02
FORMAT = "text"


@dataclass(frozen=True, slots=True)
class Text:
    """A text under an id of the caller's; metadata is what JSON can hold."""

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def put_texts(store: Store, corpus: str, texts: Sequence[Text], embedder: Embedder, size: ChunkSize) -> int:
    """Add the texts, replacing those of the same ids (the last of equal ids counts); the generation that has them.

    Raises TandemError when the corpus name, an id or the metadata cannot be stored, the index was made with another
    embedder or chunk size, or another process is writing for longer than WAIT_SECONDS.
    """
    _check_name(corpus)
    documents = {text.id: _document(corpus, text) for text in texts}
    return _change(store, corpus, list(documents), list(documents.values()), embedder, size)


def remove_texts(store: Store, corpus: str, ids: Sequence[str] | None, embedder: Embedder, size: ChunkSize) -> int:
    """Delete the texts of these ids (None: all of the corpus); ids not held are passed over. Raises as put_texts."""
    return _change(store, corpus, ids, [], embedder, size)


def read_texts(snapshot: Snapshot, corpus: str, ids: Sequence[str]) -> list[Text]:
    """The texts of these ids that are there, in the order of the ids."""
    found = {id: snapshot.document_at(corpus, id) for id in dict.fromkeys(ids)}
    return [Text(id, document.text, document.metadata) for id, document in found.items() if document is not None]


def _change(
    store: Store,
    corpus: str,
    ids: Sequence[str] | None,
    documents: Sequence[Document],
    embedder: Embedder,
    size: ChunkSize,
) -> int:
    with _writing(store), store.connection() as connection:
        try:
            old = current_generation(connection)
        except TandemError:
            old = None
        stamp = chunking_stamp(size)
        if old is not None and (old.embedder, old.chunking) != (embedder.identity, stamp):
            raise TandemError(
                f"The index was made with {old.embedder} and {old.chunking}, not with {embedder.identity} and {stamp}.",
                expected="One embedder and one chunk size for everything in an index.",
                do="Use those of the index, another home folder, or rebuild it with `tandem index`.",
                code="conflict",
            )
        ended = _living_files(connection, corpus, ids)
        if old is not None and not ended and not documents:
            return old.number
        drop_staged(connection, old.number if old else 0)
        number = next_number(connection)
        with unflushed(connection), EmbedQueue(connection, embedder) as queue:
            staging = Staging(connection, queue, number, embedder.identity)
            for document in documents:
                file = SourceFile(corpus, document.path, len(document.text), 0)
                staging.add(file, content_hash(document.text), [(document, split(document, embedder, size))])
            queue.finish(lambda done, total: None)
        publish(
            connection, store.home, number=number, ended_files=ended, embedder=embedder, chunking=stamp,
            needs_file=needs_file,
        )  # fmt: skip
        prune(connection, store.home)
        return number


def _living_files(connection: sqlite3.Connection, corpus: str, ids: Sequence[str] | None) -> list[int]:
    sql = "SELECT file FROM documents WHERE corpus = ? AND died IS NULL"
    if ids is None:
        return [row[0] for row in connection.execute(sql, (corpus,))]
    return [row[0] for name in dict.fromkeys(ids) for row in connection.execute(f"{sql} AND path = ?", (corpus, name))]


@contextmanager
def _writing(store: Store) -> Iterator[None]:
    """The lock of all writers, waited for."""
    deadline = time.monotonic() + WAIT_SECONDS
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(exclusive(store.home, "index", sync_running()))
                break
            except TandemError as error:
                if error.code != "conflict" or time.monotonic() > deadline:
                    raise
                time.sleep(POLL_SECONDS)
        yield


def _check_name(corpus: str) -> None:
    if not corpus or "/" in corpus:
        raise TandemError(
            f"{corpus!r} is no name for a corpus of texts.", expected="A name without `/`: with one it is a folder."
        )


def _document(corpus: str, text: Text) -> Document:
    try:
        json.dumps(dict(text.metadata), allow_nan=False)
        for part in (text.id, text.text):
            part.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise TandemError(
            f"The text {text.id!r} cannot be stored: {error}.",
            expected="Valid Unicode, and metadata of strings, numbers, booleans, lists and objects.",
        ) from error
    return Document(
        id=document_id(corpus, text.id, text.text),
        corpus=corpus,
        path=text.id,
        title="",
        format=FORMAT,
        text=text.text,
        metadata=dict(text.metadata),
    )
