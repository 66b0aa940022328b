"""What an adapter may have seen of the test: its questions, its documents, or the hand that wrote it.

A tuned model is judged on what it was not tuned on. Each pair gets one class for an adapter, the worst that applies;
only `clean` ones speak for putting the adapter to use. Questions are compared by hash (tuner/questionhash.py), so an
adapter's card need not hold them, and one that differs in more than case and white space is not recognised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from indexer.store import Snapshot
from service.compare.questions import Item
from tuner.adapters import AdapterCard
from tuner.questionhash import question_hash

Exposure = Literal["seen_question", "seen_document", "same_writer", "clean"]
EXPOSURES: tuple[Exposure, ...] = get_args(Exposure)
IN_WORDS: Mapping[Exposure, str] = {
    "seen_question": "the question was trained on",
    "seen_document": "the document was trained on, the question was not",
    "same_writer": "written by what wrote the training pairs, about other documents",
    "clean": "neither the question, the document nor the writer is of the training pairs",
}


def exposures(items: Sequence[Item], card: AdapterCard, documents: Mapping[str, str]) -> dict[str, Exposure]:
    """Pair id -> class for this adapter; `documents` maps ids and paths of indexed documents to their paths."""
    questions = set(card.recipe.get("questions_sha256") or ())
    trained = {str(item.get(key)) for item in card.documents for key in ("id", "path")}
    trained |= {documents[name] for name in trained if name in documents}
    writers = card.recipe.get("written_by") or ()
    writers = {writers} if isinstance(writers, str) else set(writers)

    def exposure(item: Item) -> Exposure:
        document = item.pair.document
        if question_hash(item.pair.question) in questions:
            return "seen_question"
        if document is not None and {document, documents.get(document, document)} & trained:
            return "seen_document"
        return "same_writer" if item.written_by and item.written_by in writers else "clean"

    return {item.pair.id: exposure(item) for item in items}


def worst(classes: Sequence[Mapping[str, Exposure]], items: Sequence[Item]) -> dict[str, Exposure]:
    """Pair id -> the worst class over several adapters; all clean without one."""
    return {
        item.pair.id: min((found[item.pair.id] for found in classes), key=EXPOSURES.index, default="clean")
        for item in items
    }


def document_names(snapshot: Snapshot) -> dict[str, str]:
    """Id or path -> path, of every indexed document."""
    listed = snapshot.list_documents()
    return {str(item[key]): str(item["document"]) for item in listed for key in ("id", "document")}
