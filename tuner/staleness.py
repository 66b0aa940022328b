"""Which documents an adapter learned from have changed or gone since: what it remembers of those may be wrong now."""

from __future__ import annotations

from collections.abc import Mapping

from indexer.errors import TandemError
from indexer.records import content_hash
from indexer.store import Snapshot
from tuner.adapters import DEFAULT_ADAPTER, AdapterCard


def stale_documents(card: AdapterCard, snapshot: Snapshot) -> tuple[Mapping[str, str], ...]:
    """The card's documents that this generation holds with another text, or not at all, in the order of the card.

    Each is the entry of the card with its "change": "changed" or "deleted". The default adapter learned from documents
    that were never in this index, so none of them can be stale.
    """
    if card.name == DEFAULT_ADAPTER:
        return ()
    current = {str(item["id"]) for item in snapshot.list_documents()}
    stale = []
    for entry in card.documents:
        if entry.get("id") in current:
            continue
        try:
            text = snapshot.document(entry.get("path", "")).text
        except TandemError:
            stale.append({**entry, "change": "deleted"})
            continue
        # An id also names the folder, which may have moved with its texts unchanged.
        if content_hash(text) != entry.get("hash"):
            stale.append({**entry, "change": "changed"})
    return tuple(stale)
