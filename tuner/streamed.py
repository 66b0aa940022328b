"""A model read into int8 layers one layer at a time: never more of it is in memory as floats than one layer.

Loaded whole, the bundled model takes 540 MB more for a second, and a model of two billion parameters 8 GB. This needs
files whose tensors are named as the model is built, as `save_pretrained` writes them for most families; a model whose
files need renaming or merging is loaded whole by the library first (tuner/basemodel.py) and comes out the same.
This module is imported by functions that need torch only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from indexer.freed import give_back
from tuner.int8 import Int8Head, int8_layer

_ONE_FILE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Weights that were packed since memory was given back last.
_FREED = 3_000_000


def load_streamed(folder: Path) -> Any | None:
    """The causal language model in `folder` with int8 layers, on the CPU; None when it has to be loaded whole.

    Raises OSError, ValueError or KeyError, as the library does, for a folder that holds no such model.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(folder, **local)
    with init_empty_weights():
        # Parameters are named and shaped, but take no memory; buffers, as for rotary positions, are computed.
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    files = files_by_tensor(folder)
    tied = set(getattr(model, "all_tied_weights_keys", {}))
    if set(files) != set(model.state_dict()) - tied:
        return None
    freed, tied_done = 0, False
    for path in _embeddings_first(model):
        if not (tied_done or isinstance(model.get_submodule(path), nn.Embedding)):
            # The largest product of all is packed while little else is in memory.
            model.tie_weights()
            _tied_to_int8(model, tied, files)
            tied_done = True
        module = model.get_submodule(path)
        parts = {f"{path}.{part}".lstrip("."): part for part in (*module._parameters, *module._buffers)}
        found = {parts[name]: value for name, value in read_tensors(files, parts)}
        if any(value.shape != getattr(module, part).shape for part, value in found.items()):
            return None
        is_linear = type(module) is nn.Linear and bool(found)
        for part, value in found.items():
            # What is packed, or read a few rows at a time, need not be copied out of the file's mapping.
            _put(module, part, value.to(torch.float32, copy=not isinstance(module, nn.Linear | nn.Embedding)))
        if is_linear:
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, int8_layer(module))
            freed += module.in_features * module.out_features
            if freed > _FREED:
                give_back()
                freed = 0
    give_back()
    if any(part.is_meta for part in (*model.parameters(), *model.buffers())):
        return None
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model


def _embeddings_first(model: nn.Module) -> list[str]:
    """Paths of all modules. Not the modules: a list of them would keep what is replaced."""
    return [path for path, _ in sorted(model.named_modules(), key=lambda pair: not isinstance(pair[1], nn.Embedding))]


def _tied_to_int8(model: nn.Module, tied: set[str], files: dict[str, Path]) -> None:
    """Replace the output layer, if its weights are those of an embedding that is there by now."""
    for name in sorted(tied):
        path = name.removesuffix(".weight")
        layer = model.get_submodule(path)
        if type(layer) is nn.Linear and not layer.weight.is_meta:
            parent, _, own = path.rpartition(".")
            setattr(model.get_submodule(parent), own, Int8Head(layer))
    _map_anew(model, files)
    give_back()


def files_by_tensor(folder: Path) -> dict[str, Path]:
    """The file that each tensor is in."""
    from safetensors import safe_open

    index = folder / _INDEX
    if not (folder / _ONE_FILE).is_file() and index.is_file():
        return {name: folder / file for name, file in json.loads(index.read_text("utf-8"))["weight_map"].items()}
    with safe_open(folder / _ONE_FILE, framework="pt") as file:
        return {name: folder / _ONE_FILE for name in file.keys()}  # noqa: SIM118  # it is not iterable


def read_tensors(files: dict[str, Path], names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors among `names` that the files hold. Each file is opened for itself: closing it frees its pages."""
    from safetensors import safe_open

    for name in names:
        if name in files:
            with safe_open(files[name], framework="pt") as file:
                yield name, file.get_tensor(name)


def _map_anew(model: nn.Module, files: dict[str, Path]) -> None:
    """Packing the output layer has brought all rows of the embedding into memory; an answer needs a few of them."""
    for path, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            for name, value in read_tensors(files, [f"{path}.weight"]):
                if value.dtype == module.weight.dtype:
                    model.get_parameter(name).data = value


def _put(module: nn.Module, part: str, value: Tensor) -> None:
    if part in module._parameters:
        module._parameters[part] = nn.Parameter(value, requires_grad=False)
    else:
        module._buffers[part] = value
