"""tandem doctor: look at everything a question depends on, and say what to do about what is wrong."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version

from indexer.derived import VECTOR_FOLDER
from indexer.embedding import SentenceTransformerEmbedder
from indexer.errors import TandemError
from indexer.store import Store
from indexer.vectors.file import load
from service.assembly import chosen_weights, load_base
from service.commands.drifting import check_drift
from service.commands.findings import Finding, show_findings
from service.commands.running import check_running
from service.keys import list_keys
from service.secondopinion import load_opinion
from service.settings import Settings
from tuner.active import active_adapter
from tuner.adapters import adapter_path, list_adapters, verify_adapter
from tuner.basemodel import BaseModel, base_model_weights, processor
from tuner.decoding import can_draft
from tuner.rotation import Rotation

PACKAGES = ("tandem-qa", "torch", "transformers", "peft", "sentence-transformers", "faiss-cpu", "fastapi")
# Model, embedder, libraries and room for a long prompt, with the bundled weights.
NEEDED_MEMORY = 3 * 512 * 1024**2
NEEDED_DISK = 1024**3


def run_doctor(settings: Settings, url: str | None = None, *, as_json: bool) -> bool:
    """Run every check, here or of the service at `url`, and show it; True when all is well.

    Raises TandemError only when the home cannot be used, or for an address that is none.
    """
    if url is not None:
        return show_findings(list(check_running(settings, url)), as_json=as_json)
    store = Store(settings.home)
    findings = [finding for check in _checks(settings, store) for finding in check]
    store.close()
    return show_findings(findings, as_json=as_json)


def _checks(settings: Settings, store: Store) -> Iterator[Iterator[Finding]]:
    yield _versions()
    yield _machine(settings)
    yield _guarded("embedder", lambda: _embedder(settings, store))
    yield _guarded("base model", lambda: _base_model(settings))
    if settings.answerability:
        yield _guarded("second opinion", lambda: _opinion(settings, store))
    yield _guarded("index", lambda: _index(settings, store))
    yield _keys(settings, store)
    yield check_drift(settings.home)


def _guarded(check: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except TandemError as error:
        yield Finding(check, False, error.happened, error.do or error.expected)


def _versions() -> Iterator[Finding]:
    found = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    yield Finding(
        "versions", sys.version_info >= (3, 11), f"Python {platform.python_version()}, {found}", "Use Python 3.11."
    )


def _machine(settings: Settings) -> Iterator[Finding]:
    available = _available_memory()
    shown = "unknown" if available is None else f"{available / 1024**3:.1f} GiB available"
    yield Finding(
        "memory",
        available is None or available >= NEEDED_MEMORY,
        f"{shown}, {os.cpu_count()} cores",
        f"Free memory: the bundled models need about {NEEDED_MEMORY / 1024**3:.1f} GiB.",
    )
    free = shutil.disk_usage(settings.home).free
    yield Finding(
        "disk", free >= NEEDED_DISK, f"{free / 1024**3:.1f} GiB free in {settings.home}", "Free some disk space."
    )


def _available_memory() -> int | None:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _embedder(settings: Settings, store: Store) -> Iterator[Finding]:
    weights = chosen_weights(settings, verify=True)
    embedder = SentenceTransformerEmbedder(weights)
    told = f"{weights.name}, SHA-256 {weights.sha256[:16]}, {embedder.dimension} dimensions, {embedder.precision}"
    yield Finding("embedder", True, told)
    try:
        with store.read() as snapshot:
            made_with = snapshot.generation.embedder
    except TandemError:
        return
    if made_with != embedder.identity:
        yield Finding(
            "embedder", False, f"the index was made with {made_with}", "Run `tandem index` to rebuild the index."
        )


def _base_model(settings: Settings) -> Iterator[Finding]:
    weights = base_model_weights(settings.base_model, settings.weights_folder, verify=True)
    base = load_base(settings)
    yield Finding(
        "base model",
        True,
        f"{base.name}, SHA-256 {weights.sha256[:16]}, {base.quantisation} on {base.device}, window {base.window}",
    )
    yield _speed(settings, base)
    active = active_adapter(settings.home, settings.base_model)
    for card in list_adapters(settings.home):
        mark = " (active)" if card.name == active else ""
        try:
            verify_adapter(adapter_path(settings.home, card.name), base)
        except TandemError as error:
            yield Finding("adapter", False, f"{card.name}{mark}: {error.happened}", error.do)
        else:
            yield Finding("adapter", True, f"{card.name}{mark}: fits this base model, tokenizer and prompt")


def _speed(settings: Settings, base: BaseModel) -> Finding:
    """How answers are computed here. Raises TandemError when passages are to be read apart and cannot be."""
    if settings.passage_cache == "on":
        Rotation(base)
    drafts = "drafts from the passages" if can_draft(base) else "no drafts (its cache or attention does not allow them)"
    apart = "read apart from each other" if settings.passage_cache == "on" else "read in their places"
    passes = "passes compiled for this processor" if base.compiled else "passes of the transformers library"
    return Finding(
        "speed",
        True,
        f"{processor(settings.threads)}; {passes}; {_load()}{drafts};"
        f" passages are {apart} and kept up to {settings.passage_cache_mb} MB",
    )


def _load() -> str:
    """Told where other programs want the cores too: what waits for another thread then waits for them."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0]
    return f"load {load:.1f} on {cores} cores, so times will vary; " if load > cores else ""


def _opinion(settings: Settings, store: Store) -> Iterator[Finding]:
    opinion = load_opinion(settings, verify=True)
    if opinion is None:
        return
    card = opinion.card
    found = f"{card.name}, of {card.base}, refuses under {card.threshold:.4f}"
    try:
        with store.read() as snapshot:
            gone = len(set(card.documents) - set(snapshot.document_paths().values()))
    except TandemError:
        gone = 0
    yield Finding("second opinion", True, f"{found}; {gone} of its documents are gone" if gone else found)


def _index(settings: Settings, store: Store) -> Iterator[Finding]:
    with store.read() as snapshot:
        generation = snapshot.generation
    found = f"generation {generation.number}: {generation.documents} documents, {generation.chunks} chunks"
    yield Finding("index", True, f"{found}, {generation.created}")
    with store.connection() as connection:
        verdict = connection.execute("PRAGMA quick_check").fetchone()[0]
    yield Finding("database", verdict == "ok", f"tandem.sqlite: {verdict}", "Restore the home folder from a backup.")
    if generation.vector_file:
        path = settings.home / VECTOR_FOLDER / generation.vector_file
        intact = load(path, generation.vector_sha256 or "", generation.dimension) is not None
        yield Finding(
            "vector file",
            intact,
            f"{path.name}: {'intact' if intact else 'missing or damaged; answers come from the database instead'}",
            "Nothing at once; the next large `tandem index` writes a new one.",
        )


def _keys(settings: Settings, store: Store) -> Iterator[Finding]:
    names = [f"{key.name} ({key.role})" for key in list_keys(store)]
    names += [f"{name} of the settings" for name in ("user_key", "admin_key") if getattr(settings, name)]
    yield Finding("access keys", True, ", ".join(names) or "none: only this machine can be served")
