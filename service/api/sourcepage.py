"""A document with one passage highlighted, as a page that needs no script."""

from __future__ import annotations

from html import escape

from indexer.chunking import page_at
from indexer.records import Chunk, Document

# A longer document is shown around the passage: a browser takes seconds for a book in one page.
MOST_CHARACTERS = 200_000


def source_page(document: Document, chunk: Chunk, quote: tuple[int, int] | None) -> str:
    """HTML with the chunk marked, and the quote inside it marked again as the element with the id `quote`."""
    start = max(0, chunk.start - MOST_CHARACTERS // 2)
    end = min(len(document.text), chunk.end + MOST_CHARACTERS // 2)
    inside = (quote or (chunk.start, chunk.end))[0]
    page = page_at(document, inside)
    where = " · ".join(part for part in (document.path, f"page {page}" if page else "") if part)
    left = "<p class='cut'>The document begins earlier.</p>" if start else ""
    right = "<p class='cut'>The document goes on.</p>" if end < len(document.text) else ""
    text = document.text
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{
        escape(document.title)
    }</title><link rel="stylesheet" href="/static/source.css"><link rel="icon" href="/static/favicon.svg"></head>
<body><header><h1>{escape(document.title)}</h1><p>{escape(where)}</p><p>{escape(chunk.context)}</p></header>
<main>{left}<pre class="document">{escape(text[start : chunk.start])}<span class="passage" id="passage">{
        _marked(text, chunk, quote)
    }</span>{escape(text[chunk.end : end])}</pre>{right}</main></body></html>
"""


def _marked(text: str, chunk: Chunk, quote: tuple[int, int] | None) -> str:
    if quote is None:
        return escape(text[chunk.start : chunk.end])
    before, marked, after = text[chunk.start : quote[0]], text[quote[0] : quote[1]], text[quote[1] : chunk.end]
    return f'{escape(before)}<mark id="quote">{escape(marked)}</mark>{escape(after)}'
