"""Scores by hand, and against scorers written another way."""

import itertools
import random
import re

import pytest
from compared import item, passage, record
from hypothesis import given
from hypothesis import strategies as st

from service.compare.arms import Arm
from service.compare.records import ShownCitation
from service.compare.rouge import rouge_l
from service.compare.scoring import MEASURES, score
from service.compare.squad import as_prediction, contains, exact_match, f1
from tuner.prompt import REFUSAL

RAG = Arm("rag", "rag")
BASE = Arm("base", "base")


@pytest.mark.parametrize(
    ("said", "answers", "exact", "overlap"),
    [
        ("The Eiffel Tower.", ["eiffel tower"], 1.0, 1.0),
        ("in 1066", ["1066", "the year 1066"], 0.0, 2 / 3),  # 1 of 2 said, 1 of 1 right
        ("Paris is the capital", ["Paris"], 0.0, 0.5),  # articles go: 1 of 3, 1 of 1
        ("a a b", ["a b b"], 1 / 1 * 0.0, 2 * (1 / 1) * (1 / 2) / (1 / 1 + 1 / 2)),  # "a" is an article: b against b b
        ("x x y", ["x y y"], 0.0, 2 / 3),  # as bags: x and y are shared once each
        ("", [], 1.0, 1.0),
        ("something", [], 0.0, 0.0),
        ("", ["something"], 0.0, 0.0),
        ("the", ["an"], 1.0, 1.0),  # nothing is left of either
        ("U.S.A", ["usa"], 1.0, 1.0),
        ("naïve café", ["Naïve  Café"], 1.0, 1.0),
    ],
)
def test_squad_scores_by_hand(said: str, answers: list[str], exact: float, overlap: float) -> None:
    assert exact_match(said, answers) == exact
    assert f1(said, answers) == overlap


def test_squad_scores_as_the_official_script_gave_them() -> None:
    """Values printed by the official evaluation of SQuAD 2.0 for these predictions."""
    assert repr(f1("the quick brown fox jumps", ["quick brown dog", "a fox"])) == "0.5714285714285715"
    assert repr(f1("a b c d e f g", ["b c e x y z h"])) == "0.4615384615384615"


WORDS = st.lists(st.sampled_from(["the", "a", "one", "two", "two.", "Three", "3", "don't", "-"]), max_size=7)


@given(WORDS, st.lists(WORDS, max_size=3))
def test_squad_scores_equal_a_second_implementation(said: list[str], answers: list[list[str]]) -> None:
    def words(text: str) -> list[str]:
        kept = "".join(letter for letter in text.lower() if letter not in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
        return [word for word in re.sub(r"\b(a|an|the)\b", " ", kept).split() if word]

    text, golds = " ".join(said), [" ".join(answer) for answer in answers]
    best = 0.0
    for gold in [words(gold) for gold in golds if words(gold)] or [[]]:
        left, shared = list(gold), 0
        for word in words(text):
            if word in left:
                left.remove(word)
                shared += 1
        if not gold or not words(text):
            best = max(best, float(gold == words(text)))
        elif shared:
            best = max(best, 2 * shared / (len(gold) + len(words(text))))
    assert f1(text, golds) == pytest.approx(best, abs=1e-12)
    assert exact_match(text, golds) == float(any(words(text) == words(gold) for gold in golds if words(gold))) or (
        not any(map(words, golds)) and exact_match(text, golds) == float(not words(text))
    )


def test_markers_and_refusals_are_no_part_of_a_prediction() -> None:
    assert as_prediction("Twice a day [1][2].", False) == "Twice a day."
    assert exact_match(as_prediction("Twice a day [1].", False), ["twice a day"]) == 1
    assert as_prediction(REFUSAL, True) == ""


@pytest.mark.parametrize(
    ("said", "answers", "expected"),
    [
        ("It melts at 1538 degrees.", ["1538"], 1.0),
        ("It melts at 15380 degrees.", ["1538"], 0.0),  # whole words
        ("degrees 1538", ["1538 degrees"], 0.0),  # in a row
        ("There is no oven.", ["no"], 0.0),  # does not say no
        ("No, it does not.", ["no"], 1.0),
        ("Yes.", ["no", "yes"], 1.0),
    ],
)
def test_contains(said: str, answers: list[str], expected: float) -> None:
    assert contains(said, answers) == expected


def test_rouge_l_by_hand() -> None:
    # Lin 2004, section 3: "police killed the gunman" against "police kill the gunman" shares 3 words in order.
    assert rouge_l("police kill the gunman", ["police killed the gunman"]) == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", ["police killed the gunman"]) == pytest.approx(0.5)
    assert rouge_l("", []) == 1.0
    assert rouge_l("", ["x"]) == 0.0


def test_rouge_l_equals_the_longest_of_all_subsequences() -> None:
    draw = random.Random(1)
    for _ in range(60):
        first, second = ([draw.choice("abcd") for _ in range(draw.randrange(1, 8))] for _ in range(2))
        subsequences = {chosen for size in range(len(first) + 1) for chosen in itertools.combinations(first, size)} & {
            chosen for size in range(len(second) + 1) for chosen in itertools.combinations(second, size)
        }
        longest = max(map(len, subsequences))
        expected = 2 * longest / (len(first) + len(second))
        assert rouge_l(" ".join(first), [" ".join(second)]) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "asked", "expected"),
    [
        ("It melts at 1538 degrees.", item("How hot?", "1538 degrees"), 1.0),
        ("It melts at 900 degrees.", item("How hot?", "1538 degrees"), -1.0),
        (REFUSAL, item("How hot?", "1538 degrees"), 0.0),
        (REFUSAL, item("How hot?"), 1.0),
        ("900 degrees.", item("How hot?"), -1.0),
        (REFUSAL, item("How hot?", kind="misleading"), 1.0),
    ],
)
def test_truthfulness(answer: str, asked: object, expected: float) -> None:
    assert score(record(answer), asked, BASE)["truthfulness"] == expected  # type: ignore[arg-type]


def test_a_perfect_and_an_empty_answer() -> None:
    text = "Iron melts at 1538 degrees."
    quote = ShownCitation(1, 0, len(text), text)
    right = score(
        record(f"{text[:-1]} [1].", passage(text), cited=[quote]), item("How hot?", text), RAG, lambda a: True
    )
    expected = dict.fromkeys(right, 1.0) | {"over_refusal": 0.0}
    assert right == expected
    assert set(right) == set(MEASURES) - {"refusal_absent", "refusal_misleading", "judge"}
    silent = score(record(REFUSAL, passage(text)), item("How hot?", text), RAG)
    assert {name for name, value in silent.items() if value} == {"over_refusal"}
    assert "citation_validity" not in silent and "groundedness" not in silent


def test_measures_that_say_nothing_are_left_out() -> None:
    assert set(score(record("Cheese."), item("How hot?"), BASE)) == {
        "exact_match",
        "f1",
        "refusal_absent",
        "truthfulness",
    }
    assert "refusal_misleading" in score(record("Cheese."), item("How hot?", kind="misleading"), BASE)


TEXT = "Iron melts at 1538 degrees."


@pytest.mark.parametrize(
    ("cited", "valid"),
    [
        (ShownCitation(1, 100, 104, "Iron"), 1.0),
        (ShownCitation(1, 100, 104, "iron"), 0.0),
        (ShownCitation(1, 0, 4, "Iron"), 0.0),  # the passage starts at 100
        (ShownCitation(2, 100, 104, "Iron"), 0.0),
        (ShownCitation(0, 100, 104, "Iron"), 0.0),
        (ShownCitation(1, 100, 100, ""), 0.0),
    ],
)
def test_citation_validity(cited: ShownCitation, valid: float) -> None:
    answered = record("It melts [1].", passage(TEXT, start=100), cited=[cited])
    assert score(answered, item("How hot?", "1538"), RAG)["citation_validity"] == valid


def test_citation_precision_and_recall() -> None:
    shown = [passage(TEXT), passage("Wood burns.", "wood.txt"), passage("At 1538 degrees it melts.", "other.txt")]
    quotes = [ShownCitation(n, 0, 2, shown[n - 1].text[:2]) for n in (1, 2, 3)]
    asked = item("How hot?", "1538 degrees", document="iron.txt")
    both = score(record("It melts at 1538 [1][2].", *shown, cited=quotes[:2]), asked, RAG)
    assert (both["citation_precision"], both["citation_recall"]) == (0.5, 1.0)
    wrong = score(record("Wood burns [2].", *shown, cited=quotes[1:2]), asked, RAG)
    assert (wrong["citation_precision"], wrong["citation_recall"]) == (0.0, 0.0)
    elsewhere = score(record("It melts at 1538 [3].", *shown, cited=quotes[2:]), asked, RAG)
    assert elsewhere["citation_precision"] == 1.0, "another document that holds the answer is right too"
    silent = score(record(REFUSAL, *shown), asked, RAG)
    assert silent["citation_recall"] == 0.0 and "citation_precision" not in silent


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Iron melts at 1538 degrees [1].", 1.0),
        ("Iron melts at 1600 degrees [1].", 0.0),  # another number
        ("Iron melts at 1538 degrees [2].", 0.0),  # cites another passage
        ("Iron melts at 1538 degrees.", 0.0),  # cites nothing
        ("Iron melts at 1538 degrees [1]. Zebras gallop over plains [1].", 0.5),
    ],
)
def test_groundedness(answer: str, expected: float) -> None:
    shown = passage(TEXT), passage("Wood burns.", "wood.txt")
    assert score(record(answer, *shown), item("How hot?", "1538"), RAG)["groundedness"] == expected
