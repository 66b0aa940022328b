"""PowerPoint (.pptx): slides in order, titles as headings, tables and notes; each slide is a page."""

from __future__ import annotations

from xml.etree.ElementTree import Element

from indexer.loaders.archive import Package
from indexer.loaders.blocks import Writer
from indexer.loaders.office import core_properties, main_part
from indexer.loaders.parsed import Parsed, stem

_A = "{http://schemas.openxmlformats.org/drawingml/2006/main}"
_P = "{http://schemas.openxmlformats.org/presentationml/2006/main}"
_R = "{http://schemas.openxmlformats.org/officeDocument/2006/relationships}"
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"
_TITLES = frozenset({"title", "ctrTitle"})
_REPEATED = frozenset({"sldNum", "dt", "ftr", "hdr"})  # placeholders that say the same on every slide


def parse(data: bytes, name: str, budget: int) -> list[Parsed]:
    """Bytes of a .pptx file -> one document whose pages are its slides."""
    package = Package(data, name, budget)
    part = main_part(package)
    relations = package.relations(part)
    writer = Writer()
    for entry in package.xml(part).iter(f"{_P}sldId"):
        _, slide = relations.get(entry.get(f"{_R}id", ""), ("", ""))
        writer.page()
        if slide in package.names:
            _write_slide(package, slide, writer)
    properties = core_properties(package)
    stated = properties.pop("title", "")
    # "PowerPoint Presentation" is what the program writes when nobody chose a title.
    title = "" if stated.lower() in ("powerpoint presentation", "presentation") else stated
    return [writer.parsed(title or writer.first_heading() or stem(name), "pptx", properties)]


def _write_slide(package: Package, slide: str, writer: Writer) -> None:
    shapes = package.xml(slide).find(f"{_P}cSld/{_P}spTree")
    if shapes is not None:
        _write_shapes(shapes, writer)
    for kind, target in package.relations(slide).values():
        if target not in package.names:
            continue
        if kind == "diagramData":
            for paragraph in _paragraphs(package.xml(target)):
                writer.item(paragraph)
        elif kind == "notesSlide":
            _write_notes(package.xml(target), writer)


def _write_shapes(parent: Element, writer: Writer) -> None:
    shapes = [shape for shape in parent if _placeholder(shape) not in _REPEATED]
    # The title is read first wherever it stands in the file.
    for shape in sorted(shapes, key=lambda shape: _placeholder(shape) not in _TITLES):
        if shape.tag == f"{_P}sp":
            _write_shape(shape, writer)
        elif shape.tag == f"{_P}graphicFrame":
            for table in shape.iter(f"{_A}tbl"):
                writer.table(
                    [[" ".join(_paragraphs(cell)) for cell in row.iter(f"{_A}tc")] for row in table.iter(f"{_A}tr")]
                )
        elif shape.tag != _FALLBACK:  # groups, and the choice of an alternative
            _write_shapes(shape, writer)


def _write_shape(shape: Element, writer: Writer) -> None:
    body = shape.find(f"{_P}txBody")
    if body is None:
        return
    kind = _placeholder(shape)
    if kind in _TITLES:
        writer.heading(1 if kind == "ctrTitle" else 2, " ".join(_paragraphs(body)))
        return
    for paragraph in body.iter(f"{_A}p"):
        text = _text(paragraph)
        properties = paragraph.find(f"{_A}pPr")
        level = properties.get("lvl", "0") if properties is not None else "0"
        if kind in ("body", "obj"):
            writer.item(text, int(level) if level.isdigit() else 0)
        else:
            writer.paragraph(text)


def _placeholder(shape: Element) -> str:
    """The shape's placeholder type ("obj" where a content placeholder leaves it unsaid), "" if it is none."""
    mark = shape.find(f"{_P}nvSpPr/{_P}nvPr/{_P}ph")
    return mark.get("type", "obj") if mark is not None else ""


def _paragraphs(node: Element) -> list[str]:
    return [text for paragraph in node.iter(f"{_A}p") if (text := _text(paragraph).strip())]


def _text(paragraph: Element) -> str:
    pieces = (("\n" if node.tag == f"{_A}br" else node.text or "") for node in paragraph.iter() if node.tag in _SPOKEN)
    return "".join(pieces)


_SPOKEN = frozenset({f"{_A}t", f"{_A}br"})


def _write_notes(notes: Element, writer: Writer) -> None:
    for shape in notes.iter(f"{_P}sp"):
        if _placeholder(shape) == "body" and (paragraphs := _paragraphs(shape)):
            writer.paragraph("Notes: " + "\n".join(paragraphs))
