"""Values to the JSON that others read: one function a shape, shared by HTTP and the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from indexer.errors import TandemError
from indexer.records import Passage
from service.answer import Answer
from service.citations import Citation


def answer_body(answer: Answer) -> dict[str, Any]:
    """The body of /ask and of `tandem ask --json`."""
    return {
        "answer": answer.answer,
        "refused": answer.refused,
        "refusal_reason": answer.refusal_reason,
        "mode": answer.mode,
        "adapter": answer.adapter,
        "json": answer.value,
        "searched_for": answer.searched_for,
        "citations": [
            citation_body(citation) | ({"field": answer.fields[place]} if answer.fields else {})
            for place, citation in enumerate(answer.citations)
        ],
        "passages": [passage_body(passage) for passage in answer.passages],
        "relevance": None if answer.relevance is None else round(answer.relevance, 4),
        "usage": {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens},
        "timings_ms": {
            "retrieve": round(answer.retrieve_ms, 1),
            "first_token": None if answer.first_token_ms is None else round(answer.first_token_ms, 1),
            "total": round(answer.total_ms, 1),
        },
        "index_generation": answer.index_generation,
        "finish_reason": answer.finish_reason,
    }


def citation_body(citation: Citation) -> dict[str, Any]:
    """One citation; start and end are character offsets of the quote in its document."""
    passage = citation.passage
    return {
        "n": citation.n,
        "document": passage.path,
        "chunk": passage.chunk.id,
        "title": passage.title,
        "page": passage.page_at(citation.start),
        "start": citation.start,
        "end": citation.end,
        "quote": citation.quote,
        "score": round(passage.score, 4),
        "url": f"/sources/{passage.chunk.id}?start={citation.start}&end={citation.end}#quote",
    }


def passage_body(passage: Passage) -> dict[str, Any]:
    """A passage without its text."""
    chunk = passage.chunk
    return {
        "rank": passage.rank,
        "score": round(passage.score, 4),
        "similarity": round(passage.similarity, 4),
        "document": passage.path,
        "title": passage.title,
        "context": chunk.context,
        "chunk": chunk.id,
        "start": chunk.start,
        "end": chunk.end,
        "page": chunk.page,
    }


def search_body(passages: Sequence[Passage]) -> list[dict[str, Any]]:
    """The body of /search and of `tandem search --json`: passages with their text."""
    return [{**passage_body(passage), "text": passage.chunk.text} for passage in passages]


def error_body(error: TandemError, request_id: str = "") -> dict[str, Any]:
    """The one shape of every error."""
    return {
        "error": {
            "code": error.code,
            "message": error.happened,
            "expected": error.expected,
            "do": error.do,
            "request_id": request_id,
        }
    }
