"""A Llama's files -> int8 weights in the form that its compiled pass reads, one layer after the other.

The library's model is not made: importing what makes it takes two seconds of a start, and nothing of it is needed but
for adapters that are not plain LoRA (tuner/attach.py). Of the model as floats never more than a layer is in
memory.
This module is imported by functions that need torch only.

Notation: as in tuner/llamastep.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indexer.freed import give_back
from indexer.int8 import to_int8_rows
from tuner.llamalora import ATTENTION, FEED_FORWARD
from tuner.llamamatrix import Matrix
from tuner.packed import Packed, packed_at
from tuner.streamed import files_by_tensor, read_tensors

_NORMS = ("input_layernorm", "post_attention_layernorm")


@dataclass(frozen=True, slots=True)
class LlamaParts:
    """What a Llama is made of. Keys and queries are turned by `frequencies` (d / 2,)."""

    int8: Packed
    norms: Any  # (L, 2, D)
    norm: Any  # (D,)
    embedding: Tensor  # (V, D), as it lies in the file
    is_tied: bool
    groups: int
    window: int
    epsilon: float
    frequencies: Tensor


@dataclass(frozen=True, slots=True)
class _Form:
    """What config.json says of a Llama."""

    layers: int
    width: int
    inner: int
    heads: int
    groups: int
    size: int
    words: int
    window: int
    epsilon: float
    is_tied: bool
    rope: Mapping[str, Any]


def read_llama(folder: Path, packed: Path) -> LlamaParts | None:
    """The Llama in `folder`; None when it is another model, or has parts that the compiled pass has not.

    `packed` is the file for its int8 weights (tuner/packed.py), read when it is there and written when not.

    Raises OSError, ValueError or KeyError, as the library does, for files that are not what config.json says.
    """
    form = _form(json.loads((folder / "config.json").read_text("utf-8")))
    if form is None:
        return None
    files, shapes = files_by_tensor(folder), _shapes(form)
    optional = {"lm_head.weight"} if form.is_tied else set()
    if set(files) - optional != set(shapes) - optional:
        return None

    def read(name: str) -> Tensor:
        tensor: Tensor = next(value for _, value in read_tensors(files, [name]))
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(f"{name} has the shape {tuple(tensor.shape)}, not {shapes[name]}")
        return tensor

    layers = [f"model.layers.{number}." for number in range(form.layers)]

    def pack() -> Packed:
        # The largest product of all is packed while little else is in memory.
        words, scales = to_int8_rows(read("model.embed_tokens.weight" if form.is_tied else "lm_head.weight"))
        give_back()
        kinds = (ATTENTION[:3], ATTENTION[3:], FEED_FORWARD[:2], FEED_FORWARD[2:])
        heads, out, inner, down = (_joined(read, layers, names) for names in kinds)
        return Packed(heads, out, inner, down, words.numpy(), scales.numpy())

    norms = [[read(f"{layer}{name}.weight").float().numpy() for name in _NORMS] for layer in layers]
    return LlamaParts(
        int8=packed_at(packed, pack),
        norms=np.stack([np.stack(pair) for pair in norms]),
        norm=read("model.norm.weight").float().numpy().copy(),
        # Opened anew, after all of it was read: of its rows only those that occur are in memory then.
        embedding=read("model.embed_tokens.weight"),
        is_tied=form.is_tied,
        groups=form.groups,
        window=form.window,
        epsilon=form.epsilon,
        frequencies=_frequencies(form),
    )


def _form(config: Mapping[str, Any]) -> _Form | None:
    """What the settings come to, with the library's defaults; None when the compiled pass is not theirs."""
    if config.get("model_type") != "llama" or config.get("hidden_act", "silu") != "silu":
        return None
    older = {"rope_theta": config.get("rope_theta", 10000.0)} | (config.get("rope_scaling") or {})
    rope = config.get("rope_parameters") or older
    form = _Form(
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        inner=config["intermediate_size"],
        heads=config["num_attention_heads"],
        groups=config.get("num_key_value_heads") or config["num_attention_heads"],
        size=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
        words=config["vocab_size"],
        window=config.get("max_position_embeddings", 2048),
        epsilon=config.get("rms_norm_eps", 1e-6),
        is_tied=bool(config.get("tie_word_embeddings", False)),
        rope=rope,
    )
    is_more = config.get("attention_bias") or config.get("mlp_bias") or rope.get("partial_rotary_factor", 1) != 1
    return None if is_more or _rotation(rope) not in ("default", "linear", "llama3") else form


def _rotation(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type", rope.get("type", "default")))


def _shapes(form: _Form) -> dict[str, tuple[int, ...]]:
    """The tensors of such a model and their shapes."""
    width, inner = form.width, form.inner
    queries, keys = form.heads * form.size, form.groups * form.size
    sides = ((queries, width), (keys, width), (keys, width), (width, queries), (inner, width), (inner, width))
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (form.words, width),
        "lm_head.weight": (form.words, width),
        "model.norm.weight": (width,),
    }
    for number in range(form.layers):
        layer = f"model.layers.{number}."
        for name, shape in zip((*ATTENTION, *FEED_FORWARD), (*sides, (width, inner)), strict=True):
            shapes[f"{layer}{name}.weight"] = shape
        shapes |= {f"{layer}{name}.weight": (width,) for name in _NORMS}
    return shapes


def _joined(read: Callable[[str], Tensor], layers: Sequence[str], names: Sequence[str]) -> Matrix:
    """These weights of every layer, one behind the other."""
    floats = (torch.cat([read(f"{layer}{name}.weight") for name in names]) for layer in layers)
    return Matrix.of(floats, len(layers))


def _frequencies(form: _Form) -> Tensor:
    """(d / 2,) angles that a place is turned by (Su et al. 2021, arXiv 2104.09864).

    "linear" divides all of them (Chen et al. 2023, arXiv 2306.15595); Llama 3.1 leaves those of short waves, divides
    those of long ones, and goes over from one to the other between (Grattafiori et al. 2024, arXiv 2407.21783).
    """
    exponents = torch.arange(0, form.size, 2, dtype=torch.int64).float() / form.size
    frequencies: Tensor = 1.0 / (form.rope["rope_theta"] ** exponents)
    if _rotation(form.rope) == "default":
        return frequencies
    slower: Tensor = frequencies / form.rope["factor"]
    if _rotation(form.rope) == "linear":
        return slower
    low, high = form.rope["low_freq_factor"], form.rope["high_freq_factor"]
    waves = form.rope["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    share = ((waves - low) / (high - low)).clamp(0, 1)
    mixed: Tensor = share * frequencies + (1 - share) * slower
    return mixed
