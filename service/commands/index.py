"""tandem index."""

from __future__ import annotations

import json
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import Any

from indexer.errors import TandemError
from indexer.outcome import Outcome
from indexer.publish import rollback
from indexer.rewrite import describe
from indexer.store import Snapshot, Store
from indexer.sync import forget, plan_sync, sync
from indexer.watch import changes
from service.assembly import chunk_size, corpora_to_index, current_embedder, load_embedder
from service.commands.console import fail, note, out, out_json, sync_progress
from service.settings import Settings
from tuner.adapters import DEFAULT_ADAPTER, list_adapters
from tuner.staleness import stale_documents


def run_index(settings: Settings, folders: list[Path], *, dry_run: bool, allow_empty: bool, as_json: bool) -> Outcome:
    """Index the folders, or those of the settings and those known already. Raises TandemError."""
    store = Store(settings.home)
    corpora = _chosen(settings, store, folders)
    embedder = load_embedder(settings, note)
    size = chunk_size(settings)
    if dry_run:
        _show_plan(plan_sync(store, corpora, embedder.identity, size, allow_empty=allow_empty), as_json)
        return Outcome()
    with sync_progress() as report:
        outcome = sync(store, corpora, embedder, size, allow_empty=allow_empty, report=report)
    show_outcome(outcome, as_json)
    if not as_json:
        with store.read() as snapshot:
            out(describe(snapshot.generation))
            _note_stale_adapters(settings, snapshot)
    store.close()
    return outcome


def _note_stale_adapters(settings: Settings, snapshot: Snapshot) -> None:
    """Name the adapters of this home that were trained on documents which are not what they were."""
    for card in list_adapters(settings.home):
        # The default adapter was trained on public texts that were never in this index.
        stale = [] if card.name == DEFAULT_ADAPTER else stale_documents(card, snapshot)
        if stale:
            names = ", ".join(str(entry.get("path")) for entry in stale[:5]) + (", ..." if len(stale) > 5 else "")
            note(f"The adapter {card.name} was trained on {len(stale)} documents since changed or deleted: {names}.")


def run_watch(settings: Settings, folders: list[Path], *, allow_empty: bool, as_json: bool) -> None:
    """Index the folders, then again each time something in them changes, until Ctrl-C. Raises TandemError."""
    store = Store(settings.home)
    corpora = _chosen(settings, store, folders)
    embedder = load_embedder(settings, note)
    last = -1
    stop = Event()

    def interrupted(number: int, frame: object) -> None:
        # Whatever swallows the exception (a finalizer, a callback from C), the loop ends at its next look.
        stop.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupted)
    try:
        for _ in changes(corpora, stop):
            try:
                embedder = current_embedder(settings, embedder)
                with sync_progress() as report:
                    outcome = sync(
                        store, corpora, embedder, chunk_size(settings), allow_empty=allow_empty, report=report
                    )
            except TandemError as error:
                if not all(corpus.is_dir() for corpus in corpora):
                    raise
                # A folder that is empty for now, or another process at work: the next change is another try.
                fail(error)
                continue
            if outcome.generation != last or outcome.failed:
                last = outcome.generation
                if as_json:
                    out_line(outcome)
                else:
                    show_outcome(outcome, as_json=False)
                sys.stdout.flush()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGINT, before)
        store.close()
    note("Stopped watching. The index is complete up to its last generation.")


def run_forget(settings: Settings, folder: Path, *, as_json: bool) -> None:
    """Remove a corpus from the index. Raises TandemError."""
    store = Store(settings.home)
    outcome = forget(store, folder)
    show_outcome(outcome, as_json)
    if folder.resolve() in [path.resolve() for path in settings.corpora] and folder.exists():
        note(f"{folder} is named in the settings: the next `tandem index` without a folder indexes it again.")
    store.close()


def run_rollback(settings: Settings, *, as_json: bool) -> None:
    """Make the previous generation current again."""
    generation = rollback(Store(settings.home))
    if as_json:
        out_json({"generation": generation.number, "documents": generation.documents, "chunks": generation.chunks})
    else:
        out(f"Back at generation {generation.number}: {generation.documents} documents, {generation.chunks} chunks.")
        out("The folders were not touched: the next `tandem index` brings the index in step with them again.")


def _chosen(settings: Settings, store: Store, folders: list[Path]) -> list[Path]:
    return [folder.resolve() if folder.exists() else folder for folder in folders] or corpora_to_index(settings, store)


def show_outcome(outcome: Outcome, as_json: bool) -> None:
    """The result of a sync, as JSON with the fields that scripts read or as lines for people."""
    if as_json:
        out_json(_body(outcome))
        return
    out(
        f"Generation {outcome.generation}: {outcome.added} added, {outcome.changed} changed, {outcome.renamed} renamed,"
        f" {outcome.deleted} deleted, {outcome.unchanged} unchanged, {len(outcome.failed)} failed."
    )
    out(f"{outcome.chunks} chunks, {outcome.embedded} embedded now, {outcome.seconds:.1f} s.")
    for failure in outcome.failed:
        note(f"  {failure['document']}: {failure['reason']}")


def out_line(outcome: Outcome) -> None:
    """The result of a sync as one line of JSON, for a program that reads as it goes."""
    out(json.dumps(_body(outcome), ensure_ascii=False))


def _body(outcome: Outcome) -> dict[str, Any]:
    return asdict(outcome) | {"seconds": round(outcome.seconds, 3)}


def _show_plan(plan: Any, as_json: bool) -> None:
    kinds = {
        "added": [change.file.path for change in plan.added],
        "changed": [change.file.path for change in plan.changed],
        "renamed": [f"{change.replaces.path} -> {change.file.path}" for change in plan.renamed],
        "deleted": [old.path for old in plan.deleted],
    }
    skipped = [{"document": skip.path, "reason": skip.reason} for skip in plan.skipped]
    if as_json:
        out_json(
            {**kinds, "rebuilt": [old.path for old in plan.rebuilt], "unchanged": plan.unchanged, "failed": skipped}
        )
        return
    for kind, names in kinds.items():
        for name in names:
            out(f"{kind:8} {name}")
    for old in plan.rebuilt:
        out(f"{'rebuilt':8} {old.path}")
    for skip in skipped:
        out(f"{'failed':8} {skip['document']}: {skip['reason']}")
    out(f"{plan.unchanged} unchanged. Nothing was written.")
