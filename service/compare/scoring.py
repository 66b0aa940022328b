"""One record against its pair: every measure that applies to it.

A measure is left out where it says nothing (a citation of a closed-book answer, over-refusal of an absent question),
so its mean is over the questions that it is about.
"""

from __future__ import annotations

from collections.abc import Callable

from service.compare.arms import Arm
from service.compare.citing import citation_scores
from service.compare.questions import Item
from service.compare.records import Record
from service.compare.rouge import rouge_l
from service.compare.squad import as_prediction, contains, exact_match, f1

# An answer is right when it holds a right answer's words in a row, or shares this much of them (token F1).
RIGHT_F1 = 0.6

MEASURES = (
    "truthfulness",
    "correct",
    "exact_match",
    "f1",
    "contains",
    "rouge_l",
    "refusal_absent",
    "refusal_misleading",
    "over_refusal",
    "citation_validity",
    "citation_precision",
    "citation_recall",
    "groundedness",
    "format",
    "judge",
)
# The measures of which less is better.
LESS_IS_BETTER = frozenset({"over_refusal"})

Scores = dict[str, float]
FormatCheck = Callable[[str], bool]


def score(record: Record, item: Item, arm: Arm, is_formatted: FormatCheck | None = None) -> Scores:
    """Measure -> value. Truthfulness is +1, 0 or -1 (CRAG, Yang et al. 2024, arXiv 2406.04744), all others 0 to 1."""
    prediction = as_prediction(record.answer, record.refused)
    answers = item.pair.answers
    scores = {"exact_match": exact_match(prediction, answers), "f1": f1(prediction, answers)}
    if item.answerable:
        scores["contains"] = contains(prediction, answers)
        scores["rouge_l"] = rouge_l(prediction, answers)
        scores["correct"] = float(max(scores["contains"], scores["f1"] >= RIGHT_F1))
        scores["over_refusal"] = float(record.refused)
    else:
        scores[f"refusal_{item.pair.kind}"] = float(record.refused)
    scores["truthfulness"] = _truthfulness(record, item, scores)
    if arm.retrieves:
        scores |= citation_scores(record, item)
    if is_formatted is not None and not record.refused:
        scores["format"] = float(is_formatted(prediction))
    if record.judged is not None:
        scores["judge"] = record.judged
    return scores


def _truthfulness(record: Record, item: Item, scores: Scores) -> float:
    """A right answer, and a refusal where one is right: +1. Saying nothing where there is an answer: 0. Else -1."""
    if not item.answerable:
        return 1.0 if record.refused else -1.0
    if record.refused:
        return 0.0
    return 1.0 if scores["correct"] else -1.0
