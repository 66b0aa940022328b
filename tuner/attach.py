"""Adapters on a loaded base model: attached once, then switched on for a request and off again.

An adapter is added beside the base weights and never merged into them, so switching it off gives back exactly the
outputs from before. PEFT gets a configuration that `verify_adapter` has checked and tensors read from safetensors;
it opens no file itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from tuner.adapters import WEIGHTS_FILE, read_adapter_config, verify_adapter
from tuner.basemodel import BaseModel
from tuner.quiet import quiet

# PEFT keys modules by adapter name and splits those keys at dots, which our names may contain.
_PREFIX = "tandem_"


class AttachedAdapters:
    """The adapters of one base model. Not thread-safe: its owner holds the model's lock."""

    def __init__(self, base: BaseModel) -> None:
        self._base = base
        self._folders: dict[str, Path] = {}
        self._keys: dict[str, str] = {}  # name -> the key PEFT knows it by, once attached
        self._thresholds: dict[str, float | None] = {}
        self._peft: Any = None
        self._count = 0

    def register(self, name: str, folder: Path) -> None:
        """Remember where `name` is; nothing is read before it is used."""
        self.unregister(name)
        self._folders[name] = folder

    def unregister(self, name: str) -> None:
        """Forget `name` and drop its tensors."""
        self._folders.pop(name, None)
        key = self._keys.pop(name, None)
        if key is not None:
            self._drop(key)

    @contextlib.contextmanager
    def selected(self, name: str | None) -> Iterator[str | None]:
        """The base model with the adapter `name` switched on inside the block, or with none; gives its key.

        The key is another one whenever the name is registered again.

        Raises TandemError (not_found) for a name that is not registered, and whatever verify_adapter raises.
        """
        key = None
        if name is not None:
            key = self._keys.get(name) or self._attach(name)
            self._peft.base_model.enable_adapter_layers()
            self._peft.base_model.set_adapter(key, inference_mode=True)
        try:
            yield key
        finally:
            if name is not None:
                self._peft.base_model.disable_adapter_layers()

    def refusal_threshold(self, key: str | None) -> float | None:
        """From which probability of it on the adapter refuses (tuner/refusing.py); None: as greedy decoding does."""
        return None if key is None else self._thresholds.get(key)

    def merge(self, name: str) -> Any:
        """The base model with the weights of `name` added into its own, for good; nothing is attached afterwards.

        Raises TandemError as `selected` does, and when the sum is not finite.
        """
        with self.selected(name):
            pass
        try:
            with quiet():
                model = self._peft.merge_and_unload(safe_merge=True, adapter_names=[self._keys[name]])
        except ValueError as error:
            raise _does_not_fit(name, str(error).strip().splitlines()[0]) from error
        self._keys, self._peft = {}, None
        return model

    def _drop(self, key: str) -> None:
        # PEFT warns when the one it deletes is the one chosen last, so nothing is chosen first.
        self._peft.base_model.set_adapter([], inference_mode=True)
        self._peft.delete_adapter(key)
        self._peft.base_model.disable_adapter_layers()

    def _attach(self, name: str) -> str:
        folder = self._folders.get(name)
        if folder is None:
            raise TandemError(
                f"There is no adapter called {name!r}.",
                expected="One of: " + (", ".join(sorted(self._folders)) or "none is registered") + ".",
                do="Run `tandem adapters list`, or leave the adapter out.",
                code="not_found",
            )
        card = verify_adapter(folder, self._base)
        with quiet():
            from peft import LoraConfig, PeftModel, set_peft_model_state_dict
        from safetensors.torch import load_file

        config = LoraConfig(**read_adapter_config(folder))
        # A new key each time: a name may be registered again with other weights.
        self._count += 1
        key = f"{_PREFIX}{self._count}"
        try:
            with quiet():
                if self._peft is None:
                    self._peft = PeftModel(self._base.model, config, adapter_name=key)
                else:
                    self._peft.add_adapter(key, config)
                result = set_peft_model_state_dict(self._peft, load_file(folder / WEIGHTS_FILE), adapter_name=key)
        except (ValueError, RuntimeError, KeyError) as error:
            self._discard(key)
            raise _does_not_fit(name, str(error).strip().splitlines()[0]) from error
        missing = [entry for entry in result.missing_keys if f".{key}." in entry or entry.endswith(f".{key}")]
        if missing or result.unexpected_keys:
            self._discard(key)
            raise _does_not_fit(name, f"{len(missing)} tensors are missing, {len(result.unexpected_keys)} are unknown")
        self._peft.eval().requires_grad_(False)
        if self._base.quantisation == "int8" and self._base.device == "cpu":
            from tuner.rowwise import sum_by_rows

            sum_by_rows(self._peft, key)
        self._keys[name] = key
        self._thresholds[key] = card.refusal_threshold
        return key

    def _discard(self, key: str) -> None:
        if self._peft is not None and key in self._peft.peft_config:
            self._drop(key)


def _does_not_fit(name: str, problem: str) -> TandemError:
    return TandemError(
        f"The adapter {name!r} does not fit the base model: {problem}.",
        expected="The LoRA tensors that its adapter_config.json describes, for this base model.",
        do="Tune it again on this base model.",
        code="conflict",
    )
