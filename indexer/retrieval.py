"""A question to passages: dense and word search over one generation, fused, optionally reranked, then selected.

Scales: `similarity` is the cosine of question and chunk (-1 to 1). `score` orders the passages: in the hybrid channel
it is the fusion below (at most 1), in dense the cosine, in bm25 the BM25 score, with a reranker what that says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from indexer.derived import IndexCache
from indexer.embedding import Embedder, Vectors
from indexer.errors import TandemError
from indexer.filters import Filter
from indexer.records import Passage
from indexer.rerank import Reranker
from indexer.selection import select
from indexer.store import EVERYTHING, Snapshot, Store
from indexer.words import any_of, rarest, telling_words, word_expression

Channel = Literal["hybrid", "dense", "bm25"]
CHANNELS: tuple[Channel, ...] = ("dense", "bm25", "hybrid")
# What saturated BM25 weighs against the cosine, and the BM25 score at which it is half of its most. Chosen on half of
# the questions of ten public sets, split by document: nDCG@10 on the other half is 0.043 over the better channel on
# average and 0.006 under it at worst; reciprocal rank fusion (k = 60) is 0.003 under it on average, 0.34 at worst.
# Two thirds to 1.2 times these values change the average by less than 0.003.
WORDS_WEIGHT = 1.25
WORDS_HALF = 10.0
# Candidates each channel hands to the fusion.
DEPTH = 100
# Chunks that BM25 is computed for when candidates are looked for: about 20 ms on one core. Of the 10 best of 105,880
# chunks of a real corpus it finds 10.0 for questions of 8 telling words and 9.2 for questions of 20.
MOST_MATCHES = 20_000
# Candidates a reranker reads.
RERANK_DEPTH = 20
MAX_K = 100


@dataclass(frozen=True, slots=True)
class Retrieval:
    """The passages for a question, best first, and the generation they were read from."""

    generation: int
    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class Ranked:
    """A chunk row with the score it is ranked by and its cosine similarity."""

    row: int
    score: float
    similarity: float


class Retriever:
    """Reads passages from a store with the embedder that indexed it.

    `per_source` is how many passages one document may give while others have some (0: any number).
    """

    def __init__(
        self,
        store: Store,
        embedder: Embedder,
        *,
        channel: Channel = "hybrid",
        reranker: Reranker | None = None,
        per_source: int = 0,
    ) -> None:
        self.store = store
        self.embedder = embedder
        self.channel = channel
        self.reranker = reranker
        self.per_source = per_source
        self._indexes = IndexCache(store.home)

    def check(self, snapshot: Snapshot) -> None:
        """Raise TandemError unless this embedder made the vectors of the snapshot's generation."""
        made_with = snapshot.generation.embedder
        if made_with != self.embedder.identity:
            raise TandemError(
                f"The index was made with the embedder {made_with}, not with {self.embedder.identity}.",
                expected="The same embedder for the index and the questions: vectors of two models cannot be compared.",
                do="Run `tandem index` to rebuild the index with the new embedder, or set `embedder` back.",
                code="conflict",
            )

    def retrieve(self, question: str, k: int, where: Filter = EVERYTHING) -> Retrieval:
        """The k best passages of the documents that pass the filter (fewer when there are fewer).

        Raises TandemError for k outside 1 to MAX_K, when nothing is indexed, and when another embedder made the index.
        """
        if not 1 <= k <= MAX_K:
            raise TandemError(f"k is {k}.", expected=f"1 to {MAX_K} passages.")
        vector = self.embedder.embed_question(question)
        with self.store.read() as snapshot:
            self.check(snapshot)
            ranked = self.rank(snapshot, question, vector, max(DEPTH, k), self.channel, where)
            # Selection passes over some, and most questions need few: the rest is not read.
            passages = self._passages(snapshot, ranked[: max(4 * k, RERANK_DEPTH)])
            if self.reranker is not None:
                passages = rerank(self.reranker, question, passages)
            return Retrieval(snapshot.generation.number, select(passages, k, self.per_source))

    def rank(
        self,
        snapshot: Snapshot,
        question: str,
        vector: Vectors,
        depth: int,
        channel: Channel,
        where: Filter = EVERYTHING,
    ) -> list[Ranked]:
        """Chunks best first: the `depth` best of one channel, or the fusion of the `depth` best of both.

        `vector` is the (d,) embedding of the question. The filter decides what is searched, not what is shown of it.
        """
        where = snapshot.narrowed(where)
        similarities: dict[int, float] = {}
        words: dict[int, float] = {}
        expression = word_expression(question)
        if channel != "bm25":
            allowed = snapshot.allowed_rows(where) if where else None
            similarities = dict(self._indexes.get(snapshot).search(vector, depth, allowed))
        if channel != "dense" and expression:
            words = word_search(snapshot, question, depth, where)
        missing = [row for row in words if row not in similarities]
        cosines = snapshot.vectors(np.asarray(missing, np.int64)) @ vector
        if channel == "hybrid":
            if expression:
                words.update(snapshot.word_scores(expression, [row for row in similarities if row not in words]))
            similarities.update(zip(missing, map(float, cosines), strict=True))
            scores = fuse(similarities, words)
        else:
            scores = similarities if channel == "dense" else words
            similarities = {**similarities, **dict(zip(missing, map(float, cosines), strict=True))}
        order = sorted(scores, key=lambda row: (-scores[row], row))
        return [Ranked(row, scores[row], similarities[row]) for row in order]

    def _passages(self, snapshot: Snapshot, ranked: Sequence[Ranked]) -> list[Passage]:
        found = snapshot.passages([item.row for item in ranked])
        passages = []
        for rank, item in enumerate(ranked, start=1):
            chunk, path, title, pages = found[item.row]
            passages.append(Passage(chunk, chunk.document, path, title, pages, rank, item.score, item.similarity))
        return passages


def word_search(snapshot: Snapshot, question: str, depth: int, where: Filter = EVERYTHING) -> dict[int, float]:
    """Chunk row -> BM25 score of the `depth` best chunks for the question, which has a word.

    In a large index candidates are found by the rarer words alone and then scored by all of them.
    """
    words = telling_words(question)
    rare = words
    if snapshot.generation.chunks > MOST_MATCHES:
        rare = rarest({word: snapshot.word_count(word) for word in words}, MOST_MATCHES)
    if len(rare) == len(words):
        return dict(snapshot.search_words(any_of(words), depth, where))
    found = [row for row, _ in snapshot.search_words(any_of(rare), 2 * depth, where)]
    scores = snapshot.word_scores(any_of(words), found)
    return dict(sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:depth])


def fuse(similarities: Mapping[int, float], words: Mapping[int, float]) -> dict[int, float]:
    """Scores of all rows of `similarities`, at most 1: the cosine plus saturated BM25, weighted.

    Rows without a word of the question count 0 for BM25. Fusing scores and not ranks keeps how much better the first
    is than the second (Bruch, Gai & Ingber, TOIS 2023, arXiv 2210.11934); BM25 has no upper bound, so it saturates.
    """
    return {
        row: (cosine + WORDS_WEIGHT * _saturated(words.get(row, 0.0))) / (1 + WORDS_WEIGHT)
        for row, cosine in similarities.items()
    }


def _saturated(score: float) -> float:
    return score / (score + WORDS_HALF)


def rerank(reranker: Reranker, question: str, passages: Sequence[Passage]) -> list[Passage]:
    """The first RERANK_DEPTH passages in the order of the reranker's scores; the rest is dropped."""
    head = passages[:RERANK_DEPTH]
    scores = reranker.score(question, [passage.chunk.embedded_text for passage in head])
    order = np.argsort(-scores, kind="stable")
    return [replace(head[place], rank=rank, score=float(scores[place])) for rank, place in enumerate(order, start=1)]
