"""BERTs in int8 on a CPU, as embedding takes them: texts of any lengths one behind the other, nothing padded.

An embedder's work is products of many tokens with few weights, which processors with VNNI do four to five times as
fast in int8 as in float32; a batch goes through all layers in one thread. Weights come from the file as they are, so
transformers, which takes seconds to import, is not needed.
This module is imported by functions that need torch only.

Notation: m tokens of a batch, D width, F inner width, h heads, d dimensions of a head.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import local
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from indexer.bertloops import add_product, gelu_rows, norm_rows, round_rows, widen_rows
from indexer.freed import give_back
from indexer.int8 import multiply, to_int8_rows
from indexer.rounding import Product, Rounded

_NO_FINE = np.empty((0, 0), np.int32)
_NAMED = ("hidden_size", "intermediate_size", "max_position_embeddings", "num_attention_heads", "num_hidden_layers")


def fits(folder: Path) -> bool:
    """Whether the model in `folder` is a BERT that is computed here, by its settings."""
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return (
        config.get("model_type") == "bert"
        and config.get("hidden_act", "gelu") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and not config.get("is_decoder")
        and all(name in config for name in _NAMED)
    )


@dataclass(frozen=True, slots=True)
class _Linear:
    """A matrix (o, i) in int8, with the scales and the sums of its rows and the bias, (o,) each."""

    values: Tensor
    scales: Any
    sums: Any
    bias: Any

    def product(self, part: _Part, whole: Tensor) -> Product:
        """What was rounded times this matrix, in `whole` (m, o)."""
        multiply(part.coarse, self.values, whole)
        return Product(whole.numpy(), _NO_FINE, part.rounded.grids, self.sums, self.scales)


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Any
    bias: Any


@dataclass(frozen=True, slots=True)
class _Layer:
    heads: _Linear  # queries, keys and values: (3 D, D)
    out: _Linear
    after_heads: _Norm
    inner: _Linear
    down: _Linear
    after_down: _Norm


class Bert:
    """The encoder in a folder. Raises OSError, ValueError or KeyError when its weights are not those of a BERT."""

    def __init__(self, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        self.width, self._inner, self.places, self._heads, layers = (int(config[name]) for name in _NAMED)
        self._epsilon = np.float32(config.get("layer_norm_eps", 1e-12))
        with _tensors(folder) as tensor:
            self._layers = [_layer(tensor, f"encoder.layer.{number}.") for number in range(layers)]
            self._norm = _norm(tensor, "embeddings.LayerNorm.")
            first_type = tensor("embeddings.token_type_embeddings.weight")[0].float()
            self._places = tensor("embeddings.position_embeddings.weight").float() + first_type
        give_back()
        # Opened anew and left in the file: of its words only those that occur are ever read into memory.
        with _tensors(folder) as tensor:
            self._words = tensor("embeddings.word_embeddings.weight")
        self._rooms = local()

    def __call__(self, ids: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.float32], list[int]]:
        """The vectors (m, D) of the tokens of all texts, until this thread's next call, and where each text begins.

        The last of these is the end.
        """
        starts = np.cumsum([0, *map(len, ids)]).tolist()
        room = self._room_for(starts[-1])
        x = room.flat
        with torch.inference_mode():
            x.floats.copy_(self._words[torch.tensor([token for text in ids for token in text])])
            for start, end in pairwise(starts):
                x.floats[start:end] += self._places[: end - start]
            norm_rows(x.rounded, self._norm.weight, self._norm.bias, self._epsilon)
            for layer in self._layers:
                self._through(layer, room, starts)
        return x.rounded.floats, starts

    def _through(self, layer: _Layer, room: _Room, starts: Sequence[int]) -> None:
        x, seen, inner = room.flat, room.seen, room.inner
        widen_rows(layer.heads.product(x, room.heads), layer.heads.bias, room.heads_floats.numpy())
        for start, end in pairwise(starts):
            parts = room.heads_floats[start:end].view(end - start, 3, self._heads, -1).permute(1, 2, 0, 3)
            found = scaled_dot_product_attention(*(part[None] for part in parts))[0]
            seen.floats[start:end].view(end - start, self._heads, -1).copy_(found.transpose(0, 1))
        round_rows(seen.rounded)
        add_product(layer.out.product(seen, room.out), layer.out.bias, room.row, x.rounded.floats)
        norm_rows(x.rounded, layer.after_heads.weight, layer.after_heads.bias, self._epsilon)
        gelu_rows(layer.inner.product(x, room.gates), layer.inner.bias, inner.rounded)
        add_product(layer.down.product(inner, room.out), layer.down.bias, room.row, x.rounded.floats)
        norm_rows(x.rounded, layer.after_down.weight, layer.after_down.bias, self._epsilon)

    def _room_for(self, tokens: int) -> _Room:
        """This thread's room: new memory comes page by page, and that takes longer than to fill it."""
        room: _Room | None = getattr(self._rooms, "room", None)
        if room is None or room.tokens < tokens:
            room = self._rooms.room = _Room.empty(tokens, self.width, self._inner)
        return room.first(tokens)


class _Part:
    """Room for m rows that are rounded: PyTorch's tensors, and NumPy's arrays of the same memory."""

    def __init__(self, floats: Tensor, coarse: Tensor, grids: Tensor) -> None:
        self.floats, self.coarse, self._grids = floats, coarse, grids
        # Nothing is kept of what rounding takes away, so the place for it is never written to.
        self.rounded = Rounded(floats.numpy(), coarse.numpy(), coarse.numpy(), grids.numpy())

    @staticmethod
    def empty(tokens: int, columns: int) -> _Part:
        shape = (tokens, columns)
        return _Part(torch.empty(shape), torch.empty(shape, dtype=torch.int8), torch.empty((tokens, 2)))

    def first(self, tokens: int) -> _Part:
        return _Part(self.floats[:tokens], self.coarse[:tokens], self._grids[:tokens])


@dataclass(frozen=True, slots=True)
class _Room:
    """Room for what one thread computes of m tokens; products are int32."""

    flat: _Part  # (m, D)
    seen: _Part
    inner: _Part  # (m, F)
    heads: Tensor  # (m, 3 D)
    heads_floats: Tensor
    out: Tensor  # (m, D)
    gates: Tensor  # (m, F)
    row: Any  # (D,)

    @property
    def tokens(self) -> int:
        return len(self.out)

    @staticmethod
    def empty(tokens: int, width: int, inner: int) -> _Room:
        flat, seen, gelu = (_Part.empty(tokens, columns) for columns in (width, width, inner))
        heads, out, gates = (torch.empty((tokens, columns), dtype=torch.int32) for columns in (3 * width, width, inner))
        return _Room(flat, seen, gelu, heads, torch.empty(heads.shape), out, gates, np.empty(width, np.float32))

    def first(self, tokens: int) -> _Room:
        flat, seen, inner = (part.first(tokens) for part in (self.flat, self.seen, self.inner))
        heads, floats, out, gates = (each[:tokens] for each in (self.heads, self.heads_floats, self.out, self.gates))
        return _Room(flat, seen, inner, heads, floats, out, gates, self.row)


@contextmanager
def _tensors(folder: Path) -> Iterator[Callable[[str], Tensor]]:
    """What gives a tensor of the encoder by its name; it may be part of a larger model."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        prefix = "" if "embeddings.LayerNorm.weight" in names else "bert."

        def tensor(name: str) -> Tensor:
            if prefix + name not in names:
                raise KeyError(f"model.safetensors has no {prefix}{name}")
            return file.get_tensor(prefix + name)  # type: ignore[no-any-return]

        yield tensor


def _layer(tensor: Callable[[str], Tensor], prefix: str) -> _Layer:
    def linear(*names: str) -> _Linear:
        values, scales = to_int8_rows(torch.cat([tensor(f"{prefix}{name}.weight") for name in names]))
        bias = torch.cat([tensor(f"{prefix}{name}.bias") for name in names]).float()
        return _Linear(values, scales.numpy(), values.sum(dim=1, dtype=torch.float32).numpy(), bias.numpy())

    return _Layer(
        linear("attention.self.query", "attention.self.key", "attention.self.value"),
        linear("attention.output.dense"),
        _norm(tensor, f"{prefix}attention.output.LayerNorm."),
        linear("intermediate.dense"),
        linear("output.dense"),
        _norm(tensor, f"{prefix}output.LayerNorm."),
    )


def _norm(tensor: Callable[[str], Tensor], prefix: str) -> _Norm:
    return _Norm(tensor(f"{prefix}weight").float().numpy(), tensor(f"{prefix}bias").float().numpy())
