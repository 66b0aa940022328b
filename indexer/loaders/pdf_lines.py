"""Lines of a PDF page: their text, size and weight; where paragraphs part; what to drop or rejoin."""

from __future__ import annotations

import ctypes
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from indexer.loaders.encoding import clean

_LINE_END = re.compile(r"\r\n?|\n")
# PDFium joins the lines where a hyphen ends one, and writes U+FFFE (older releases U+0002) in the hyphen's place.
_JOINED = re.compile(r"([^\W\d_]+)[\ufffe\x02\u00ad]([^\W\d_]+)")
_DIVIDED = re.compile(r"([^\W\d_]+)[-\u2010]$")
_HEAD = re.compile(r"([^\W\d_]+)(\S*)\s*")
_EDGE_LINES = 2  # running headers and footers are looked for among this many lines at each end of a page
_EDGE_PAGES = 3  # and must recur on at least this many pages, and on half of all
_FORCE_BOLD = 1 << 18  # PDF 32000-1, table 123: font descriptor flags


@dataclass(frozen=True, slots=True)
class Line:
    """One printed line. `size` is the font size in points, `gap` says that vertical space precedes it.

    `level` and `title` are set on the first line of a heading, see pdf_headings.
    """

    text: str
    size: float = 0.0
    bold: bool = False
    gap: bool = False
    level: int = 0
    title: str = ""


def read_lines(textpage: Any) -> list[Line]:
    """The lines of one page in PDFium's reading order."""
    lines: list[Line] = []
    boxes: list[tuple[float, float]] = []
    offset = 0
    text = textpage.get_text_range()
    has_pairs = any(character > "\uffff" for character in text)  # PDFium counts UTF-16 units
    for end in [*_LINE_END.finditer(text), None]:
        raw = text[offset : end.start() if end else len(text)]
        if raw.strip():
            first = offset + len(raw) - len(raw.lstrip())
            last = offset + len(raw.rstrip()) - 1
            extra = sum(character > "\uffff" for character in text[:first]) if has_pairs else 0
            at = _char_index(textpage, first + extra)
            lines.append(Line(raw.strip(" \t"), _size(textpage, at), _bold(textpage, at, at + last - first)))
            # From the top of its first character to the bottom of its last: joined lines span several printed ones.
            boxes.append((_vertical(textpage, at + last - first)[0], _vertical(textpage, at)[1]))
        offset = end.end() if end else offset
    return _with_gaps(lines, boxes)


def _char_index(textpage: Any, text_index: int) -> int:
    import pypdfium2.raw as pdfium

    return max(int(pdfium.FPDFText_GetCharIndexFromTextIndex(textpage.raw, text_index)), 0)


def _vertical(textpage: Any, index: int) -> tuple[float, float]:
    import pypdfium2

    try:
        _, bottom, _, top = textpage.get_charbox(index, loose=True)
    except pypdfium2.PdfiumError:
        return 0.0, 0.0
    return bottom, top


def _size(textpage: Any, index: int) -> float:
    """Font size as printed: many producers set size 1 and scale by the text matrix."""
    import pypdfium2.raw as pdfium

    matrix = pdfium.FS_MATRIX()
    scale = math.hypot(matrix.c, matrix.d) if pdfium.FPDFText_GetMatrix(textpage.raw, index, matrix) else 1.0
    return round(float(pdfium.FPDFText_GetFontSize(textpage.raw, index)) * scale * 2) / 2


def _bold(textpage: Any, first: int, last: int) -> bool:
    """Whether the line begins and ends in bold, by the font's name or its flag."""
    import pypdfium2.raw as pdfium

    for index in (first, last):
        name, flags = ctypes.create_string_buffer(128), ctypes.c_int(0)
        length = pdfium.FPDFText_GetFontInfo(textpage.raw, index, name, len(name), flags)
        lowered = name.raw[:length].lower() if 0 < length <= len(name) else b""
        heavy = b"bold" in lowered or b"black" in lowered or b"heavy" in lowered
        if not heavy and not flags.value & _FORCE_BOLD:
            return False
    return True


def _with_gaps(lines: list[Line], boxes: Sequence[tuple[float, float]]) -> list[Line]:
    """Mark lines after which more white stands than usual on this page, and jumps to another column."""
    spaces = [above[0] - below[1] for above, below in zip(boxes, boxes[1:], strict=False)]
    usual = median([space for space in spaces if space > -50] or [0.0])
    marked = lines[:1]
    for line, space in zip(lines[1:], spaces, strict=True):
        height = max(line.size, 1.0)
        marked.append(replace(line, gap=space > usual + 0.4 * height or space < -2 * height))
    return marked


def without_running_lines(pages: list[list[Line]]) -> list[list[Line]]:
    """Drop headers and footers: lines at page edges that recur, page numbers aside, on half of the pages."""
    counts: Counter[str] = Counter()
    for page in pages:
        counts.update({_pattern(page[index].text) for index in _edges(len(page))})
    needed = max(_EDGE_PAGES, len(pages) / 2)
    kept: list[list[Line]] = []
    for page in pages:
        dropped = {index for index in _edges(len(page)) if counts[_pattern(page[index].text)] >= needed}
        kept.append([line for index, line in enumerate(page) if index not in dropped])
    return kept


def _edges(lines: int) -> set[int]:
    return {*range(min(_EDGE_LINES, lines)), *range(max(lines - _EDGE_LINES, 0), lines)}


def _pattern(text: str) -> str:
    return re.sub(r"\d+|\b[ivxl]+\b", "#", " ".join(text.split()).lower())


def join_hyphens(pages: list[list[Line]]) -> list[list[Line]]:
    """Rejoin words divided at line ends, and clean every line.

    A hyphen stays when the document writes the word with it elsewhere ("long-term").
    """
    found = (re.findall(r"[^\W\d_]+-[^\W\d_]+", line.text) for page in pages for line in page)
    spelled = frozenset(word.lower() for words in found for word in words)

    def joined(first: str, second: str) -> str:
        return f"{first}-{second}" if f"{first}-{second}".lower() in spelled else first + second

    return [_join_page(page, joined) for page in pages]


def _join_page(page: list[Line], joined: Callable[[str, str], str]) -> list[Line]:
    texts = [_JOINED.sub(lambda match: joined(match[1], match[2]), line.text) for line in page]
    for index in range(len(texts) - 1):
        divided, head = _DIVIDED.search(texts[index]), _HEAD.match(texts[index + 1])
        if divided and head and head[1][0].islower():
            texts[index] = texts[index][: divided.start()] + joined(divided[1], head[1]) + head[2]
            texts[index + 1] = texts[index + 1][head.end() :]
    cleaned = [replace(line, text=clean(text).strip()) for line, text in zip(page, texts, strict=True)]
    return [line for line in cleaned if line.text]
