"""A retriever that changes its embedder when a generation made with another one is published.

`tandem tune --recipe embedder`, or a rollback, swaps the index under a running service. The first question afterwards
waits for the other embedder to load (a second or two for the bundled size) and is answered from the new generation;
questions that were being answered finish on the one that they pinned.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from indexer.embedding import Embedder
from indexer.errors import TandemError
from indexer.filters import Filter
from indexer.retrieval import Retrieval, Retriever
from indexer.store import EVERYTHING, Snapshot

log = logging.getLogger(__name__)

# Makes the retriever for the embedder of this identity; None when this home does not hold it.
Load = Callable[[str], Retriever | None]
# A question is started anew when the index changes over under it; so often in a row it does not happen.
TRIES = 5


class FollowingRetriever:
    """The retriever whose embedder made the published generation. Thread-safe.

    A retriever is replaced and never changed, so that no question meets vectors of another embedder.
    """

    def __init__(self, retriever: Retriever, load: Load, seen: Callable[[int], None] | None = None) -> None:
        """`seen` is told the generation of every retrieval, before its passages are used."""
        self._retriever = retriever
        self._seen = seen
        self._load = load
        self._lock = threading.Lock()

    @property
    def embedder(self) -> Embedder:
        """That of the published generation, as far as this home holds it."""
        return self._current()[0].embedder

    def check(self, snapshot: Snapshot) -> None:
        """Raise TandemError unless the embedder made the vectors of the snapshot's generation."""
        self._follow(snapshot.generation.embedder).check(snapshot)

    def retrieve(self, question: str, k: int, where: Filter = EVERYTHING) -> Retrieval:
        """As Retriever.retrieve."""
        tries = TRIES
        while True:
            retriever, published = self._current()
            tries -= 1
            try:
                found = retriever.retrieve(question, k, where)
                if self._seen is not None and found.generation is not None:
                    self._seen(found.generation)
                return found
            except TandemError as error:
                # It fitted, so another generation was published since the question was embedded.
                swapped = error.code == "conflict" and published == retriever.embedder.identity
                if not (swapped and tries):
                    raise

    def _current(self) -> tuple[Retriever, str | None]:
        """The retriever for the published generation, as far as there is one, and the identity that it should have."""
        try:
            with self._retriever.store.read() as snapshot:
                published = snapshot.generation.embedder
        except TandemError:
            return self._retriever, None  # nothing is indexed yet
        return self._follow(published), published

    def _follow(self, identity: str) -> Retriever:
        with self._lock:
            if self._retriever.embedder.identity != identity:
                found = self._load(identity)
                if found is None:
                    return self._retriever
                log.info("answering with the embedder %s from now on", identity)
                self._retriever = found
            return self._retriever
