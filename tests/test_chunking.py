import re

import pytest
from fakes import HashingEmbedder
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.chunking import ChunkSize, page_at, split
from indexer.errors import TandemError
from indexer.records import Document, Heading, Page

EMBEDDER = HashingEmbedder(window=128)
TEXT = st.text(st.sampled_from("ab é.,;!?\n\t-日x  \n"), max_size=2000)


def document(text: str, headings: tuple[Heading, ...] = (), pages: tuple[Page, ...] = ()) -> Document:
    return Document("d", "/c", "a.md", "Title", "text", text, pages, headings)


@settings(max_examples=200, deadline=None)
@given(TEXT, st.integers(16, 60), st.integers(0, 8), st.lists(st.integers(0, 2000), max_size=6))
def test_chunks_are_spans_that_cover_every_character(text: str, tokens: int, overlap: int, cuts: list[int]) -> None:
    headings = tuple(Heading(1 + cut % 3, f"h{cut}", cut) for cut in sorted(set(cuts)) if cut < len(text))
    chunks = split(document(text, headings), EMBEDDER, ChunkSize(tokens, overlap))
    covered = set()
    for chunk in chunks:
        assert chunk.text == text[chunk.start : chunk.end]
        assert chunk.text == chunk.text.strip() != ""
        assert chunk.tokens <= EMBEDDER.window
        covered.update(range(chunk.start, chunk.end))
    assert {place for place, character in enumerate(text) if not character.isspace()} <= covered
    assert [chunk.start for chunk in chunks] == sorted({chunk.start for chunk in chunks})
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))


def test_a_long_text_makes_full_chunks_that_overlap_by_about_the_setting() -> None:
    text = " ".join(f"Sentence number {n} says something of its own." for n in range(300))
    chunks = split(document(text), EMBEDDER, ChunkSize(60, 12))
    sizes = [len(re.findall(r"\w+|[^\w\s]", chunk.text)) for chunk in chunks[:-1]]
    assert max(sizes) <= 60
    assert sum(sizes) / len(sizes) > 40
    overlaps = [before.end - after.start for before, after in zip(chunks, chunks[1:], strict=False)]
    assert all(overlap > 0 for overlap in overlaps)
    # The overlap begins with a sentence, not in the middle of one.
    assert sum(chunk.text.startswith("Sentence") for chunk in chunks) > 0.9 * len(chunks)


def test_the_heading_path_is_the_context() -> None:
    body = "word " * 50
    text = f"# Manual\n\n{body}\n## Tuning\n\n{body}\n### QLoRA\n\n{body}\n## Serving\n\n{body}"
    headings = tuple(
        Heading(level, title, text.index(f"{'#' * level} {title}"))
        for level, title in ((1, "Manual"), (2, "Tuning"), (3, "QLoRA"), (2, "Serving"))
    )
    chunks = split(Document("d", "/c", "a.md", "Manual", "markdown", text, (), headings), EMBEDDER, ChunkSize(60, 0))
    assert [chunk.context for chunk in chunks] == [
        "Manual",
        "Manual > Tuning",
        "Manual > Tuning > QLoRA",
        "Manual > Serving",
    ]


def test_a_heading_alone_joins_what_follows() -> None:
    text = "# One\n\n## Two\n\nText of two."
    headings = (Heading(1, "One", 0), Heading(2, "Two", text.index("## Two")))
    assert len(split(document(text, headings), EMBEDDER, ChunkSize(60, 0))) == 1


def test_a_word_longer_than_the_window_is_split_not_cut() -> None:
    text = "日" * 1000
    chunks = split(document(text), EMBEDDER, ChunkSize(32, 0))
    assert "".join(chunk.text for chunk in chunks) == text


def test_a_title_that_would_fill_the_window_is_shortened() -> None:
    long = Document("d", "/c", "a.md", "very " * 500, "text", "word " * 200, (), ())
    assert all(chunk.tokens <= EMBEDDER.window for chunk in split(long, EMBEDDER, ChunkSize(60, 0)))


def test_pages_are_found_by_offset() -> None:
    pages = (Page(3, 0, 10), Page(4, 10, 20))
    assert [page_at(document("x" * 20, pages=pages), offset) for offset in (0, 9, 10, 19)] == [3, 3, 4, 4]
    assert page_at(document("x"), 0) is None


@pytest.mark.parametrize("size", [ChunkSize(8, 0), ChunkSize(1000, 0), ChunkSize(60, 50), ChunkSize(60, -1)])
def test_an_impossible_size_names_the_setting(size: ChunkSize) -> None:
    with pytest.raises(TandemError, match="chunk_"):
        split(document("text"), EMBEDDER, size)
