"""What every loader returns, and the errors they share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from indexer.errors import TandemError
from indexer.records import Heading, Page

TITLE_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Parsed:
    """The text of one file, or of one record of a .jsonl or .mbox file.

    `headings` are in text order and `text[heading.start:]` starts with the heading's line. `pages` (PDF pages, slides)
    tile the text: the first starts at 0, each ends where the next starts, the last ends at len(text).
    `record` is the record's id inside its file, None when the file is one document.
    """

    title: str
    format: str
    text: str
    pages: tuple[Page, ...] = ()
    headings: tuple[Heading, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    record: str | None = None


def one_line(text: str) -> str:
    """`text` on one line with single spaces, at most 200 characters: titles and metadata values."""
    return " ".join(text.split())[:TITLE_CHARACTERS].strip()


def stem(name: str) -> str:
    """The title of a file that states none: its name without suffixes that say the format."""
    path = PurePath(name)
    return PurePath(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def damaged(name: str, why: str) -> TandemError:
    """The error for a file that its format's parser cannot read."""
    return TandemError(
        f"{name} cannot be read: {why}.",
        expected="An undamaged file whose content is what its suffix says.",
        do="Open it in the program that made it and save it again, or leave it out.",
    )


def oversized(name: str, what: str) -> TandemError:
    """The error for a file that passes a stated limit; `what` says which, with both numbers where known."""
    return TandemError(f"{name} is over a limit: {what}.", do="Split the file or leave it out.", code="too_large")


def no_text(name: str) -> TandemError:
    """The error for a file with nothing to index."""
    return TandemError(f"{name} has no text.", expected="A file with text in it.", do="Fill it or leave it out.")
