"""Rows of the generation to come: files, documents and chunks under its number, where no reader sees them."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from indexer.database import transaction
from indexer.embedqueue import EmbedQueue
from indexer.records import Chunk, Document, content_hash
from indexer.scan import SourceFile
from indexer.store import as_document

# A file written this recently may be written again without its size or time showing it; it is hashed next time.
SETTLED_NS = 2_000_000_000
NO_TIME = 0

Span = tuple[int, int]
Chunked = tuple[Document, list[Chunk]]


def drop_staged(connection: sqlite3.Connection, current: int) -> None:
    """Forget rows that an interrupted sync staged over the `current` generation; their vectors stay."""
    with transaction(connection):
        connection.execute(
            "INSERT INTO chunk_words (chunk_words, rowid, context, text)"
            " SELECT 'delete', row, context, text FROM chunks WHERE born > ?",
            (current,),
        )
        for table in ("chunks", "documents", "files"):
            connection.execute(f"DELETE FROM {table} WHERE born > ?", (current,))


def next_number(connection: sqlite3.Connection) -> int:
    """A generation number that was never used, counted up on disk before anything is staged under it."""
    with transaction(connection):
        row = connection.execute("SELECT value FROM meta WHERE key = 'last_number'").fetchone()
        number = int(row[0]) + 1 if row else 1
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('last_number', ?)", (str(number),))
    return number


@contextmanager
def unflushed(connection: sqlite3.Connection) -> Iterator[None]:
    """Commits in the block outlive a kill at once and a power cut only with the first commit after it, in their order.

    What is staged is worth nothing until it is published, and one flush a file would be what takes the time.
    """
    connection.execute("PRAGMA synchronous = NORMAL")
    try:
        yield
    finally:
        connection.execute("PRAGMA synchronous = FULL")


def note_times(connection: sqlite3.Connection, files: Sequence[tuple[int, SourceFile]]) -> None:
    """Remember the size and time of files (by row) whose content proved to be the same."""
    with transaction(connection):
        connection.executemany(
            "UPDATE files SET size = ?, mtime_ns = ? WHERE row = ?",
            [(file.size, _settled(file), row) for row, file in files],
        )


def _settled(file: SourceFile) -> int:
    return file.mtime_ns if time.time_ns() - file.mtime_ns > SETTLED_NS else NO_TIME


class Staging:
    """Stages one file a transaction under `number`; chunks whose vectors are not stored go to the queue."""

    def __init__(self, connection: sqlite3.Connection, queue: EmbedQueue, number: int, embedder: str) -> None:
        self._connection = connection
        self._queue = queue
        self._number = number
        self._embedder = embedder

    def add(
        self,
        file: SourceFile,
        sha256: str,
        documents: Sequence[Chunked],
        vectors: Mapping[tuple[int, Span], bytes] | None = None,
    ) -> None:
        """Stage a file with its documents. `vectors` has the keys to use for (document place, span), where known."""
        waiting: list[tuple[bytes, str]] = []
        with transaction(self._connection):
            row = self._connection.execute(
                "INSERT INTO files (corpus, path, sha256, size, mtime_ns, born) VALUES (?, ?, ?, ?, ?, ?)",
                (file.corpus, file.path, sha256, file.size, _settled(file), self._number),
            ).lastrowid
            for place, (document, chunks) in enumerate(documents):
                document_row = self._connection.execute(
                    "INSERT INTO documents (file, id, corpus, path, title, format, text, pages, headings, metadata,"
                    " born) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (row, *_values(document), self._number),
                ).lastrowid
                for chunk in chunks:
                    key = (vectors or {}).get((place, (chunk.start, chunk.end)))
                    if key is None:
                        key = bytes.fromhex(content_hash(self._embedder, chunk.embedded_text))[:16]
                        waiting.append((key, chunk.embedded_text))
                    self._add_chunk(document_row, chunk, key)
        for key, text in waiting:
            self._queue.put(key, text)

    def _add_chunk(self, document: int | None, chunk: Chunk, key: bytes) -> None:
        row = self._connection.execute(
            'INSERT INTO chunks (document, id, ordinal, start, "end", page, tokens, context, text, vector, born)'
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                document,
                chunk.id,
                chunk.ordinal,
                chunk.start,
                chunk.end,
                chunk.page,
                chunk.tokens,
                chunk.context,
                chunk.text,
                key,
                self._number,
            ),
        ).lastrowid
        self._connection.execute(
            "INSERT INTO chunk_words (rowid, context, text) VALUES (?, ?, ?)", (row, chunk.context, chunk.text)
        )


def stored_documents(connection: sqlite3.Connection, file: int) -> tuple[list[Document], dict[tuple[int, Span], bytes]]:
    """The documents of a file's row as they were indexed, and the vector keys of their chunks by place and span."""
    documents: list[Document] = []
    vectors: dict[tuple[int, Span], bytes] = {}
    for row in connection.execute("SELECT * FROM documents WHERE file = ? ORDER BY row", (file,)).fetchall():
        for chunk in connection.execute('SELECT start, "end", vector FROM chunks WHERE document = ?', (row["row"],)):
            vectors[len(documents), (chunk[0], chunk[1])] = chunk[2]
        documents.append(as_document(row))
    return documents, vectors


def _values(document: Document) -> tuple[str, ...]:
    return (
        document.id,
        document.corpus,
        document.path,
        document.title,
        document.format,
        document.text,
        json.dumps([(page.number, page.start, page.end) for page in document.pages]),
        json.dumps([(heading.level, heading.title, heading.start) for heading in document.headings]),
        json.dumps(dict(document.metadata)),
    )
