"""tandem tune --recipe embedder: tune what finds the passages, on pairs about the documents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from indexer.database import exclusive
from indexer.embedding import Embedder, SentenceTransformerEmbedder
from indexer.errors import TandemError
from indexer.evaluation import Comparison
from indexer.folders import file_sha256
from indexer.outcome import Progress
from indexer.retrieval import Retriever
from indexer.store import Store
from indexer.sync import sync
from indexer.weights import embedder_weights, named_weights
from service.assembly import base_embedder, chunk_size, corpora_to_index, load_embedder
from service.commands.console import note, out, out_json, sync_progress
from service.settings import Settings
from tuner.embedder import EmbedderRecipe, Tuned, tune_embedder
from tuner.embedder_rows import Library, Row, make_rows
from tuner.embedder_validation import Measured, Validation, gain
from tuner.encoders import Step
from tuner.pairs import read_pairs, split_by_document
from tuner.tuned_embedders import EmbedderCard, new_embedder_folder, save_embedder

VALIDATION_SHARE = 0.2

Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What `tandem tune --recipe embedder` is asked to do."""

    pairs: Path
    recipe: EmbedderRecipe
    name: str | None = None
    activate: bool = True
    force: bool = False


@dataclass(frozen=True, slots=True)
class _Material:
    """What is tuned on, what decides, and how the deployed embedder does there."""

    rows: list[Row]
    validation: Validation
    before: Measured
    counts: dict[str, int]


def run_tune(settings: Settings, tuning: Tuning, *, as_json: bool) -> dict[str, Any]:
    """Tune, save, and, when held-out questions say it is better, rebuild the index with it. Raises TandemError."""
    if tuning.activate and "embedder" in settings.model_fields_set:
        raise TandemError(
            f"The setting `embedder` names {settings.embedder!r}, so a tuned embedder would not be used.",
            expected="No `embedder` setting, or --no-activate.",
            do="Remove it from tandem.toml and from TANDEM_EMBEDDER, or give --no-activate.",
            code="conflict",
        )
    busy = TandemError(
        "Another process is tuning in this home folder.", do="Wait until it has finished.", code="conflict"
    )
    with exclusive(settings.home, "tune", busy), sync_progress() as report:
        folder = new_embedder_folder(settings.home, tuning.name)
        store = Store(settings.home)
        body = _tune(settings, store, tuning, folder, report)
        if body["activated"]:
            body["generation"] = _rebuild(settings, store, folder, report)
        store.close()
    if as_json:
        out_json(body)
    else:
        _show(body)
    return body


def _tune(settings: Settings, store: Store, tuning: Tuning, folder: Path, report: Report) -> dict[str, Any]:
    material = _material(settings, store, tuning, report)
    counts = material.counts
    note(
        f"{counts['given']} pairs, {counts['used']} of them answerable from the index: {counts['tuned_on']} to tune on,"
        f" {counts['validated_on']} about other documents to validate."
    )
    weights = embedder_weights(settings.embedder, settings.weights_folder, note)
    device = "cuda" if settings.device == "cuda" else "cpu"
    tuned = tune_embedder(
        weights, material.rows, material.validation, tuning.recipe, device=device, report=_steps(report)
    )
    difference = gain(material.before, tuned.measured)
    validation = _validation(material, tuned, difference)
    card = EmbedderCard(
        name=folder.name,
        base=base_embedder(settings).identity,
        recipe={"name": "embedder", **asdict(tuning.recipe), "epoch": tuned.epoch},
        pairs={"sha256": file_sha256(tuning.pairs), **counts},
        documents=tuple(sorted({row.document for row in material.rows})),
        validation=validation,
        versions={name: version(name) for name in ("tandem-qa", "torch", "transformers", "sentence-transformers")},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    save_embedder(folder, card, tuned.save)
    better = difference.difference > 0
    reason = "" if better or tuning.force else "It is no better than the present embedder on the held-out questions."
    if not tuning.activate:
        reason = "--no-activate was given."
    return {
        "name": folder.name,
        "folder": str(folder),
        "base": card.base,
        "epoch": tuned.epoch,
        "losses": [round(loss, 4) for loss in tuned.losses],
        "pairs": counts,
        "validation": validation,
        "activated": not reason,
        "reason": reason,
        "generation": None,
    }


def _material(settings: Settings, store: Store, tuning: Tuning, report: Report) -> _Material:
    given = read_pairs(tuning.pairs)
    retriever = Retriever(store, load_embedder(settings, note))
    with store.read() as snapshot:
        retriever.check(snapshot)
        library = Library(snapshot)
        used = library.place(given)
        train, held_out = split_by_document(used, VALIDATION_SHARE, tuning.recipe.seed)
        rows = make_rows(library, retriever, train, lambda done, of: report(Progress("pairs", done, of)))
        validation = Validation(library, held_out, hybrid=settings.channel == "hybrid", seed=tuning.recipe.seed)
        questions = np.stack([retriever.embedder.embed_question(question) for question in validation.questions])
        before = validation.measure(questions, snapshot.vectors(np.asarray(validation.rows, np.int64)))
    counts = {"given": len(given), "used": len(used), "tuned_on": len(train), "validated_on": len(held_out)}
    return _Material(rows, validation, before, counts)


def _steps(report: Report) -> Callable[[Step], None]:
    def told(step: Step) -> None:
        if step.validation is None:
            report(Progress("tune", step.step, step.steps, f"epoch {step.epoch}, loss {step.loss:.3f}"))
        else:
            note(f"Epoch {step.epoch}: loss {step.loss:.3f}, held-out nDCG@10 {step.validation:.3f}.")

    return told


def _validation(material: _Material, tuned: Tuned, difference: Comparison) -> dict[str, Any]:
    validation = material.validation
    return {
        "questions": len(validation.questions),
        "chunks": len(validation.rows),
        "of_chunks": validation.of,
        "before": material.before.as_json(),
        "after": tuned.measured.as_json(),
        "gain": {name: round(getattr(difference, name), 4) for name in ("difference", "low", "high", "p")},
    }


def _rebuild(settings: Settings, store: Store, folder: Path, report: Report) -> int:
    embedder: Embedder = SentenceTransformerEmbedder(
        named_weights(str(folder), settings.weights_folder),
        device="cuda" if settings.device == "cuda" else "cpu",
    )
    try:
        corpora = corpora_to_index(settings, store)
        return sync(store, corpora, embedder, chunk_size(settings), report=report).generation
    except TandemError as error:
        raise TandemError(
            f"The index could not be rebuilt with the tuned embedder {folder.name}: {error.happened}",
            expected=error.expected,
            do=f"{error.do} Then `TANDEM_EMBEDDER={folder} tandem index` rebuilds it; the embedder is kept.".strip(),
            code=error.code,
        ) from error


def _show(body: dict[str, Any]) -> None:
    validation, difference = body["validation"], body["validation"]["gain"]
    out(f"{body['folder']}: tuned on {body['pairs']['tuned_on']} pairs, epoch {body['epoch']} kept.")
    sampled = "" if validation["chunks"] == validation["of_chunks"] else f" (of {validation['of_chunks']})"
    out(f"{validation['questions']} held-out questions against {validation['chunks']} chunks{sampled}:")
    out("            before   after")
    for channel, measures in validation["before"].items():
        for name, value in measures.items():
            out(f"{channel:9}{name:10} {value:.3f}   {validation['after'][channel][name]:.3f}")
    out(
        f"nDCG@10 {difference['difference']:+.3f} [{difference['low']:+.3f}, {difference['high']:+.3f}],"
        f" p = {difference['p']:.4f} (randomisation test)"
    )
    if body["activated"]:
        out(f"It is in use: generation {body['generation']} was made with it. `tandem index --rollback` goes back.")
    else:
        out(f"It is not in use. {body['reason']}")
        out(f"`TANDEM_EMBEDDER={body['folder']} tandem index` would rebuild the index with it.")
