"""The memory that one thread needs for its tokens of a prompt, kept between prompts: new memory comes page by page,
and that takes longer than the small products that would be written to it.

This module is imported by functions that need torch only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from indexer.rounding import Rounded
from tuner.llamaprompt import TOGETHER
from tuner.llamastep import Weights

NOTHING = np.empty((0, 0), np.float32)


class PromptRoom:
    """Room for what a thread computes of m tokens: PyTorch's tensors, and NumPy's arrays of the same memory."""

    def __init__(self, weights: Weights) -> None:
        self._widths = _Widths(
            weights.out.shape[2], weights.heads.shape[1], weights.out.shape[1], weights.down.shape[2]
        )
        self._for: RoomFor | None = None

    def of(self, tokens: int) -> RoomFor:
        """The room for so many tokens."""
        if self._for is None or self._for.tokens != tokens:
            self._for = RoomFor(self._widths, tokens)
        return self._for


class _Widths(NamedTuple):
    queries: int
    heads: int
    width: int
    inner: int


class RoomFor:
    """Room for so many tokens; the names say what is rounded, or what of."""

    def __init__(self, widths: _Widths, tokens: int) -> None:
        self.tokens = tokens
        queries, heads, width, inner = widths
        self.queries = torch.empty(tokens * queries)
        self._scores = torch.empty(0)
        self.flat, self.seen, self.inner = (Part(tokens, columns) for columns in (width, queries, inner))
        self.heads, self.fine = _whole(tokens, heads), _whole(tokens, heads - queries)
        self.out, self.gates, self.down = _whole(tokens, width), _whole(tokens, 2 * inner), _whole(2 * tokens, width)
        self.adapter = AdapterRoom()
        self.heads_rows, self.out_rows, self.gates_rows = (
            np.empty((TOGETHER, columns), np.float32) for columns in (heads, width, 2 * inner)
        )

    def scores(self, groups: int, rows: int, known: int) -> tuple[Tensor, Any]:
        """Room for scores (g, rows, n) and their totals (g, rows)."""
        size = groups * rows * known
        if len(self._scores) < size:
            self._scores = torch.empty(size)
        return self._scores[:size].view(groups, rows, known), np.empty((groups, rows), np.float32)


class AdapterRoom:
    """Room for the inner values of an adapter: whole numbers (m, n) as PyTorch has them, and floats as NumPy has."""

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], tuple[Tensor, Any]] = {}

    def of(self, tokens: int, columns: int) -> tuple[Tensor, Any]:
        """The room for so many."""
        shape = (tokens, columns)
        if shape not in self._kept:
            self._kept[shape] = (_whole(tokens, columns), np.empty(shape, np.float32))
        return self._kept[shape]


def _whole(rows: int, columns: int) -> Tensor:
    return torch.empty((rows, columns), dtype=torch.int32)


class Part:
    """Room for m rows that are rounded: `both` (2 m, n) are the coarse ones and then the rests."""

    def __init__(self, tokens: int, columns: int) -> None:
        self.floats = torch.empty((tokens, columns))
        self.both = torch.empty((2 * tokens, columns), dtype=torch.int8)
        self.coarse, self.rest = self.both[:tokens], self.both[tokens:]
        self.rounded = Rounded(
            self.floats.numpy(), self.coarse.numpy(), self.rest.numpy(), np.empty((tokens, 2), np.float32)
        )
