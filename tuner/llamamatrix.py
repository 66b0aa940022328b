"""One matrix of every layer of a Llama in int8.

This module is imported by functions that need torch only.

Notation: as in tuner/llamastep.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indexer.freed import give_back
from indexer.int8 import to_int8_rows
from indexer.rounding import Product
from tuner.llamaroom import Part

_NO_FINE = np.empty((0, 0), np.int32)


@dataclass(frozen=True, slots=True)
class Matrix:
    """int8 values (L, o, i), the scales and the sums of their rows (L, o)."""

    values: Tensor
    scales: Any
    sums: Any

    @staticmethod
    def of(layers: Iterable[Tensor], count: int) -> Matrix:
        """From the (o, i) floats of so many layers, taken one after the other. Raises ValueError when there is none."""
        if not count:
            raise ValueError("the model has no layers")
        for number, floats in enumerate(layers):
            rounded, row_scales = to_int8_rows(floats)
            if number == 0:
                values = torch.from_numpy(np.empty((count, *rounded.shape), np.int8))
                scales, sums = torch.empty((2, count, len(rounded)))
            values[number], scales[number], sums[number] = rounded, row_scales, rounded.sum(dim=1)
        give_back()
        return Matrix(values, scales.numpy(), sums.numpy())

    def product(self, layer: int, whole: Tensor, fine: Tensor | None, rounded: Part) -> Product:
        """What came of multiplying it with what was rounded, for compiled code."""
        rest = _NO_FINE if fine is None else fine.numpy()
        return Product(whole.numpy(), rest, rounded.rounded.grids, self.sums[layer], self.scales[layer])
