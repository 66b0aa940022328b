"""The int8 weights of a Llama in a file of their own: the next start reads them instead of rounding every weight again.

The file is named by the hash of the weights it was made of, and can be deleted at any time.
This module is imported by functions that need torch only.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indexer.freed import give_back
from tuner.llamamatrix import Matrix
from tuner.streamed import read_tensors

_LOG = logging.getLogger(__name__)
_MATRICES = ("heads", "out", "inner", "down")
_PARTS = ("values", "scales", "sums")
# Part of the name of a file; another number for another way of rounding.
_FORMAT = 1
# Of the free space of the disk: weights that would take more are rounded at each start.
_MOST_OF_FREE = 0.1


@dataclass(frozen=True, slots=True)
class Packed:
    """The matrices of all layers, and the output layer (V, D) in int8 with the scales (V,) of its rows."""

    heads: Matrix  # queries, keys and values, one behind the other
    out: Matrix
    inner: Matrix  # gate and up
    down: Matrix
    words: Any
    words_scales: Any


def packed_path(cache: Path, weights_sha256: str, config_sha256: str) -> Path:
    """Where the int8 weights of a model with these weights and this config.json are kept."""
    name = sha256(f"{weights_sha256} {config_sha256} {_FORMAT}".encode()).hexdigest()[:32]
    return cache / "int8" / f"{name}.safetensors"


def packed_at(path: Path, make: Callable[[], Packed]) -> Packed:
    """What the file holds; without one, what `make` gives, which is written for the next time if there is room."""
    try:
        if path.is_file():
            return _read(path)
    except (OSError, ValueError) as error:
        _LOG.warning("%s cannot be used and is made anew: %s", path, error)
    packed = make()
    try:
        _write(path, packed)
    except OSError as error:
        _LOG.info("The int8 weights are not kept for the next start: %s", error)
    return packed


def _tensors(packed: Packed) -> dict[str, Tensor]:
    found = {f"{name}.{part}": getattr(getattr(packed, name), part) for name in _MATRICES for part in _PARTS}
    found |= {"words": packed.words, "words_scales": packed.words_scales}
    return {name: torch.as_tensor(value) for name, value in found.items()}


def _write(path: Path, packed: Packed) -> None:
    from safetensors.torch import save_file

    tensors = _tensors(packed)
    path.parent.mkdir(parents=True, exist_ok=True)
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    if size > _MOST_OF_FREE * shutil.disk_usage(path.parent).free:
        raise OSError(f"they take {size >> 20} MiB, more than a tenth of the free space of {path.parent}")
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        save_file(tensors, fresh)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _read(path: Path) -> Packed:
    """Raises OSError or ValueError for a file that is not whole."""
    from safetensors import SafetensorError

    def read(name: str) -> Any:
        tensor = next(value for _, value in read_tensors({name: path}, [name]))
        # Not left mapped: NumPy asks the system for large pages, and reading the weights is what a step waits for.
        copy = np.empty(tuple(tensor.shape), np.int8 if tensor.dtype == torch.int8 else np.float32)
        np.copyto(copy, tensor.numpy())
        return copy

    def matrix(name: str) -> Matrix:
        values, scales, sums = (read(f"{name}.{part}") for part in _PARTS)
        return Matrix(torch.from_numpy(values), scales, sums)

    try:
        heads, out, inner, down = map(matrix, _MATRICES)
        packed = Packed(heads, out, inner, down, read("words"), read("words_scales"))
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    give_back()
    return packed
