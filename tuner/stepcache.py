"""Keys and values of what the model has read, in memory that is there before they are.

The library's own cache joins two tensors a layer with every token: at 700 tokens of the bundled model that moves 30 MB
for each new one. Here the room for prompt and answer is taken at once and filled. Models whose layers keep something
else than all keys and values (sliding windows, states) get the library's cache, which cannot be taken back or copied.
This module is imported by functions that need torch only.

Notation: L layers, h heads of keys, n tokens, d dimensions of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from tuner.kept import Kept


class RoomyLayer(DynamicLayer):  # type: ignore[misc]  # transformers has no types
    """A layer of the cache that is as long as it will get; `keys` and `values` are views of the part that is filled."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._length = 0
        self._keys: Any = None
        self._values: Any = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add (1, h, n, d) keys and values; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self._length + key_states.shape[-2]
        if self._keys is None or end > self._keys.shape[-2]:
            self._room = max(self._room, end)
            self._keys, self._values = self._grown(self._keys, key_states), self._grown(self._values, value_states)
        self._keys[:, :, self._length : end] = key_states
        self._values[:, :, self._length : end] = value_states
        return self._show(end)

    def crop(self, tokens_to_remove: int) -> None:
        """Take back that many tokens (a number below zero, as the library has it)."""
        self._show(self._length - abs(tokens_to_remove))

    def _show(self, length: int) -> tuple[Tensor, Tensor]:
        self._length = length
        self.keys, self.values = self._keys[:, :, :length], self._values[:, :, :length]
        return self.keys, self.values

    def _grown(self, old: Tensor | None, like: Tensor) -> Tensor:
        room = like.new_empty((*like.shape[:2], self._room, like.shape[3]))
        if old is not None:
            room[:, :, : self._length] = old[:, :, : self._length]
        return room


class StepCache:
    """The cache of one request: read into by the model, taken back, copied from and joined to."""

    def __init__(self, config: Any, room: int) -> None:
        self.library: Any = DynamicCache(config=config)
        layers = self.library.layers
        # Anything but a plain layer keeps less than all keys and values.
        self.is_plain = bool(layers) and all(type(layer) is DynamicLayer for layer in layers)
        if self.is_plain:
            self.library.layers = [RoomyLayer(room) for _ in layers]

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return int(self.library.get_seq_length())

    def take_back(self, tokens: int) -> None:
        """Forget the last tokens. Only of a plain cache."""
        if tokens:
            for layer in self.library.layers:
                layer.crop(-tokens)

    @torch.inference_mode()
    def copy(self, start: int, end: int) -> Kept:
        """A copy of the keys and values of the tokens from `start` to `end`. Only of a plain cache."""
        layers = self.library.layers
        return Kept(
            torch.cat([layer.keys[:, :, start:end] for layer in layers]),
            torch.cat([layer.values[:, :, start:end] for layer in layers]),
        )

    @torch.inference_mode()
    def join(self, kept: Kept) -> None:
        """Go on as if its tokens had been read. Only of a plain cache."""
        for layer, keys, values in zip(self.library.layers, kept.keys, kept.values, strict=True):
            layer.update(keys[None], values[None])
