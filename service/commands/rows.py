"""tandem rows: pairs and the index -> training rows, with a count of each kind and of what was dropped and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from indexer.folders import file_sha256
from indexer.outcome import Progress
from indexer.records import content_hash
from indexer.store import Snapshot, Store
from service.assembly import load_retriever
from service.commands.console import note, out, out_json, sync_progress
from service.settings import Settings
from tuner.embedder_rows import Library
from tuner.pairs import Instruction, Pair, read_items, read_lines
from tuner.rowfile import read_rows, write_rows
from tuner.rows import Mix, Row, count_kinds, instruction_row, make_training_rows

# Rows of these kinds say something of the document that they name first; in the others it only stands beside.
_ABOUT = ("evidence", "no-evidence", "misleading", "closed-book")


@dataclass(frozen=True, slots=True)
class RowSources:
    """Where rows come from: a pairs file with how to make rows of it, rows made before, rows of other tasks."""

    pairs: Path | None = None
    rows: tuple[Path, ...] = ()
    replay: tuple[Path, ...] = ()
    mix: Mix = Mix()


@dataclass(frozen=True, slots=True)
class Built:
    """Rows, what was dropped by reason, the documents they are about, the SHA-256 of each file they came from."""

    rows: list[Row]
    dropped: Mapping[str, int]
    documents: tuple[Mapping[str, str], ...]
    sources: Mapping[str, str]
    written_by: tuple[str, ...]


def run_rows(settings: Settings, sources: RowSources, target: Path | None, *, as_json: bool) -> dict[str, Any]:
    """Make rows, write them to `target` if there is one, and say what they are. Raises TandemError."""
    built = build_rows(settings, sources)
    if target is not None:
        write_rows(target, built.rows)
    body = {
        "rows": len(built.rows),
        "kinds": count_kinds(built.rows),
        "dropped": dict(built.dropped),
        "documents": len(built.documents),
        "file": str(target) if target else None,
    }
    if as_json:
        out_json(body)
    else:
        show_counts(built)
        out(f"{target}: written." if target else "Nothing was written; --out FILE would.")
    return body


def show_counts(built: Built, tell: Callable[[str], None] = out) -> None:
    """Counts by kind, and what was dropped and why."""
    tell(f"{len(built.rows)} rows about {len(built.documents)} documents")
    for kind, count in count_kinds(built.rows).items():
        tell(f"{count:7}  {kind}")
    for reason, count in sorted(built.dropped.items()):
        tell(f"{count:7}  dropped: {reason}")


def build_rows(settings: Settings, sources: RowSources) -> Built:
    """The rows of all sources. Raises TandemError when a file is wrong, or pairs are given and nothing is indexed."""
    if sources.pairs is None and not sources.rows:
        raise TandemError("There is nothing to make rows of.", expected="--pairs or --rows.", do="Name a file.")
    dropped: Counter[str] = Counter()
    rows: list[Row] = []
    items = read_items(sources.pairs) if sources.pairs else []
    pairs = [item for item in items if isinstance(item, Pair)]
    store = Store(settings.home)
    try:
        if pairs:
            made, dropped = _from_pairs(settings, store, pairs, sources.mix)
            rows += made
        rows += [instruction_row(i.instruction, i.input, i.output) for i in items if isinstance(i, Instruction)]
        for path in (*sources.rows, *sources.replay):
            rows += read_rows(path)
        documents = _documents(store, rows)
    finally:
        store.close()
    files = [path for path in (sources.pairs, *sources.rows, *sources.replay) if path]
    writers = _writers(sources.pairs) if sources.pairs else ()
    return Built(rows, dropped, documents, _hashes(files), writers)


def _from_pairs(settings: Settings, store: Store, pairs: Sequence[Pair], mix: Mix) -> tuple[list[Row], Counter[str]]:
    retriever = load_retriever(settings, store, note)
    with store.read() as snapshot, sync_progress() as report:
        retriever.check(snapshot)
        return make_training_rows(
            Library(snapshot), retriever, pairs, mix, lambda done, of: report(Progress("pairs", done, of))
        )


def _hashes(files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 by file name; a file whose name another one has is told apart by its folder."""
    hashes: dict[str, str] = {}
    for path in files:
        hashes[str(path) if path.name in hashes else path.name] = file_sha256(path)
    return hashes


def _documents(store: Store, rows: Sequence[Row]) -> tuple[Mapping[str, str], ...]:
    """The indexed documents that the rows are about. A document that is not indexed here cannot go stale here."""
    names = sorted({row.documents[0] for row in rows if row.kind in _ABOUT and row.documents})
    try:
        with store.read() as snapshot:
            return tuple(entry for name in names for entry in _entry(snapshot, name))
    except TandemError:
        return ()


def _entry(snapshot: Snapshot, name: str) -> list[Mapping[str, str]]:
    try:
        document = snapshot.document(name)
    except TandemError:
        return []
    return [{"id": document.id, "path": document.path, "hash": content_hash(document.text)}]


def _writers(path: Path) -> tuple[str, ...]:
    """Who wrote the pairs, where their lines say so."""
    values = (json.loads(line.text) for line in read_lines(path) if not isinstance(line.item, TandemError))
    return tuple(sorted({str(value["written_by"]) for value in values if value.get("written_by")}))
