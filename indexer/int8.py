"""Matrices in int8 with one scale a row, and their products with int8 in whole numbers.

Processors without instructions for int8 (VNNI) add up pairs of such products in 16 bits, which overflows, so there the
whole numbers are multiplied as floats: the same result, more slowly.
This module is imported by functions that need torch only.

Notation: m rows (tokens), i in features, o out features.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

HAS_INT8_PRODUCTS = torch.cpu._is_vnni_supported()
_TINY = torch.finfo(torch.float32).tiny
# Rows that are made floats, or int8, at once.
_ROWS_AT_ONCE = 4096


def multiply(x: Tensor, values: Tensor, out: Tensor | None = None) -> Tensor:
    """The product of int8 (m, i) and the transpose of int8 (o, i) in int32 (m, o), into `out` if given."""
    if out is None:
        out = torch.empty((len(x), len(values)), dtype=torch.int32)
    if HAS_INT8_PRODUCTS:
        return torch._int_mm(x, values.t(), out=out)
    for start in range(0, len(values), _ROWS_AT_ONCE):
        # Float32 counts to 2^24, which sums of so few products hardly reach.
        out[:, start : start + _ROWS_AT_ONCE] = x.float() @ values[start : start + _ROWS_AT_ONCE].float().t()
    return out


def to_int8_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(o, i) float -> values (o, i) int8 and the scales (o,) of their rows: max |w| / 127."""
    # NumPy asks the system for large pages; reading the weights is what a step waits for (13.4 ms, not 16.6).
    values = torch.from_numpy(np.empty(tuple(weight.shape), np.int8))
    scales = torch.empty(len(weight))
    # In parts: the whole output layer as floats is the largest thing that was ever in memory.
    for start in range(0, len(weight), _ROWS_AT_ONCE):
        part = weight[start : start + _ROWS_AT_ONCE].float()
        scale = (part.abs().amax(dim=1) / 127).clamp_min(_TINY)
        values[start : start + _ROWS_AT_ONCE] = (part / scale[:, None]).round_()
        scales[start : start + _ROWS_AT_ONCE] = scale
    return values, scales
