"""What a service is like at this moment, in numbers, for whoever looks at its metrics."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from indexer.errors import TandemError
from indexer.questions import QuestionCache, RememberingEmbedder
from indexer.store import Snapshot
from service.answercache import CachedGenerator
from service.metrics import Gauge
from tuner.adapters import list_adapters
from tuner.generation import Generator
from tuner.staleness import stale_documents

if TYPE_CHECKING:
    from service.running import Service


class StaleAdapters:
    """How many adapters were trained on documents that have changed since; counted anew when something has changed.

    Metrics are read every few seconds, and to compare every document takes seconds in a large index.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._counted: tuple[object, int] = (None, 0)

    def count(self, snapshot: Snapshot) -> int:
        """The number for this generation."""
        cards = list_adapters(self._home)
        state = (snapshot.generation, tuple((card.name, card.created, card.weights_sha256) for card in cards))
        if self._counted[0] != state:
            self._counted = state, sum(bool(stale_documents(card, snapshot)) for card in cards)
        return self._counted[1]


def gauges(service: Service) -> Iterator[Gauge]:
    """Name, meaning and value of each; None where there is nothing to tell, as before anything is indexed."""
    yield "in_flight", "Requests that are being answered.", service.in_flight
    waiting: int | None = None
    cached: Generator | None = None
    questions: QuestionCache | None = None
    try:
        waiting = service.answerer.admission.waiting
        cached = service.answerer.generator
        embedder = service.answerer.retriever.embedder
        questions = embedder.cache if isinstance(embedder, RememberingEmbedder) else None
        service.ready()
        ready = 1
    except TandemError:
        ready = 0
    yield "ready", "1 when a question would be answered.", ready
    yield "queue", "Questions that wait for the model.", waiting
    if isinstance(cached, CachedGenerator):
        yield "answer_cache_hits", "Texts that were kept from an earlier prompt.", cached.hits
        yield "answer_cache_misses", "Texts that had to be generated.", cached.misses
        yield "passage_cache_hits", "Passages whose keys and values were kept from before.", cached.passages.hits
        yield "passage_cache_misses", "Passages that had to be read.", cached.passages.misses
        yield "passage_cache_bytes", "Memory for what was read of passages.", cached.passages.bytes
    if questions is not None:
        yield "question_cache_hits", "Questions whose vector was kept from before.", questions.hits
        yield "question_cache_misses", "Questions that had to be embedded.", questions.misses
    try:
        with service.store.read() as snapshot:
            generation = snapshot.generation
            stale = service.stale.count(snapshot)
    except TandemError:
        return
    yield "index_generation", "The generation of the index.", generation.number
    yield "index_documents", "Documents in the index.", generation.documents
    yield "index_chunks", "Chunks in the index.", generation.chunks
    yield "adapters_stale", "Adapters whose documents have changed since they were trained.", stale
