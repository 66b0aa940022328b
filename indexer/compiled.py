"""Loops that Numba makes machine code of, for what PyTorch takes many small calls for.

Compiled at first use and kept in Numba's cache, for the processor they run on. None of them holds the interpreter's
lock, so threads run them side by side.
This module is imported by functions that need Numba only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])
TINY = np.float32(1.1754944e-38)
_LOG2_E, _LN_2_HIGH, _LN_2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
_SMALLEST = np.float32(-87.0)


def compiled(function: Function) -> Function:
    """The function as machine code, kept in a file where one can be written; its types are those of its first call."""
    # Sums in any order, and no heed of minus zero; what is not a number stays so.
    options: Any = {"nogil": True, "fastmath": {"reassoc", "nsz", "arcp", "contract"}}
    try:
        return cast(Function, njit(cache=True, **options)(function))
    except RuntimeError:
        # Neither this package's folder nor the user's cache can be written: it is compiled at every start.
        return cast(Function, njit(**options)(function))


@compiled
def dot(one: Any, other: Any) -> Any:
    """The product of two rows (n,) of floats."""
    total = np.float32(0)
    for place in range(one.shape[0]):
        total += one[place] * other[place]
    return total


@compiled
def exponentials(x: Any, size: int, top: Any, bits: Any) -> Any:
    """Make x[:size] exp(x - top), to float32's last digits; returns their sum. `bits` is room, int32.

    By Cody and Waite's reduction to [-ln 2 / 2, ln 2 / 2] and the polynomial of Cephes' expf, because the loop over the
    library's exp is not turned into vector instructions.
    """
    for place in range(size):
        value = max(x[place] - top, _SMALLEST)
        exponent = np.floor(value * _LOG2_E + np.float32(0.5))
        value = value - exponent * _LN_2_HIGH - exponent * _LN_2_LOW
        series = np.float32(1.9875691500e-4) * value + np.float32(1.3981999507e-3)
        series = series * value + np.float32(8.3334519073e-3)
        series = series * value + np.float32(4.1665795894e-2)
        series = series * value + np.float32(1.6666665459e-1)
        series = series * value + np.float32(5.0000001201e-1)
        x[place] = series * value * value + value + np.float32(1)
        bits[place] = np.int32(np.int32(exponent) + np.int32(127)) << np.int32(23)
    powers, total = bits.view(np.float32), np.float32(0)
    for place in range(size):
        value = x[place] * powers[place]
        x[place] = value
        total += value
    return total
