"""Exact match and token F1 as the official SQuAD 2.0 evaluation computes them, to the last digit.

Rajpurkar, Jia & Liang 2018 (arXiv 1806.03822): texts are compared in lower case without ASCII punctuation and the
English articles; the best over the right answers counts; where there is no answer, only saying nothing is right.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from service.citations import without_markers

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def tokens(text: str) -> list[str]:
    """The words that are compared."""
    return _ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction is one of the answers, else 0; "" is what a refusal predicts."""
    return _best(prediction, answers, lambda said, right: float(said == right))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Harmonic mean of token precision and recall, 0 to 1."""
    return _best(prediction, answers, _overlap)


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1 if the words of one of the answers stand in the prediction in a row, else 0."""
    return _best(prediction, answers, _holds)


def as_prediction(answer: str, refused: bool) -> str:
    """What an answer predicts: its text without citation markers, nothing where it was refused."""
    return "" if refused else without_markers(answer)


def _best(prediction: str, answers: Sequence[str], score: Callable[[list[str], list[str]], float]) -> float:
    said = tokens(prediction)
    right = [words for words in map(tokens, answers) if words] or [[]]
    return max(score(said, words) for words in right)


def _overlap(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    shared = (Counter(said) & Counter(right)).total()
    if shared == 0:
        return 0.0
    # In this order, because floating point is compared to the last digit.
    precision = 1.0 * shared / len(said)
    recall = 1.0 * shared / len(right)
    return (2 * precision * recall) / (precision + recall)


def _holds(said: list[str], right: list[str]) -> float:
    if not right:
        return float(not said)
    if right in (["yes"], ["no"]):
        # "No" stands in many sentences that do not say no.
        return float(said[:1] == right)
    return float(any(said[place : place + len(right)] == right for place in range(len(said) - len(right) + 1)))
