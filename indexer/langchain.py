"""Tandem's index as a LangChain vector store and as a LangChain retriever.

`TandemVectorStore` keeps texts in a corpus of their own beside the folders (see indexer.texts), so that `tandem search`
and every other interface finds them too. `TandemRetriever` answers from everything in the index, as /search does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance
from pydantic import ConfigDict

from indexer.chunking import ChunkSize
from indexer.derived import IndexCache
from indexer.embedding import Embedder, Vectors
from indexer.errors import TandemError
from indexer.filters import Filter
from indexer.records import content_hash
from indexer.retrieval import Retriever
from indexer.store import Snapshot, Store
from indexer.texts import Text, put_texts, read_texts, remove_texts
from indexer.vectors import Rows

Found = TypeVar("Found")

CORPUS = "langchain"
PROBE = "The quick brown fox jumps over the lazy dog."
WORD = re.compile(r"\w+|[^\w\s]")
# What LangChain's embeddings do not tell: tokens the model reads, counted here in words and signs.
ASSUMED_WINDOW = 256


class LangChainEmbedder:
    """A LangChain embedding model as an Embedder: vectors scaled to length 1, tokens counted as words and signs.

    Its identity is its class and a hash of what it makes of a probe text, so that two models are told apart.
    """

    def __init__(self, embeddings: Embeddings, window: int = ASSUMED_WINDOW) -> None:
        self.embeddings = embeddings
        self.window = window
        probe = np.asarray(embeddings.embed_query(PROBE), np.float32)
        self.dimension = len(probe)
        digest = content_hash(np.round(probe, 3).tobytes().hex())[:16]
        self.identity = f"langchain-{type(embeddings).__name__}:{digest}:{self.dimension}"

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """(n, d) unit rows."""
        rows = np.asarray(self.embeddings.embed_documents(list(texts)), np.float32).reshape(-1, self.dimension)
        return np.stack([_unit(row) for row in rows]) if len(rows) else rows

    def embed_question(self, text: str) -> Vectors:
        """(d,) unit vector."""
        return _unit(np.asarray(self.embeddings.embed_query(text), np.float32))

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Words and signs, and two for what models put around a text."""
        return [len(WORD.findall(text)) + 2 for text in texts]

    def token_starts(self, text: str) -> npt.NDArray[np.int64]:
        """Where each word and sign begins."""
        return np.asarray([match.start() for match in WORD.finditer(text)], np.int64)


class _TandemEmbeddings(Embeddings):
    """An Embedder as LangChain sees it."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        rows: list[list[float]] = self._embedder.embed_documents(texts).tolist()
        return rows

    def embed_query(self, text: str) -> list[float]:
        row: list[float] = self._embedder.embed_question(text).tolist()
        return row


class TandemVectorStore(VectorStore):
    """Texts under ids, searched by the cosine of their best chunk; one call changes the index at once or not at all.

    A text longer than a chunk is embedded in parts and found as a whole. Adding an id again replaces its text.
    Metadata is what JSON can hold. Scores are cosines, higher is better. `filter` is a mapping of metadata fields (or
    a indexer.filters.Filter) that must be equal, decided before anything is ranked. Every method raises TandemError
    for an index made with another embedder.
    """

    def __init__(
        self,
        store: Store,
        embedder: Embedder | Embeddings,
        *,
        corpus: str = CORPUS,
        size: ChunkSize | None = None,
    ) -> None:
        self.store = store
        self.embedder = LangChainEmbedder(embedder) if isinstance(embedder, Embeddings) else embedder
        self.corpus = corpus
        self.size = size or ChunkSize()
        self._indexes = IndexCache(store.home)
        self._retriever = Retriever(store, self.embedder)
        # The rows of the corpus, of the last generation asked for.
        self._rows: tuple[int, Rows] | None = None

    @property
    def embeddings(self) -> Embeddings:
        """The embedding model, as LangChain knows it."""
        return (
            self.embedder.embeddings
            if isinstance(self.embedder, LangChainEmbedder)
            else _TandemEmbeddings(self.embedder)
        )

    def add_documents(self, documents: list[Document], **kwargs: Any) -> list[str]:
        """Add documents, in one generation, and return their ids: `ids` if given, else their own, else new ones."""
        given = kwargs.get("ids") or [document.id for document in documents]
        if len(given) != len(documents):
            raise ValueError(f"{len(given)} ids for {len(documents)} documents.")
        ids = [str(uuid4()) if name is None else str(name) for name in given]
        texts = [
            Text(name, document.page_content, document.metadata) for name, document in zip(ids, documents, strict=True)
        ]
        if texts:
            put_texts(self.store, self.corpus, texts, self.embedder, self.size)
        return ids

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Delete the texts of these ids, or all texts of this corpus when no ids are given."""
        remove_texts(self.store, self.corpus, ids, self.embedder, self.size)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of these ids that are there, in the order of the ids."""
        return self._read(lambda snapshot: [_document(text) for text in read_texts(snapshot, self.corpus, ids)])

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The k texts closest to the query, best first."""
        return [document for document, _ in self.similarity_search_with_score(query, k, **kwargs)]

    def similarity_search_with_score(self, query: str, k: int = 4, **kwargs: Any) -> list[tuple[Document, float]]:
        """The k texts closest to the query with their cosines, best first."""
        vector = self.embedder.embed_question(query)
        return self._read(lambda snapshot: self._nearest(snapshot, vector, k, kwargs.get("filter")))

    def similarity_search_by_vector(self, embedding: list[float], k: int = 4, **kwargs: Any) -> list[Document]:
        """The k texts closest to an embedding, best first."""
        vector = _unit(np.asarray(embedding, np.float32))
        found = self._read(lambda snapshot: self._nearest(snapshot, vector, k, kwargs.get("filter")))
        return [document for document, _ in found]

    def max_marginal_relevance_search(
        self, query: str, k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """Of the `fetch_k` texts closest to the query, k that differ: lambda_mult 1 is only close, 0 only different."""
        vector = self.embedder.embed_question(query).tolist()
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, **kwargs)

    def max_marginal_relevance_search_by_vector(
        self, embedding: list[float], k: int = 4, fetch_k: int = 20, lambda_mult: float = 0.5, **kwargs: Any
    ) -> list[Document]:
        """The same for an embedding."""
        vector = _unit(np.asarray(embedding, np.float32))

        def read(snapshot: Snapshot) -> list[Document]:
            best = self._best_rows(snapshot, vector, fetch_k, kwargs.get("filter"))
            rows = snapshot.vectors(np.asarray([row for row, _ in best.values()], np.int64))
            chosen = maximal_marginal_relevance(vector, list(rows), lambda_mult, k)
            ids = list(best)
            return [_document(text) for text in read_texts(snapshot, self.corpus, [ids[place] for place in chosen])]

        return self._read(read)

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> TandemVectorStore:
        """A vector store in the folder `home` with these texts added; `corpus` and `size` as for the constructor."""
        if "home" not in kwargs:
            raise TandemError("from_texts was given no home.", expected="home=FOLDER, where the index is kept.")
        store = cls(Store(Path(kwargs.pop("home"))), embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        # LangChain's relevance runs from 0 to 1; texts that point away from the query are as irrelevant as it gets.
        return lambda cosine: min(1.0, max(0.0, cosine))

    def _read(self, read: Callable[[Snapshot], list[Found]]) -> list[Found]:
        """What `read` finds in the current generation; nothing while there is none."""
        with self.store.connection() as connection:
            if connection.execute("SELECT 1 FROM meta WHERE key = 'generation'").fetchone() is None:
                return []
        with self.store.read() as snapshot:
            return read(snapshot)

    def _nearest(self, snapshot: Snapshot, vector: Vectors, k: int, where: Any) -> list[tuple[Document, float]]:
        best = self._best_rows(snapshot, vector, k, where)
        texts = read_texts(snapshot, self.corpus, list(best))
        return [(_document(text), best[text.id][1]) for text in texts]

    def _best_rows(self, snapshot: Snapshot, vector: Vectors, k: int, where: Any) -> dict[str, tuple[int, float]]:
        """The best chunk (row, cosine) of each of the k best texts, best first, by id."""
        self._retriever.check(snapshot)
        allowed = self._allowed(snapshot, where)
        index = self._indexes.get(snapshot)
        depth = k
        while True:
            # Several chunks of one text may come first; then more of them are asked for.
            found = index.search(vector, depth, allowed)
            paths = {row: path for row, (_, path, _, _) in snapshot.passages([row for row, _ in found]).items()}
            best: dict[str, tuple[int, float]] = {}
            for row, cosine in found:
                best.setdefault(paths[row], (row, cosine))
            if len(best) >= k or len(found) < depth:
                return dict(list(best.items())[:k])
            depth *= 4

    def _allowed(self, snapshot: Snapshot, where: Any) -> Rows | None:
        conditions = (("corpus", (self.corpus,)),)
        if where:
            return snapshot.allowed_rows(Filter((*conditions, *_conditions(where))))
        kept = self._rows
        if kept is None or kept[0] != snapshot.generation.number:
            kept = self._rows = (snapshot.generation.number, snapshot.allowed_rows(Filter(conditions)))
        # Where there is nothing else, there is nothing to filter.
        return kept[1] if len(kept[1]) < snapshot.generation.chunks else None


class TandemRetriever(BaseRetriever):
    """A Retriever as a LangChain one: the k best passages, each with where it stands and how similar it is."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    retriever: Retriever
    k: int = 4
    filter: Filter = Filter()

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        retrieval = self.retriever.retrieve(query, self.k, self.filter)
        return [
            Document(
                id=passage.chunk.id,
                page_content=passage.chunk.text,
                metadata={
                    "document": passage.path,
                    "title": passage.title,
                    "start": passage.chunk.start,
                    "end": passage.chunk.end,
                    "page": passage.chunk.page,
                    "rank": passage.rank,
                    "score": passage.score,
                    "similarity": passage.similarity,
                    "index_generation": retrieval.generation,
                },
            )
            for passage in retrieval.passages
        ]


def _unit(row: Vectors) -> Vectors:
    length = float(np.linalg.norm(row))
    return row / length if length else row


def _document(text: Text) -> Document:
    return Document(id=text.id, page_content=text.text, metadata=dict(text.metadata))


def _conditions(where: Filter | Mapping[str, Any]) -> Iterable[tuple[str, tuple[str, ...]]]:
    if isinstance(where, Filter):
        return where.conditions
    return tuple((name, (str(value),)) for name, value in where.items())
