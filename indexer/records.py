"""The values that flow through Tandem. Frozen and slotted; ids are hashes of content.

Offsets are Python character offsets into `Document.text`, start inclusive, end exclusive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field


def content_hash(*parts: str) -> str:
    """Hex SHA-256 (64 characters) of the parts, each prefixed by its length so that no two lists collide."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class Heading:
    """A section title: `level` 1 is the outermost, `start` is where its line begins in the document."""

    level: int
    title: str
    start: int


@dataclass(frozen=True, slots=True)
class Page:
    """Page `number` (1-based, as a reader would say it) covers text[start:end]."""

    number: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Document:
    """One source file, or one record of a .jsonl file.

    `path` is relative to its corpus folder, with forward slashes; `corpus` is that folder's absolute path.
    `format` is the family that parsed it (markdown, text, html, pdf, ...).
    """

    id: str
    corpus: str
    path: str
    title: str
    format: str
    text: str
    pages: tuple[Page, ...] = ()
    headings: tuple[Heading, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chunk:
    """A span of a document: `text == document.text[start:end]`.

    `context` is the document title and heading path ("Manual > Tuning > QLoRA"), embedded and searched
    together with the text; `tokens` counts what the embedder sees, special tokens included.
    """

    id: str
    document: str
    ordinal: int
    start: int
    end: int
    text: str
    context: str
    page: int | None
    tokens: int

    @property
    def embedded_text(self) -> str:
        """What the embedder and the word index are given: the context on a line of its own, then the text."""
        return f"{self.context}\n{self.text}" if self.context else self.text


@dataclass(frozen=True, slots=True)
class Passage:
    """A chunk as an answer to a question: `rank` from 1, higher `score` is better (see retrieval.py for its scale).

    `document` is the document's id, `path` and `title` are its own; `pages` are those that the chunk touches.
    """

    chunk: Chunk
    document: str
    path: str
    title: str
    pages: tuple[Page, ...]
    rank: int
    score: float
    similarity: float

    def page_at(self, offset: int) -> int | None:
        """The number of the page that holds a character offset of the chunk; None where there are no pages."""
        return next((page.number for page in self.pages if page.start <= offset < page.end), self.chunk.page)


def document_id(corpus: str, path: str, text: str) -> str:
    """16 hex characters that name this version of this document."""
    return content_hash(corpus, path, text)[:16]


def chunk_id(document: str, start: int, end: int) -> str:
    """16 hex characters that name this span of this version of a document."""
    return content_hash(document, str(start), str(end))[:16]
