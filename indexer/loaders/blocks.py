"""Blocks to text: paragraphs, headings, list items and tables become Markdown lines, their offsets kept.

Formats with a structure of their own (office, HTML, EPUB, mail) are written through one `Writer`, so they read the same
to a person and to a model, and their heading offsets are exact because they are noted while writing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from indexer.loaders.encoding import clean
from indexer.loaders.parsed import Parsed, one_line
from indexer.records import Heading, Page

_SPACES = re.compile(r"[ \t\u00a0]+")


class Writer:
    """Collects blocks of text, separated by a blank line; list items in a row stay together."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._length = 0
        self._last = ""
        self._page_starts: list[int] = []
        self.headings: list[Heading] = []

    def heading(self, level: int, title: str) -> None:
        """A title on a line of its own, marked with `level` (1 to 6) number signs."""
        title = one_line(clean(title))
        if title:
            level = min(max(level, 1), 6)
            start = self._block(f"{'#' * level} {title}", "heading")
            self.headings.append(Heading(level, title, start))

    def paragraph(self, text: str) -> None:
        """Running text; its line breaks are kept, its runs of spaces are not."""
        lines = (_SPACES.sub(" ", line).strip() for line in clean(text).split("\n"))
        self._block("\n".join(line for line in lines if line), "paragraph")

    def item(self, text: str, depth: int = 0, mark: str = "-") -> None:
        """One list item, indented by two spaces a level."""
        text = " ".join(clean(text).split())
        if text:
            self._block(f"{'  ' * min(max(depth, 0), 8)}{mark} {text}", "item")

    def verbatim(self, text: str) -> None:
        """Text whose spaces mean something: code, rows that are already lines."""
        self._block(clean(text).strip("\n"), "verbatim")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """A Markdown table whose first row is the header; a single column is written as paragraphs."""
        cells = [[" ".join(clean(cell).split()).replace("|", "\\|") for cell in row] for row in rows]
        cells = [row for row in cells if any(row)]
        width = max((len(row) for row in cells), default=0)
        if width <= 1 or len(cells) == 1:
            for row in cells:
                self.paragraph(" | ".join(cell for cell in row if cell).replace("\\|", "|"))
            return
        lines = ["| " + " | ".join([*row, *[""] * (width - len(row))]) + " |" for row in cells]
        lines.insert(1, "|" + " --- |" * width)
        self._block("\n".join(lines), "table")

    def page(self) -> None:
        """The next block begins the next page."""
        if self._parts and self._length:
            self._add("\n\n")
            self._last = ""
        self._page_starts.append(self._length)

    def parsed(self, title: str, kind: str, metadata: Mapping[str, str] | None = None) -> Parsed:
        """Everything written so far as one document; `title` falls back to the first heading by the caller."""
        text = "".join(self._parts)
        ends = [*self._page_starts[1:], len(text)]
        pages = tuple(
            Page(number, start, end)
            for number, (start, end) in enumerate(zip(self._page_starts, ends, strict=False), 1)
        )
        known = {key: one_line(clean(value)) for key, value in (metadata or {}).items()}
        kept = {key: value for key, value in known.items() if value}
        return Parsed(one_line(clean(title)), kind, text, pages, tuple(self.headings), kept)

    def first_heading(self) -> str:
        """The title of the first heading written, "" if there is none."""
        return self.headings[0].title if self.headings else ""

    def _block(self, text: str, kind: str) -> int:
        """Append one block; the offset at which it starts."""
        if not text.strip():
            return self._length
        if self._last:
            self._add("\n" if kind == self._last == "item" else "\n\n")
        self._last = kind
        start = self._length
        self._add(text)
        return start

    def _add(self, text: str) -> None:
        self._parts.append(text)
        self._length += len(text)
