"""tandem adapters show, merge and export: what one adapter is, and its files for other programs."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from indexer.store import Store
from service.commands.console import note, out, out_json
from service.settings import Settings
from tuner.active import active_adapter
from tuner.adapters import WEIGHTS_FILE, AdapterCard, adapter_path, read_adapter_config, read_card
from tuner.basemodel import BaseModel, load_base_model
from tuner.export import Exported, check_format, export_gguf, export_peft, gguf_of
from tuner.gguf_export import GGUF_NUMBERS
from tuner.merge import NUMBERS, Merged, merge_adapter, refuse_existing
from tuner.prompt import PROMPT_FINGERPRINT
from tuner.staleness import stale_documents


def show_adapter(settings: Settings, name: str, *, as_json: bool) -> dict[str, Any]:
    """Print the card of one adapter, its size, and which of its documents have changed. Raises TandemError."""
    folder = adapter_path(settings.home, name)
    card = read_card(folder)
    config = read_adapter_config(folder)
    body: dict[str, Any] = {
        **asdict(card),
        "name": name,
        "active": active_adapter(settings.home, settings.base_model) == name,
        "bytes": sum(path.stat().st_size for path in folder.iterdir() if path.is_file()),
        "parameters": count_parameters(folder / WEIGHTS_FILE),
        "lora": config,
        "stale_documents": _stale(settings, card),
        "prompt_is_current": card.prompt_fingerprint == PROMPT_FINGERPRINT,
    }
    if as_json:
        out_json(body)
    else:
        _show(body)
    return body


def count_parameters(weights: Path) -> int:
    """How many numbers a safetensors file holds, from its header. Raises TandemError for a file that is none."""
    try:
        with weights.open("rb") as file:
            size = struct.unpack("<Q", file.read(8))[0]
            if size > 100 << 20:
                raise ValueError("a header of that size")
            header = json.loads(file.read(size))
        total = 0
        for key, entry in header.items():
            if key != "__metadata__":
                count = 1
                for length in entry["shape"]:
                    count *= int(length)
                total += count
        return total
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
        raise TandemError(
            f"The adapter file {weights} is not safetensors.",
            do="Tune it again, or copy it again from where it came.",
            code="not_found",
        ) from None


def run_merge(settings: Settings, name: str, target: Path, numbers: str | None, *, as_json: bool) -> dict[str, Any]:
    """Merge the adapter into its base model. Raises TandemError."""
    chosen = next((known for known in NUMBERS if known == numbers), None)
    if numbers is not None and chosen is None:
        raise _no_such("--dtype", numbers, NUMBERS)
    refuse_existing(target)
    base = _base(settings)
    merged = merge_adapter(base, adapter_path(settings.home, name), target, numbers=chosen, report=note)
    body = {"folder": str(target), **asdict(merged)}
    if as_json:
        out_json(body)
    else:
        out(f"{target}: {merged.base_model} with {name} merged into it, {merged.numbers}.")
        out(_difference(merged))
        _tell_threshold(merged.refusal_threshold)
        out(f"Serve it with `TANDEM_BASE_MODEL={target}`, without an adapter.")
    return body


def run_export(
    settings: Settings, name: str, target: Path, *, form: str, numbers: str, card: bool, as_json: bool
) -> dict[str, Any]:
    """Write the adapter for other programs. Raises TandemError."""
    chosen = check_format(form)
    kind = next((known for known in GGUF_NUMBERS if known == numbers), None)
    if kind is None:
        raise _no_such("--type", numbers, GGUF_NUMBERS)
    refuse_existing(target)
    folder = adapter_path(settings.home, name)
    threshold = read_card(folder).refusal_threshold
    if chosen == "peft":
        done = export_peft(_base(settings), folder, target, card=card)
    elif chosen == "safetensors":
        merged = merge_adapter(_base(settings), folder, target, report=note)
        done = Exported(target, tuple(sorted(path.name for path in target.iterdir())), merged)
    else:
        template = gguf_of(settings.base_model, settings.weights_folder, note)
        done = export_gguf(_base(settings), folder, template, target, numbers=kind, report=note)
    body = {
        "folder": str(done.folder),
        "files": list(done.files),
        "merged": asdict(done.merged) if done.merged else None,
    }
    if as_json:
        out_json(body)
    else:
        out(f"{target}: {', '.join(done.files)}")
        if done.merged:
            out(_difference(done.merged))
        _tell_threshold(threshold)
    return body


def _base(settings: Settings) -> BaseModel:
    return load_base_model(
        settings.base_model, cache=settings.weights_folder, quantisation="none", device="cpu", report=note
    )


def _difference(merged: Merged) -> str:
    return (
        f"Largest difference of any logit before and after: {merged.distance:.3g} (logits reach {merged.largest:.3g});"
        f" the same best token at {merged.same_token:.1%} of the positions."
    )


def _tell_threshold(threshold: float | None) -> None:
    """What other programs lose; without a threshold Tandem too refuses as they do."""
    if threshold is not None:
        out(
            f"Only Tandem knows the refusal threshold ({threshold:.3g}): other servers decode greedily,"
            " and refuse only when the refusal is the likeliest beginning of an answer."
        )


def _no_such(option: str, value: str, known: tuple[str, ...]) -> TandemError:
    return TandemError(f"{option} is {value!r}.", expected=", ".join(known) + ".", do="Name one of them.")


def _stale(settings: Settings, card: AdapterCard) -> list[dict[str, str]] | None:
    """What became of the adapter's documents; None when nothing is indexed."""
    store = Store(settings.home)
    try:
        with store.read() as snapshot:
            return [dict(entry) for entry in stale_documents(card, snapshot)]
    except TandemError:
        return None
    finally:
        store.close()


def _show(body: dict[str, Any]) -> None:
    lora, recipe, stale = body["lora"], dict(body["recipe"]), body["stale_documents"]
    out(f"{body['name']}{' (active)' if body['active'] else ''}, made {body['created']}")
    out(f"base model   {body['base_model']}  {body['base_sha256'][:12]}")
    out(f"prompt       {'as it is served' if body['prompt_is_current'] else 'another than the one that is served'}")
    out(f"size         {body['bytes'] / 1e6:.1f} MB, {body['parameters']:,} parameters")
    modules = lora["target_modules"]
    named = modules if isinstance(modules, str) else ", ".join(modules)
    out(f"LoRA         rank {lora['r']}, alpha {lora.get('lora_alpha', lora['r'])}, beside {named}")
    out(f"recipe       {_line(recipe)}")
    out(f"documents    {len(body['documents'])}; {_staleness(stale)}")
    for entry in (stale or [])[:10]:
        out(f"             {entry['change']}: {entry.get('path', '')}")
    for label in ("metrics", "versions"):
        if body[label]:
            out(f"{label:12} {_line(dict(body[label]))}")


def _staleness(stale: list[dict[str, str]] | None) -> str:
    if stale is None:
        return "nothing is indexed to compare them with"
    return f"{len(stale)} of them since changed or deleted" if stale else "all as they were"


def _line(values: dict[str, Any]) -> str:
    """Plain values as name=value; lists and tables by their size only."""
    shown = []
    for key, value in values.items():
        if isinstance(value, list | tuple):
            shown.append(f"{key}: {len(value)} values")
        elif isinstance(value, dict):
            shown.append(f"{key}: ({_line(value)})")
        else:
            shown.append(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}")
    return ", ".join(shown)
