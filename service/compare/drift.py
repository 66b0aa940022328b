"""Drift: did answers get worse between the last two comparisons that asked the questions of the same pairs file?

Each comparison keeps what every question scored in every arm, so that two comparisons are compared question by
question, as two arms are (statistics.py): a drop counts when it differs from nothing by the paired randomisation test
after Holm over the arms, and when its interval lies below zero. Decoding is greedy, so where nothing changed, nothing
differs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from indexer.evaluation import compare, holm
from service.compare.history import PLAN_FILE, REPORT_FILE, comparisons_folder, write_json
from service.compare.statistics import LEVEL
from service.compare.summary import Answered
from service.compare.verdict import DECIDED_BY, FEWEST

SCORES_FILE = "scores.json"


@dataclass(frozen=True, slots=True)
class Change:
    """Mean truthfulness of an arm now minus then, over `n` questions, with its interval and its corrected p-value."""

    arm: str
    n: int
    difference: float
    low: float
    high: float
    p_holm: float

    @property
    def is_drop(self) -> bool:
        """Whether it fell by more than chance."""
        return self.p_holm < LEVEL and self.high < 0


@dataclass(frozen=True, slots=True)
class Drift:
    """The last two comparisons of one pairs file; `causes` is what was different, name -> (then, now)."""

    file: str
    then: Path
    now: Path
    changes: tuple[Change, ...]
    causes: Mapping[str, tuple[Any, Any]]

    @property
    def drops(self) -> list[Change]:
        """The arms that fell."""
        return [change for change in self.changes if change.is_drop]


@dataclass(frozen=True, slots=True)
class _Kept:
    folder: Path
    plan: Mapping[str, Any]
    file: str
    scores: Mapping[str, Mapping[str, float]]


def save_scores(folder: Path, answered: Answered, file: str) -> None:
    """Keep what each question scored, for the comparison that comes after this one. `file` names the pairs."""
    pairs = [item.pair.id for item in answered.items]
    arms = {
        arm.name: dict(zip(pairs, (found[DECIDED_BY] for found in answered.scores[arm.name]), strict=True))
        for arm in answered.arms
        if arm.mode is not None
    }
    write_json(folder / SCORES_FILE, {"measure": DECIDED_BY, "file": file, "arms": arms})


def find_drift(home: Path) -> list[Drift]:
    """For each pairs file its last two comparisons, newest file first; files that were asked only once are left out.

    Arms with fewer than FEWEST questions in common cannot tell, and a comparison without any other arm is left out.
    """
    newest: dict[str, _Kept] = {}
    done: set[str] = set()
    found = []
    for kept in _comparisons(home):
        pairs = str(kept.plan.get("pairs_sha256"))
        if pairs in done:
            continue
        if pairs not in newest:
            newest[pairs] = kept
        elif changes := _changes(kept.scores, newest[pairs].scores):
            done.add(pairs)
            now = newest[pairs]
            found.append(Drift(now.file, kept.folder, now.folder, changes, _causes(kept.plan, now.plan)))
    return sorted(found, key=lambda drift: drift.now, reverse=True)


def _comparisons(home: Path) -> Iterator[_Kept]:
    """Finished ones, newest first; what cannot be read is passed over."""
    for folder in sorted(comparisons_folder(home).glob("*/"), reverse=True):
        if not (folder / REPORT_FILE).is_file():
            continue
        try:
            plan = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
            kept = json.loads((folder / SCORES_FILE).read_text(encoding="utf-8"))
            arms = {
                str(arm): {str(pair): float(score) for pair, score in scores.items()}
                for arm, scores in kept["arms"].items()
            }
            found = _Kept(folder, dict(plan), str(kept["file"]), arms)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        # A comparison of a few questions does not hide what a larger one before it tells.
        if any(len(scores) >= FEWEST for scores in arms.values()):
            yield found


def _changes(then: Mapping[str, Mapping[str, float]], now: Mapping[str, Mapping[str, float]]) -> tuple[Change, ...]:
    tested = []
    for arm in [name for name in now if name in then]:
        pairs = [pair for pair in now[arm] if pair in then[arm]]
        if len(pairs) >= FEWEST:
            both = {"now": _values(now[arm], pairs), "then": _values(then[arm], pairs)}
            tested.append((arm, len(pairs), compare(both)[0]))
    corrected = holm([test.p for *_, test in tested])
    return tuple(
        Change(arm, n, test.difference, test.low, test.high, p)
        for (arm, n, test), p in zip(tested, corrected, strict=True)
    )


def _values(scores: Mapping[str, float], pairs: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.asarray([scores[pair] for pair in pairs], np.float64)


def _causes(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two plans; of settings and versions each one by its name."""
    first, second = _flat(then), _flat(now)
    names = [name for name in second if name not in ("questions", "seed", "arms")]
    return {name: (first.get(name), second[name]) for name in names if first.get(name) != second[name]}


def _flat(plan: Mapping[str, Any]) -> dict[str, Any]:
    parts = ("settings", "versions")
    flat = {name: value for name, value in plan.items() if name not in parts}
    for part in parts:
        flat |= plan.get(part) or {}
    return flat
