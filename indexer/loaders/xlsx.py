"""Excel (.xlsx): sheets in order, each a heading and one line a row (ECMA-376 part 1, section 18)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree.ElementTree import Element

from indexer.loaders.archive import Package
from indexer.loaders.blocks import Writer
from indexer.loaders.office import core_properties, main_part
from indexer.loaders.parsed import Parsed, stem
from indexer.loaders.tables import row_lines
from indexer.loaders.xlsx_numbers import Formats, read_formats

_S = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_REFERENCE = re.compile(r"([A-Z]{1,3})\d+$")
_COLUMNS = 16_384  # the format's own maximum


def parse(data: bytes, name: str, budget: int) -> list[Parsed]:
    """Bytes of an .xlsx file -> one document; a formula reads as its stored result."""
    package = Package(data, name, budget)
    part = main_part(package)
    workbook, relations = package.xml(part), package.relations(part)
    parts = {kind: target for kind, target in relations.values()}
    strings = _shared_strings(package, parts.get("sharedStrings", ""))
    formats = read_formats(package, parts.get("styles", ""), workbook)
    writer = Writer()
    for sheet in workbook.iter(f"{_S}sheet"):
        _, target = relations.get(sheet.get(f"{_R}id", ""), ("", ""))
        if target not in package.names or sheet.get("state") == "veryHidden":
            continue
        rows = [_row(row, strings, formats) for row in package.xml(target).iter(f"{_S}row")]
        if lines := row_lines(rows):
            writer.heading(1, sheet.get("name", ""))
            writer.verbatim(lines)
    properties = core_properties(package)
    title = properties.pop("title", "") or stem(name)
    return [writer.parsed(title, "xlsx", properties)]


def _row(row: Element, strings: Sequence[str], formats: Formats) -> list[str]:
    """The row's cells, empty ones included up to the last that is filled."""
    cells: list[str] = []
    for cell in row.iter(f"{_S}c"):
        place = _REFERENCE.match(cell.get("r", ""))
        column = _column(place[1]) if place else len(cells)
        cells.extend([""] * (min(column, _COLUMNS) - len(cells)))
        cells.append(_cell(cell, strings, formats))
    return cells


def _column(letters: str) -> int:
    index = 0
    for letter in letters:
        index = index * 26 + ord(letter) - ord("A") + 1
    return index - 1


def _cell(cell: Element, strings: Sequence[str], formats: Formats) -> str:
    kind = cell.get("t", "n")
    if kind == "inlineStr":
        return _rich_text(cell)
    value = cell.findtext(f"{_S}v") or ""
    if kind == "s":
        return strings[int(value)] if value.isdigit() and int(value) < len(strings) else ""
    if kind == "b":
        return {"1": "TRUE", "0": "FALSE"}.get(value, value)
    return formats.shown(value, cell.get("s", "0")) if kind == "n" else value


def _shared_strings(package: Package, part: str) -> list[str]:
    if part not in package.names:
        return []
    return [_rich_text(item) for item in package.xml(part).iter(f"{_S}si")]


def _rich_text(node: Element) -> str:
    """The text of all runs; phonetic guides (rPh) repeat it in another script and are left out."""
    guides = {text for guide in node.iter(f"{_S}rPh") for text in guide.iter(f"{_S}t")}
    return "".join(text.text or "" for text in node.iter(f"{_S}t") if text not in guides)
