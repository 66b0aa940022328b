"""A tree of HTML or XHTML -> blocks."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

from indexer.loaders.blocks import Writer

_SKIPPED = frozenset("script style head template noscript svg iframe object button select textarea title".split())
BOILERPLATE = frozenset("nav header footer aside form menu dialog".split())
_BLOCKS = frozenset(
    "p div section article main body header footer aside nav form blockquote quote figure figcaption dl dt dd address "
    "details summary center fieldset html caption menu dialog table thead tbody tfoot tr td th".split()
)
_LISTS = frozenset({"ul", "ol"})
_BREAKS = frozenset({"br", "hr"})
_SPACE = re.compile(r"\s+")
_NESTING = 150  # deeper trees are defects or attacks; what lies deeper is read as one run of text


def write(root: Element, writer: Writer, *, boilerplate: bool = True) -> None:
    """Write the blocks of `root` (lxml or xml.etree); without `boilerplate`, leave navigation and such out."""
    walker = _Walker(writer, _SKIPPED if boilerplate else _SKIPPED | BOILERPLATE)
    walker.visit(root, 0)
    walker.flush()


def tag_of(node: Element) -> str:
    """The node's tag without namespace, lower case; "" for comments and processing instructions."""
    return node.tag.rsplit("}", 1)[-1].lower() if isinstance(node.tag, str) else ""


def plain(node: Element) -> str:
    """All text below `node` with single spaces."""
    return " ".join("".join(node.itertext()).split())


class _Walker:
    """Reads the tree in document order; `_run` is the inline text of the block that is open."""

    def __init__(self, writer: Writer, skipped: frozenset[str]) -> None:
        self._writer = writer
        self._skipped = skipped
        self._run: list[str] = []
        self._lists: list[int] = []  # the lists around this point: the next number, 0 for bullets
        self._mark = ""  # what the next flushed text is marked with when it begins a list item

    def flush(self) -> None:
        """End the open block."""
        text, mark = "".join(self._run), self._mark
        self._run.clear()
        if not text.strip():
            return
        self._mark = ""
        if mark:
            self._writer.item(text, len(self._lists) - 1, mark)
        else:
            self._writer.paragraph(text)

    def visit(self, node: Element, depth: int) -> None:
        """Write `node` itself; its tail belongs to the caller."""
        tag = tag_of(node)
        if not tag or tag in self._skipped:
            return
        if depth >= _NESTING:
            self._run.extend(_SPACE.sub(" ", piece) for piece in node.itertext())
        elif level := _heading_level(tag):
            self.flush()
            self._mark = ""
            self._writer.heading(level, plain(node))
        elif tag in _LISTS:
            self._list(node, tag, depth)
        elif tag == "li":
            self._item(node, depth)
        elif tag == "pre" or (tag == "code" and "\n" in "".join(node.itertext()).strip()):
            self.flush()
            self._writer.verbatim("".join(node.itertext()))
        elif tag == "table" and _is_data(node):
            self.flush()
            self._writer.table(table_rows(node))
        elif tag in _BREAKS:
            self._run.append("\n")
        elif tag in _BLOCKS:
            self.flush()
            self._children(node, depth)
            self.flush()
        else:
            self._children(node, depth)

    def _children(self, node: Element, depth: int) -> None:
        self._run.append(_SPACE.sub(" ", node.text or ""))
        for child in node:
            self.visit(child, depth + 1)
            self._run.append(_SPACE.sub(" ", child.tail or ""))

    def _list(self, node: Element, tag: str, depth: int) -> None:
        self.flush()
        self._lists.append(1 if tag == "ol" else 0)
        self._children(node, depth)
        self.flush()
        self._lists.pop()

    def _item(self, node: Element, depth: int) -> None:
        self.flush()
        number = self._lists[-1] if self._lists else 0
        self._mark = f"{number}." if number else "-"
        if number:
            self._lists[-1] += 1
        self._children(node, depth)
        self.flush()
        self._mark = ""


def _heading_level(tag: str) -> int:
    return int(tag[1]) if len(tag) == 2 and tag[0] == "h" and tag[1] in "123456" else 0


def _is_data(table: Element) -> bool:
    """Whether a table holds data: one that holds tables or headings lays out a page."""
    inside = {tag_of(node) for node in table.iter() if node is not table}
    return not inside & {"table", "h1", "h2", "h3"}


def table_rows(table: Element) -> list[list[str]]:
    """Cells of an HTML table; a cell that spans rows is repeated, one that spans columns is padded."""
    rows: list[list[str]] = []
    carried: dict[int, tuple[int, str]] = {}  # column -> rows still to fill, text
    for row in table.iter():
        if tag_of(row) != "tr":
            continue
        cells: list[str] = []
        for cell in row:
            if tag_of(cell) not in ("td", "th"):
                continue
            _fill(cells, carried)
            text, down = plain(cell), _span(cell, "rowspan")
            for offset in range(_span(cell, "colspan")):
                if down > 1:
                    carried[len(cells)] = (down - 1, text if offset == 0 else "")
                cells.append(text if offset == 0 else "")
        _fill(cells, carried)
        rows.append(cells)
    return rows


def _fill(cells: list[str], carried: dict[int, tuple[int, str]]) -> None:
    """Append the cells that reach down from earlier rows into the next columns."""
    while len(cells) in carried:
        left, text = carried.pop(len(cells))
        if left > 1:
            carried[len(cells)] = (left - 1, text)
        cells.append(text)


def _span(cell: Element, attribute: str) -> int:
    value = cell.get(attribute, "1").strip()
    return min(int(value), 50) if value.isascii() and value.isdigit() and int(value[:4]) > 0 else 1
