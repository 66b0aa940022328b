"""The pairs about the manual are what they claim: their answers stand in the page they name, and no question is twice.

Who changes a page so that an answer is no longer in it changes the pair too; who documents what an absent question
asks for removes that question.
"""

import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from indexer.scan import scan
from tuner.embedder_rows import holds
from tuner.pairs import Pair, read_pairs

CORPORA = Path(__file__).parent.parent / "corpora"
PAIRS = read_pairs(CORPORA / "manual.pairs.jsonl")
PAGES = {f"manual/{page.name}": page.read_text("utf-8") for page in (CORPORA / "manual").glob("*.md")}
ANSWERABLE = [pair for pair in PAIRS if pair.kind == "answerable"]
UNANSWERABLE = [pair for pair in PAIRS if pair.kind != "answerable"]
# Two questions that share more of their words than this are one question asked twice.
SAME = 0.7


def by_id(pair: Pair) -> str:
    return pair.id


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def test_there_are_enough_of_each_kind_and_of_each_page() -> None:
    kinds = Counter(pair.kind for pair in PAIRS)
    assert kinds["answerable"] >= 100
    assert kinds["absent"] >= 35
    assert kinds["misleading"] >= 30
    pages = Counter(pair.document for pair in ANSWERABLE)
    assert set(pages) == set(PAGES)
    assert min(pages.values()) >= 3


def test_documents_are_named_as_a_scan_of_the_default_corpus_names_them() -> None:
    found = {file.path for file in scan(CORPORA)[0]}
    assert {pair.document for pair in PAIRS if pair.document is not None} <= found


def test_the_pairs_themselves_are_no_document() -> None:
    assert {file.path for file in scan(CORPORA)[0]} == set(PAGES)


@pytest.mark.parametrize("pair", ANSWERABLE, ids=by_id)
def test_every_answer_stands_in_one_line_of_its_page(pair: Pair) -> None:
    """One line, because a chunk may end where a line does."""
    lines = [" ".join(line.casefold().split()) for line in PAGES[pair.document or ""].split("\n")]
    assert 2 <= len(set(pair.answers)) <= 3
    for answer in pair.answers:
        assert any(" ".join(answer.casefold().split()) in line for line in lines), answer
        assert holds(PAGES[pair.document or ""], [answer]), f"not as whole words: {answer}"


@pytest.mark.parametrize("pair", UNANSWERABLE, ids=by_id)
def test_what_cannot_be_answered_has_no_answer(pair: Pair) -> None:
    assert pair.answers == ()
    assert (pair.document is None) == (pair.kind == "absent")


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair.kind == "absent"], ids=by_id)
def test_an_absent_question_is_about_something_that_no_page_mentions(pair: Pair) -> None:
    manual = words(" ".join(PAGES.values()))
    assert {word for word in words(pair.question) - manual if len(word) > 2}


def test_no_question_gives_its_answer_away() -> None:
    for pair in ANSWERABLE:
        assert not any(holds(pair.question, [answer]) for answer in pair.answers), pair.id


def test_no_question_is_asked_twice() -> None:
    questions = [(pair.id, words(pair.question)) for pair in PAIRS]
    for (first, some), (second, others) in combinations(questions, 2):
        assert len(some & others) <= SAME * len(some | others), f"{first} and {second}"


def test_every_question_is_a_question() -> None:
    for pair in PAIRS:
        assert pair.question.endswith("?"), pair.id
        assert 15 <= len(pair.question) <= 160, pair.id
