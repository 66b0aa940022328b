"""LoRA beside the int8 layers of a Llama, in the form that its compiled pass reads (tuner/llama.py).

This module is imported by functions that need torch only.

Notation: as in tuner/llamastep.py.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indexer.int8 import multiply
from tuner.llamamatrix import Matrix
from tuner.llamaprompt import Adapted, widen_inner
from tuner.llamaroom import NOTHING, AdapterRoom, Part
from tuner.llamastep import Adapter, Weights

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
FEED_FORWARD = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
# The matrices of a layer: queries, keys and values; the end of the attention; gate and up; the end.
HEADS, OUT, INNER, DOWN = range(4)


class Lora:
    """Room for an adapter of one rank, all zeros at first. `ready` is called when all of it is put."""

    def __init__(self, weights: Weights, rank: int = 0) -> None:
        layers, queries = len(weights.norms), weights.out.shape[2]
        groups, inner = (weights.heads.shape[1] - queries) // 2, weights.down.shape[2]
        sides = (weights.heads, weights.out, weights.inner, weights.down)
        # Where the blocks of each of the four matrices begin and end.
        ends = ((queries, groups, groups), (weights.out.shape[1],), (inner, inner), (weights.down.shape[1],))
        self.rank = rank
        self._bounds = tuple(np.array((0, *np.cumsum(some))) for some in ends)
        self._first = tuple(
            torch.from_numpy(np.zeros((layers, len(some) * rank, side.shape[2]), np.float32))
            for some, side in zip(ends, sides, strict=True)
        )
        self._second = tuple(torch.from_numpy(np.zeros((layers, rank, side.shape[1]), np.float32)) for side in sides)
        both = zip(self._first, self._second, strict=True)
        self.arrays = Adapter(*(part.numpy() for pair in both for part in pair))
        self._rounded: tuple[Matrix, ...] = ()

    def put(self, layer: int, number: int, first: Tensor, second: Tensor, factor: float) -> None:
        """Set the matrices (r, i) and (o, r) of a linear layer; `number` is its place in _PLACES."""
        matrix, block = _PLACES[number]
        rank, bounds = len(first), self._bounds[matrix]
        self._first[matrix][layer, block * self.rank : block * self.rank + rank] = first * factor
        self._second[matrix][layer, :rank, bounds[block] : bounds[block + 1]] = second.t()

    def ready(self) -> Lora:
        """Round the first matrices, for prompts, whose tokens are rounded anyway."""
        self._rounded = tuple(Matrix.of(first, len(first)) for first in self._first)
        return self

    def shapes(self, number: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Of the two matrices of the linear layer `number`."""
        matrix, block = _PLACES[number]
        start, end = self._bounds[matrix][block : block + 2]
        return (self.rank, self._first[matrix].shape[2]), (int(end - start), self.rank)

    def added(self, matrix: int, layer: int, part: Part, room: AdapterRoom) -> Adapted:
        """What the adapter adds to this matrix's product with what was rounded, m tokens."""
        second, bounds = self.arrays[2 * matrix + 1][layer], self._bounds[matrix]
        if self.rank == 0:
            return Adapted(NOTHING, second, bounds)
        first = self._rounded[matrix]
        whole, between = room.of(len(part.coarse), first.values.shape[1])
        multiply(part.coarse, first.values[layer], whole)
        widen_inner(first.product(layer, whole, None, part), between)
        return Adapted(between, second, bounds)


# Settings that plain LoRA has, or that say nothing about how it is computed.
_PLAIN = {"bias", "init_lora_weights", "lora_alpha", "lora_dropout", "r", "target_modules", "task_type", "use_rslora"}
# The matrix and the block in it of q, k, v, out, gate, up, down.
_PLACES = [(HEADS, 0), (HEADS, 1), (HEADS, 2), (OUT, 0), (INNER, 0), (INNER, 1), (DOWN, 0)]


def can_be_beside(peft_model: Any, key: str) -> bool:
    """Whether the adapter is LoRA on the linear layers of attention and feed-forward parts, and nothing else."""
    from peft.tuners.lora import Linear
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for path, module in peft_model.named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            return False
        if isinstance(module, BaseTunerLayer) and key in getattr(module, "lora_A", {}):
            is_known = path.endswith((*ATTENTION, *FEED_FORWARD)) and isinstance(module, Linear)
            if not is_known or key in module.lora_variant or module.lora_bias.get(key, False):
                return False
    return True


def read_lora(settings: dict[str, Any], tensors: dict[str, Tensor], weights: Weights) -> Lora | None:
    """The adapter of these files in PEFT's form; None when they are not plain LoRA on all layers of this model alike.

    What is None is left to PEFT, which knows more forms and says what does not fit. The factor is alpha / r, or
    alpha / sqrt(r) with rsLoRA (Kalajdzievski 2023, arXiv 2312.03732).
    """
    names, targets, rank = (*ATTENTION, *FEED_FORWARD), settings.get("target_modules"), settings["r"]
    is_more = settings.get("bias", "none") != "none" or any(
        value for key, value in settings.items() if key not in _PLAIN
    )
    if is_more or not isinstance(targets, list) or "lora_alpha" not in settings:
        return None
    numbers = [number for number, name in enumerate(names) if name.split(".")[1] in targets]
    places = [(layer, number) for layer in range(len(weights.norms)) for number in numbers]
    paths = {place: f"base_model.model.model.layers.{place[0]}.{names[place[1]]}.lora_" for place in places}
    wanted = {f"{path}{side}.weight" for path in paths.values() for side in "AB"}
    if len(numbers) != len(set(targets)) or wanted != set(tensors):
        return None
    lora = Lora(weights, rank)
    factor = settings["lora_alpha"] / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    for (layer, number), path in paths.items():
        first, second = tensors[f"{path}A.weight"], tensors[f"{path}B.weight"]
        if (first.shape, second.shape) != lora.shapes(number):
            return None
        lora.put(layer, number, first.float(), second.float(), factor)
    return lora.ready()


@torch.no_grad()
def lora_of(layers: Any, key: str, weights: Weights) -> Lora:
    """The adapter that PEFT attached to these layers as `key`. Matrices of smaller rank are filled up with zeros."""
    found: dict[tuple[int, int], Any] = {}
    for place, layer in enumerate(layers):
        for number, name in enumerate((*ATTENTION, *FEED_FORWARD)):
            module: Any = layer.get_submodule(name)
            if key in getattr(module, "lora_A", {}):
                found[place, number] = module
    rank = max((module.r[key] for module in found.values()), default=0)
    lora = Lora(weights, rank)
    for (place, number), module in found.items():
        lora.put(place, number, module.lora_A[key].weight, module.lora_B[key].weight, module.scaling[key])
    return lora.ready()
