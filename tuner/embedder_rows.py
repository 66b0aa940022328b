"""Rows an embedder is tuned on: a question, the chunk that answers it, and hard negatives.

Hard negatives are what the deployed retriever ranks high and should not: its own best chunks from other documents
that do not hold the answer. (Karpukhin et al. 2020, arXiv 2004.04906, found them worth more than random ones.)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from indexer.embedding import Vectors
from indexer.retrieval import Retriever, fuse
from indexer.store import Snapshot
from indexer.words import word_expression
from tuner.pairs import Pair

# Chunks of the deployed retriever's ranking that negatives are taken from.
DEPTH = 50
NEGATIVES = 2
# A chunk nearly as similar to the question as the positive often answers it too; those over this share of the
# positive's similarity are no negatives (TopK-PercPos of NV-Retriever, Moreira et al. 2024, arXiv 2407.15831).
MOST_OF_POSITIVE = 0.95


@dataclass(frozen=True, slots=True)
class Row:
    """What one training example reads; the negatives may be fewer than NEGATIVES."""

    document: str
    question: str
    positive: str
    negatives: tuple[str, ...]


class Library:
    """The chunks of one generation by document path. Pairs are matched to documents by path or id."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.paths = snapshot.document_paths()
        self.rows: dict[str, list[int]] = {}
        for row, path in self.paths.items():
            self.rows.setdefault(path, []).append(row)
        self._ids = {str(item["id"]): str(item["document"]) for item in snapshot.list_documents()}

    def path(self, document: str) -> str:
        """The path of a document named by its id or its path."""
        return self._ids.get(document, document)

    def place(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The answerable pairs whose document is indexed, naming it by its path."""
        placed = []
        for pair in pairs:
            path = self.path(pair.document or "")
            if pair.kind == "answerable" and path in self.rows:
                placed.append(replace(pair, document=path))
        return placed

    def texts(self, rows: Sequence[int]) -> dict[int, tuple[str, str]]:
        """(what is embedded, the chunk's own text) by row."""
        return {row: (item[0].embedded_text, item[0].text) for row, item in self.snapshot.passages(rows).items()}


def make_rows(
    library: Library, retriever: Retriever, pairs: Sequence[Pair], report: Callable[[int, int], None]
) -> list[Row]:
    """One row a pair; `pairs` come from Library.place. `report(done, of)` is called as it goes."""
    rows = []
    for done, pair in enumerate(pairs):
        report(done, len(pairs))
        rows.append(_row(library, retriever, pair))
    report(len(pairs), len(pairs))
    return rows


def _row(library: Library, retriever: Retriever, pair: Pair) -> Row:
    assert pair.document is not None
    snapshot, vector = library.snapshot, retriever.embedder.embed_question(pair.question)
    own = ranked_rows(library, pair.question, vector, library.rows[pair.document])
    texts = library.texts(list(own))
    holding = [row for row in own if holds(texts[row][1], pair.answers)]
    positive = (holding or list(own))[0]
    limit = MOST_OF_POSITIVE * own[positive]
    ranked = retriever.rank(snapshot, pair.question, vector, DEPTH, "hybrid")
    others = [item for item in ranked if library.paths[item.row] != pair.document and item.similarity <= limit]
    found = library.texts([item.row for item in others])
    negatives: dict[str, None] = {}
    for item in others:
        embedded, text = found[item.row]
        if text != texts[positive][1] and not holds(text, pair.answers):
            negatives[embedded] = None
    return Row(pair.document, pair.question, texts[positive][0], tuple(negatives)[:NEGATIVES])


def ranked_rows(library: Library, question: str, vector: Vectors, rows: Sequence[int]) -> dict[int, float]:
    """These chunk rows best first, as the hybrid channel ranks them, with their similarities."""
    cosines = library.snapshot.vectors(np.asarray(rows, np.int64)) @ vector
    similarities: Mapping[int, float] = dict(zip(rows, map(float, cosines), strict=True))
    expression = word_expression(question)
    words = library.snapshot.word_scores(expression, rows) if expression else {}
    scores = fuse(similarities, words)
    return {row: similarities[row] for row in sorted(scores, key=lambda row: (-scores[row], row))}


def holds(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers stands in the text as whole words; case and white space do not matter."""
    flat = _flat(text)
    return any(re.search(_whole(re.escape(answer)), flat) for answer in map(_flat, answers) if answer)


def answer_span(text: str, answers: Sequence[str]) -> tuple[int, int] | None:
    """Where the first of the answers that stands in the text does: its characters, found as `holds` finds it."""
    for answer in answers:
        wanted = r"\s+".join(map(re.escape, answer.split()))
        found = re.search(_whole(wanted), text, re.IGNORECASE) if wanted else None
        if found:
            return found.span()
    return None


def _whole(pattern: str) -> str:
    return rf"(?<!\w){pattern}(?!\w)"


def _flat(text: str) -> str:
    return " ".join(text.casefold().split())
