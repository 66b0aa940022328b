"""Who is served, and who may go live: planted arms with known differences."""

from collections.abc import Mapping

import numpy as np
import pytest

from service.compare.arms import ALWAYS_REFUSE, BEST_SENTENCE, Arm, plan_arms
from service.compare.verdict import FEWEST, Evidence, Verdict, decide

KINDS = ["answerable"] * 60 + ["absent"] * 20 + ["misleading"] * 20
BAD_BASELINES = {ALWAYS_REFUSE: -0.9, BEST_SENTENCE: -0.9}


def scores(mean: float, n: int, seed: int) -> np.ndarray:
    """n truthfulness scores of about this mean."""
    right = (1 + mean) / 2
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=n, p=[1 - right, right])


def judged(
    means: Mapping[str, float],
    *,
    clean: bool = True,
    kinds: list[str] | None = None,
    adapters: tuple[str, ...] = ("a",),
) -> Verdict:
    kinds = KINDS if kinds is None else kinds
    modes = [name for name in ("base", "tuned", "rag", "rag+tuned") if name in means]
    arms = [arm for arm in plan_arms(modes, adapters) if arm.name in means or arm.mode is None]
    values = {arm.name: scores({**BAD_BASELINES, **means}[arm.name], len(kinds), seed) for seed, arm in enumerate(arms)}
    return decide(arms, Evidence(values, kinds, clean), 0)


def test_a_good_adapter_goes_live_and_is_served() -> None:
    verdict = judged({"base": -0.8, "tuned": -0.7, "rag": -0.2, "rag+tuned": 0.6})
    assert (verdict.serve, verdict.adapter, verdict.activate_adapter) == ("rag+tuned", "a", True)
    assert verdict.adapters["a"].outcome == "better"
    assert "It may go live" in " ".join(verdict.reasons)
    assert set(verdict.by_kind) == {"answerable", "absent", "misleading"}
    assert verdict.by_kind["answerable"].startswith("rag+tuned does best")


def test_a_bad_adapter_does_not() -> None:
    verdict = judged({"base": -0.8, "rag": 0.5, "rag+tuned": -0.4})
    assert (verdict.serve, verdict.adapter, verdict.activate_adapter) == ("rag", None, False)
    assert verdict.adapters["a"].outcome == "worse"
    assert "Do not deploy it" in " ".join(verdict.reasons)


def test_the_simpler_mode_wins_a_tie() -> None:
    verdict = judged({"rag": 0.4, "rag+tuned": 0.5})
    assert (verdict.serve, verdict.activate_adapter, verdict.adapters["a"].outcome) == ("rag", False, "no better")
    assert any("the simpler mode wins a tie" in reason for reason in verdict.reasons)


def test_questions_it_was_trained_on_prove_nothing() -> None:
    verdict = judged({"rag": -0.2, "rag+tuned": 0.9}, clean=False)
    assert (verdict.serve, verdict.activate_adapter, verdict.adapters["a"].outcome) == ("rag", False, "unproven")


def test_few_questions_prove_nothing() -> None:
    few = (KINDS[:20] + KINDS[60:])[: FEWEST - 1]
    verdict = judged({"base": -0.2, "rag": -0.9, "rag+tuned": 0.9}, kinds=few)
    assert (verdict.serve, verdict.activate_adapter, verdict.adapters["a"].outcome) == ("rag", False, "unproven")
    assert "too few" in verdict.reasons[0]


@pytest.mark.parametrize("kind", ["answerable", "absent"])
def test_questions_of_one_kind_prove_nothing(kind: str) -> None:
    verdict = judged({"rag": -0.2, "rag+tuned": 0.9}, kinds=[kind] * 100)
    assert (verdict.activate_adapter, verdict.adapters["a"].outcome) == (False, "unproven")
    assert "half of its behaviour" in verdict.adapters["a"].reasons[0]


def test_an_adapter_that_loses_to_a_baseline_stays_out() -> None:
    verdict = judged({"rag": -0.6, "rag+tuned": 0.0, ALWAYS_REFUSE: 0.7})
    assert (verdict.activate_adapter, verdict.adapters["a"].outcome) == (False, "worse")
    assert ALWAYS_REFUSE in verdict.adapters["a"].reasons[0]
    assert any("Beware" in reason for reason in verdict.reasons)


def test_each_adapter_is_judged_for_itself() -> None:
    verdict = judged({"rag": -0.2, "rag+tuned": -0.9, "rag+tuned:b": 0.7}, adapters=("a", "b"))
    assert (verdict.serve, verdict.adapter, verdict.activate_adapter) == ("rag+tuned", "b", False)
    assert (verdict.adapters["a"].outcome, verdict.adapters["b"].outcome) == ("worse", "better")


def test_without_rag_nothing_can_be_said_of_an_adapter() -> None:
    verdict = judged({"base": -0.5, "tuned": 0.9})
    assert not verdict.activate_adapter
    assert verdict.adapters["a"].outcome == "unproven"


def test_arms() -> None:
    assert [arm.name for arm in plan_arms([], [])] == ["base", "rag", BEST_SENTENCE, ALWAYS_REFUSE]
    arms = plan_arms(["rag+tuned", "rag"], ["a", "b", "b"])
    assert arms[:3] == [Arm("rag", "rag"), Arm("rag+tuned", "rag+tuned", "a"), Arm("rag+tuned:b", "rag+tuned", "b")]
    assert len(arms) == 5


def test_an_adapter_that_learned_only_to_refuse_stays_out() -> None:
    """It is more truthful than rag, which is wrong more often than right, and it answers nothing rightly."""
    arms = plan_arms(["rag", "rag+tuned"], ("a",))
    wrong_often = np.array(([1.0] * 20 + [-1.0] * 40) + [-1.0] * 40)
    refuses = np.array([0.0] * 60 + [1.0] * 40)
    values = {arm.name: refuses if arm.mode == "rag+tuned" else wrong_often for arm in arms if arm.mode}
    values |= {name: np.full(100, -0.9) for name in BAD_BASELINES}
    verdict = decide(arms, Evidence(values, KINDS, True), 0)
    assert (verdict.activate_adapter, verdict.adapters["a"].outcome) == (False, "worse")
    assert "by refusing" in verdict.adapters["a"].reasons[0]
