"""Word (.docx): paragraphs, headings, lists, tables and notes from its XML (ECMA-376 part 1, section 17)."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from indexer.loaders.archive import Package
from indexer.loaders.blocks import Writer
from indexer.loaders.office import core_properties, main_part
from indexer.loaders.parsed import Parsed, stem

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
_MATH = "{http://schemas.openxmlformats.org/officeDocument/2006/math}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"  # repeats what its Choice shows
_MATH_SIGNS = {f"{_MATH}den": "/", f"{_MATH}sup": "^", f"{_MATH}sub": "_"}  # fractions and scripts on one line
_CHARACTERS = {"tab": "\t", "br": "\n", "cr": "\n", "noBreakHyphen": "-", "ptab": "\t"}
_WRAPPERS = frozenset(f"{_W}{tag}" for tag in ("sdt", "sdtContent", "ins", "moveTo", "customXml", "smartTag"))
_LEFT_OUT = frozenset({_FALLBACK, *(f"{_W}{tag}" for tag in ("del", "moveFrom", "pPr", "rPr", "instrText"))})
_BODY_TEXT_LEVEL = 9  # an outline level of 9 says "not a heading"
_UNREADABLE = 3  # half-points; Word writes 20 or more for text that is meant to be read


def parse(data: bytes, name: str, budget: int) -> list[Parsed]:
    """Bytes of a .docx file -> one document; tracked insertions are in, tracked deletions out."""
    package = Package(data, name, budget)
    part = main_part(package)
    relations = {kind: target for kind, target in package.relations(part).values()}
    levels = _heading_levels(package, relations.get("styles", ""))
    writer = Writer()
    body = package.xml(part).find(f"{_W}body")
    for block in _blocks(body) if body is not None else ():
        _write(block, writer, levels)
    for kind in ("footnotes", "endnotes"):
        _write_notes(package, relations.get(kind, ""), writer)
    properties = core_properties(package)
    title = properties.pop("title", "") or writer.first_heading() or stem(name)
    return [writer.parsed(title, "docx", properties)]


def _blocks(parent: Element) -> Iterator[Element]:
    """Paragraphs and tables in order, through content controls and tracked insertions."""
    for child in parent:
        if child.tag in (f"{_W}p", f"{_W}tbl"):
            yield child
        elif child.tag in _WRAPPERS:
            yield from _blocks(child)


def _write(block: Element, writer: Writer, levels: dict[str, int]) -> None:
    if block.tag == f"{_W}tbl":
        writer.table(_rows(block))
        return
    text = _text(block)
    level = _level(block, levels)
    listed = block.find(f"{_W}pPr/{_W}numPr")
    if level:
        writer.heading(level, text)
    elif listed is not None and _value(listed, "numId") != "0":
        writer.item(text, _number(_value(listed, "ilvl")))
    else:
        writer.paragraph(text)
    for box in block.iter(f"{_W}txbxContent"):
        if not any(box in fallback.iter() for fallback in block.iter(_FALLBACK)):
            for inner in _blocks(box):
                _write(inner, writer, levels)


def _text(node: Element) -> str:
    """The text of a paragraph as read: no deletions, hidden runs, field codes or text boxes (blocks of their own)."""
    pieces: list[str] = []

    def collect(parent: Element) -> None:
        for child in parent:
            if child.tag in _LEFT_OUT or child.tag == f"{_W}txbxContent" or _is_hidden(child):
                continue
            if child.tag in (f"{_W}t", f"{_MATH}t"):
                pieces.append(child.text or "")
            elif isinstance(child.tag, str) and child.tag.removeprefix(_W) in _CHARACTERS:
                pieces.append(_CHARACTERS[child.tag.removeprefix(_W)])
            else:
                pieces.append(_MATH_SIGNS.get(child.tag, ""))
                collect(child)

    collect(node)
    return "".join(pieces)


def _is_hidden(run: Element) -> bool:
    """Whether a run of text is marked as hidden or is too small to be read (ISO 29500-1, 17.3.2.38 and 17.3.2.41)."""
    properties = run.find(f"{_W}rPr") if run.tag == f"{_W}r" else None
    if properties is None:
        return False
    vanish = properties.find(f"{_W}vanish")
    hidden = vanish is not None and vanish.get(f"{_W}val", "true") not in ("0", "false", "off")
    size = _value(properties, "sz")
    return hidden or 0 < _number(size) <= _UNREADABLE or size == "0"


def _rows(table: Element) -> list[list[str]]:
    """Cells; one merged downwards is repeated so that each row stands alone, a nested table reads as cell text."""
    rows: list[list[str]] = []
    for row in _children(table, "tr"):
        cells: list[str] = []
        for cell in _children(row, "tc"):
            merge = cell.find(f"{_W}tcPr/{_W}vMerge")
            if merge is not None and merge.get(f"{_W}val") != "restart" and rows and len(cells) < len(rows[-1]):
                cells.append(rows[-1][len(cells)])
            else:
                cells.append(" ".join(_text(paragraph) for paragraph in cell.iter(f"{_W}p")))
            span = cell.find(f"{_W}tcPr")
            cells.extend([""] * (min(_number(_value(span, "gridSpan")), 100) - 1) if span is not None else [])
        rows.append(cells)
    return rows


def _children(parent: Element, tag: str) -> Iterator[Element]:
    """Children of this tag, through content controls."""
    for child in parent:
        if child.tag == f"{_W}{tag}":
            yield child
        elif child.tag in _WRAPPERS:
            yield from _children(child, tag)


def _level(paragraph: Element, levels: dict[str, int]) -> int:
    properties = paragraph.find(f"{_W}pPr")
    if properties is None:
        return 0
    own = _value(properties, "outlineLvl")
    if own.isdigit():
        return int(own) + 1 if int(own) < _BODY_TEXT_LEVEL else 0
    return levels.get(_value(properties, "pStyle"), 0)


def _heading_levels(package: Package, part: str) -> dict[str, int]:
    """Style id -> heading level: by the style's own outline level, its name, or the style it is based on."""
    if part not in package.names:
        return {}
    styles = {style.get(f"{_W}styleId", ""): style for style in package.xml(part).iter(f"{_W}style")}

    def level(style_id: str, seen: frozenset[str] = frozenset()) -> int:
        style = styles.get(style_id)
        if style is None or style_id in seen:
            return 0
        outline = style.find(f"{_W}pPr/{_W}outlineLvl")
        if outline is not None and (value := outline.get(f"{_W}val", "")).isdigit():
            return int(value) + 1 if int(value) < _BODY_TEXT_LEVEL else 0
        called = _value(style, "name").lower()
        if called == "title":
            return 1
        if called.startswith("heading ") and called[8:].isdigit():
            return int(called[8:])
        return level(_value(style, "basedOn"), seen | {style_id})

    return {style_id: found for style_id in styles if (found := level(style_id))}


def _write_notes(package: Package, part: str, writer: Writer) -> None:
    """Footnotes or endnotes after the body; the separators that Word stores among them have a type."""
    if part not in package.names:
        return
    for note in package.xml(part):
        if note.get(f"{_W}type") is None:
            writer.paragraph("\n".join(_text(paragraph) for paragraph in note.iter(f"{_W}p")))


def _value(node: Element, tag: str) -> str:
    child = node.find(f"{_W}{tag}")
    return child.get(f"{_W}val", "") if child is not None else ""


def _number(value: str) -> int:
    return int(value) if value.isascii() and value.isdigit() else 0
