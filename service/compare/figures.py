"""The figures of a report, as PNG files: drawn by matplotlib without a display, one function a figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SIZE = (7.0, 4.0)
_DOTS_PER_INCH = 110


def draw_figures(body: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Draw what the body has numbers for; (file name, caption) of each that was drawn."""
    from matplotlib.figure import Figure

    figures = (
        ("quality.png", "Truthfulness and F1 by arm, with 95 % intervals", _quality),
        ("latency.png", "Truthfulness against the time of an answer", _latency),
        ("tokens.png", "Truthfulness against the tokens of a prompt", _tokens),
        ("refusals.png", "Refusal of what should be refused against over-refusal", _refusals),
        ("change.png", "Seconds until one changed fact is answered", _change),
    )
    drawn = []
    for name, caption, draw in figures:
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        if draw(axes, body):
            axes.grid(alpha=0.3)
            axes.set_title(caption, fontsize=10)
            # Without the time and the library's version the same numbers give the same file.
            figure.savefig(folder / name, dpi=_DOTS_PER_INCH, metadata={"Software": None})
            drawn.append((name, caption))
    return drawn


def _quality(axes: Any, body: Mapping[str, Any]) -> bool:
    arms = body["arms"]
    for shift, measure in ((-0.12, "truthfulness"), (0.12, "f1")):
        cells = [arm[measure] for arm in arms.values()]
        values = [cell["value"] for cell in cells]
        errors = [
            [cell["value"] - cell["low"] for cell in cells],
            [cell["high"] - cell["value"] for cell in cells],
        ]
        places = [place + shift for place in range(len(arms))]
        axes.errorbar(places, values, yerr=errors, fmt="o", capsize=4, label=measure)
    axes.set_xticks(range(len(arms)), list(arms), rotation=20, ha="right", fontsize=8)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.legend()
    return True


def _scatter(axes: Any, body: Mapping[str, Any], places: Mapping[str, float | None], label: str) -> bool:
    for name, place in places.items():
        if place is not None:
            cell = body["arms"][name]["truthfulness"]
            errors = [[cell["value"] - cell["low"]], [cell["high"] - cell["value"]]]
            axes.errorbar([place], [cell["value"]], yerr=errors, fmt="o", capsize=4, label=name)
    axes.set_xlabel(label)
    axes.set_ylabel("truthfulness")
    axes.legend(fontsize=8)
    return True


def _latency(axes: Any, body: Mapping[str, Any]) -> bool:
    places = {name: arm["latency_ms"]["p50"] for name, arm in body["arms"].items()}
    seconds = {name: None if place is None else place / 1000 for name, place in places.items()}
    return _scatter(axes, body, seconds, "seconds for an answer (median)")


def _tokens(axes: Any, body: Mapping[str, Any]) -> bool:
    places = {name: arm["prompt_tokens"] for name, arm in body["arms"].items()}
    return _scatter(axes, body, places, "tokens of the prompt (mean)")


def _refusals(axes: Any, body: Mapping[str, Any]) -> bool:
    for name, points in body["refusal_curve"].items():
        over, right = [point["over_refusal"] for point in points], [point["refusal"] for point in points]
        (line,) = axes.plot(over, right, marker=".", label=name)
        axes.plot(over[:1], right[:1], marker="o", color=line.get_color())
    if not body["refusal_curve"]:
        return False
    axes.set_xlabel("over-refusal: answerable questions refused")
    axes.set_ylabel("refusal: absent and misleading ones refused")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(fontsize=8)
    return True


def _change(axes: Any, body: Mapping[str, Any]) -> bool:
    changed = body["costs"].get("changed_fact") or {}
    bars = {name: seconds for name, seconds in changed.get("seconds", {}).items() if seconds}
    if not bars:
        return False
    axes.barh(list(bars), list(bars.values()))
    axes.set_xscale("log")
    axes.set_xlabel("seconds (logarithmic)")
    return True
