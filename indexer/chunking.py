"""A document to chunks that tile it: every character that is not white space lies in some chunk.

LangChain's recursive splitter finds the breaks (paragraph, line, sentence, word). It is run on character lengths,
without overlap and without stripping, because only then do its pieces tile the text exactly; lengths in tokens and the
overlap are handled here, on the offsets of the document's own tokens, so a document is tokenised once.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from indexer.embedding import Embedder
from indexer.errors import TandemError
from indexer.records import Chunk, Document, Heading, chunk_id

SEPARATORS = ["\n\n", "\n", ". ", "? ", "! ", "; ", ", ", " ", ""]
SPECIAL_TOKENS = 2
CONTEXT_TOKENS = 40
# A section under this share of a full chunk (a heading alone, a one-line paragraph) joins the next one.
SMALL_SHARE = 0.25
# A long section is broken into about so many pieces a chunk, so that joining them fills the chunks.
PIECES = 3

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ChunkSize:
    """Tokens of text in a chunk, and how many of them repeat the end of the chunk before."""

    tokens: int = 160
    overlap: int = 24

    def check(self, window: int) -> None:
        """Raise TandemError unless a full chunk with its context fits the embedder's window."""
        room = window - SPECIAL_TOKENS - CONTEXT_TOKENS
        if not 16 <= self.tokens <= room:
            raise TandemError(
                f"chunk_tokens is {self.tokens}.",
                expected=f"16 to {room}: the embedder reads {window} tokens, {CONTEXT_TOKENS} of them for the title.",
                do="Change the `chunk_tokens` setting.",
            )
        if not 0 <= self.overlap <= self.tokens // 2:
            raise TandemError(
                f"chunk_overlap is {self.overlap}.",
                expected=f"0 to {self.tokens // 2}, half of chunk_tokens.",
                do="Change the `chunk_overlap` setting.",
            )


def split(document: Document, embedder: Embedder, size: ChunkSize) -> list[Chunk]:
    """Chunks in reading order, none over the embedder's window; raises TandemError for an impossible size."""
    size.check(embedder.window)
    text = document.text
    starts: Sequence[int] = embedder.token_starts(text).tolist()
    edges = _edges(document)
    spans = _merge(_pieces(text, edges, starts, size), set(edges), starts, size)
    spans = [_trim(text, _overlapped(text, span, before, starts, size)) for before, span in _with_previous(spans)]
    chunks: list[Chunk] = []
    contexts = _Contexts(document, embedder)
    for (start, end), tokens in _fitting(text, spans, contexts, embedder):
        context = contexts.at(start, end)
        chunks.append(
            Chunk(
                id=chunk_id(document.id, start, end),
                document=document.id,
                ordinal=len(chunks),
                start=start,
                end=end,
                text=text[start:end],
                context=context,
                page=page_at(document, start),
                tokens=tokens,
            )
        )
    return chunks


def page_at(document: Document, offset: int) -> int | None:
    """The number of the page that holds a character offset, or None where the document has no pages."""
    if not document.pages:
        return None
    place = bisect_right([page.start for page in document.pages], offset) - 1
    return document.pages[max(place, 0)].number


def _count(starts: Sequence[int], span: Span) -> int:
    return bisect_left(starts, span[1]) - bisect_left(starts, span[0])


def _edges(document: Document) -> list[int]:
    """Where sections begin, and the end."""
    return sorted({0, len(document.text), *(heading.start for heading in document.headings)})


def _pieces(text: str, edges: Sequence[int], starts: Sequence[int], size: ChunkSize) -> Iterator[Span]:
    """Spans of at most tokens - overlap tokens that tile the document and never cross a heading."""
    for section in pairwise(edges):
        yield from _break(text, section, starts, size.tokens - size.overlap)


def _break(text: str, span: Span, starts: Sequence[int], budget: int) -> Iterator[Span]:
    count = _count(starts, span)
    if count <= budget:
        yield span
        return
    length = span[1] - span[0]
    # In characters, by what a token has on average here; the pieces are joined again as far as their tokens allow.
    characters = length * budget // (count * PIECES)
    for piece in _split_characters(text, span, max(1, min(length - 1, characters))):
        yield from _break(text, piece, starts, budget)


def _split_characters(text: str, span: Span, characters: int) -> Iterator[Span]:
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    splitter = RecursiveCharacterTextSplitter(
        SEPARATORS, keep_separator="end", chunk_size=characters, chunk_overlap=0, strip_whitespace=False
    )
    start = span[0]
    for piece in splitter.split_text(text[span[0] : span[1]]):
        yield start, start + len(piece)
        start += len(piece)


def _merge(pieces: Iterator[Span], edges: set[int], starts: Sequence[int], size: ChunkSize) -> list[Span]:
    """Join neighbours while they fit: across a heading only when one is small, so that no chunk is a heading alone."""
    budget, small = size.tokens - size.overlap, int((size.tokens - size.overlap) * SMALL_SHARE)
    merged: list[Span] = []
    for piece in pieces:
        if merged:
            joined = (merged[-1][0], piece[1])
            little = min(_count(starts, merged[-1]), _count(starts, piece))
            if _count(starts, joined) <= budget and (little <= small or piece[0] not in edges):
                merged[-1] = joined
                continue
        merged.append(piece)
    return merged


def _with_previous(spans: list[Span]) -> Iterator[tuple[Span | None, Span]]:
    yield from zip([None, *spans], spans, strict=False)


def _overlapped(text: str, span: Span, before: Span | None, starts: Sequence[int], size: ChunkSize) -> Span:
    """The span with its start moved back over at most `overlap` tokens, to the start of a sentence or a word."""
    if before is None or size.overlap == 0:
        return span
    first = max(bisect_left(starts, span[0]) - size.overlap, bisect_left(starts, before[0]) + 1)
    words = [start for start in starts[first : bisect_left(starts, span[0])] if text[start - 1].isspace()]
    sentences = [start for start in words if text[start - 2 : start].rstrip()[-1:] in {".", "!", "?", ""}]
    return (sentences or words or [span[0]])[0], span[1]


def _trim(text: str, span: Span) -> Span:
    piece = text[span[0] : span[1]]
    start = span[0] + len(piece) - len(piece.lstrip())
    return start, max(start, span[0] + len(piece.rstrip()))


def _fitting(text: str, spans: list[Span], contexts: _Contexts, embedder: Embedder) -> Iterator[tuple[Span, int]]:
    """The spans that are not empty, each with the tokens it has under its context; those over the window in halves.

    A word broken across two chunks is tokenised anew, so the count by offsets is exact but for such spans.
    """
    spans = [span for span in spans if span[1] > span[0]]
    texts = [f"{contexts.at(*span)}\n{text[span[0] : span[1]]}" for span in spans]
    for span, count in zip(spans, embedder.count_tokens(texts), strict=True):
        if count <= embedder.window:
            yield span, count
        else:
            middle = (span[0] + span[1]) // 2
            halves = [_trim(text, (span[0], middle)), _trim(text, (middle, span[1]))]
            yield from _fitting(text, halves, contexts, embedder)


class _Contexts:
    """The title and heading path of a span, cut to CONTEXT_TOKENS tokens."""

    def __init__(self, document: Document, embedder: Embedder) -> None:
        self._document = document
        self._embedder = embedder
        self._starts = [heading.start for heading in document.headings]
        self._paths = list(_heading_paths(document.headings))
        self._cut: dict[tuple[str, ...], str] = {}

    def at(self, start: int, end: int) -> str:
        # A chunk that opens with a short tail of the section before belongs to the section most of it lies in.
        place = bisect_right(self._starts, (start + end) // 2) - 1
        path = self._paths[place] if place >= 0 else ()
        titles = tuple(dict.fromkeys((self._document.title, *path)))
        if titles not in self._cut:
            self._cut[titles] = self._shorten(list(titles))
        return self._cut[titles]

    def _shorten(self, titles: list[str]) -> str:
        """Drop the middle of the path first, then cut what is left."""
        while True:
            context = " > ".join(" ".join(title.split()) for title in titles if title.strip())
            starts = self._embedder.token_starts(context)
            if len(starts) <= CONTEXT_TOKENS - 1:
                return context
            if len(titles) > 1:
                titles.pop(1 if len(titles) > 2 else 0)
            else:
                return context[: int(starts[CONTEXT_TOKENS - 1])].rstrip()


def _heading_paths(headings: Sequence[Heading]) -> Iterator[tuple[str, ...]]:
    path: list[Heading] = []
    for heading in headings:
        while path and path[-1].level >= heading.level:
            path.pop()
        path.append(heading)
        yield tuple(part.title for part in path)
