"""ROUGE-L: how much of a right answer's word order is in the answer; for answers longer than a few words.

Lin 2004 (ACL workshop "Text Summarization Branches Out"), as the F-measure with equal weights over lower-case runs of
letters and digits, without stemming, like the common implementations.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"[^\W_]+")


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """The best over the answers, 0 to 1; 1 where there is no answer and nothing is said."""
    said = _WORD.findall(prediction.lower())
    right = [words for answer in answers if (words := _WORD.findall(answer.lower()))]
    return max((_f_measure(said, words) for words in right), default=float(not said))


def _f_measure(said: list[str], right: list[str]) -> float:
    common = _common_subsequence(said, right)
    return 2 * common / (len(said) + len(right))


def _common_subsequence(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, in one row of memory."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for place, other in enumerate(second, start=1):
            diagonal, row[place] = row[place], diagonal + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]
