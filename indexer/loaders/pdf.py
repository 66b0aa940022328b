"""PDF: text page by page in reading order, with paragraphs, headings and without running headers."""

from __future__ import annotations

import re
from typing import Any

from indexer.errors import TandemError
from indexer.loaders.encoding import clean
from indexer.loaders.parsed import Parsed, damaged, one_line, stem
from indexer.loaders.pdf_headings import mark_headings
from indexer.loaders.pdf_lines import Line, join_hyphens, read_lines, without_running_lines
from indexer.records import Heading, Page

_FILE_NAMES = (".doc", ".docx", ".pdf", ".rtf", ".indd", ".tex", ".dvi", ".ppt", ".pptx", ".xls", ".xlsx", ".qxd")


def parse(data: bytes, name: str) -> list[Parsed]:
    """Bytes of a .pdf file -> one document whose pages are the file's."""
    import pypdfium2

    try:
        pdf = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        raise _unopened(name, str(error)) from error
    try:
        pages = [_read_page(pdf, index, name) for index in range(len(pdf))]
        outline = [(item.level, item.get_title(), item.get_dest()) for item in pdf.get_toc(max_depth=6)]
        places = [
            (level, one_line(clean(title)), dest.get_index())
            for level, title, dest in outline
            if title and dest is not None
        ]
        stated = pdf.get_metadata_dict(skip_empty=True)
    except pypdfium2.PdfiumError as error:
        raise damaged(name, str(error)) from error
    finally:
        pdf.close()
    if not any(line.text.strip() for page in pages for line in page):
        raise TandemError(
            f"{name} has no text layer: its {len(pages)} pages are scans or pictures.",
            expected="A PDF whose text can be selected.",
            do="Run OCR on it first, for example with ocrmypdf, and index the result.",
        )
    pages = mark_headings(join_hyphens(without_running_lines(pages)), places)
    return [_assemble(pages, name, stated)]


def _unopened(name: str, reason: str) -> TandemError:
    if "password" in reason.lower():
        return TandemError(
            f"{name} is protected by a password.",
            expected="A PDF that opens without one.",
            do="Save a copy without the password, or leave it out.",
        )
    return damaged(name, f"it is not a complete PDF ({reason})")


def _read_page(pdf: Any, index: int, name: str) -> list[Line]:
    import pypdfium2

    try:
        page = pdf[index]
    except pypdfium2.PdfiumError as error:
        raise damaged(name, f"its page {index + 1} is damaged ({error})") from error
    textpage = page.get_textpage()
    try:
        return read_lines(textpage)
    finally:
        textpage.close()
        page.close()


def _assemble(pages: list[list[Line]], name: str, stated: dict[str, str]) -> Parsed:
    """Lines to text: a page is followed by a blank line, which belongs to it."""
    parts: list[str] = []
    headings: list[Heading] = []
    spans: list[Page] = []
    offset = 0

    def add(text: str) -> None:
        nonlocal offset
        parts.append(text)
        offset += len(text)

    for number, page in enumerate(pages, 1):
        if offset:
            add("\n\n")
        start = spans[-1].end if spans else 0
        if spans:
            spans[-1] = Page(number - 1, spans[-1].start, offset)
            start = offset
        for index, line in enumerate(page):
            if index:
                add("\n\n" if line.gap else "\n")
            if line.level:
                headings.append(Heading(line.level, one_line(line.title), offset))
            add(line.text)
        spans.append(Page(number, start, offset))
    metadata = {key: one_line(clean(stated.get(field, ""))) for key, field in _FIELDS.items()}
    if date := _DATE.match(metadata["created"]):
        metadata["created"] = "-".join(part for part in date.groups() if part)
    # "(anonymous)" and the like are what a program writes for nothing.
    metadata = {key: value for key, value in metadata.items() if value and value[0] != "("} | {"pages": str(len(pages))}
    title = _title(one_line(clean(stated.get("Title", "")))) or _first_page_title(headings, spans) or stem(name)
    return Parsed(title, "pdf", "".join(parts), tuple(spans), tuple(headings), metadata)


_TITLE_WORDS = 3
_DATE = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?")  # PDF 32000-1, section 7.9.4
_FIELDS = {"author": "Author", "subject": "Subject", "keywords": "Keywords", "created": "CreationDate"}


def _title(stated: str) -> str:
    """The title in the metadata, unless a program put a file name or nothing there."""
    lowered = stated.lower()
    generated = lowered.endswith(_FILE_NAMES) or lowered.startswith(("microsoft word", "untitled", "(", "document"))
    return "" if generated or not any(character.isalpha() for character in stated) else stated


def _first_page_title(headings: list[Heading], spans: list[Page]) -> str:
    """The first page's one heading of the topmost level, if it says more than a name or a form's number."""
    top = [heading.title for heading in headings if heading.level == 1 and heading.start < spans[0].end]
    return top[0] if len(top) == 1 and len(top[0].split()) >= _TITLE_WORDS else ""
