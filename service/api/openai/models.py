"""Model names: each mode is one, and each adapter. GET /v1/models."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from service.api.openai.errors import RequestError
from tuner.adapters import list_adapters

AUTO = "tandem"
MODES = {
    AUTO: "auto",
    "tandem-base": "base",
    "tandem-tuned": "tuned",
    "tandem-rag": "rag",
    "tandem-rag-tuned": "rag+tuned",
}
# An adapter answers from passages, as it was trained to: tandem:NAME.
ADAPTER = "tandem:"


def read_model(home: Path, name: str) -> tuple[str, str | None]:
    """The mode and the adapter that a model name stands for. Raises RequestError (not_found)."""
    if name in MODES:
        return MODES[name], None
    adapter = name.removeprefix(ADAPTER)
    if name.startswith(ADAPTER) and any(card.name == adapter for card in list_adapters(home)):
        return "rag+tuned", adapter
    raise RequestError(
        "There is no such model.",
        expected=f"{', '.join(MODES)} or {ADAPTER}NAME with the name of an adapter.",
        do="GET /v1/models lists them.",
        code="not_found",
        param="model",
        named="model_not_found",
    )


def list_models(home: Path, started: int) -> list[dict[str, Any]]:
    """Every model as OpenAI describes one; `started` is the Unix time that stands for the modes."""
    adapters = [_model(f"{ADAPTER}{card.name}", _seconds(card.created, started)) for card in list_adapters(home)]
    return [*(_model(name, started) for name in MODES), *adapters]


def _model(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "tandem"}


def _seconds(created: str, otherwise: int) -> int:
    try:
        return int(datetime.fromisoformat(created).timestamp())
    except ValueError:
        return otherwise
