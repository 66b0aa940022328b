"""No difference where there is none, the planted one where there is one."""

import math

import numpy as np
import pytest

from service.compare.statistics import SMALL_DIFFERENCE, between, paired_tests


def ternary(n: int, shares: tuple[float, float, float], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice([-1.0, 0.0, 1.0], size=n, p=shares)


def test_the_same_arm_twice_never_differs() -> None:
    scores = ternary(300, (0.3, 0.2, 0.5), 0)
    found = [paired_tests("truthfulness", {"rag": scores, "rag again": scores.copy()}, seed)[0] for seed in range(100)]
    assert not any(test.differs for test in found)
    assert all(test.p == 1 and test.difference == test.low == test.high == 0 for test in found)


def test_a_null_comparison_finds_no_difference_in_95_of_100_seeds() -> None:
    """Two arms that answer equally well and not alike: the answers of one are those of the other, noise added."""
    clear = 0
    for seed in range(100):
        first, second = (ternary(150, (0.3, 0.2, 0.5), 1000 * arm + seed) for arm in (1, 2))
        clear += not paired_tests(
            "truthfulness", {"a": first, "b": second, "c": ternary(150, (0.3, 0.2, 0.5), seed)}, seed
        )[0].differs
    assert clear >= 95


def test_a_planted_difference_is_found_and_told_both_ways() -> None:
    worse, better = ternary(300, (0.4, 0.2, 0.4), 1), ternary(300, (0.15, 0.15, 0.7), 2)
    found = paired_tests("truthfulness", {"rag": worse, "rag+tuned": better}, 0)
    gain, loss = between(found, "rag+tuned", "rag"), between(found, "rag", "rag+tuned")
    assert gain is not None and loss is not None
    assert gain.differs and gain.difference == pytest.approx(float((better - worse).mean()))
    assert (loss.difference, loss.low, loss.high) == (-gain.difference, -gain.high, -gain.low)
    assert gain.effect == pytest.approx(float((better - worse).mean() / (better - worse).std(ddof=1)))
    assert between(found, "rag", "base") is None


def test_how_many_questions_are_needed() -> None:
    """By hand: differences of +1 and -1 in turn have a deviation of 1 with one 0 among 31; (2.8 * s / 0.05) ** 2."""
    first = np.asarray([1.0, -1.0] * 15 + [0.0])
    (test,) = paired_tests("f1", {"a": first, "b": np.zeros(31)}, 0)
    spread = math.sqrt(30 / 30)
    assert test.needed == math.ceil((2.801585 * spread / SMALL_DIFFERENCE) ** 2) == 3140
    assert test.detectable == pytest.approx(2.801585 * spread / math.sqrt(31))


def test_holm_is_over_all_pairs_of_arms() -> None:
    scores = {name: ternary(80, (0.3, 0.3, 0.4), seed) for seed, name in enumerate("abcd")}
    found = paired_tests("f1", scores, 0)
    assert len(found) == 6
    smallest = min(found, key=lambda test: test.p)
    assert smallest.p_holm == pytest.approx(min(1.0, smallest.p * 6))
    assert all(test.p_holm >= test.p for test in found)
