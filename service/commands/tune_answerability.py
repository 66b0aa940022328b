"""tandem tune --recipe answerability: teach an encoder whether passages hold the answer; keep it where it helps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from indexer.database import exclusive
from indexer.errors import TandemError
from indexer.folders import file_sha256
from indexer.outcome import Progress
from indexer.store import Store
from indexer.weights import Weights, embedder_weights
from service.assembly import load_retriever
from service.commands.console import note, out, out_json, sync_progress
from service.commands.live import stopping
from service.refusal import relevance
from service.settings import Settings
from tuner.answerability import AnswerabilityRecipe, Taught, check_sides, tune_answerability
from tuner.answerability_measure import Worth, measured, threshold_behind, worth
from tuner.answerability_model import FORM
from tuner.answerability_rows import Asked, JudgedRow, ask_for, make_judged_rows, split_pairs
from tuner.answerability_store import AnswerabilityCard, new_model_folder, save_model
from tuner.embedder_rows import Library
from tuner.encoders import Step
from tuner.guards import one_sided_warning
from tuner.pairs import Kind, Pair, read_pairs

VALIDATION_SHARE = 0.2
PACKAGES = ("tandem-qa", "torch", "transformers", "accelerate")

Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Teaching:
    """What `tandem tune --recipe answerability` is asked to do. `base` names an encoder; None is the embedder's."""

    pairs: Path
    recipe: AnswerabilityRecipe
    base: str | None = None
    name: str | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class _Material:
    """What is learned from, what decides, and the relevance of what decides."""

    rows: list[JudgedRow]
    held_out: list[Asked]
    relevances: list[float]
    dropped: dict[str, int]


def run_tune(settings: Settings, teaching: Teaching, *, as_json: bool) -> dict[str, Any]:
    """Teach, measure, and save where held-out questions gain by it. Raises TandemError."""
    busy = TandemError(
        "Another process is tuning in this home folder.", do="Wait until it has finished.", code="conflict"
    )
    with exclusive(settings.home, "tune", busy), sync_progress() as report:
        folder = new_model_folder(settings.home, teaching.name)
        base = embedder_weights(teaching.base or settings.embedder, settings.weights_folder, note)
        material = _material(settings, teaching, report)
        note(
            f"{len(material.rows)} rows to learn from, {sum(row.holds for row in material.rows)} with the answer;"
            f" {len(material.held_out)} questions about other documents decide."
        )
        with stopping() as stopped:
            taught = tune_answerability(
                base.path,
                material.rows,
                material.held_out,
                teaching.recipe,
                device="cuda" if settings.device == "cuda" else "cpu",
                report=_steps(report),
                stopped=stopped.is_set,
            )
        body = _finish(settings, teaching, folder, base, material, taught)
    if as_json:
        out_json(body)
    else:
        _show(body)
    return body


def _material(settings: Settings, teaching: Teaching, report: Report) -> _Material:
    train, held_out = split_pairs(read_pairs(teaching.pairs), VALIDATION_SHARE, teaching.recipe.seed)
    store = Store(settings.home)
    try:
        retriever = load_retriever(settings, store, note)
        with store.read() as snapshot:
            retriever.check(snapshot)
            rows, dropped = make_judged_rows(Library(snapshot), retriever, train, _pairing(report, "pairs"))
        asked = ask_for(retriever, held_out, settings.k, _pairing(report, "ask"))
    finally:
        store.close()
    check_sides(rows, asked)
    one_sided = one_sided_warning(_documents(train, "answerable"), _documents(train, "misleading"))
    if one_sided:
        note(f"Warning: {one_sided}")
    return _Material(rows, asked, [relevance(item.question, item.passages) for item in asked], dict(dropped))


def _documents(pairs: list[Pair], kind: Kind) -> list[str]:
    return [pair.document for pair in pairs if pair.kind == kind and pair.document is not None]


def _pairing(report: Report, stage: str) -> Callable[[int, int], None]:
    return lambda done, of: report(Progress(stage, done, of))


def _steps(report: Report) -> Callable[[Step], None]:
    def told(step: Step) -> None:
        if step.validation is None:
            report(Progress("tune", step.step, step.steps, f"epoch {step.epoch}, loss {step.loss:.3f}"))
        else:
            note(f"Epoch {step.epoch}: loss {step.loss:.3f}, held-out area under the curve {step.validation:.3f}.")

    return told


def _finish(
    settings: Settings, teaching: Teaching, folder: Path, base: Weights, material: _Material, taught: Taught
) -> dict[str, Any]:
    kinds = [item.kind for item in material.held_out]
    passed = np.asarray(material.relevances) >= settings.min_relevance
    threshold = threshold_behind(kinds, taught.scores, passed)
    added = worth(kinds, ~passed, ~passed | (taught.scores < threshold), teaching.recipe.seed)
    validation = {
        **measured(kinds, taught.scores, threshold),
        "relevance_auc": measured(kinds, np.asarray(material.relevances), settings.min_relevance)["auc"],
        "worth": {name: round(value, 4) for name, value in asdict(added).items()},
    }
    helps = added.low > 0
    body: dict[str, Any] = {
        "name": folder.name,
        "folder": str(folder) if helps or teaching.force else None,
        "base": base.name,
        "epoch": taught.epoch,
        "losses": [round(loss, 4) for loss in taught.losses],
        "rows": len(material.rows),
        "dropped": material.dropped,
        "threshold": threshold,
        "validation": validation,
        "helps": helps,
        "saved": helps or teaching.force,
    }
    if body["saved"]:
        save_model(folder, lambda files: _card(teaching, folder, base, material, body, files), taught.model)
    return body


def _card(
    teaching: Teaching, folder: Path, base: Weights, material: _Material, body: dict[str, Any], files: Any
) -> AnswerabilityCard:
    return AnswerabilityCard(
        name=folder.name,
        base=Path(base.name).name,
        base_sha256=base.sha256,
        form=FORM,
        threshold=body["threshold"],
        recipe={"name": "answerability", **asdict(teaching.recipe), "epoch": body["epoch"], "losses": body["losses"]},
        pairs={"sha256": file_sha256(teaching.pairs), "rows": body["rows"], "dropped": body["dropped"]},
        documents=tuple(sorted({row.document for row in material.rows})),
        validation=body["validation"],
        versions={name: version(name) for name in PACKAGES},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        files=files,
    )


def _show(body: dict[str, Any]) -> None:
    validation = body["validation"]
    out("held-out questions  number  area under the curve, relevance  second opinion  refused by it")
    for kind, count in validation["questions"].items():
        areas = [validation[name].get(kind) for name in ("relevance_auc", "auc")]
        shown = ["" if area is None else f"{area:.3f}" for area in areas]
        share = validation["refused"].get(kind)
        out(f"{kind:18}{count:8}{shown[0]:>33}{shown[1]:>16}{'' if share is None else f'{share:.1%}':>15}")
    added = Worth(**validation["worth"])
    out(
        f"Beyond the relevance gate it refuses {added.refused_rightly:.1%} of what no document answers and"
        f" {added.refused_wrongly:.1%} of what the passages answer:"
        f" {added.gain:+.3f} [{added.low:+.3f}, {added.high:+.3f}]."
    )
    if body["saved"]:
        out(f"{body['folder']}: saved. Set answerability (TANDEM_ANSWERABILITY) to {body['name']} to use it.")
    if not body["helps"]:
        kept = "" if body["saved"] else " It was not saved; --force would."
        out(f"It does not help on these questions, as far as they can tell.{kept}")
