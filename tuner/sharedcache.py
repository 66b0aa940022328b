"""The caches of several requests in one pass of the library's model.

Each token is a row of its own, with one position and no padding, so requests of any lengths go together, a draft of one
beside a single token of another. Every row's keys and values go to the cache of its own request, and it attends to that
alone (tuner/rowwise.py).
This module is imported by functions that need torch only.

Notation: r rows, h heads of keys, n tokens, d dimensions of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tuner.basemodel import BaseModel
from tuner.together import Part


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


def read_by_rows(base: BaseModel, parts: Sequence[Part]) -> list[Tensor]:
    """As read_together, by the model of the library."""
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
