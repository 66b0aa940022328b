"""Bring the index in step with the folders: plan, stage, publish.

Documents and chunks are staged in short transactions under the number of the generation to come, where no reader
sees them. Publishing is one transaction that closes the rows that end, moves the generation number and, now and
then, names a new FAISS file. A kill at any instant leaves the old generation; what was embedded until then is kept.
"""

from __future__ import annotations

import errno
import logging
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from indexer.changed import document_of, moved, read_alike
from indexer.chunking import ChunkSize, split
from indexer.database import exclusive
from indexer.embedding import Embedder
from indexer.embedqueue import EmbedQueue
from indexer.errors import TandemError
from indexer.loaders.sandbox import Loader
from indexer.outcome import Cancelled, Outcome, Progress, Report
from indexer.plan import Change, KnownFile, Plan, make_plan
from indexer.publish import prune, publish, sync_running
from indexer.records import Document
from indexer.rewrite import needs_file
from indexer.scan import file_sha256
from indexer.staging import Staging, drop_staged, next_number, note_times, stored_documents, unflushed
from indexer.store import VISIBLE, Generation, Store, current_generation

log = logging.getLogger(__name__)

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def plan_sync(
    store: Store, corpora: Sequence[Path], embedder_identity: str, size: ChunkSize, *, allow_empty: bool = False
) -> Plan:
    """What `sync` would do now. Raises TandemError for a corpus that is missing or empty."""
    with store.connection() as connection:
        generation = _generation(connection)
        made_with = generation and (generation.embedder, generation.chunking)
        rebuild = made_with is not None and made_with != (embedder_identity, chunking_stamp(size))
        return make_plan(corpora, _known_files(connection, generation), rebuild=rebuild, allow_empty=allow_empty)


def known_corpora(store: Store) -> list[Path]:
    """The folders of the current generation; empty when nothing is indexed. A corpus that is no folder has no `/`."""
    with store.connection() as connection:
        names = {file.corpus for file in _known_files(connection, _generation(connection))}
        return [Path(name) for name in sorted(names) if Path(name).is_absolute()]


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
    sync runs on this home, a corpus is missing or empty, no document at all could be read, or the disk is full;
    Cancelled on request.
    """
    started = time.monotonic()
    with exclusive(store.home, "index", sync_running()), _told(store.home), store.connection() as connection:
        run = _Run(connection, embedder, size, report, cancel or threading.Event())
        plan = plan_sync(store, corpora, embedder.identity, size, allow_empty=allow_empty)
        outcome = run.apply(plan, store.home)
        outcome.seconds = time.monotonic() - started
        return outcome


def forget(store: Store, corpus: Path | str) -> Outcome:
    """Remove every document of a corpus from the index; its folder may be gone and is not touched.

    `corpus` is the folder, or the name of a corpus that is no folder. Raises TandemError not_found when none of its
    documents is indexed.
    """
    started = time.monotonic()
    with exclusive(store.home, "index", sync_running()), _told(store.home), store.connection() as connection:
        old = _generation(connection)
        known = _known_files(connection, old)
        names = {str(corpus), str(Path(corpus).absolute()), str(Path(corpus).resolve())}
        ended = [file.row for file in known if file.corpus in names]
        if old is None or not ended:
            listed = ", ".join(sorted({file.corpus for file in known})) or "nothing"
            raise TandemError(
                f"No corpus {corpus} is indexed.", expected=f"One of those that are: {listed}.", code="not_found"
            )
        drop_staged(connection, old.number)
        generation = publish(
            connection,
            store.home,
            number=next_number(connection),
            ended_files=ended,
            embedder=_Stamp(old.embedder, old.dimension),
            chunking=old.chunking,
            needs_file=needs_file,
        )
        _prune(connection, store.home)
        return Outcome(
            generation=generation.number,
            deleted=len(ended),
            unchanged=len(known) - len(ended),
            chunks=generation.chunks,
            seconds=time.monotonic() - started,
        )


@dataclass(frozen=True, slots=True)
class _Stamp:
    """The embedder of a generation, without the model."""

    identity: str
    dimension: int


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
        self._old = _generation(connection)
        self._outcome = Outcome(generation=self._old.number if self._old else 0)
        self._ended: list[int] = []

    def apply(self, plan: Plan, home: Path) -> Outcome:
        drop_staged(self._connection, self._old.number if self._old else 0)
        self._outcome.unchanged = plan.unchanged
        self._outcome.failed = [{"document": skip.path, "reason": skip.reason} for skip in plan.skipped]
        note_times(self._connection, [(change.replaces.row, change.file) for change in plan.touched if change.replaces])
        number = 0
        if not plan.is_empty:
            # Once and at once: an impossible size is no failure of a document.
            self._size.check(self._embedder.window)
            number = next_number(self._connection)
            with (
                unflushed(self._connection),
                EmbedQueue(self._connection, self._embedder) as queue,
                Loader() as loader,
            ):
                staging = Staging(self._connection, queue, number, self._embedder.identity)
                self._read(plan, loader, staging, queue)
                queue.finish(lambda done, total: self._step("embed", done, total))
            self._outcome.embedded = queue.stored
            self._outcome.deleted = len(plan.deleted)
            self._ended += [old.row for old in plan.deleted]
        self._check_something_was_read()
        if self._ended or self._outcome.added:
            self._publish(home, number)
        else:
            self._outcome.chunks = self._old.chunks if self._old else 0
        return self._outcome

    def _check_something_was_read(self) -> None:
        if self._old is None and not self._outcome.added:
            failures = "; ".join(f"{failure['document']}: {failure['reason']}" for failure in self._outcome.failed[:3])
            raise TandemError(
                f"No document could be indexed. {failures}",
                expected="At least one document with readable text.",
                do="Mend or remove the files named here and run again.",
            )

    def _step(self, stage: str, done: int, total: int, current: str = "") -> None:
        if self._cancel.is_set():
            raise Cancelled
        self._report(Progress(stage, done, total, current))

    def _read(self, plan: Plan, loader: Loader, staging: Staging, queue: EmbedQueue) -> None:
        """Stage every file of the plan, while those before it are embedded."""
        work: list[tuple[str, Change]] = [
            *(("added", change) for change in plan.added),
            *(("changed", change) for change in plan.changed),
            *(("renamed", change) for change in plan.renamed),
            *(("changed", Change(old.source, old.sha256, old)) for old in plan.rebuilt),
        ]
        for done, (kind, change) in enumerate(work):
            self._step("read", done, len(work), change.file.path)
            if self._stage(kind, change, loader, staging, plan.rebuild):
                setattr(self._outcome, kind, getattr(self._outcome, kind) + 1)
            queue.store_ready()
        self._step("read", len(work), len(work))

    def _stage(self, kind: str, change: Change, loader: Loader, staging: Staging, rebuild: bool) -> bool:
        """Stage the documents of one file; False (and a failure) when it cannot be read."""
        old = change.replaces
        if old is not None and change.sha256 == old.sha256 and read_alike(change.file.path, old.path):
            self._restage(change, old, staging, rebuild)
            return True
        try:
            documents = self._parse(change, loader)
            chunked = [(document, split(document, self._embedder, self._size)) for document in documents]
            if not any(chunks for _, chunks in chunked):
                raise TandemError("The file has no text.")
        except (TandemError, OSError) as error:
            self._outcome.failed.append({"document": change.file.path, "reason": str(error)})
            if old is not None and kind == "renamed":
                # It cannot be read under its new name and is gone under its old one.
                self._ended.append(old.row)
            elif old is not None and rebuild:
                # The version before stays, and must be embedded like the rest of the generation.
                self._restage(Change(old.source, old.sha256, old), old, staging, rebuild)
            return False
        staging.add(change.file, change.sha256, chunked)
        if old is not None:
            self._ended.append(old.row)
        return True

    def _parse(self, change: Change, loader: Loader) -> list[Document]:
        parsed = loader.parse(change.file.location)
        if file_sha256(change.file.location) != change.sha256:
            raise TandemError("The file changed while it was read.", do="It is read again by the next run.")
        return [document_of(change, part) for part in parsed]

    def _restage(self, change: Change, old: KnownFile, staging: Staging, rebuild: bool) -> None:
        """Stage the stored documents of a file again, under its new name or for another embedder or chunk size."""
        documents, vectors = stored_documents(self._connection, old.row)
        documents = [moved(document, old, change) for document in documents]
        chunked = [(document, split(document, self._embedder, self._size)) for document in documents]
        staging.add(change.file, change.sha256, chunked, None if rebuild else vectors)
        self._ended.append(old.row)

    def _publish(self, home: Path, number: int) -> None:
        self._step("publish", 0, 1)
        generation = publish(
            self._connection,
            home,
            number=number,
            ended_files=self._ended,
            embedder=self._embedder,
            chunking=chunking_stamp(self._size),
            needs_file=needs_file,
        )
        _prune(self._connection, home)
        self._outcome.generation = generation.number
        self._outcome.chunks = generation.chunks


def _prune(connection: sqlite3.Connection, home: Path) -> None:
    try:
        prune(connection, home)
    except (sqlite3.Error, OSError) as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        # The generation is published; what no one sees any more goes with the next one.
        log.warning("old rows could not be removed: %s", error)


@contextmanager
def _told(home: Path) -> Iterator[None]:
    """A full or failing disk as a TandemError."""
    try:
        yield
    except (sqlite3.OperationalError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_ROOM:
            raise
        raise TandemError(
            f"The index in {home} could not be written: {error}.",
            expected="A disk with free space that can be written to.",
            do="Free some space and run it again. The index is as it was, and what was embedded is kept.",
            code="unavailable",
        ) from error


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


def chunking_stamp(size: ChunkSize) -> str:
    """What a generation keeps of how its documents were chunked; another size means chunking them anew."""
    return f"recursive-2:{size.tokens}:{size.overlap}"
