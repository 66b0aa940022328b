"""Questions changed so that their passages no longer answer them."""

from __future__ import annotations

import random

import pytest

from tuner.altered import alter, names_in

SHOWN = "In 1889 Marta Velkova founded the northern observatory of Brenholt, the largest in 12 counties."
NAMES = ["Otto Hansen", "Kellerby", "Marta Velkova"]


def altered(question: str, times: int = 200) -> set[str]:
    rng = random.Random(3)
    return {changed for _ in range(times) if (changed := alter(question, SHOWN, NAMES, rng)) is not None}


def test_a_number_becomes_another_that_no_passage_has() -> None:
    found = altered("What was founded in 1889?")
    years = {int(question[-5:-1]) for question in found if question.startswith("What was founded in")}
    assert len(years) > 20 and 1889 not in years and all(1829 <= year <= 1949 for year in years)
    assert "How many counties have 12?" not in altered("How many counties have 12?")


def test_a_name_becomes_one_of_as_many_words_that_no_passage_has() -> None:
    found = altered("What did Marta Velkova found in Brenholt?")
    # "found" has an opposite; a name of one word takes the place of one, of two words of two.
    assert {
        "What did Otto Hansen found in Brenholt?",
        "What did Marta Velkova found in Kellerby?",
        "What did Marta Velkova dissolve in Brenholt?",
    } <= found
    assert all("Velkova Velkova" not in question for question in found)


@pytest.mark.parametrize(
    ("question", "changed"),
    [
        ("Which is the largest?", "Which is the smallest?"),
        ("Which is the smallest?", "Which is the largest?"),
        ("Which northern building is meant?", "Which southern building is meant?"),
        ("Which is meant?", "Which isn't meant?"),
    ],
)
def test_opposites_and_negations(question: str, changed: str) -> None:
    assert changed in altered(question)


def test_a_question_that_cannot_be_changed_is_left_out() -> None:
    assert altered("Why not?") == set()
    # A name or number that no passage has is not what makes it answerable.
    assert altered("Who saw Lisbon, never 40?") == set()


def test_what_is_asked_for_is_not_taken_for_a_name() -> None:
    assert names_in("Where was Anna of the Vale, when Bern and New Ulm slept?") == [
        "Anna of the Vale",
        "Bern",
        "New Ulm",
    ]
