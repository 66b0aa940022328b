"""Is a difference between two arms more than chance? Paired over the same questions, corrected for many comparisons.

Intervals are 95 % percentile bootstraps over questions and p-values come from paired randomisation tests, both of
10,000 draws from the seed (indexer/evaluation.py); Holm's correction is over all pairs of arms on one measure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from indexer.evaluation import Scores, compare

LEVEL = 0.05
# Two-sided 5 % and a power of 80 %: 1.96 + 0.84 (Cohen 1988, ch. 2).
_POWER = 1.959964 + 0.841621
# The difference for which the needed number of questions is told.
SMALL_DIFFERENCE = 0.05


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Mean of `first` minus `second` on `measure` over `n` questions that both answered.

    `effect` is Cohen's d of paired differences (None where all differences are equal), `detectable` the difference
    that `n` questions show four times in five, `needed` the questions to show one of SMALL_DIFFERENCE as often.
    """

    measure: str
    first: str
    second: str
    n: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float
    effect: float | None
    detectable: float
    needed: int

    @property
    def differs(self) -> bool:
        """Whether the arms differ by more than chance: by the corrected test and by the interval."""
        return self.p_holm < LEVEL and (self.low > 0 or self.high < 0)


def paired_tests(measure: str, scores: Mapping[str, Scores], seed: int) -> list[PairedTest]:
    """Every pair of arms on one measure; (n,) scores by arm, in the same order of questions."""
    found = []
    for item in compare(scores, seed):
        differences = scores[item.first] - scores[item.second]
        n = len(differences)
        spread = float(np.std(differences, ddof=1)) if n > 1 else 0.0
        found.append(
            PairedTest(
                measure=measure,
                first=item.first,
                second=item.second,
                n=n,
                difference=item.difference,
                low=item.low,
                high=item.high,
                p=item.p,
                p_holm=item.p_holm,
                effect=item.difference / spread if spread else None,
                detectable=_POWER * spread / math.sqrt(n),
                needed=math.ceil((_POWER * spread / SMALL_DIFFERENCE) ** 2),
            )
        )
    return found


def between(found: list[PairedTest], first: str, second: str) -> PairedTest | None:
    """The test of `first` minus `second`, turned round if need be."""
    for test in found:
        if (test.first, test.second) == (first, second):
            return test
        if (test.first, test.second) == (second, first):
            return PairedTest(
                measure=test.measure,
                first=first,
                second=second,
                n=test.n,
                difference=-test.difference,
                low=-test.high,
                high=-test.low,
                p=test.p,
                p_holm=test.p_holm,
                effect=None if test.effect is None else -test.effect,
                detectable=test.detectable,
                needed=test.needed,
            )
    return None
