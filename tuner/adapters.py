"""Adapters on disk: a folder with safetensors, adapter_config.json and card.json, checked before anything loads it.

An adapter is only right for the base model, the tokenizer and the prompt that it was trained with; with others it
answers badly and nothing crashes. So its card names all three and a mismatch is refused, each by its name.
A folder may come from elsewhere: its configuration is checked against an allow-list (tuner/adapterconfig.py) first.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from indexer.folders import file_sha256, write_file
from tuner.adapterconfig import check_adapter_config
from tuner.basemodel import BaseModel
from tuner.encoders import NAME, named_folder
from tuner.prompt import PROMPT_FINGERPRINT

WEIGHTS_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
CARD_FILE = "card.json"
# The name of the adapter that comes with the package; no adapter of a home folder may have it.
DEFAULT_ADAPTER = "default"

_DEFAULT_FOLDER = Path(__file__).parent / "default"
_LOG = logging.getLogger(__name__)
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".py"}
# A LoRA of rank 64 on every linear layer of an 8B model is about 0.7 GB in float32.
_MOST_BYTES = 2 << 30
_MOST_JSON_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class AdapterCard:
    """What an adapter was made from and for. `documents` lists {"id", "path", "hash"} of what it was trained on.

    From a doubt of `refusal_threshold` on (tuner/refusing.py) it refuses; None: whenever a refusal begins likeliest.
    """

    name: str
    base_model: str
    base_sha256: str
    tokenizer_sha256: str
    prompt_fingerprint: str
    recipe: Mapping[str, Any]
    created: str
    weights_sha256: str = ""
    documents: tuple[Mapping[str, str], ...] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    refusal_threshold: float | None = None


def has_default() -> bool:
    """Whether this copy of the package carries the default adapter."""
    return (_DEFAULT_FOLDER / CARD_FILE).is_file()


def adapter_path(home: Path, name: str) -> Path:
    """Where the adapter `name` lives: under `home`, and the default one in the package.

    Raises TandemError for a name that could leave that folder.
    """
    folder = named_folder(home / "adapters", name, "an adapter")
    return _DEFAULT_FOLDER if name == DEFAULT_ADAPTER else folder


def list_adapters(home: Path) -> list[AdapterCard]:
    """The default adapter's card, then those under `home` by name. A folder without one is logged and left out."""
    cards = [read_card(_DEFAULT_FOLDER)] if has_default() else []
    for folder in sorted((home / "adapters").glob("*/")):
        if NAME.fullmatch(folder.name) is None or folder.name == DEFAULT_ADAPTER:
            continue
        try:
            cards.append(replace(read_card(folder), name=folder.name))
        except TandemError as error:
            _LOG.warning("%s", error)
    return cards


def read_card(folder: Path) -> AdapterCard:
    """The card in `folder`. Raises TandemError (not_found) without one, (invalid_request) when it is not a card."""
    values = _read_json(folder / CARD_FILE)
    known = {item.name for item in fields(AdapterCard)}
    texts = ("name", "base_model", "base_sha256", "tokenizer_sha256", "prompt_fingerprint", "created", "weights_sha256")
    if not all(isinstance(values.get(key), str) for key in texts) or not isinstance(values.get("documents"), list):
        raise _damaged(folder / CARD_FILE, "is not an adapter card")
    threshold = values.get("refusal_threshold")
    if threshold is not None and not (isinstance(threshold, float | int) and 0 <= threshold <= 1):
        raise _damaged(folder / CARD_FILE, "has a refusal_threshold that is no share from 0 to 1")
    return AdapterCard(**{**{k: v for k, v in values.items() if k in known}, "documents": tuple(values["documents"])})


def save_card(folder: Path, card: AdapterCard) -> AdapterCard:
    """Write `card` beside the weights in `folder`, with their SHA-256 filled in; returns it as written."""
    whole = replace(card, weights_sha256=file_sha256(folder / WEIGHTS_FILE))
    write_file(folder / CARD_FILE, json.dumps(asdict(whole), indent=1, ensure_ascii=False).encode())
    return whole


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The checked settings of adapter_config.json, only those that may reach PEFT. Raises TandemError."""
    return check_adapter_config(_read_json(folder / CONFIG_FILE), str(folder / CONFIG_FILE))


def verify_adapter(path: Path, base: BaseModel) -> AdapterCard:
    """The card of the adapter in `path`, after every check that needs no model: it may be attached to `base`.

    Raises TandemError: (not_found) a file is missing, (invalid_request) a pickle, an oversized or damaged file or a
    setting that is not allowed, (conflict) another base model, tokenizer or prompt, or one int8 cannot carry.
    """
    for entry in path.iterdir() if path.is_dir() else ():
        if entry.suffix.lower() in _PICKLES:
            raise _damaged(entry, "is a pickle or code, which could run when loaded")
    weights = path / WEIGHTS_FILE
    if not weights.is_file():
        raise _missing(weights)
    if weights.stat().st_size > _MOST_BYTES:
        raise _damaged(weights, f"is larger than {_MOST_BYTES >> 30} GiB")
    config = read_adapter_config(path)
    card = read_card(path)
    if card.weights_sha256 != file_sha256(weights):
        raise _damaged(weights, "is not the file that its card describes")
    _check_match(path.name, card, base)
    needs_floats = [key for key in ("use_dora", "modules_to_save", "lora_bias") if config.get(key)]
    if base.quantisation == "int8" and base.device == "cpu" and needs_floats:
        raise TandemError(
            f"The adapter {path.name!r} uses {', '.join(needs_floats)}, which int8 layers on a CPU cannot carry.",
            expected="Plain LoRA, or a base model that is not int8.",
            do='Set quantisation to "none".',
            code="conflict",
        )
    return card


def _check_match(name: str, card: AdapterCard, base: BaseModel) -> None:
    again = "Use an adapter that was tuned with this version, or answer without one: `tandem adapters deactivate`."
    checks = (
        ("base model", card.base_sha256, base.sha256, f"Set base_model back to {card.base_model}, or deactivate it."),
        ("tokenizer", card.tokenizer_sha256, base.tokenizer_sha256, again),
        ("prompt", card.prompt_fingerprint, PROMPT_FINGERPRINT, again),
    )
    for what, trained, served, do in checks:
        if trained != served:
            raise TandemError(
                f"The adapter {name!r} was trained with another {what} ({trained[:12]}).",
                expected=f"The {what} that is served ({served[:12]}, base model {base.name}).",
                do=do,
                code="conflict",
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MOST_JSON_BYTES:
            raise _damaged(path, f"is larger than {_MOST_JSON_BYTES >> 20} MiB")
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _missing(path) from None
    except (ValueError, RecursionError, OSError):
        raise _damaged(path, "is not JSON that can be read") from None
    if not isinstance(values, dict):
        raise _damaged(path, "is not a JSON object")
    return values


def _missing(path: Path) -> TandemError:
    return TandemError(
        f"The adapter folder {path.parent} has no {path.name}.",
        expected=f"{WEIGHTS_FILE}, {CONFIG_FILE} and {CARD_FILE}, as the tuner writes them.",
        do="Run `tandem adapters list` for the ones that are whole.",
        code="not_found",
    )


def _damaged(path: Path, problem: str) -> TandemError:
    return TandemError(
        f"The adapter file {path} {problem}.",
        expected="An adapter as the tuner writes it: safetensors and two JSON files.",
        do="Do not use it; tune it again, or copy it again from where it came.",
    )
