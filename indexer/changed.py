"""A change of a file -> the document that it makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from indexer.loaders import Parsed
from indexer.loaders.formats import inner_suffix
from indexer.loaders.parsed import stem
from indexer.plan import Change, KnownFile
from indexer.records import Document, document_id


def read_alike(name: str, other: str) -> bool:
    """Whether equal bytes under these two names are read as equal documents."""
    return inner_suffix(name) == inner_suffix(other)


def moved(document: Document, old: KnownFile, change: Change) -> Document:
    """The document under the path of its renamed file; a title that was the file's name follows."""
    if (old.corpus, old.path) == (change.file.corpus, change.file.path):
        return document
    path = change.file.path + document.path.removeprefix(old.path)
    title = stem(Path(change.file.path).name) if document.title == stem(Path(old.path).name) else document.title
    corpus = change.file.corpus
    return replace(document, id=document_id(corpus, path, document.text), corpus=corpus, path=path, title=title)


def document_of(change: Change, parsed: Parsed) -> Document:
    """The document that was read of a file, or of one of its records."""
    path = change.file.path if parsed.record is None else f"{change.file.path}#{parsed.record}"
    return Document(
        id=document_id(change.file.corpus, path, parsed.text),
        corpus=change.file.corpus,
        path=path,
        title=parsed.title or stem(Path(change.file.path).name),
        format=parsed.format,
        text=parsed.text,
        pages=parsed.pages,
        headings=parsed.headings,
        metadata=parsed.metadata,
    )
