"""Keys and values of one request to a Llama, in memory that compiled code writes to.

This module is imported by functions that need torch only.

Notation: as in tuner/llamastep.py; g heads of keys.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tuner.kept import Kept


class LlamaCache:
    """Keys and values of one request, (L, g, room, d) each; grows when it must. As StepCache."""

    is_plain = True

    def __init__(self, shape: tuple[int, int, int], room: int) -> None:
        self.length = 0
        self._shape = shape
        self.keys, self.values = self._empty(room), self._empty(room)

    def _empty(self, room: int) -> Tensor:
        layers, groups, size = self._shape
        return torch.from_numpy(np.empty((layers, groups, room, size), np.float32))

    @property
    def room(self) -> int:
        """Tokens that fit."""
        return self.keys.shape[2]

    def make_room(self, tokens: int) -> None:
        """Have room for so many more."""
        if self.length + tokens > self.room:
            keys, values = self._empty(self.length + tokens), self._empty(self.length + tokens)
            keys[:, :, : self.length] = self.keys[:, :, : self.length]
            values[:, :, : self.length] = self.values[:, :, : self.length]
            self.keys, self.values = keys, values

    def take_back(self, tokens: int) -> None:
        """Forget the last tokens."""
        self.length -= tokens

    def copy(self, start: int, end: int) -> Kept:
        """A copy of the keys and values of the tokens from `start` to `end`."""
        with torch.inference_mode():
            return Kept(self.keys[:, :, start:end].clone(), self.values[:, :, start:end].clone())

    def join(self, kept: Kept) -> None:
        """Go on as if its tokens had been read."""
        tokens = kept.keys.shape[2]
        self.make_room(tokens)
        with torch.inference_mode():
            self.keys[:, :, self.length : self.length + tokens] = kept.keys
            self.values[:, :, self.length : self.length + tokens] = kept.values
        self.length += tokens
