"""The source of truth: documents, chunks, vectors and words in SQLite, read one generation at a time.

A `Snapshot` is a read transaction: whatever is published while it is open, it goes on seeing its own generation.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from queue import Empty, LifoQueue

import numpy as np
import numpy.typing as npt

from indexer.database import open_database
from indexer.errors import TandemError
from indexer.filters import Filter
from indexer.readers import Rules, required_groups
from indexer.records import Chunk, Document, Heading, Page
from indexer.words import any_of

VISIBLE = "{0}.born <= :g AND ({0}.died IS NULL OR {0}.died > :g)"
# The same by the short list of rows that are not visible: a table, and what names its row. The others are not read, and
# in a document's row these numbers lie behind its whole text.
SHOWN = "+{1} NOT IN (SELECT row FROM {0} WHERE born > :g UNION ALL SELECT row FROM {0} WHERE died <= :g)"
READ_BATCH = 500
EVERYTHING = Filter()


@dataclass(frozen=True, slots=True)
class Generation:
    """One committed state of the index; see schema.sql for the fields."""

    number: int
    parent: int | None
    created: str
    embedder: str
    chunking: str
    dimension: int
    documents: int
    chunks: int
    vector_file: str | None
    vector_sha256: str | None
    vector_rows: int
    vector_drift: int
    vector_kind: str
    vector_recall: float | None
    vector_trained: int


class Store:
    """The database of one home folder. Thread-safe: each reader and writer has a connection of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._idle: LifoQueue[sqlite3.Connection] = LifoQueue()
        self._idle.put(open_database(home))

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """A connection for one thread at a time, given back at the end."""
        try:
            connection = self._idle.get_nowait()
        except Empty:
            connection = open_database(self.home)
        try:
            yield connection
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            self._idle.put(connection)

    @contextmanager
    def read(self) -> Iterator[Snapshot]:
        """The current generation, pinned until the block ends. Raises TandemError when nothing is indexed yet."""
        with self.connection() as connection:
            connection.execute("BEGIN")
            yield Snapshot(connection, current_generation(connection))

    def close(self) -> None:
        """Close the idle connections."""
        while True:
            try:
                self._idle.get_nowait().close()
            except Empty:
                return


def current_generation(connection: sqlite3.Connection) -> Generation:
    """The published generation. Raises TandemError when there is none."""
    row = connection.execute(
        "SELECT g.* FROM generations g JOIN meta m ON m.key = 'generation' AND g.number = CAST(m.value AS INTEGER)"
    ).fetchone()
    if row is None:
        raise TandemError(
            "Nothing is indexed yet.", do="Run `tandem index DIR` (or `tandem up`) first.", code="unavailable"
        )
    return Generation(**dict(row))


class Snapshot:
    """One generation, readable for as long as its transaction is open."""

    def __init__(self, connection: sqlite3.Connection, generation: Generation) -> None:
        self._connection = connection
        self.generation = generation

    def _rows(self, sql: str, **values: object) -> Iterator[sqlite3.Row]:
        yield from self._connection.execute(sql, {"g": self.generation.number, **values})

    def chunk_rows(self) -> npt.NDArray[np.int64]:
        """Row numbers of all visible chunks, increasing."""
        sql = f"SELECT row FROM chunks c WHERE {VISIBLE.format('c')} ORDER BY row"
        return np.fromiter((row[0] for row in self._rows(sql)), np.int64)

    def changed_rows(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Rows of the chunks that its parent generation has and this one has not, and the other way round."""
        died = "SELECT row FROM chunks WHERE died = :g AND born < :g ORDER BY row"
        born = "SELECT row FROM chunks WHERE born = :g AND (died IS NULL OR died > :g) ORDER BY row"
        gone, added = (np.fromiter((row[0] for row in self._rows(sql)), np.int64) for sql in (died, born))
        return gone, added

    def vectors(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """(n, d) stored vectors of these chunk rows, in their order."""
        matrix = np.empty((len(rows), self.generation.dimension), np.float32)
        places = {int(row): place for place, row in enumerate(rows)}
        for batch in _batches(list(places)):
            marks = ",".join("?" * len(batch))
            sql = f"SELECT c.row, v.vector FROM chunks c JOIN vectors v ON v.key = c.vector WHERE c.row IN ({marks})"
            for row, vector in self._connection.execute(sql, batch):
                matrix[places[row]] = np.frombuffer(vector, np.float32)
        return matrix

    def passages(self, rows: Sequence[int]) -> dict[int, tuple[Chunk, str, str, tuple[Page, ...]]]:
        """Visible chunks by row, each with its document's path, its title and the pages that the chunk touches."""
        found: dict[int, tuple[Chunk, str, str, tuple[Page, ...]]] = {}
        for batch in _batches(list(rows)):
            sql = f"""SELECT c.*, d.id AS document_id, d.path, d.title, d.pages
                FROM chunks c JOIN documents d ON d.row = c.document
                WHERE c.row IN ({",".join(str(int(row)) for row in batch)}) AND {VISIBLE.format("c")}"""
            for row in self._rows(sql):
                pages = (Page(*page) for page in json.loads(row["pages"]))
                touched = tuple(page for page in pages if page.start < row["end"] and page.end > row["start"])
                found[row["row"]] = _chunk(row), row["path"], row["title"], touched
        return found

    def narrowed(self, where: Filter) -> Filter:
        """The filter without its reader where no document is closed to anyone like them: nothing to look through."""
        if where.reader is None or where.reader.is_limited(self._connection):
            return where
        return replace(where, reader=None)

    def allowed_rows(self, where: Filter) -> npt.NDArray[np.int64]:
        """Row numbers of the visible chunks of the documents that pass the filter, increasing.

        From documents to chunks, whose rows are found in an index and not read.
        """
        condition, values = where.sql()
        sql = f"""SELECT c.row FROM documents d CROSS JOIN chunks c ON c.document = d.row
            WHERE {condition} AND {SHOWN.format("documents", "d.row")} AND {SHOWN.format("chunks", "c.row")}"""
        return np.sort(np.fromiter((row[0] for row in self._rows(sql, **values)), np.int64))

    def document_paths(self) -> dict[int, str]:
        """The path of its document for every visible chunk row."""
        sql = f"SELECT c.row, d.path FROM chunks c JOIN documents d ON d.row = c.document WHERE {VISIBLE.format('c')}"
        return {row[0]: row[1] for row in self._rows(sql)}

    def search_words(self, expression: str, limit: int, where: Filter = EVERYTHING) -> list[tuple[int, float]]:
        """(chunk row, BM25 score, higher is better) of the best matches of an FTS5 expression that pass the filter.

        What is not visible is left out by a short list: joining every match with its chunk takes twice as long.
        """
        condition, values = where.sql()
        allowed = "AND +rowid IN (SELECT c.row FROM documents d CROSS JOIN chunks c ON c.document = d.row WHERE {})"
        sql = f"""SELECT rowid, -bm25(chunk_words) FROM chunk_words
            WHERE chunk_words MATCH :e {allowed.format(condition) if where else ""}
            AND {SHOWN.format("chunks", "rowid")}
            ORDER BY bm25(chunk_words), rowid LIMIT :n"""
        return [(row[0], row[1]) for row in self._rows(sql, e=expression, n=limit, **values)]

    def word_count(self, word: str) -> int:
        """How many chunks have the word, counting those of other generations that are still kept."""
        sql = "SELECT count(*) FROM chunk_words WHERE chunk_words MATCH ?"
        return int(self._connection.execute(sql, (any_of([word]),)).fetchone()[0])

    def word_scores(self, expression: str, rows: Sequence[int]) -> dict[int, float]:
        """BM25 scores of those of these chunk rows that match the expression."""
        found: dict[int, float] = {}
        for batch in _batches(list(rows)):
            # The plus keeps FTS5 from searching once a row.
            sql = f"""SELECT rowid, -bm25(chunk_words) FROM chunk_words
                WHERE chunk_words MATCH ? AND +rowid IN ({",".join("?" * len(batch))})"""
            found.update((row[0], row[1]) for row in self._connection.execute(sql, (expression, *batch)))
        return found

    def chunk(self, chunk_id: str, where: Filter = EVERYTHING) -> tuple[Chunk, Document]:
        """A chunk and its document. Raises TandemError not_found when this generation does not hold it.

        One of a document that does not pass the filter is as if it were not there.
        """
        condition, values = where.sql()
        sql = f"""SELECT c.*, d.id AS document_id FROM chunks c JOIN documents d ON d.row = c.document
            WHERE c.id = :id AND {VISIBLE.format("c")} AND {condition}"""
        row = next(self._rows(sql, id=chunk_id, **values), None)
        if row is None:
            raise TandemError(
                "This passage is not in the index.",
                expected="The id of a chunk in the current generation; its document may have changed or been deleted.",
                do="Ask again to get citations into the documents as they are now.",
                code="not_found",
            )
        return _chunk(row), self._document("d.row = :row", row=row["document"])

    def document(self, name: str) -> Document:
        """A document by id or path. Raises TandemError not_found."""
        return self._document("(d.id = :name OR d.path = :name)", name=name)

    def document_at(self, corpus: str, path: str) -> Document | None:
        """The document with this path in this corpus, if there is one."""
        sql = f"SELECT * FROM documents d WHERE d.path = :path AND d.corpus = :corpus AND {VISIBLE.format('d')}"
        row = next(self._rows(sql, path=path, corpus=corpus), None)
        return None if row is None else as_document(row)

    def _document(self, condition: str, **values: object) -> Document:
        sql = f"SELECT * FROM documents d WHERE {condition} AND {VISIBLE.format('d')}"
        row = next(self._rows(sql, **values), None)
        if row is None:
            raise TandemError(
                f"There is no document {values.get('name', '')!r} in the index.",
                expected="A document's id or its path inside its corpus folder.",
                do="`GET /documents` or `tandem search` shows what is indexed.",
                code="not_found",
            )
        return as_document(row)

    def file_of(self, document_id: str) -> tuple[str, str] | None:
        """The corpus of a document and the path in it of the file that it was read from."""
        sql = f"""SELECT f.corpus, f.path FROM documents d JOIN files f ON f.row = d.file
            WHERE d.id = :id AND {VISIBLE.format("d")}"""
        row = next(self._rows(sql, id=document_id), None)
        return None if row is None else (row[0], row[1])

    def list_documents(self, where: Filter = EVERYTHING) -> list[dict[str, object]]:
        """The visible documents that pass: id, corpus, document (path), title, format, characters, pages, chunks."""
        condition, values = where.sql()
        sql = f"""SELECT d.id, d.corpus, d.path AS document, d.title, d.format, length(d.text) AS characters,
            json_array_length(d.pages) AS pages, (SELECT count(*) FROM chunks c WHERE c.document = d.row
            AND {VISIBLE.format("c")}) AS chunks FROM documents d
            WHERE {VISIBLE.format("d")} AND {condition} ORDER BY d.path, d.corpus"""
        return [dict(row) for row in self._rows(sql, **values)]

    def required_groups(self, rules: Rules) -> dict[str, list[list[str]]]:
        """By the id of its document, what each visible document asks of a reader; see readers.py."""
        sql = f"SELECT d.row, d.id FROM documents d WHERE {VISIBLE.format('d')}"
        ids = {row[0]: row[1] for row in self._rows(sql)}
        return {ids[row]: groups for row, groups in required_groups(self._connection, ids, rules).items()}


def as_document(row: sqlite3.Row) -> Document:
    """A row of the documents table as the value it was stored from."""
    return Document(
        id=row["id"],
        corpus=row["corpus"],
        path=row["path"],
        title=row["title"],
        format=row["format"],
        text=row["text"],
        pages=tuple(Page(*page) for page in json.loads(row["pages"])),
        headings=tuple(Heading(*heading) for heading in json.loads(row["headings"])),
        metadata=json.loads(row["metadata"]),
    )


def _chunk(row: sqlite3.Row) -> Chunk:
    return Chunk(
        id=row["id"],
        document=row["document_id"],
        ordinal=row["ordinal"],
        start=row["start"],
        end=row["end"],
        text=row["text"],
        context=row["context"],
        page=row["page"],
        tokens=row["tokens"],
    )


def _batches(values: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(values), READ_BATCH):
        yield values[start : start + READ_BATCH]
