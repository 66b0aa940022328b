"""The next tokens of several requests, read in one pass.

A step of an answer reads every weight once for a single token, and reading the weights is what takes the time: several
requests that step together share it (as in Orca, Yu et al. 2022, OSDI). Each token is a row of its own here, with one
position and no padding, so requests of any lengths go together, a draft of one beside a single token of another. Every
row's keys and values go to the cache of its own request, and it attends to that alone (tuner/rowwise.py).
With int8 weights on a CPU a row has, bit for bit, the results it has by itself.
This module is imported by functions that need torch only.

Notation: r rows, h heads of keys, n tokens, d dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tuner.basemodel import BaseModel
from tuner.decoding import Steps
from tuner.rowwise import attend_by_rows

# Of the largest logit: two ways to sum, in half precision; a model that reads something else is far from it.
_CLOSE = 5e-2


@dataclass(frozen=True, slots=True)
class Part:
    """What one request reads in a pass: `ids` after what is in `cache`."""

    cache: Any
    ids: Sequence[int]


class _SharedLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """One layer of the caches of several requests. For itself it keeps nothing, so masks take it for an empty one."""

    def __init__(self, owner: _SharedCache, layers: Sequence[Any], lengths: Sequence[int]) -> None:
        super().__init__()
        self._owner = owner
        self._layers = layers
        self._lengths = lengths

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Hand out (r, h, 1, d) keys and values, and note what each row sees."""
        seen, begin = [], 0
        for layer, length in zip(self._layers, self._lengths, strict=True):
            end = begin + length
            # (rows, h, 1, d) -> (1, h, rows, d)
            keys, values = layer.update(key_states[begin:end].transpose(0, 2), value_states[begin:end].transpose(0, 2))
            before = keys.shape[2] - length
            seen += [(keys[:, :, : before + row], values[:, :, : before + row]) for row in range(1, length + 1)]
            begin = end
        self._owner.seen = seen
        return key_states, value_states


class _SharedCache(DynamicCache):  # type: ignore[misc]
    """The caches of several requests, for one pass; `seen` is what the rows see in the layer updated last."""

    def __init__(self, parts: Sequence[Part]) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.layer_class_to_replicate = None
        lengths = [len(part.ids) for part in parts]
        self.layers = [
            _SharedLayer(self, layers, lengths)
            for layers in zip(*(part.cache.library.layers for part in parts), strict=True)
        ]


def read_together(base: BaseModel, parts: Sequence[Part]) -> list[Tensor]:
    """The logits that follow each id of each part: a (len(ids), vocabulary) tensor a part. Only of plain caches."""
    if base.compiled:
        return base.compiled.read_together([(part.cache, part.ids) for part in parts])
    ids = [token for part in parts for token in part.ids]
    places = [part.cache.length + place for part in parts for place in range(len(part.ids))]
    cache = _SharedCache(parts)
    with torch.inference_mode():
        output = base.model(
            input_ids=torch.tensor(ids, device=base.device)[:, None],
            position_ids=torch.tensor(places, device=base.device)[:, None],
            past_key_values=cache,
            use_cache=True,
            shared=cache,
        )
    return list(output.logits[:, 0].split([len(part.ids) for part in parts]))


def can_read_together(base: BaseModel) -> bool:
    """Whether several requests can share a pass of this model: tried on two, against reading them one by one."""
    if base.compiled:
        return True
    steps = [Steps(base, 8) for _ in range(4)]
    if not steps[0].cache.is_plain or not attend_by_rows(base.model):
        return False
    texts, then = [(3, 5, 4, 6), (5, 4)] * 2, [(4,), (6, 3)] * 2
    for each, text in zip(steps, texts, strict=True):
        each.read(text)
    alone = [each.read(ids, len(ids)) for each, ids in zip(steps[:2], then[:2], strict=True)]
    try:
        parts = [Part(each.cache, ids) for each, ids in zip(steps[2:], then[2:], strict=True)]
        together = read_together(base, parts)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        # Whatever a family of models does not take, its requests are read in turns.
        return False
    return all(
        one.shape == other.shape and bool((one - other).abs().max() <= _CLOSE * one.abs().max())
        for one, other in zip(alone, together, strict=True)
    )
