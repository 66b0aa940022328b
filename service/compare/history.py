"""Comparisons on disk: a folder each under the home, with its plan, its answers and, once finished, its verdict.

    comparisons/20260102T030405Z/  plan.json  answers.jsonl  report.json  report.md  *.png  verdict.json

verdict.json is what the rest of the service reads: whether an adapter may go live, and which mode `auto` serves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from indexer.folders import write_file

PLAN_FILE = "plan.json"
REPORT_FILE = "report.json"
VERDICT_FILE = "verdict.json"
FRESHNESS_FILE = "freshness.json"


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """The outcome of one comparison; `decided` is whether it had enough questions to choose a mode by.

    `adapters` maps each compared adapter to {weights_sha256, activate, outcome, reasons}.
    """

    created: str
    folder: str
    base_model: str
    serve: str | None
    adapter: str | None
    decided: bool
    adapters: Mapping[str, Mapping[str, Any]]


def comparisons_folder(home: Path) -> Path:
    """Where the comparisons of a home are kept."""
    return home / "comparisons"


def new_comparison(home: Path) -> Path:
    """A new empty folder, named by the time; later ones sort after earlier ones."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    for number in range(1, 1000):
        folder = comparisons_folder(home) / (stamp if number == 1 else f"{stamp}-{number:03}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("a thousand comparisons in one second")


def write_json(path: Path, value: Any) -> None:
    """One JSON document, replaced atomically."""
    write_file(path, json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace"))


def unfinished_comparison(home: Path, plan: Mapping[str, Any]) -> Path:
    """The newest comparison with this plan that has no report yet. Raises TandemError that names what differs."""
    folders = sorted(comparisons_folder(home).glob("*/"), reverse=True)
    newest: dict[str, Any] | None = None
    for folder in folders:
        old = _read(folder / PLAN_FILE)
        if old is None or (folder / REPORT_FILE).exists():
            continue
        if old == plan:
            return folder
        newest = newest or old
    if newest is None:
        raise TandemError(
            "There is no unfinished comparison to go on with.", do="Leave out --resume.", code="not_found"
        )
    different = sorted(key for key in {*plan, *newest} if plan.get(key) != newest.get(key))
    raise TandemError(
        f"The unfinished comparison was made with another {', '.join(different)}.",
        expected="The same pairs, arms, settings and index, so that its answers can be compared with new ones.",
        do="Give the same options as then, or leave out --resume.",
        code="conflict",
    )


def save_verdict(folder: Path, verdict: StoredVerdict) -> None:
    """Let the service know the outcome."""
    write_json(folder / VERDICT_FILE, asdict(verdict))


def _verdicts(home: Path) -> Iterator[StoredVerdict]:
    """Newest first; what cannot be read is passed over."""
    for path in sorted(comparisons_folder(home).glob(f"*/{VERDICT_FILE}"), reverse=True):
        values = _read(path)
        try:
            verdict = StoredVerdict(**values) if values else None
        except TypeError:
            continue
        if verdict is not None:
            yield verdict


def last_verdict(home: Path) -> StoredVerdict | None:
    """The outcome of the newest finished comparison."""
    return next(_verdicts(home), None)


def last_verdict_on(home: Path, weights_sha256: str) -> tuple[StoredVerdict, Mapping[str, Any]] | None:
    """The newest comparison that these adapter weights took part in, and what it says of them."""
    for verdict in _verdicts(home):
        for judged in verdict.adapters.values():
            if judged.get("weights_sha256") == weights_sha256:
                return verdict, judged
    return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
