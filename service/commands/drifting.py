"""What `tandem doctor` says of answers that got worse since the comparison before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from service.commands.findings import Finding
from service.compare.drift import Drift, find_drift


def check_drift(home: Path) -> Iterator[Finding]:
    """One finding for each pairs file that was compared twice."""
    for drift in find_drift(home):
        since = f"{drift.file}: {drift.now.name} against {drift.then.name}"
        if not drift.drops:
            arms = ", ".join(change.arm for change in drift.changes)
            yield Finding("drift", True, f"{since}: no drop in {arms}")
            continue
        fell = ", ".join(
            f"{drop.arm} fell by {-drop.difference:.3f} [{-drop.high:.3f}, {-drop.low:.3f}] on {drop.n} questions"
            for drop in drift.drops
        )
        changed = ", ".join(drift.causes) or "nothing that a plan holds"
        yield Finding("drift", False, f"{since}: {fell}. Changed in between: {changed}.", _remedy(drift))


def _remedy(drift: Drift) -> str:
    """What to do about each thing that changed, and how to see whether it helped."""
    causes = dict(drift.causes)
    steps = [f"Read the examples in {drift.now / 'report.md'}"]
    if "generation" in causes:
        steps.append("look whether documents that the questions need have changed or gone (`tandem index --dry-run`)")
    if "adapters" in causes:
        steps.append(_adapters(*causes["adapters"]))
    others = [name for name in causes if name not in ("generation", "adapters")]
    if others:
        steps.append("set back " + ", ".join(f"{name} ({causes[name][0]} before)" for name in others))
    return "; ".join([*steps, f"then compare {drift.file} again"]) + "."


def _adapters(then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    names = [name for name in then or {} if (now or {}).get(name) != (then or {})[name]]
    again = [name for name in names if name in (now or {})]
    if again:
        return f"{', '.join(again)} was tuned again: tune it with --replay of its old rows, or go back to its backup"
    if names:
        return f"go back with `tandem adapters activate {names[0]}`"
    return "`tandem adapters deactivate` goes back to answering without an adapter"
