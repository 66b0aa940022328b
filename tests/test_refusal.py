import math

import pytest

from indexer.records import Chunk, Passage
from service.refusal import INTERCEPT, SIMILARITY_WEIGHT, WORDS_WEIGHT, is_refusal, relevance
from tuner.prompt import REFUSAL


def passage(text: str, similarity: float, context: str = "") -> Passage:
    chunk = Chunk("c", "d", 0, 0, len(text), text, context, None, 9)
    return Passage(chunk, "d", "a.md", "A", (), 1, 1.0, similarity)


@pytest.mark.parametrize(
    "text",
    [
        REFUSAL,
        REFUSAL.lower(),
        f"Sorry: {REFUSAL}",
        "The documents do not say",
        "The passages don't mention the price.",
        "The passages don’t mention the price.",
        "The provided context does not contain this information.",
        "The price is not mentioned in the documents.",
        "The price was not given in these passages.",
        "I do not know.",
        "I don't know.",
        "I don’t know.",
        "I cannot answer that.",
        "No information is available on this.",
    ],
)
def test_refusals_in_the_trained_and_in_other_words(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "The documents say that it rains.",
        "Tandem does not use Redis.",
        "It is not stored in the cloud.",
        "The document is split into chunks and does the rest later.",
        "I know the answer.",
        "Information is stored in SQLite.",
    ],
)
def test_ordinary_sentences_are_no_refusals(text: str) -> None:
    assert not is_refusal(text)


def logistic(similarity: float, words: float) -> float:
    return 1 / (1 + math.exp(-(SIMILARITY_WEIGHT * similarity + WORDS_WEIGHT * words + INTERCEPT)))


def test_relevance_by_hand() -> None:
    # Telling words of the question: "tide" and "moon".
    question = "What do the tides do to the moon?"
    assert relevance(question, [passage("The moon shines.", 0.5)]) == pytest.approx(logistic(0.5, 0.5))
    assert relevance(question, [passage("Moon and tide.", 0.5)]) == pytest.approx(logistic(0.5, 1))
    assert relevance(question, [passage("Nothing.", 0.5)]) == pytest.approx(logistic(0.5, 0))
    assert relevance(question, [passage("Nothing.", 0.5, context="Moon and tides")]) == pytest.approx(logistic(0.5, 1))


def test_relevance_takes_the_first_similarity_and_the_words_of_the_passage_that_holds_most() -> None:
    question = "What do the tides do to the moon?"
    apart = [passage("Moon.", 0.4), passage("Tides.", 0.6)]
    assert relevance(question, apart) == pytest.approx(logistic(0.4, 0.5))
    together = [passage("Nothing.", 0.4), passage("Tides and the moon.", 0.6)]
    assert relevance(question, together) == pytest.approx(logistic(0.4, 1))


def test_relevance_grows_with_what_speaks_for_it_and_stays_a_share() -> None:
    question = "What do the tides do to the moon?"
    steps = [relevance(question, [passage(text, s)]) for text in ("No.", "Moon.", "Moon, tides.") for s in (0.1, 0.9)]
    assert steps[0] < steps[2] < steps[4] and steps[1] < steps[3] < steps[5] and steps[0] < steps[1]
    assert all(0 < step < 1 for step in steps)


def test_relevance_of_nothing() -> None:
    assert relevance("What is it?", []) == 0.0
    assert relevance("What is it?", [passage("It is.", 0.4)]) == pytest.approx(logistic(0.4, 0)), "no telling word"
    assert relevance("?!", [passage("Moon.", -0.1)]) == pytest.approx(logistic(-0.1, 0))
