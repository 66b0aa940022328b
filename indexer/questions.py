"""Vectors of questions, kept for when the same question comes again.

A vector is kept under the identity of the embedder that made it and the text of the question, which is all that
decides it, so a kept vector is the one that would be computed, also while the index changes to another embedder and
back. Who may read what is decided by the search, which is made anew every time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from indexer.embedding import Embedder, Vectors

# A vector of the bundled embedder has 1.5 KB, of the largest in use 16 KB.
MOST_QUESTIONS = 1024


class QuestionCache:
    """The vectors of the questions asked last, of whatever embedder. Thread-safe."""

    def __init__(self, most: int = MOST_QUESTIONS) -> None:
        self.hits = 0
        self.misses = 0
        self._most = most
        self._kept: OrderedDict[tuple[str, str], Vectors] = OrderedDict()
        self._lock = threading.Lock()

    def vector(self, embedder: Embedder, text: str) -> Vectors:
        """(d,) what `embedder.embed_question(text)` returns; the caller's own copy."""
        key = embedder.identity, text
        with self._lock:
            kept = self._kept.get(key)
            if kept is not None:
                self.hits += 1
                self._kept.move_to_end(key)
                return kept.copy()
            self.misses += 1
        # Not under the lock: others need not wait for this one. Asked twice at once, it is computed twice.
        made = embedder.embed_question(text)
        with self._lock:
            self._kept[key] = made.copy()
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return made


class RememberingEmbedder:
    """An embedder that asks `cache` for the vectors of questions first; in all else the one it stands for."""

    def __init__(self, embedder: Embedder, cache: QuestionCache) -> None:
        self.cache = cache
        self._embedder = embedder

    @property
    def identity(self) -> str:
        """As the embedder's: vectors of the two may be compared."""
        return self._embedder.identity

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self._embedder.dimension

    @property
    def window(self) -> int:
        """Tokens the model reads, special tokens included."""
        return self._embedder.window

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """(n, d) unit rows, always computed."""
        return self._embedder.embed_documents(texts)

    def embed_question(self, text: str) -> Vectors:
        """(d,) unit vector."""
        return self.cache.vector(self._embedder, text)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens included."""
        return self._embedder.count_tokens(texts)

    def token_starts(self, text: str) -> npt.NDArray[np.int64]:
        """Where each token begins, in characters."""
        return self._embedder.token_starts(text)
