"""tandem pairs from-feedback: what people thought of answers -> pairs, preferences, and a list to look at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from indexer.folders import write_file
from indexer.outcome import Progress
from indexer.store import Store
from service.assembly import load_retriever, silent
from service.commands.console import note, out, out_json, sync_progress
from service.feedback import read_feedback
from service.keys import list_keys
from service.opinions import Lessons, ToSee, learn
from service.settings import Settings
from service.shelf import Shelf
from tuner.preference import write_preferences

# The name under which feedback keeps the administrators' key of the settings.
_SETTINGS_KEY = "admin_key"
_SHOWN = 100


def run_from_feedback(
    settings: Settings, target: Path | None, preferences: Path | None, *, closed: bool, as_json: bool
) -> dict[str, Any]:
    """Sort all feedback, write what was asked for, show the rest. Raises TandemError."""
    if target is not None and target == preferences:
        raise TandemError("Pairs and preferences are to go into one file.", do="Name two files.")
    for path in (target, preferences):
        if path is not None and path.exists():
            raise TandemError(
                f"There is a file {path} already.",
                expected="A new file: comparisons tell a drop by asking the questions of the same file again.",
                do="Name another file, or remove it.",
                code="conflict",
            )
    feedback = list(read_feedback(settings.home))
    if not feedback:
        raise TandemError(
            "Nobody has given feedback yet.",
            expected="Opinions that were sent to POST /feedback of the service.",
            do="Check TANDEM_HOME, or ask people to vote on answers.",
            code="not_found",
        )
    store = Store(settings.home)
    try:
        with store.read() as snapshot, sync_progress() as report:
            retriever = load_retriever(settings, store, silent if as_json else note)
            shelf = Shelf(snapshot, retriever, settings, closed=closed)
            administrators = {key.name for key in list_keys(store) if key.role == "admin"} | {_SETTINGS_KEY}
            lessons = learn(feedback, shelf, administrators, lambda done, of: report(Progress("pairs", done, of, "")))
    finally:
        store.close()
    _write(lessons, target, preferences)
    body = _body(lessons, len(feedback), target, preferences)
    if as_json:
        out_json(body)
    else:
        _show(body, lessons)
    return body


def _write(lessons: Lessons, target: Path | None, preferences: Path | None) -> None:
    try:
        if target is not None:
            text = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in lessons.pairs)
            write_file(target, text.encode())
        if preferences is not None:
            write_preferences(preferences, lessons.preferences)
    except OSError as error:
        raise TandemError(
            f"A file cannot be written: {error}.", expected="A folder to write to.", do="Name other files."
        ) from error


def _body(lessons: Lessons, opinions: int, target: Path | None, preferences: Path | None) -> dict[str, Any]:
    return {
        "opinions": opinions,
        "file": str(target) if target else None,
        "pairs": len(lessons.pairs),
        "kinds": dict(Counter(pair["kind"] for pair in lessons.pairs)),
        "tags": dict(Counter(pair["tag"] for pair in lessons.pairs)),
        "preferences_file": str(preferences) if preferences else None,
        "preferences": len(lessons.preferences),
        "left_out": dict(lessons.left_out.most_common()),
        "review": [asdict(item) for item in lessons.review],
        "candidates": [asdict(item) for item in lessons.candidates],
    }


def _show(body: dict[str, Any], lessons: Lessons) -> None:
    kinds = ", ".join(f"{count} {kind}" for kind, count in body["kinds"].items())
    out(f"{body['opinions']} opinions: {body['pairs']} pairs{f' ({kinds})' if kinds else ''}.")
    out(_written(body["pairs"], "pairs", body["file"], "--out"))
    out(_written(body["preferences"], "preferences", body["preferences_file"], "--preferences"))
    for reason, count in body["left_out"].items():
        out(f"{count:6} left out: {reason}")
    _list("To be reviewed", lessons.review)
    _list("Candidates, refused though an answer was expected", lessons.candidates)
    if lessons.review or lessons.candidates:
        out()
        out("POST /feedback with the same question and a corrected_answer settles one of these.")


def _written(count: int, what: str, path: str | None, option: str) -> str:
    return f"{path}: {count} {what}." if path else f"{count} {what} were not written; {option} FILE would."


def _list(title: str, items: Sequence[ToSee]) -> None:
    if not items:
        return
    out()
    out(f"{title} ({len(items)}):")
    for item in items[:_SHOWN]:
        guess = f"; perhaps in {plain(item.document)}" if item.document else ""
        out(f"{item.id:6} {plain(item.question)} ({item.reason}{guess})")
        for name, text in (
            ("answer", item.answer),
            ("corrected", item.corrected_answer),
            ("comment", item.comment),
        ):
            if text.strip():
                out(f"{'':6}   {name}: {plain(text)}")
    if len(items) > _SHOWN:
        out(f"{'':6} and {len(items) - _SHOWN} more; --json lists all.")


def plain(text: str, most: int = 160) -> str:
    """One line that is safe to print: what people typed could hold codes that a terminal obeys."""
    line = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in _line(text))
    return line if len(line) <= most else f"{line[: most - 3]}..."


def _line(text: str) -> str:
    return " ".join(text.split())
