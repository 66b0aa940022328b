"""Which lines of a PDF are headings: by its outline where it has one, else by size and weight of type."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from indexer.loaders.pdf_lines import Line

_LARGER = 1.12  # times the body's size; printed headings of 11 or 12 points over a body of 10 are 1.1 and 1.2
_LONGEST = 120  # characters; longer large lines are display text
_DEEPEST = 4
_LARGEST_SHARE = 0.25  # of all characters; beyond it the type says nothing
_FOUND_SHARE = 0.5  # of the outline's entries; below it the outline's words are not those on the pages


def mark_headings(pages: list[list[Line]], outline: Sequence[tuple[int, str, int]]) -> list[list[Line]]:
    """Set `level` and `title` on lines that begin a heading; `outline` is (depth from 0, title, page index)."""
    marked, found = _by_outline(pages, outline)
    return marked if outline and found >= _FOUND_SHARE * len(outline) else _by_type(pages)


def _by_outline(pages: list[list[Line]], outline: Sequence[tuple[int, str, int]]) -> tuple[list[list[Line]], int]:
    marked = [list(page) for page in pages]
    found = 0
    for depth, title, page_index in outline:
        if page_index is None or not 0 <= page_index < len(marked):
            continue
        page = marked[page_index]
        wanted = _letters(title)
        for index, line in enumerate(page):
            printed = _letters(line.text)
            if wanted and not line.level and printed and (wanted.startswith(printed) or printed == wanted):
                # A long title continues on the following lines.
                whole = _letters("".join(other.text for other in page[index : index + 3]))
                if whole.startswith(wanted):
                    page[index] = replace(line, level=depth + 1, title=title)
                    found += 1
                    break
    return marked, found


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text).lower()


def _by_type(pages: list[list[Line]]) -> list[list[Line]]:
    weights: Counter[float] = Counter()
    for page in pages:
        for line in page:
            weights[line.size] += len(line.text)
    body = max(weights, key=lambda size: weights[size], default=0.0)
    lines = [line for page in pages for line in page]
    bold_counts = sum(len(line.text) for line in lines if line.bold) <= _LARGEST_SHARE * sum(weights.values())
    larger = [line for line in lines if _is_larger(line, body)]
    if sum(len(line.text) for line in larger) > _LARGEST_SHARE * sum(weights.values()):
        larger = []
    sizes = sorted({line.size for line in larger}, reverse=True)

    def level(line: Line) -> int:
        if line.size in sizes and _is_larger(line, body):
            return min(sizes.index(line.size) + 1, _DEEPEST)
        is_bold = bold_counts and line.bold and line.size >= body and _is_title(line.text)
        return min(len(sizes) + 1, _DEEPEST + 1) if is_bold else 0

    return [_merge(page, [level(line) for line in page]) for page in pages]


def _merge(page: list[Line], levels: Sequence[int]) -> list[Line]:
    """One heading from consecutive lines of one level with no space between; bold lines need space before them."""
    marked = list(page)
    index = 0
    while index < len(page):
        end = index + 1
        if levels[index]:
            while (
                end < len(page)
                and levels[end] == levels[index]
                and not page[end].gap
                and page[end].size == page[index].size
            ):
                end += 1
            title = " ".join(line.text for line in page[index:end])
            if len(title) <= _LONGEST and (page[index].gap or index == 0 or levels[index - 1]):
                marked[index] = replace(page[index], level=levels[index], title=title)
        index = end
    return marked


def _is_larger(line: Line, body: float) -> bool:
    return line.size >= _LARGER * body and _is_title(line.text)


def _is_title(text: str) -> bool:
    letters = sum(character.isalpha() for character in text)
    return letters >= 3 and letters > len(text) / 2 and len(text) <= _LONGEST and not text.endswith((",", ";"))
