import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.sentences import SentenceStream, sentence_spans

MARKED = st.text(st.sampled_from("aZ9.!?[](,\n \"'1é#"), max_size=60)


def sentences(text: str) -> list[str]:
    return [text[start:end] for start, end in sentence_spans(text)]


def streamed(pieces: list[str]) -> list[str]:
    stream = SentenceStream()
    whole = [sentence for piece in pieces for sentence in stream.feed(piece)]
    return whole + stream.finish()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Smith met Mr. Jones. They left.", ["Dr. Smith met Mr. Jones.", "They left."]),
        ("See Fig. 3 and Sec. 4. Done.", ["See Fig. 3 and Sec. 4.", "Done."]),
        ("Use e.g. FAISS or i.e. BM25. End.", ["Use e.g. FAISS or i.e. BM25.", "End."]),
        ("See p. 12 and pp. 3-5 of it. End.", ["See p. 12 and pp. 3-5 of it.", "End."]),
        ("It weighs 3.14 kg. It cost 1.50 euros.", ["It weighs 3.14 kg.", "It cost 1.50 euros."]),
        ("Release v1.2 came after v1.1.9. Both run.", ["Release v1.2 came after v1.1.9.", "Both run."]),
        ("J. R. R. Tolkien wrote it. It sold.", ["J. R. R. Tolkien wrote it.", "It sold."]),
        ("The U.S. Senate met. It voted.", ["The U.S. Senate met.", "It voted."]),
        ('He said "Stop." Then he left.', ['He said "Stop."', "Then he left."]),
        ("Ärger kommt. Über Nacht. Ende.", ["Ärger kommt.", "Über Nacht.", "Ende."]),
        ("# Title\n\n- one thing\n- another\n", ["# Title", "- one thing", "- another"]),
        ("1. Run it.\n2. Stop it.", ["1. Run it.", "2. Stop it."]),
        ("Steps: 12. Open the box. Close it.", ["Steps: 12.", "Open the box.", "Close it."]),
        ("Call `a.b.c()` first. Then `d.e`.", ["Call `a.b.c()` first.", "Then `d.e`."]),
        ("```\nimport os.path\n```", ["```", "import os.path", "```"]),
        ("It is so.[1] Next thing.[2]", ["It is so.[1]", "Next thing.[2]"]),
        ("no end and no capital", ["no end and no capital"]),
        ("Line one\r\nLine two\r\n", ["Line one", "Line two"]),
        ("", []),
        (" \n\t ", []),
    ],
)
def test_where_sentences_end(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@settings(max_examples=300, deadline=None)
@given(MARKED)
def test_spans_are_in_order_trimmed_and_cover_everything_but_white_space(text: str) -> None:
    spans = sentence_spans(text)
    assert all(text[start:end] == text[start:end].strip() != "" for start, end in spans)
    assert all(before[1] <= after[0] for before, after in zip(spans, spans[1:], strict=False))
    assert re.sub(r"\s", "", "".join(sentences(text))) == re.sub(r"\s", "", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is so. [1] Next one. [2][3] Last.", ["It is so. [1]", "Next one. [2][3]", "Last."]),
        ("It is so.[1] Next one.[2, 3] Last.", ["It is so.[1]", "Next one.[2, 3]", "Last."]),
        ("It is so.\n[1]\nNext.", ["It is so.\n[1]", "Next."]),
        ("It is so [1]. Next.", ["It is so [1].", "Next."]),
        ("It is so. [1, 2, 3, 4, 5] Next.", ["It is so. [1, 2, 3, 4, 5]", "Next."]),
        ("It is so. [see the note] Next.", ["It is so.", "[see the note] Next."]),
        ("It is so. [1]", ["It is so. [1]"]),
        ("Cut off in the mid", ["Cut off in the mid"]),
    ],
)
def test_a_marker_goes_with_the_sentence_before_it_however_the_text_is_cut(text: str, expected: list[str]) -> None:
    assert streamed([text]) == expected
    assert streamed(list(text)) == expected
    for cut in range(len(text)):
        assert streamed([text[:cut], text[cut:]]) == expected


@settings(max_examples=500, deadline=None)
@given(MARKED, st.lists(st.integers(0, 60), max_size=8))
def test_sentences_do_not_depend_on_where_the_pieces_end(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    pieces = [text[start:end] for start, end in zip(edges, edges[1:], strict=False)]
    assert streamed(pieces) == streamed([text])
    assert re.sub(r"\s", "", "".join(streamed(pieces))) == re.sub(r"\s", "", text), "nothing is lost or said twice"


def test_a_sentence_is_handed_out_before_the_next_one_is_finished() -> None:
    stream = SentenceStream()
    assert stream.feed("The first is whole. Th") == ["The first is whole."]
    assert stream.feed("e second") == []
    assert stream.finish() == ["The second"]
    assert stream.finish() == []
