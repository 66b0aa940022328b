"""Bring the index in step with the folders: plan, stage, publish.

Documents and chunks are staged in short transactions under the number of the generation to come, where no reader
sees them. Publishing is one transaction that closes the rows that end, moves the generation number and, now and
then, names a new FAISS file. A kill at any instant leaves the old generation; what was embedded until then is kept.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from indexer.chunking import ChunkSize, split
from indexer.database import exclusive, transaction
from indexer.embedding import Embedder
from indexer.errors import TandemError
from indexer.loaders import Parsed
from indexer.loaders.sandbox import Loader
from indexer.plan import Change, KnownFile, Plan, make_plan
from indexer.publish import prune, publish, sync_running
from indexer.records import Chunk, Document, content_hash, document_id
from indexer.rewrite import needs_file
from indexer.scan import file_sha256
from indexer.store import VISIBLE, Generation, Store, current_generation

# Chunks embedded in one call: enough to sort by length, few enough that a kill or a cancel costs seconds.
EMBED_BATCH = 256


@dataclass(slots=True)
class Progress:
    """Counts of a running sync; `total` and `done` are files until they are read, then chunks to embed."""

    stage: str = "scan"
    done: int = 0
    total: int = 0
    current: str = ""


@dataclass(slots=True)
class Outcome:
    """What a sync did. `documents` counts below are files; seconds are wall time."""

    generation: int = 0
    added: int = 0
    changed: int = 0
    renamed: int = 0
    deleted: int = 0
    unchanged: int = 0
    failed: list[dict[str, str]] = field(default_factory=list)
    chunks: int = 0
    embedded: int = 0
    seconds: float = 0.0


Report = Callable[[Progress], None]


class Cancelled(Exception):
    """The sync was asked to stop; nothing was published."""


def plan_sync(
    store: Store, corpora: Sequence[Path], embedder_identity: str, size: ChunkSize, *, allow_empty: bool = False
) -> Plan:
    """What `sync` would do now. Raises TandemError for a corpus that is missing or empty."""
    with store.connection() as connection:
        generation = _generation(connection)
        known = _known_files(connection, generation)
        made_with = generation and (generation.embedder, generation.chunking)
        rebuild = made_with is not None and made_with != (embedder_identity, _chunking(size))
        if rebuild:
            # One generation holds vectors of one embedder, so the corpora not named are rebuilt too.
            corpora = [*{path.resolve(): None for path in [*corpora, *(Path(file.corpus) for file in known)]}]
        return make_plan(corpora, known, rebuild=rebuild, allow_empty=allow_empty)


def known_corpora(store: Store) -> list[Path]:
    """The folders of the current generation; empty when nothing is indexed."""
    with store.connection() as connection:
        return [
            Path(name) for name in sorted({file.corpus for file in _known_files(connection, _generation(connection))})
        ]


def sync(
    store: Store,
    corpora: Sequence[Path],
    embedder: Embedder,
    size: ChunkSize,
    *,
    allow_empty: bool = False,
    report: Report = lambda progress: None,
    cancel: threading.Event | None = None,
) -> Outcome:
    """Index the corpora incrementally and publish one new generation, or none when nothing changed.

    A document that fails keeps its previous version and is listed in `failed`. Raises TandemError when another
    sync runs on this home, a corpus is missing or empty, or no document at all could be read; Cancelled on request.
    """
    started = time.monotonic()
    with exclusive(store.home, "index", sync_running()), store.connection() as connection:
        run = _Run(connection, embedder, size, report, cancel or threading.Event())
        plan = plan_sync(store, corpora, embedder.identity, size, allow_empty=allow_empty)
        outcome = run.apply(plan, store.home)
        outcome.seconds = time.monotonic() - started
        return outcome


class _Run:
    """One sync under the lock."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        embedder: Embedder,
        size: ChunkSize,
        report: Report,
        cancel: threading.Event,
    ) -> None:
        self._connection = connection
        self._embedder = embedder
        self._size = size
        self._report = report
        self._cancel = cancel
        self._progress = Progress()
        self._old = _generation(connection)
        self._outcome = Outcome(generation=self._old.number if self._old else 0)
        self._waiting: dict[bytes, str] = {}
        self._ended: list[int] = []
        self._number = 0

    def apply(self, plan: Plan, home: Path) -> Outcome:
        self._drop_staged()
        self._outcome.unchanged = plan.unchanged
        self._outcome.failed = [{"document": skip.path, "reason": skip.reason} for skip in plan.skipped]
        self._note_touched(plan)
        if not plan.is_empty:
            self._number = self._next_number()
            self._read(plan)
            self._embed_waiting()
            self._outcome.deleted = len(plan.deleted)
            self._ended += [old.row for old in plan.deleted]
            self._check_something_was_read()
            if self._ended or self._outcome.added:
                self._publish(home)
        elif self._old is None:
            self._check_something_was_read()
        self._outcome.chunks = self._old.chunks if self._old and self._outcome.chunks == 0 else self._outcome.chunks
        return self._outcome

    def _check_something_was_read(self) -> None:
        if self._old is None and not self._outcome.added:
            failures = "; ".join(f"{failure['document']}: {failure['reason']}" for failure in self._outcome.failed[:3])
            raise TandemError(
                f"No document could be indexed. {failures}",
                expected="At least one document with readable text.",
                do="Mend or remove the files named here and run again.",
            )

    def _drop_staged(self) -> None:
        """Forget rows that an interrupted sync staged; their vectors stay."""
        number = self._old.number if self._old else 0
        with transaction(self._connection):
            self._connection.execute(
                "INSERT INTO chunk_words (chunk_words, rowid, context, text)"
                " SELECT 'delete', row, context, text FROM chunks WHERE born > ?",
                (number,),
            )
            for table in ("chunks", "documents", "files"):
                self._connection.execute(f"DELETE FROM {table} WHERE born > ?", (number,))

    def _next_number(self) -> int:
        # Counted up before anything is staged, so that a number is never used for two contents.
        with transaction(self._connection):
            row = self._connection.execute("SELECT value FROM meta WHERE key = 'last_number'").fetchone()
            number = int(row[0]) + 1 if row else 1
            self._connection.execute("INSERT OR REPLACE INTO meta VALUES ('last_number', ?)", (str(number),))
        return number

    def _note_touched(self, plan: Plan) -> None:
        with transaction(self._connection):
            for change in plan.touched:
                assert change.replaces is not None
                self._connection.execute(
                    "UPDATE files SET size = ?, mtime_ns = ? WHERE row = ?",
                    (change.file.size, change.file.mtime_ns, change.replaces.row),
                )

    def _step(self, stage: str, done: int, total: int, current: str) -> None:
        if self._cancel.is_set():
            raise Cancelled
        self._progress = Progress(stage, done, total, current)
        self._report(self._progress)

    def _read(self, plan: Plan) -> None:
        kinds = {"added": plan.added, "changed": plan.changed, "renamed": plan.renamed}
        total, done = len(plan.to_read), 0
        with Loader() as loader:
            for kind, changes in kinds.items():
                for change in changes:
                    self._step("read", done, total, change.file.path)
                    done += 1
                    if self._read_one(loader, change):
                        setattr(self._outcome, kind, getattr(self._outcome, kind) + 1)
        self._step("read", total, total, "")

    def _read_one(self, loader: Loader, change: Change) -> bool:
        """Stage the documents of one file; False (and a failure) when it cannot be read."""
        try:
            parsed = loader.parse(change.file.location)
            if file_sha256(change.file.location) != change.sha256:
                raise TandemError("The file changed while it was read.", do="It is read again by the next run.")
            documents = [_document(change, part) for part in parsed]
            chunked = [(document, split(document, self._embedder, self._size)) for document in documents]
            if not any(chunks for _, chunks in chunked):
                raise TandemError("The file has no text.")
        except (TandemError, OSError) as error:
            self._outcome.failed.append({"document": change.file.path, "reason": str(error)})
            if change.replaces is not None and change.file.path != change.replaces.path:
                # A renamed file that can no longer be read is gone under its old name all the same.
                self._ended.append(change.replaces.row)
            return False
        with transaction(self._connection):
            self._stage(change, chunked)
        if change.replaces is not None:
            self._ended.append(change.replaces.row)
        return True

    def _stage(self, change: Change, chunked: Sequence[tuple[Document, list[Chunk]]]) -> None:
        file = self._connection.execute(
            "INSERT INTO files (corpus, path, sha256, size, mtime_ns, born) VALUES (?, ?, ?, ?, ?, ?)",
            (change.file.corpus, change.file.path, change.sha256, change.file.size, change.file.mtime_ns, self._number),
        ).lastrowid
        for document, chunks in chunked:
            row = self._connection.execute(
                "INSERT INTO documents (file, id, corpus, path, title, format, text, pages, headings, metadata, born)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (file, *_document_values(document), self._number),
            ).lastrowid
            for chunk in chunks:
                self._stage_chunk(row, chunk)

    def _stage_chunk(self, document: int | None, chunk: Chunk) -> None:
        key = bytes.fromhex(content_hash(self._embedder.identity, chunk.embedded_text))[:16]
        if not self._connection.execute("SELECT 1 FROM vectors WHERE key = ?", (key,)).fetchone():
            self._waiting[key] = chunk.embedded_text
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

    def _embed_waiting(self) -> None:
        # Longest first: the first batch shows at once whether memory suffices, and the estimate only gets better.
        keys = sorted(self._waiting, key=lambda key: -len(self._waiting[key]))
        for start in range(0, len(keys), EMBED_BATCH):
            self._step("embed", start, len(keys), "")
            batch = keys[start : start + EMBED_BATCH]
            vectors = self._embedder.embed_documents([self._waiting[key] for key in batch])
            with transaction(self._connection):
                self._connection.executemany(
                    "INSERT OR REPLACE INTO vectors VALUES (?, ?)",
                    [(key, vector.tobytes()) for key, vector in zip(batch, vectors, strict=True)],
                )
                self._connection.executemany(
                    "INSERT OR IGNORE INTO pending_vectors VALUES (?)", [(key,) for key in batch]
                )
            self._outcome.embedded += len(batch)
        self._step("embed", len(keys), len(keys), "")

    def _publish(self, home: Path) -> None:
        self._step("publish", 0, 1, "")
        generation = publish(
            self._connection,
            home,
            number=self._number,
            ended_files=self._ended,
            embedder=self._embedder,
            chunking=_chunking(self._size),
            needs_file=needs_file,
        )
        prune(self._connection, home)
        self._outcome.generation = generation.number
        self._outcome.chunks = generation.chunks


def _generation(connection: sqlite3.Connection) -> Generation | None:
    try:
        return current_generation(connection)
    except TandemError:
        return None


def _known_files(connection: sqlite3.Connection, generation: Generation | None) -> list[KnownFile]:
    if generation is None:
        return []
    sql = f"SELECT row, corpus, path, sha256, size, mtime_ns FROM files f WHERE {VISIBLE.format('f')}"
    return [KnownFile(*row) for row in connection.execute(sql, {"g": generation.number})]


def _chunking(size: ChunkSize) -> str:
    return f"recursive-1:{size.tokens}:{size.overlap}"


def _document(change: Change, parsed: Parsed) -> Document:
    path = change.file.path if parsed.record is None else f"{change.file.path}#{parsed.record}"
    return Document(
        id=document_id(change.file.corpus, path, parsed.text),
        corpus=change.file.corpus,
        path=path,
        title=parsed.title or Path(change.file.path).stem,
        format=parsed.format,
        text=parsed.text,
        pages=parsed.pages,
        headings=parsed.headings,
        metadata=parsed.metadata,
    )


def _document_values(document: Document) -> tuple[str, ...]:
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
