"""OpenDocument text, sheets and slides (.odt, .ods, .odp): content.xml (OASIS OpenDocument 1.3, part 3)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from xml.etree.ElementTree import Element

from indexer.loaders.archive import Package
from indexer.loaders.blocks import Writer
from indexer.loaders.formats import format_of
from indexer.loaders.parsed import Parsed, damaged, stem
from indexer.loaders.tables import row_lines

_OASIS = "{urn:oasis:names:tc:opendocument:xmlns:%s:1.0}"
_TEXT, _TABLE, _DRAW = _OASIS % "text", _OASIS % "table", _OASIS % "drawing"
_OFFICE, _META, _PRESENTATION = _OASIS % "office", _OASIS % "meta", _OASIS % "presentation"
_DUBLIN = "{http://purl.org/dc/elements/1.1/}"
_SVG = "{urn:oasis:names:tc:opendocument:xmlns:svg-compatible:1.0}"
# Deletions kept for review, comments, and the alternative descriptions of pictures are not running text.
_LEFT_OUT = frozenset(
    {f"{_TEXT}tracked-changes", f"{_OFFICE}annotation", f"{_OFFICE}forms", f"{_SVG}title", f"{_SVG}desc"}
)
_LISTS = frozenset({f"{_TEXT}list", f"{_TEXT}ordered-list", f"{_TEXT}unordered-list"})
_ROW_GROUPS = frozenset(f"{_TABLE}table-{kind}" for kind in ("header-rows", "row-group", "rows"))
_SPACE = re.compile(r"[ \t\r\n]+")  # what the format collapses to one space (part 3, section 6.1.2)
_REPEATS = 1_000  # a sheet stores its empty margin as one cell repeated to the edge


def parse(data: bytes, name: str, budget: int) -> list[Parsed]:
    """Bytes of an OpenDocument file -> one document; slides are pages, sheets are headings."""
    package = Package(data, name, budget)
    body = package.xml("content.xml").find(f"{_OFFICE}body")
    if body is None:
        raise damaged(name, "its content has no body")
    writer = Writer()
    _write(body, writer)
    known = _metadata(package)
    title = known.pop("title", "") or writer.first_heading() or stem(name)
    return [writer.parsed(title, format_of(name) or "odt", known)]


def _write(parent: Element, writer: Writer, depth: int = -1) -> None:
    """Write the blocks below `parent`; `depth` counts the lists around it."""
    for node in parent:
        tag = node.tag
        if tag == f"{_TEXT}h":
            writer.heading(_number(node.get(f"{_TEXT}outline-level", "1")), _text(node))
        elif tag == f"{_TEXT}p":
            _write_paragraph(node, writer, depth)
        elif tag in _LISTS:
            _write(node, writer, depth + 1)
        elif tag == f"{_TABLE}table":
            _write_table(node, writer, is_sheet=parent.tag == f"{_OFFICE}spreadsheet")
        elif tag == f"{_DRAW}page":
            writer.page()
            _write(node, writer)
        elif tag == f"{_PRESENTATION}notes":
            writer.paragraph(f"Notes: {notes}" if (notes := _all_text(node)) else "")
        elif tag == f"{_DRAW}frame" and node.get(f"{_PRESENTATION}class") == "title":
            writer.heading(2, _all_text(node))
        elif tag not in _LEFT_OUT:
            _write(node, writer, depth)


def _write_paragraph(node: Element, writer: Writer, depth: int) -> None:
    text = _text(node)
    if depth >= 0:
        writer.item(text, depth)
    else:
        writer.paragraph(text)
    for child in node.iter():
        if child.tag in (f"{_DRAW}text-box", f"{_TEXT}note-body"):
            _write(child, writer)


def _write_table(table: Element, writer: Writer, *, is_sheet: bool) -> None:
    rows = [_row(row) for row in _table_rows(table)]
    if not is_sheet:
        writer.table(rows)
    elif lines := row_lines(rows):
        writer.heading(1, table.get(f"{_TABLE}name", ""))
        writer.verbatim(lines)


def _table_rows(table: Element) -> Iterator[Element]:
    """The table's own rows, through row groups but not into tables nested in its cells."""
    for node in table:
        if node.tag == f"{_TABLE}table-row":
            yield node
        elif node.tag in _ROW_GROUPS:
            yield from _table_rows(node)


def _row(row: Element) -> list[str]:
    cells: list[str] = []
    for cell in row:
        if cell.tag not in (f"{_TABLE}table-cell", f"{_TABLE}covered-table-cell"):
            continue
        text = " ".join(_text(line) for line in cell.iter() if line.tag in (f"{_TEXT}p", f"{_TEXT}h"))
        times = _number(cell.get(f"{_TABLE}number-columns-repeated", "1"))
        cells.extend([text] * min(times, _REPEATS))
    while cells and not cells[-1]:
        cells.pop()
    return cells


def _text(node: Element) -> str:
    """A paragraph's text with its tabs, breaks and repeated spaces; text boxes and notes are blocks of their own."""
    pieces = [_SPACE.sub(" ", node.text or "")]
    for child in node:
        tag = child.tag
        if tag == f"{_TEXT}s":
            pieces.append(" " * min(_number(child.get(f"{_TEXT}c", "1")), 100))
        elif tag == f"{_TEXT}tab":
            pieces.append("\t")
        elif tag == f"{_TEXT}line-break":
            pieces.append("\n")
        elif tag not in _LEFT_OUT and tag not in (f"{_DRAW}text-box", f"{_TEXT}note"):
            pieces.append(_text(child))
        pieces.append(_SPACE.sub(" ", child.tail or ""))
    return "".join(pieces)


def _all_text(node: Element) -> str:
    return " ".join(_text(line) for line in node.iter(f"{_TEXT}p")).strip()


def _metadata(package: Package) -> dict[str, str]:
    if "meta.xml" not in package.names:
        return {}
    names = {f"{_DUBLIN}title": "title", f"{_DUBLIN}creator": "author", f"{_META}creation-date": "created"}
    return {names[node.tag]: node.text for node in package.xml("meta.xml").iter() if node.tag in names and node.text}


def _number(value: str) -> int:
    return int(value) if value.isascii() and value.isdigit() else 1
