import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.records import Chunk, Page, Passage
from service.citations import QUOTE_CHARACTERS, Supported, check_sentence, without_markers
from service.sentences import sentence_spans
from service.words import telling_words

MANUAL = Path(__file__).parent.parent / "corpora" / "manual"
ANY_MARKER = re.compile(r"\[\s*\d[\d\s,]*\]")
DOCUMENT = (
    "Tandem uses FAISS for vectors. It stores them in SQLite. The limit is 400 bytes. Passages are numbered from one.\n"
    "The server does not use Redis. It needs no GPU. Version v1.2 came in 2023 with three recipes.\n"
)


def passage(text: str, *, rank: int = 1, before: str = "", context: str = "Guide") -> Passage:
    """A passage that stands after `before` in its document."""
    start = len(before)
    chunk = Chunk(f"c{rank}", f"d{rank}", 0, start, start + len(text), text, context, None, 9)
    pages = (Page(1, 0, start + 20), Page(2, start + 20, start + len(text) + 1))
    return Passage(chunk, f"d{rank}", f"{rank}.md", "Guide", pages, rank, 1.0, 0.9)


TANDEM = passage(DOCUMENT)
MOON = passage("The moon raises the tides of the ocean twice a day.", rank=2, before="x" * 100)
BOTH = (TANDEM, MOON)


def said(sentence: str, question: str = "What is it like?", passages: tuple[Passage, ...] = BOTH) -> str | None:
    checked = check_sentence(sentence, question, passages)
    return None if checked is None else checked.text


def checked(sentence: str, question: str = "What is it like?", passages: tuple[Passage, ...] = BOTH) -> Supported:
    found = check_sentence(sentence, question, passages)
    assert found is not None, "the sentence was dropped"
    return found


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("Tandem uses FAISS for vectors [1].", "Tandem uses FAISS for vectors [1]."),
        ("Tandem uses FAISS for vectors. [1]", "Tandem uses FAISS for vectors [1]."),
        ("Tandem uses FAISS for vectors.[1]", "Tandem uses FAISS for vectors [1]."),
        ("[1] Tandem uses FAISS for vectors.", "Tandem uses FAISS for vectors [1]."),
        ("Tandem [1] uses FAISS [1] for vectors.", "Tandem uses FAISS for vectors [1]."),
        ("Tandem uses FAISS for vectors.", "Tandem uses FAISS for vectors [1]."),
        ("Tandem uses FAISS for vectors [2].", "Tandem uses FAISS for vectors [1]."),
        ("Tandem uses FAISS for vectors [12].", "Tandem uses FAISS for vectors [1]."),
        ("Tandem uses FAISS for vectors [0].", "Tandem uses FAISS for vectors [1]."),
        ("Tandem uses FAISS for vectors [1234].", "Tandem uses FAISS for vectors [1]."),
        ("Tandem uses FAISS for vectors [1, 2].", "Tandem uses FAISS for vectors [1]."),
        ("Tandem uses FAISS for vectors [1,2,3,4].", "Tandem uses FAISS for vectors [1]."),
        ("Tandem uses FAISS for vectors [1-3].", "Tandem uses FAISS for vectors [1]."),
        ("Tandem uses FAISS for vectors [1][2].", "Tandem uses FAISS for vectors [1]."),
        ("Tandem uses FAISS for vectors [9[1]9].", "Tandem uses FAISS for vectors [1]."),
        ("Tandem uses FAISS for vectors [", "Tandem uses FAISS for vectors [1]"),
        ("Tandem uses FAISS for vectors [1", "Tandem uses FAISS for vectors [1]"),
        ("Tandem uses FAISS for vectors [١].", "Tandem uses FAISS for vectors [1]."),
        ("The moon raises the tides [1].", "The moon raises the tides [2]."),
        ("The moon raises the tides twice a day!", "The moon raises the tides twice a day [2]!"),
    ],
)
def test_markers_are_kept_corrected_or_added(sentence: str, expected: str) -> None:
    assert said(sentence) == expected


def test_every_passage_that_supports_and_is_claimed_is_cited() -> None:
    twin = passage("As others say, the moon raises the tides.", rank=3)
    three = (*BOTH, twin)
    assert said("The moon raises the tides [2][3].", passages=three) == "The moon raises the tides [2][3]."
    assert said("The moon raises the tides [3, 1].", passages=three) == "The moon raises the tides [3]."
    assert said("The moon raises the tides.", passages=three) == "The moon raises the tides [2].", "the better rank"


@pytest.mark.parametrize(
    "sentence",
    [
        "The sun raises the mountains of Wales [1].",
        "The limit is 500 bytes.",
        "The limit is 40 bytes.",
        "The limit is -400 bytes.",
        "The limit is 400 bytes for each of the 7 passages.",
        "Version v2.2 came in 2023 with three recipes.",
        "Version v1.2 came in 2024 with three recipes.",
        "Version v1.2 came in 2023 with four recipes.",
        "Tandem uses Milvus for vectors and stores them in SQLite.",
        "[1]",
        "[1][2]",
        "It is.",
        "It is so.",
        "...",
        "***",
        "-",
        "1.",
        "",
        " ",
    ],
)
def test_what_no_passage_says_is_dropped(sentence: str) -> None:
    assert said(sentence) is None


def test_a_number_that_the_question_gave_must_be_in_the_passage_too() -> None:
    question = "Is the limit 500 bytes?"
    assert said("Yes, the limit is 500 bytes.", question) is None
    assert said("The limit is 500 bytes for a body of that kind.", question) is None
    assert said("The limit is 400 bytes.", question) == "The limit is 400 bytes [1]."


def test_numbers_are_the_same_number_however_they_are_written() -> None:
    text = passage("A prompt has 1,792 tokens, four passages and 3.5 points.")
    assert said("A prompt has 1792 tokens.", passages=(text,))
    assert said("A prompt has 4 passages.", passages=(text,))
    assert said("A prompt has 3.5 points.", passages=(text,))
    assert said("A prompt has 35 points.", passages=(text,)) is None
    assert said("A prompt has 1,79 tokens.", passages=(text,)) is None


def test_a_number_or_name_of_the_heading_counts_as_said() -> None:
    notes = passage("It adds a chat page and a queue.", context="Notes > Version 0.2 of Tandem")
    assert said("Version 0.2 adds a chat page and a queue.", passages=(notes,))
    assert said("Version 0.3 adds a chat page and a queue.", passages=(notes,)) is None


def test_a_heading_supports_nothing() -> None:
    notes = passage("## The limits of an upload\n\nIt has at most 20 pages.\n\n# Limits of a corpus\n", context="Notes")
    assert said("The limits of an upload.", passages=(notes,)) is None
    assert said("An upload has at most 20 pages.", "How long may an upload be?", passages=(notes,)) is not None
    # A comment in a program begins like a heading of the first level.
    assert said("Limits of a corpus.", passages=(notes,)) is not None


@pytest.mark.parametrize(
    "sentence",
    [
        "Tandem does not use FAISS for vectors.",
        "Tandem doesn't use FAISS for vectors.",
        "Tandem doesn’t use FAISS for vectors.",
        "Tandem never uses FAISS for vectors.",
        "Tandem cannot use FAISS for vectors.",
        "Tandem works without FAISS.",
        "The limit is not 400 bytes.",
        "The server uses Redis.",
        "It needs a GPU.",
        "The server uses FAISS and no SQLite.",
        "It stores them in SQLite without encryption.",
    ],
)
def test_the_opposite_of_what_a_passage_says_is_dropped(sentence: str) -> None:
    assert said(sentence) is None


@pytest.mark.parametrize(
    "sentence",
    [
        "The server does not use Redis.",
        "The server doesn't use Redis.",
        "The server never uses Redis.",
        "It needs no GPU.",
        "It does not need a GPU.",
        "Without a GPU it needs nothing.",
        "It stores them in SQLite.",
        "Version v1.2 came in 2023.",
    ],
)
def test_what_a_passage_denies_may_be_denied(sentence: str) -> None:
    assert said(sentence) == f"{sentence[:-1]} [1]."


def test_a_denial_reaches_no_further_than_its_clause() -> None:
    text = passage("The index is not encrypted but the keys are hashed. Tandem does not guess, it cites sources.")
    assert said("The keys are hashed.", passages=(text,))
    assert said("Tandem cites sources.", passages=(text,))
    assert said("The index is encrypted.", passages=(text,)) is None
    assert said("The keys are not hashed.", passages=(text,)) is None


@pytest.mark.parametrize(
    ("answer", "question", "expected"),
    [
        ("Yes.", "Does Tandem use FAISS?", "Yes [1]."),
        ("Yes", "Does the moon raise the tides?", "Yes [2]"),
        ("Yes.", "Does the server use Redis?", None),
        ("No.", "Does the server use Redis?", "No [1]."),
        ("No.", "Does Tandem use FAISS?", None),
        ("Yes.", "Does Tandem use Milvus?", None),
        ("No.", "Does Tandem use Milvus?", None),
        ("Yes, Tandem uses FAISS.", "Does Tandem use FAISS?", "Yes, Tandem uses FAISS [1]."),
        ("Yes, it does.", "Does Tandem use FAISS?", "Yes, it does [1]."),
        ("No, it does not.", "Does Tandem use FAISS?", None),
        ("No, the server does not use Redis.", "Does the server use Redis?", "No, the server does not use Redis [1]."),
        ("Yes, the server uses Redis.", "Does the server use Redis?", None),
    ],
)
def test_yes_and_no_stand_on_what_the_question_says(answer: str, question: str, expected: str | None) -> None:
    assert said(answer, question) == expected


def test_common_endings_of_a_word_do_not_matter() -> None:
    text = passage("The loader reads files and names their pages. Using it is easy.")
    for sentence in ("A file has names.", "A loader used the page.", "Loaders read a file."):
        assert said(sentence, passages=(text,)), sentence


def test_accents_composed_or_not_are_the_same_word() -> None:
    text = passage("Das Caf\u00e9 \u00f6ffnet fr\u00fch.")
    assert said("Das Cafe\u0301 o\u0308ffnet fru\u0308h.", passages=(text,))


def test_empty_passages_support_nothing() -> None:
    assert said("Tandem uses FAISS.", passages=()) is None
    assert said("Tandem uses FAISS.", passages=(passage(""), passage(" \n", rank=2))) is None
    assert said("Tandem uses FAISS.", passages=(passage(""), passage(DOCUMENT, rank=2))) == "Tandem uses FAISS [2]."


def test_the_quote_is_the_shortest_window_and_knows_its_place_and_page() -> None:
    found = checked("It stores them in SQLite.").citations[0]
    assert found.quote == "It stores them in SQLite." == DOCUMENT[found.start : found.end]
    assert found.passage.page_at(found.start) == 2, "the quote's page, not the page the passage begins on"
    moon = checked("The moon raises the tides.").citations[0]
    assert (moon.n, moon.start, moon.end) == (2, 100, 151)


def test_a_claim_may_join_two_neighbouring_sentences_but_not_distant_ones() -> None:
    assert (
        checked("Tandem stores vectors in SQLite.").citations[0].quote.startswith("Tandem uses FAISS for vectors. It")
    )
    sentence = "Owls hunt frogs and storks eat mice."
    assert said(sentence, passages=(passage("Owls hunt mice. Storks eat frogs."),))
    assert said(sentence, passages=(passage("Owls hunt mice. Rain fell on the town. Storks eat frogs."),)) is None


def test_what_the_question_asks_is_not_proved_by_saying_it() -> None:
    for answer in ("The moon raises the mountains.", "Yes, the moon raises the mountains.", "Yes."):
        assert said(answer, "Does the moon raise the mountains?") is None
    assert said("The moon raises the tides.", "Does the moon raise the tides?")


def test_the_number_of_a_list_item_is_the_models_own_and_left_out() -> None:
    assert said("1. The limit is 400 bytes.") == "The limit is 400 bytes [1]."
    assert said("- The limit is 400 bytes.") == "The limit is 400 bytes [1]."
    assert said("500. The limit is 400 bytes.") is None, "three digits number no list"
    assert said("The limit (99) is 400 bytes.") is None


def test_every_sentence_of_the_manual_is_supported_by_its_own_paragraph() -> None:
    kept = []
    for page in sorted(MANUAL.glob("*.md")):
        for paragraph in page.read_text("utf-8").split("\n\n"):
            source = passage(paragraph)
            for start, end in sentence_spans(paragraph):
                is_heading = paragraph.startswith("##", start)
                if telling_words(paragraph[start:end]) and not is_heading:
                    kept.append(paragraph[start:end])
                    assert checked(kept[-1], passages=(source,)).citations[0].n == 1, kept[-1]
    assert len(kept) > 1000


def test_the_quote_of_a_very_long_sentence_holds_what_supports_the_claim() -> None:
    long = passage(
        "Heading\n" + "filler words that go on " * 60 + "and at last the badger digs a tunnel " + "more " * 200
    )
    found = checked("The badger digs a tunnel.", passages=(long,)).citations[0]
    assert "badger digs a tunnel" in found.quote
    assert len(found.quote) <= QUOTE_CHARACTERS


def test_two_sentences_too_long_for_one_quote_are_not_joined() -> None:
    def sentence(subject: str) -> str:
        return f"{subject} " + "in the old town " * 16 + "today."

    text = passage(f"{sentence('Owls hunt mice')} {sentence('Storks eat frogs')}")
    assert said("Owls hunt frogs and storks eat mice.", passages=(text,)) is None
    assert said("Storks eat frogs.", passages=(text,))


def test_a_long_run_without_spaces_is_cut_and_not_endless() -> None:
    checked("Badger digs.", passages=(passage("x" * 5000 + " badger digs " + "y" * 5000),))


WORDS = st.lists(
    st.sampled_from(
        [
            "Tandem",
            "uses",
            "FAISS",
            "not",
            "no",
            "12",
            "3.5",
            "-4",
            "v1.2",
            "the",
            "Bär",
            "[1]",
            "[2",
            "7]",
            "[[3]]",
            "[9]",
        ]
        + ["yes,", "doesn't", ".", "!", "\n", "1.", "naïve", "日本語", "\u0301", "🙂", "[", "]", "x" * 150, "two"]
    ),
    max_size=40,
).map(" ".join)
TEXT = st.one_of(WORDS, st.text(max_size=80))


@settings(max_examples=400, deadline=None)
@given(WORDS | TEXT, TEXT, st.lists(st.tuples(TEXT, TEXT), max_size=3))
def test_markers_are_in_range_and_quotes_verbatim_whatever_is_said(
    sentence: str, question: str, documents: list[tuple[str, str]]
) -> None:
    passages = tuple(passage(text, rank=n, before=before) for n, (before, text) in enumerate(documents, start=1))
    result = check_sentence(sentence, question, passages)
    if result is None:
        return
    cited = [item.n for item in result.citations]
    markers = [int(n) for found in ANY_MARKER.findall(result.text) for n in re.findall(r"\d+", found)]
    assert markers == cited == sorted(set(cited))
    assert cited and all(1 <= n <= len(passages) for n in cited)
    for item in result.citations:
        before, text = documents[item.n - 1]
        assert item.quote == (before + text)[item.start : item.end] != ""
        assert len(before) <= item.start < item.end <= len(before + text)
        assert len(item.quote) <= QUOTE_CHARACTERS


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("[] 1,9a\n"), max_size=30))
def test_nothing_that_looks_like_a_marker_is_left(text: str) -> None:
    assert not ANY_MARKER.search(without_markers(text))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["Owls hunt mice.", "Iron melts.", "The moon raises tides."]), min_size=1, max_size=6))
def test_what_a_passage_says_word_for_word_is_never_dropped(lines: list[str]) -> None:
    text = passage(" ".join(lines))
    for line in lines:
        assert checked(line, passages=(text,)).citations[0].quote == line


def test_a_passage_that_never_names_what_was_asked_about_supports_nothing_said_of_it() -> None:
    text = "10.3 Intel Corporation Form of Non-Employee Director Restricted Stock Unit"
    asked, claimed = "Who is the chief executive of Toyota?", "The chief executive of Toyota is Toyota Corporation."
    assert said(claimed, asked, (passage(text),)) is None
    assert said(claimed, asked, (passage(text, context="Toyota > Annual report"),)) is not None
