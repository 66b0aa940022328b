"""A finished run -> an adapter of the home folder, or a base model, whole or not at all, with its card."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from indexer.folders import publish_folder, write_file
from tuner.adapters import CARD_FILE, DEFAULT_ADAPTER, AdapterCard, adapter_path, read_card, save_card
from tuner.basemodel import BaseModel
from tuner.preference import Preference
from tuner.prompt import PROMPT_FINGERPRINT
from tuner.questionhash import question_hash
from tuner.runs import Run, explained_writing, result_folder
from tuner.trainable import lora_settings, save_adapter_weights, save_model
from tuner.tuning import Tuned

_LIBRARIES = ("tandem-qa", "torch", "transformers", "peft", "bitsandbytes")


def publish(home: Path, run: Run, base: BaseModel, tuned: Tuned) -> Path:
    """Write the result and its card; returns its folder. A result of that name is replaced.

    Raises TandemError (unavailable) when it cannot be written.
    """
    folder = result_folder(home, run.name, run.recipe)
    parent = read_card(adapter_path(home, run.recipe.start_from)) if run.recipe.start_from else None
    card = make_card(run, base, tuned, parent)

    def build(fresh: Path) -> None:
        if run.recipe.trains_adapter:
            save_adapter_weights(tuned.trainable, fresh)
            save_card(fresh, card)
        else:
            save_model(tuned.trainable, base.tokenizer, fresh)
            write_file(fresh / CARD_FILE, json.dumps(asdict(card), indent=1, ensure_ascii=False).encode())

    with explained_writing(run, f"The result {folder}"):
        publish_folder(folder, build)
    return folder


def make_card(run: Run, base: BaseModel, tuned: Tuned, parent: AdapterCard | None) -> AdapterCard:
    """What the result was made from and for. What `parent`, the adapter it started from, has seen, it has seen too."""
    return AdapterCard(
        name=run.name,
        base_model=base.name,
        base_sha256=base.sha256,
        tokenizer_sha256=base.tokenizer_sha256,
        prompt_fingerprint=PROMPT_FINGERPRINT,
        recipe=_recipe(run, tuned, parent),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        documents=_documents(run, parent),
        metrics=dict(tuned.metrics),
        versions={name: version(name) for name in _LIBRARIES},
        refusal_threshold=tuned.refusal_threshold,
    )


def _documents(run: Run, parent: AdapterCard | None) -> tuple[Mapping[str, str], ...]:
    """Those of the parent that were not learned again, then the run's own. The default adapter's are in no index."""
    own = run.material.documents
    paths = {item.get("path") for item in own}
    before = () if parent is None or parent.name == DEFAULT_ADAPTER else parent.documents
    return (*(item for item in before if item.get("path") not in paths), *own)


def _recipe(run: Run, tuned: Tuned, parent: AdapterCard | None) -> dict[str, Any]:
    material = run.material
    seen = {} if parent is None else parent.recipe
    asked = {question_hash(item.question) for item in material.rows if item.question}
    questions = asked | set(seen.get("questions_sha256") or ())
    return {
        **asdict(run.recipe),
        **(lora_settings(tuned.trainable.peft) if run.recipe.start_from else {}),
        "counts": dict(tuned.counts),
        "dropped": dict(material.dropped),
        "split_seed": run.recipe.seed,
        "rows_sha256": run.rows_sha256,
        "sources": dict(material.sources),
        "kind": "preferences" if material.rows and isinstance(material.rows[0], Preference) else "rows",
        "warnings": list(tuned.warnings),
        "written_by": sorted({*material.written_by, *_writers(seen)}),
        "questions_sha256": sorted(questions),
    }


def _writers(recipe: Mapping[str, Any]) -> Sequence[str]:
    writers = recipe.get("written_by") or ()
    return [writers] if isinstance(writers, str) else list(writers)
