"""What the numbers say to do: which mode to serve, and whether an adapter may go live; with the reasons in words.

Truthfulness decides, because a wrong answer costs more than none. The simpler mode wins a tie: `rag` first, because
its answers can be checked and kept up to date. An adapter goes live only when it beats `rag` on questions it has not
seen, among them some that want an answer and some that want a refusal, loses to no baseline and does not win by
refusing what `rag` answers rightly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from indexer.evaluation import Scores
from service.compare.arms import BASELINES, Arm
from service.compare.statistics import PairedTest, between, paired_tests

DECIDED_BY = "truthfulness"
# With fewer questions even large differences are within chance (see `detectable` of each test).
FEWEST = 30
# Of equally good modes the first of these is served.
SIMPLEST_FIRST = ("rag", "base", "rag+tuned", "tuned")

Outcome = Literal["better", "no better", "worse", "unproven"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """(n,) truthfulness by arm over the questions that count, with the kind of each and how they were chosen."""

    scores: Mapping[str, Scores]
    kinds: Sequence[str]
    clean: bool

    def only(self, kind: str) -> Evidence:
        """The questions of one kind."""
        places = np.asarray([place for place, each in enumerate(self.kinds) if each == kind])
        return Evidence({arm: values[places] for arm, values in self.scores.items()}, [kind] * len(places), self.clean)


@dataclass(frozen=True, slots=True)
class AdapterVerdict:
    """Whether this adapter may go live, from its `rag+tuned` arm against `rag`."""

    activate: bool
    outcome: Outcome
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The mode to serve (None: nothing was compared that can be served) and with which adapter."""

    serve: str | None
    adapter: str | None
    activate_adapter: bool
    reasons: tuple[str, ...]
    by_kind: Mapping[str, str] = field(default_factory=dict)
    adapters: Mapping[str, AdapterVerdict] = field(default_factory=dict)


def decide(arms: Sequence[Arm], evidence: Evidence, seed: int) -> Verdict:
    """The verdict over these arms; evidence holds scores for each of them."""
    served = [arm for arm in arms if arm.mode is not None]
    found = paired_tests(DECIDED_BY, evidence.scores, seed)
    adapters = {
        arm.adapter: _judge(arm, evidence, found, seed)
        for arm in served
        if arm.adapter is not None and arm.mode == "rag+tuned"
    }
    for arm in served:
        if arm.adapter is not None and arm.adapter not in adapters:
            adapters[arm.adapter] = AdapterVerdict(False, "unproven", ("The mode rag+tuned was not compared.",))
    winner, reasons = _winner(served, evidence, found)
    approved = {name: judged for name, judged in adapters.items() if judged.activate}
    if winner is not None and winner.adapter is not None and winner.adapter not in approved and winner.mode != "tuned":
        winner, reasons = _winner([arm for arm in served if arm.adapter is None], evidence, found)
    for name, judged in adapters.items():
        reasons += [f"Adapter {name}: {reason}" for reason in judged.reasons]
    first = next((arm.adapter for arm in served if arm.adapter), None)
    return Verdict(
        serve=winner.mode if winner else None,
        adapter=winner.adapter if winner else None,
        activate_adapter=first in approved,
        reasons=tuple(reasons),
        by_kind=_by_kind(served, evidence, seed),
        adapters=adapters,
    )


def _winner(arms: Sequence[Arm], evidence: Evidence, found: list[PairedTest]) -> tuple[Arm | None, list[str]]:
    """The arm to serve and why; tuned arms take part only on clean evidence."""
    open_arms = [arm for arm in arms if arm.adapter is None or evidence.clean]
    in_order = sorted(open_arms, key=lambda arm: SIMPLEST_FIRST.index(arm.mode or "rag"))
    if not in_order:
        return None, ["Every mode that was compared uses an adapter, and there is no evidence that one may be used."]
    questions = len(evidence.kinds)
    if questions < FEWEST:
        return in_order[0], [
            f"{questions} questions are too few to choose by (at least {FEWEST}): {in_order[0].name} is served, the"
            " simplest mode that was compared."
        ]
    means = {arm.name: float(evidence.scores[arm.name].mean()) for arm in in_order}
    best = max(in_order, key=lambda arm: means[arm.name])
    for arm in in_order:
        test = between(found, best.name, arm.name)
        if arm is best or test is None or not test.differs:
            return arm, _why(arm, best, in_order, evidence, found)
    return best, _why(best, best, in_order, evidence, found)


def _why(winner: Arm, best: Arm, arms: Sequence[Arm], evidence: Evidence, found: list[PairedTest]) -> list[str]:
    mean = float(evidence.scores[winner.name].mean())
    reasons = [f"Serve {winner.name}: truthfulness {mean:+.3f} over {len(evidence.kinds)} questions."]
    if winner is not best:
        test = between(found, best.name, winner.name)
        assert test is not None
        reasons.append(f"{_difference(test)}, which may be chance; the simpler mode wins a tie.")
    for arm in arms:
        test = between(found, winner.name, arm.name)
        if test is not None and arm not in (winner, best):
            reasons.append(f"{_difference(test)}: {'more than chance' if test.differs else 'may be chance'}.")
    for name in BASELINES:
        test = between(found, winner.name, name)
        if test is not None and not (test.differs and test.difference > 0):
            reasons.append(f"Beware: it does not beat the baseline {name} by more than chance. {_difference(test)}.")
    return reasons


def _judge(arm: Arm, evidence: Evidence, found: list[PairedTest], seed: int) -> AdapterVerdict:
    test = between(found, arm.name, "rag")
    if test is None:
        return AdapterVerdict(False, "unproven", ("The mode rag was not compared.",))
    told = f"{_difference(test)} over {test.n} questions"
    if not evidence.clean:
        return AdapterVerdict(
            False,
            "unproven",
            (f"{told}, but fewer than {FEWEST} questions are of a kind that it was not trained on: no proof.",),
        )
    if test.n < FEWEST:
        return AdapterVerdict(False, "unproven", (f"{told}: too few to tell (at least {FEWEST}).",))
    kinds = set(evidence.kinds)
    if "answerable" not in kinds or len(kinds) == 1:
        missing = (
            "only answerable questions were asked" if "answerable" in kinds else "no answerable question was asked"
        )
        return AdapterVerdict(
            False, "unproven", (f"{told}, but {missing}, so half of its behaviour was not measured.",)
        )
    if not test.differs:
        return AdapterVerdict(False, "no better", (f"{told}, which may be chance. Do not deploy it.",))
    if test.difference < 0:
        return AdapterVerdict(False, "worse", (f"{told}. Do not deploy it.",))
    for name in BASELINES:
        against = between(found, arm.name, name)
        if against is not None and against.differs and against.difference < 0:
            reason = f"It beats rag, and loses to the baseline {name}: {_difference(against)}. Do not deploy it."
            return AdapterVerdict(False, "worse", (reason,))
    right = _right_answers(arm, evidence, seed)
    if right is not None and right.differs and right.difference < 0:
        reason = (
            f"It beats rag by refusing: of the questions with an answer it answers fewer rightly, {_difference(right)}."
            " Do not deploy it."
        )
        return AdapterVerdict(False, "worse", (reason,))
    return AdapterVerdict(True, "better", (f"{told}. It may go live.",))


def _right_answers(arm: Arm, evidence: Evidence, seed: int) -> PairedTest | None:
    """The adapter against `rag` in right answers to answerable questions.

    Truthfulness gives a refusal more than a wrong answer, so an adapter that learned nothing but to refuse would gain.
    """
    part = evidence.only("answerable").scores
    right = {name: np.asarray(part[name] == 1.0, np.float64) for name in (arm.name, "rag")}
    return between(paired_tests("correct", right, seed), arm.name, "rag")


def _by_kind(arms: Sequence[Arm], evidence: Evidence, seed: int) -> dict[str, str]:
    """Kind -> one sentence on which mode does best there."""
    sentences = {}
    for kind in sorted(set(evidence.kinds)):
        part = evidence.only(kind)
        names = [arm.name for arm in arms]
        means = {name: float(part.scores[name].mean()) for name in names}
        best = max(names, key=lambda name: means[name])
        found = paired_tests(DECIDED_BY, {name: part.scores[name] for name in names}, seed)
        equal = [name for name in names if name != best and (test := between(found, best, name)) and not test.differs]
        also = f"; {', '.join(equal)} may be as good" if equal else ""
        sentences[kind] = f"{best} does best ({means[best]:+.3f}, n = {len(part.kinds)}){also}."
    return sentences


def _difference(test: PairedTest) -> str:
    return (
        f"{test.first} - {test.second} = {test.difference:+.3f} [{test.low:+.3f}, {test.high:+.3f}]"
        f" (p = {test.p_holm:.4f})"
    )
