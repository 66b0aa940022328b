"""Embeds in a thread of its own while the next files are read, and stores the vectors as they come.

The calling thread owns the database connection, so it is the one that stores. What was stored is kept over a kill or a
cancel: the next run finds it by the hash of its text.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from indexer.database import transaction
from indexer.embedding import Embedder, Vectors

# Chunks sorted by length together, so that a batch pads little; also the most that wait in memory, twice over.
WINDOW = 2048
# Chunks of one call: a cancel waits for one.
BATCH = 128


class EmbedQueue:
    """A context manager; leaving it stores what is embedded and drops what is not."""

    def __init__(self, connection: sqlite3.Connection, embedder: Embedder) -> None:
        self.stored = 0
        self.total = 0
        self._connection = connection
        self._embedder = embedder
        self._asked: set[bytes] = set()
        self._window: list[tuple[bytes, str]] = []
        self._running: deque[tuple[list[bytes], Future[Vectors]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")

    def __enter__(self) -> EmbedQueue:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        if kind is not None:
            # The first error is the one to tell.
            self._running = deque(
                (keys, future)
                for keys, future in self._running
                if future.done() and not future.cancelled() and not future.exception()
            )
            if not issubclass(kind, sqlite3.Error):
                self.store_ready()

    def put(self, key: bytes, text: str) -> None:
        """Have a text embedded under its key, unless that key is stored or was asked for."""
        if key in self._asked:
            return
        if self._connection.execute("SELECT 1 FROM vectors WHERE key = ?", (key,)).fetchone():
            return
        self._asked.add(key)
        self._window.append((key, text))
        self.total += 1
        if len(self._window) >= WINDOW:
            self._start_window()
            while self.total - self.stored > 2 * WINDOW:
                self._store_first()

    def finish(self, report: Callable[[int, int], None]) -> None:
        """Embed and store all that was put; `report` gets the chunks done and their total."""
        self._start_window()
        while self._running:
            report(self.stored, self.total)
            self._store_first()
        report(self.stored, self.total)

    def store_ready(self) -> None:
        """Store what is embedded by now."""
        while self._running and self._running[0][1].done():
            self._store_first()

    def _start_window(self) -> None:
        self._window.sort(key=lambda item: -len(item[1]))
        for start in range(0, len(self._window), BATCH):
            batch = self._window[start : start + BATCH]
            texts = [text for _, text in batch]
            self._running.append(
                ([key for key, _ in batch], self._thread.submit(self._embedder.embed_documents, texts))
            )
        self._window = []

    def _store_first(self) -> None:
        keys, future = self._running.popleft()
        vectors = future.result()
        with transaction(self._connection):
            self._connection.executemany(
                "INSERT OR REPLACE INTO vectors VALUES (?, ?)",
                [(key, vector.tobytes()) for key, vector in zip(keys, vectors, strict=True)],
            )
            self._connection.executemany("INSERT OR IGNORE INTO pending_vectors VALUES (?)", [(key,) for key in keys])
        self.stored += len(keys)
