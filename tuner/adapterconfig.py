"""adapter_config.json against an allow-list, before PEFT sees it.

Some of PEFT's settings import modules or load tokenizers that the file names (`auto_mapping`, `megatron_core`,
`tokenizer_kwargs`), and every release adds settings. So what is not listed here is refused unless it is switched
off; `base_model_name_or_path` is dropped, because the card says which base model is meant, by its hash.
Settings as of PEFT 0.21 (peft.LoraConfig).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from indexer.errors import TandemError


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 4096


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1e6


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _names(value: object) -> bool:
    # A single string would be a regular expression over module names, which can be made to never finish.
    if isinstance(value, str):
        return value == "all-linear"
    return isinstance(value, list) and all(isinstance(name, str) and len(name) <= 200 for name in value)


def _layers(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(layer, int) and 0 <= layer < 10_000 for layer in value)


# What may reach PEFT, and what each may be.
_ALLOWED: Mapping[str, Callable[[object], bool]] = {
    "r": _whole,
    "lora_alpha": _number,
    "lora_dropout": _number,
    "target_modules": _names,
    "exclude_modules": _names,
    "modules_to_save": _names,
    "layers_to_transform": _layers,
    "layers_pattern": _names,
    "use_rslora": _flag,
    "use_dora": _flag,
    "lora_bias": _flag,
    "fan_in_fan_out": _flag,
}
# Settings with a value that changes nothing here: read, compared, and dropped.
_DROPPED: Mapping[str, Callable[[object], bool]] = {
    "peft_type": lambda value: value == "LORA",
    "task_type": lambda value: value in ("CAUSAL_LM", None),
    "bias": lambda value: value == "none",
    "peft_version": lambda value: isinstance(value, str),
    "base_model_name_or_path": lambda value: isinstance(value, str),
    "revision": lambda value: isinstance(value, str),
    "inference_mode": _flag,
    # How the matrices began; they are loaded over. A string names a method, some of which load data.
    "init_lora_weights": _flag,
    "megatron_core": lambda value: value == "megatron.core",
    "qalora_group_size": _whole,
}


def check_adapter_config(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings of `values` that may reach PEFT. Raises TandemError naming the first that is not allowed."""
    if values.get("peft_type") != "LORA":
        raise _refused(where, "peft_type", "LORA")
    for required in ("r", "target_modules"):
        if not values.get(required):
            raise _refused(where, required, "a value")
    passed: dict[str, Any] = {}
    for key, value in values.items():
        if value is None or value is False or value in ({}, [], ""):
            continue
        check = _ALLOWED.get(key) or _DROPPED.get(key)
        if check is None or not check(value):
            raise _refused(where, key, "nothing" if check is None else "a plain value of its kind")
        if key in _ALLOWED:
            passed[key] = value
    return {**passed, "task_type": "CAUSAL_LM", "init_lora_weights": True}


def _refused(where: str, key: str, expected: str) -> TandemError:
    return TandemError(
        f"The setting {key!r} in {where} is not one that Tandem loads.",
        expected=f"A plain LoRA adapter; for {key!r}, {expected}.",
        do="Save the adapter without that setting.",
    )
