"""What an arm costs before its first answer, and what it costs when one fact changes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from indexer.errors import TandemError
from indexer.outcome import Progress
from indexer.store import Snapshot, Store
from service.answering import Answerer
from service.compare.run import Prepared, Report
from service.compare.sandbox import sandbox
from tuner.adapters import WEIGHTS_FILE, AdapterCard, adapter_path

# Chunks embedded to learn how fast this machine embeds.
EMBEDDED = 48


def arm_costs(prepared: Prepared, store: Store, answerer: Answerer) -> dict[str, Any]:
    """Bytes and training seconds of each adapter; chunks of the index and the seconds that embedding all would take."""
    home = prepared.settings.home
    with store.read() as snapshot:
        chunks = snapshot.generation.chunks
        seconds = _embedding_seconds(snapshot, answerer)
    return {
        "index": {"chunks": chunks, "embedding_seconds_estimated": round(seconds, 1)},
        "adapters": {
            name: {
                "bytes": (adapter_path(home, name) / WEIGHTS_FILE).stat().st_size,
                "training_seconds": training_seconds(card),
            }
            for name, card in prepared.cards.items()
        },
    }


def training_seconds(card: AdapterCard) -> float | None:
    """How long it took to train the adapter, as its card says: in all, else the steps alone."""
    known = (card.metrics.get(name) for name in ("whole_seconds", "seconds"))
    return next((float(value) for value in known if isinstance(value, int | float)), None)


def _embedding_seconds(snapshot: Snapshot, answerer: Answerer) -> float:
    rows = snapshot.chunk_rows()
    step = max(1, len(rows) // EMBEDDED)
    some = [int(row) for row in rows[::step][:EMBEDDED]]
    texts = [entry[0].embedded_text for entry in snapshot.passages(some).values()]
    started = time.perf_counter()
    answerer.retriever.embedder.embed_documents(texts)
    return (time.perf_counter() - started) / max(1, len(texts)) * len(rows)


def changed_fact(prepared: Prepared, store: Store, answerer: Answerer, report: Report) -> Mapping[str, Any]:
    """Seconds until one changed fact is answered: re-indexing, run on a copy of the home; re-tuning, from the card.

    An edit is made in a copy of a document that a pair names; without one that can be edited only re-tuning is told.
    """
    report(Progress("change", 0, 1, ""))
    names = [item.pair.document for item in prepared.items if item.pair.document and item.answerable]
    retune = {f"re-tune {name}": training_seconds(card) for name, card in prepared.cards.items()}
    try:
        with sandbox(prepared.settings, store, answerer.retriever.embedder) as copy:
            for name in dict.fromkeys(names):
                path = copy.file_of(prepared.documents.get(name, name))
                if path is not None:
                    copy.rewrite(path, path.read_bytes() + b"\nOne more sentence was written here.\n")
                    return {"seconds": {"re-index": round(copy.index(), 3), **retune}, "document": name}
    except TandemError as error:
        # The answers are worth more than this one number.
        return {"seconds": retune, "reason": str(error)}
    return {"seconds": retune, "reason": "No pair names a text file of the corpora."}
