import pytest

from indexer.records import Chunk, Passage
from service.refusal import is_refusal, relevance
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


def test_relevance_by_hand() -> None:
    # Telling words of the question: "tide" and "moon"; one of them stands in a passage.
    question = "What do the tides do to the moon?"
    assert relevance(question, [passage("The moon shines.", 0.5)]) == pytest.approx(0.7 * 0.5 + 0.3 * 0.5)
    assert relevance(question, [passage("Moon and tide.", 0.5)]) == pytest.approx(0.7 * 0.5 + 0.3)
    assert relevance(question, [passage("Nothing.", 0.5)]) == pytest.approx(0.7 * 0.5)


def test_relevance_takes_the_best_similarity_and_the_words_of_all_passages() -> None:
    question = "What do the tides do to the moon?"
    both = [passage("Moon.", 0.2), passage("Tides.", 0.6)]
    assert relevance(question, both) == pytest.approx(0.7 * 0.6 + 0.3)
    assert relevance(question, [passage("Nothing.", 0.5, context="Moon and tides")]) == pytest.approx(0.7 * 0.5 + 0.3)


def test_relevance_of_nothing() -> None:
    assert relevance("What is it?", []) == 0.0
    assert relevance("What is it?", [passage("It is.", 0.4)]) == pytest.approx(0.28), "no telling word to be covered"
    assert relevance("?!", [passage("Moon.", -0.1)]) == pytest.approx(-0.07)
