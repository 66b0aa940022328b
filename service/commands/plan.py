"""tandem plan: how much memory each way of tuning takes, before any weights are fetched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from indexer.errors import TandemError
from service.commands.console import out, out_json
from tuner.memory import CARDS, METHODS, Memory, Method, Place, Workload, plan
from tuner.shapes import ModelShape, model_shape

_PARTS = ("weights", "gradients", "optimiser", "activations", "logits", "workspace", "runtime")


def run_plan(base_model: str, method: str, work: Workload, *, as_json: bool) -> dict[str, Any]:
    """Print the memory of one method, or of all. Raises TandemError for a method or a model that there is not."""
    methods = _methods(method)
    shape = model_shape(base_model)
    plans = [plan(shape, chosen, work) for chosen in methods]
    body = {
        "base_model": shape.name,
        "parameters": shape.parameters,
        "workload": asdict(work),
        "methods": {item.method: _body(item, shape) for item in plans},
    }
    if as_json:
        out_json(body)
    else:
        _show(shape, work, plans)
    return body


def chosen_place(device: str) -> Place:
    """The device to plan for. Raises TandemError for another than cuda and cpu."""
    if device == "cuda":
        return "cuda"
    if device == "cpu":
        return "cpu"
    raise TandemError(f"There is no device {device!r} to plan for.", expected="cuda or cpu.", do="Name one of them.")


def _methods(method: str) -> Sequence[Method]:
    chosen = [name for name in METHODS if method in (name, "all")]
    if not chosen:
        raise TandemError(
            f"There is no method {method!r}.", expected=f"{', '.join(METHODS)}, or all.", do="Name one of them."
        )
    return chosen


def _body(item: Memory, shape: ModelShape) -> dict[str, Any]:
    return {
        "trained_parameters": item.trained,
        "trained_share": round(item.trained / shape.parameters, 6),
        "bytes": {**{part: getattr(item, part) for part in _PARTS}, "total": item.total},
        "fits_gb": list(item.fits()),
    }


def _show(shape: ModelShape, work: Workload, plans: Sequence[Memory]) -> None:
    kept = "checkpointing" if work.checkpointing else "no checkpointing"
    place = "a GPU (bfloat16)" if work.place == "cuda" else "a CPU (float32)"
    out(f"{shape.name}: {shape.parameters / 1e6:,.0f} million parameters, {shape.layers} layers.")
    out(f"{work.batch} x {work.sequence} tokens a step, {work.answer} of each row learned, {kept}, on {place}. GB:")
    out(f"{'':10}" + "".join(f"{part:>12}" for part in _PARTS) + f"{'total':>9}")
    for item in plans:
        cells = "".join(f"{getattr(item, part) / 1e9:12.2f}" for part in _PARTS)
        out(f"{item.method:10}{cells}{item.total / 1e9:9.2f}")
    out()
    for item in plans:
        trained = f"trains {item.trained:,} parameters ({item.trained / shape.parameters:.2%})"
        out(f"{item.method:10}{trained}; {_where(item, work)}")


def _where(item: Memory, work: Workload) -> str:
    if work.place == "cpu":
        return f"needs {item.total / 1e9:.1f} GB of memory"
    fits = item.fits()
    return f"fits a GPU with {fits[0]} GB" if fits else f"more than one GPU with {CARDS[-1]} GB"
