"""How well scores tell questions that the passages answer from those they do not, and which threshold to refuse under.

A question is refused when its score is under the threshold. Over-refusal is the share of the questions with evidence
among their passages that is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tuner.answerability_rows import ASKED_KINDS, AskedKind

Scores = npt.NDArray[np.float64]
MOST_OVER_REFUSAL = 0.05
# Points of the curve that a card keeps.
POINTS = 21
RESAMPLES = 2000


def auc(positive: Scores, negative: Scores) -> float | None:
    """The share of (positive, negative) in which the positive scores higher, ties half (Mann & Whitney 1947)."""
    if not len(positive) or not len(negative):
        return None
    order = np.sort(negative)
    lower = np.searchsorted(order, positive, "left") + np.searchsorted(order, positive, "right")
    return float(lower.mean() / 2 / len(negative))


def choose_threshold(positive: Scores, most: float = MOST_OVER_REFUSAL) -> float:
    """The highest threshold under which at most a share `most` of these scores lies."""
    allowed = int(most * len(positive) + 1e-9)
    return float(np.sort(positive)[allowed]) if allowed < len(positive) else 1.0


def threshold_behind(kinds: Sequence[AskedKind], scores: Scores, passed: npt.NDArray[np.bool_]) -> float:
    """The threshold for scores asked behind a gate, all (q,): what the gate refuses anyway costs nothing more."""
    open_scores = np.where(passed, scores, np.inf)
    return min(1.0, choose_threshold(by_kind(kinds, open_scores)["answerable"]))


def by_kind(kinds: Sequence[AskedKind], scores: Scores) -> dict[AskedKind, Scores]:
    """The scores of each kind."""
    places = np.asarray(kinds)
    return {kind: scores[places == kind] for kind in ASKED_KINDS}


def measured(kinds: Sequence[AskedKind], scores: Scores, threshold: float) -> dict[str, Any]:
    """Counts, areas under the curve, refused shares at the threshold and points of the curve, all by kind."""
    parts = by_kind(kinds, scores)
    evident = parts["answerable"]
    areas = {kind: auc(evident, part) for kind, part in parts.items() if kind != "answerable"}
    points = np.quantile(scores, np.linspace(0, 1, POINTS)) if len(scores) else np.zeros(0)
    return {
        "questions": {kind: len(part) for kind, part in parts.items()},
        "auc": {kind: round(value, 4) for kind, value in areas.items() if value is not None},
        "refused": _refused(parts, threshold),
        "curve": [{"threshold": round(float(point), 6), **_refused(parts, float(point))} for point in points],
    }


def _refused(parts: Mapping[AskedKind, Scores], threshold: float) -> dict[str, float]:
    return {kind: round(float((part < threshold).mean()), 4) for kind, part in parts.items() if len(part)}


@dataclass(frozen=True, slots=True)
class Worth:
    """What a second opinion adds to the gate before it: shares refused beyond it, and their difference.

    `gain` is right minus wrong refusals; `low` to `high` is its 95 % interval (percentile bootstrap).
    """

    refused_rightly: float
    refused_wrongly: float
    gain: float
    low: float
    high: float


def worth(kinds: Sequence[AskedKind], before: npt.NDArray[np.bool_], after: npt.NDArray[np.bool_], seed: int) -> Worth:
    """The worth of refusing `after` where only `before` was refused, both (q,); `after` includes `before`.

    Questions whose evidence was not retrieved count for neither side. Both sides must have questions.
    """
    places = np.asarray(kinds)
    added = after & ~before
    wrong = added[places == "answerable"].astype(float)
    right = added[(places == "misleading") | (places == "absent")].astype(float)
    chooser = np.random.default_rng(seed)
    gains = [
        chooser.choice(right, len(right)).mean() - chooser.choice(wrong, len(wrong)).mean() for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(gains, [2.5, 97.5])
    rightly, wrongly = float(right.mean()), float(wrong.mean())
    return Worth(rightly, wrongly, rightly - wrongly, float(low), float(high))
