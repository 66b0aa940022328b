"""Adapters on a loaded base model: attached once, held by requests, switched on for a pass and off again.

An adapter is added beside the base weights and never merged into them, so switching it off gives back exactly the
outputs from before. PEFT gets a configuration that `verify_adapter` has checked and tensors read from safetensors;
it opens no file itself. An adapter that is replaced or removed stays until the requests that hold it have ended.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from tuner.adapters import WEIGHTS_FILE, read_adapter_config, verify_adapter
from tuner.basemodel import BaseModel
from tuner.quiet import quiet

# PEFT keys modules by adapter name and splits those keys at dots, which our names may contain.
_PREFIX = "tandem_"


class AttachedAdapters:
    """The adapters of one base model. Thread-safe, where `alone` gives the model to one thread.

    `alone` is entered for attaching and dropping; `switch` and `selected` are for who has the model already.
    """

    def __init__(
        self, base: BaseModel, alone: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext
    ) -> None:
        self._base = base
        self._alone = alone
        # Never held while waiting for the model.
        self._lock = threading.RLock()
        self._held: Counter[str] = Counter()  # key -> requests that it is used by
        self._retired: set[str] = set()  # keys that go when nobody holds them
        self._folders: dict[str, Path] = {}
        self._keys: dict[str, str] = {}  # name -> the key PEFT knows it by, once attached
        self._thresholds: dict[str, float | None] = {}
        self._identities: dict[str, str] = {}
        self._on: str | None = None  # the key that is switched on
        self._peft: Any = None
        self._layers: list[Any] | None = None  # those with adapters, once looked for
        self._count = 0

    def register(self, name: str, folder: Path) -> None:
        """Remember where `name` is; nothing is read before it is used."""
        self.unregister(name)
        with self._lock:
            self._folders[name] = folder

    def unregister(self, name: str) -> None:
        """Forget `name` and drop its tensors, once no request holds them."""
        with self._lock:
            self._folders.pop(name, None)
            key = self._keys.pop(name, None)
            if key is None:
                return
            self._retired.add(key)
            if self._held[key]:
                return
        with self._alone():
            self._drop_retired()

    @contextlib.contextmanager
    def held(self, name: str | None) -> Iterator[str | None]:
        """The key of the adapter `name`, attached until the block ends; None for None.

        The key is another one whenever the name is registered again.

        Raises TandemError (not_found) for a name that is not registered, and whatever verify_adapter raises.
        """
        if name is None:
            yield None
            return
        key = self._hold(name)
        try:
            yield key
        finally:
            with self._lock:
                self._held[key] -= 1

    def switch(self, key: str | None) -> None:
        """Switch the adapter of this key on in place of the one that is, or none. For who has the model to itself."""
        self._drop_retired()
        if key == self._on:
            return
        if self._base.compiled:
            self._base.compiled.use(key)
            self._on = key
            return
        layers = self._switched_layers()
        for layer in layers:
            layer._disable_adapters = key is None
            if key is not None:
                layer._active_adapter = [key]
        if not layers and key is None:
            self._peft.base_model.disable_adapter_layers()
        elif not layers:
            self._peft.base_model.enable_adapter_layers()
            self._peft.base_model.set_adapter(key, inference_mode=True)
        self._on = key

    def _switched_layers(self) -> list[Any]:
        """The layers to switch one by one; none where PEFT must do it, because an adapter replaced whole modules.

        PEFT also goes through the gradients of every tensor, which nothing here has: 20 ms, and this takes one.
        """
        if self._layers is None:
            from peft.tuners.tuners_utils import BaseTunerLayer
            from peft.utils.other import AuxiliaryTrainingWrapper

            modules = list(self._peft.modules())
            whole = any(isinstance(module, AuxiliaryTrainingWrapper) for module in modules)
            self._layers = [] if whole else [module for module in modules if isinstance(module, BaseTunerLayer)]
        return self._layers

    @contextlib.contextmanager
    def selected(self, name: str | None) -> Iterator[str | None]:
        """The adapter `name` held and switched on inside the block. Raises TandemError as `held` does."""
        with self.held(name) as key:
            self.switch(key)
            try:
                yield key
            finally:
                self.switch(None)

    def refusal_threshold(self, key: str | None) -> float | None:
        """From which doubt on the adapter refuses, or, for None, the base model where one was merged into it.

        None: as greedy decoding does. See tuner/refusing.py.
        """
        return self._base.refusal_threshold if key is None else self._thresholds.get(key)

    def identity(self, key: str | None) -> str | None:
        """A hash of the adapter's weights and settings: equal ones are equal adapters, in another process as well."""
        return None if key is None else self._identities[key]

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

    def _hold(self, name: str) -> str:
        with self._lock:
            key = self._keys.get(name)
            if key is not None:
                self._held[key] += 1
                return key
        with self._alone(), self._lock:
            key = self._keys.get(name) or self._attach(name)
            self._held[key] += 1
            return key

    def _drop_retired(self) -> None:
        with self._lock:
            for key in [key for key in self._retired if not self._held[key]]:
                self._retired.discard(key)
                for known in (self._held, self._thresholds, self._identities):
                    del known[key]
                self._drop(key)

    def _drop(self, key: str) -> None:
        if self._base.compiled:
            self._base.compiled.use(None)
            self._base.compiled.detach(key)
            self._on = None
        if self._peft is None or key not in self._peft.peft_config:
            return
        # PEFT warns when the one it deletes is the one chosen last, so nothing is chosen first.
        self._peft.base_model.set_adapter([], inference_mode=True)
        self._peft.delete_adapter(key)
        self._peft.base_model.disable_adapter_layers()
        self._on, self._layers = None, None

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
        from safetensors.torch import load_file

        settings, tensors = read_adapter_config(folder), load_file(folder / WEIGHTS_FILE)
        # A new key each time: a name may be registered again with other weights.
        self._count += 1
        key = f"{_PREFIX}{self._count}"
        # Plain LoRA needs no PEFT where the pass is compiled, and importing that takes longer than an answer.
        if not (self._base.compiled and self._base.compiled.take(key, settings, tensors)):
            self._attach_by_peft(name, key, settings, tensors)
        self._keys[name] = key
        self._thresholds[key] = card.refusal_threshold
        self._identities[key] = sha256((card.weights_sha256 + repr(sorted(settings.items()))).encode()).hexdigest()
        return key

    def _attach_by_peft(self, name: str, key: str, settings: dict[str, Any], tensors: dict[str, Any]) -> None:
        with quiet():
            from peft import LoraConfig, PeftModel, set_peft_model_state_dict

        config = LoraConfig(**settings)
        try:
            with quiet():
                if self._peft is None:
                    self._peft = PeftModel(self._base.model, config, adapter_name=key)
                else:
                    self._peft.add_adapter(key, config)
                result = set_peft_model_state_dict(self._peft, tensors, adapter_name=key)
        except (ValueError, RuntimeError, KeyError) as error:
            self._discard(key)
            raise _does_not_fit(name, str(error).strip().splitlines()[0]) from error
        missing = [entry for entry in result.missing_keys if f".{key}." in entry or entry.endswith(f".{key}")]
        if missing or result.unexpected_keys:
            self._discard(key)
            raise _does_not_fit(name, f"{len(missing)} tensors are missing, {len(result.unexpected_keys)} are unknown")
        self._peft.eval().requires_grad_(False)
        if self._base.compiled and not self._base.compiled.attach(key, self._peft):
            self._discard(key)
            problem = "with int8 weights on a CPU, only LoRA on attention and feed-forward layers does"
            raise _does_not_fit(name, problem, "Set `quantisation` to none, or tune it as plain LoRA.")
        if self._base.quantisation == "int8" and self._base.device == "cpu":
            from tuner.rowwise import sum_by_rows

            sum_by_rows(self._peft, key)
        # What is attached is on at first.
        self._peft.base_model.disable_adapter_layers()
        if self._base.compiled:
            self._base.compiled.use(None)
        self._on, self._layers = None, None

    def _discard(self, key: str) -> None:
        if self._peft is not None and key in self._peft.peft_config:
            self._drop(key)


def _does_not_fit(name: str, problem: str, do: str = "Tune it again on this base model.") -> TandemError:
    return TandemError(
        f"The adapter {name!r} does not fit the base model: {problem}.",
        expected="The LoRA tensors that its adapter_config.json describes, for this base model.",
        do=do,
        code="conflict",
    )
