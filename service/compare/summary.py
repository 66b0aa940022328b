"""Scores to the body of report.json: every measure of every arm with its interval, by kind and by exposure too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexer.evaluation import interval
from service.compare.arms import Arm
from service.compare.leakage import EXPOSURES, Exposure
from service.compare.questions import Item
from service.compare.records import Record
from service.compare.scoring import MEASURES, Scores

# What is told for each kind of question and each exposure, beside the whole.
BY_PART = ("truthfulness", "correct", "exact_match", "f1", "judge")
# Thresholds of relevance for the curve of refusal against over-refusal.
THRESHOLDS = tuple(round(step / 20, 2) for step in range(21))


@dataclass(frozen=True, slots=True)
class Answered:
    """Everything that was answered: items in order, and by arm the record and scores of each of them."""

    items: Sequence[Item]
    arms: Sequence[Arm]
    records: Mapping[str, Sequence[Record]]
    scores: Mapping[str, Sequence[Scores]]
    exposure: Mapping[str, Exposure]
    seed: int

    def parts(self) -> dict[str, Callable[[Item], bool]]:
        """Name of a kind or tag -> whether an item is of it."""
        names = {item.pair.kind: None for item in self.items} | {item.tag: None for item in self.items if item.tag}

        def belongs(name: str) -> Callable[[Item], bool]:
            return lambda item: name in (item.pair.kind, item.tag)

        return {name: belongs(name) for name in names}


def summarise(answered: Answered) -> dict[str, dict[str, Any]]:
    """Arm -> its body."""
    return {arm.name: _arm(answered, arm) for arm in answered.arms}


def _arm(answered: Answered, arm: Arm) -> dict[str, Any]:
    records, scores = answered.records[arm.name], answered.scores[arm.name]
    exposed = [answered.exposure[item.pair.id] for item in answered.items]
    return {
        **_measures(scores, MEASURES, answered.seed),
        "by_kind": {
            name: _measures(
                [found for found, item in zip(scores, answered.items, strict=True) if belongs(item)],
                BY_PART,
                answered.seed,
            )
            for name, belongs in answered.parts().items()
        },
        "by_exposure": {
            name: _measures(
                [found for found, each in zip(scores, exposed, strict=True) if each == name], BY_PART, answered.seed
            )
            for name in EXPOSURES
            if name in exposed
        },
        "adapter": arm.adapter,
        **_costs(records),
    }


def _measures(scores: Sequence[Scores], names: Sequence[str], seed: int) -> dict[str, dict[str, float | int]]:
    body: dict[str, dict[str, float | int]] = {}
    for name in names:
        values = np.asarray([found[name] for found in scores if name in found], np.float64)
        if len(values):
            mean = interval(values, seed)
            body[name] = {
                "value": round(mean.value, 5),
                "low": round(mean.low, 5),
                "high": round(mean.high, 5),
                "n": len(values),
            }
    return body


def _costs(records: Sequence[Record]) -> dict[str, Any]:
    first = [record.first_token_ms for record in records if record.first_token_ms is not None]
    peaks = [record.peak_memory for record in records if record.peak_memory is not None]
    return {
        "prompt_tokens": round(float(np.mean([record.prompt_tokens for record in records])), 1),
        "completion_tokens": round(float(np.mean([record.completion_tokens for record in records])), 1),
        "first_token_ms": _percentiles(first),
        "latency_ms": _percentiles([record.total_ms for record in records]),
        "peak_memory_bytes": max(peaks, default=None),
    }


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"p50": None, "p95": None}
    half, most = np.percentile(values, [50, 95])
    return {"p50": round(float(half), 1), "p95": round(float(most), 1)}


def refusal_curve(answered: Answered, min_relevance: float) -> dict[str, list[dict[str, float]]]:
    """Arm -> refusal and over-refusal at each threshold of relevance from the present one on, where both kinds exist.

    A question under the threshold counts as refused. Lower thresholds are not known: those questions were not answered.
    """
    curves = {}
    wanted = np.asarray([item.answerable for item in answered.items])
    if wanted.all() or not wanted.any():
        return {}
    for arm in answered.arms:
        records = answered.records[arm.name]
        if arm.mode is None or not arm.retrieves:
            continue
        relevance = np.asarray([record.relevance or 0.0 for record in records])
        refused = np.asarray([record.refused for record in records])
        points = []
        for threshold in sorted({min_relevance, *(step for step in THRESHOLDS if step > min_relevance)}):
            now = refused | (relevance < threshold)
            points.append(
                {
                    "min_relevance": threshold,
                    "refusal": round(float(now[~wanted].mean()), 4),
                    "over_refusal": round(float(now[wanted].mean()), 4),
                }
            )
        curves[arm.name] = points
    return curves


def worst_examples(answered: Answered, count: int = 8) -> list[int]:
    """Places of the questions where arms that run a model differ most in truthfulness, then where all are wrong."""
    names = [arm.name for arm in answered.arms if arm.mode is not None]
    values = [[answered.scores[name][place]["truthfulness"] for name in names] for place in range(len(answered.items))]
    order = sorted(range(len(values)), key=lambda place: (min(values[place]) - max(values[place]), sum(values[place])))
    return [place for place in order if min(values[place]) < 1][:count]
