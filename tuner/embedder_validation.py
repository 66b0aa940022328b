"""How well vectors rank the chunks for held-out questions: whether an embedder that was tuned is better than before.

Questions are of documents that were not tuned on. They are ranked against all chunks of the index, or in a large one
against those of their documents and a random sample of the others, equal for every embedder that is compared.
q questions, n chunks, d dimensions.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from indexer.embedding import Vectors
from indexer.evaluation import Comparison, JudgedSet, Scores, compare, measure
from indexer.retrieval import fuse
from indexer.words import word_expression
from tuner.embedder_rows import Library
from tuner.pairs import Pair

# They are embedded after each epoch, which should not take longer than the epoch.
MOST_CHUNKS = 1000
MOST_QUESTIONS = 500
SHOWN = ("ndcg@10", "recall@10")


@dataclass(frozen=True, slots=True)
class Measured:
    """(q,) scores by measure of the channel that answers, and of the vectors alone."""

    deployed: Mapping[str, Scores]
    dense: Mapping[str, Scores]

    def value(self) -> float:
        """The mean nDCG@10 of the channel that answers; what tuning tries to raise."""
        return float(self.deployed["ndcg@10"].mean())

    def as_json(self) -> dict[str, dict[str, float]]:
        """Means by channel and measure."""
        parts = {"deployed": self.deployed, "dense": self.dense}
        return {name: {key: round(float(part[key].mean()), 4) for key in SHOWN} for name, part in parts.items()}


class Validation:
    """The questions, the chunks they are ranked against, and the words they share."""

    def __init__(self, library: Library, pairs: Sequence[Pair], *, hybrid: bool, seed: int) -> None:
        chooser = random.Random(seed)
        kept = list(pairs) if len(pairs) <= MOST_QUESTIONS else chooser.sample(list(pairs), MOST_QUESTIONS)
        rows = {row for pair in kept for row in library.rows[str(pair.document)]}
        others = sorted(set(library.paths) - rows)
        rows |= set(chooser.sample(others, min(len(others), max(0, MOST_CHUNKS - len(rows)))))
        self.rows = sorted(rows)
        self.of = len(library.paths)
        texts = library.texts(self.rows)
        self.texts = [texts[row][0] for row in self.rows]
        self.questions = [pair.question for pair in kept]
        self._documents = [library.paths[row] for row in self.rows]
        self._judged = JudgedSet(
            "validation",
            Path(),
            {pair.id: pair.question for pair in kept},
            {pair.id: {str(pair.document): 1} for pair in kept},
        )
        self._words = [self._word_scores(library, question) for question in self.questions] if hybrid else None

    def _word_scores(self, library: Library, question: str) -> dict[int, float]:
        expression = word_expression(question)
        return library.snapshot.word_scores(expression, self.rows) if expression else {}

    def measure(self, questions: Vectors, chunks: Vectors) -> Measured:
        """Scores for (q, d) question and (n, d) chunk vectors, all of unit length."""
        cosines = questions @ chunks.T
        dense, deployed = {}, {}
        for place, name in enumerate(self._judged.questions):
            similarities = dict(zip(self.rows, map(float, cosines[place]), strict=True))
            dense[name] = self._document_scores(similarities)
            if self._words is not None:
                deployed[name] = self._document_scores(fuse(similarities, self._words[place]))
        scores = measure(self._judged, dense)
        return Measured(measure(self._judged, deployed) if self._words is not None else scores, scores)

    def _document_scores(self, scores: Mapping[int, float]) -> dict[str, float]:
        """A document scores what its best chunk scores."""
        best: dict[str, float] = {}
        for row, document in zip(self.rows, self._documents, strict=True):
            best[document] = max(best.get(document, -1.0), scores[row])
        top = sorted(best, key=lambda document: (-best[document], document))[:100]
        return {document: float(len(top) - place) for place, document in enumerate(top)}


def gain(before: Measured, after: Measured) -> Comparison:
    """Mean nDCG@10 of the channel that answers, after minus before, with its interval and test."""
    return compare({"after": after.deployed["ndcg@10"], "before": before.deployed["ndcg@10"]})[0]
