"""Products of int8 with int8 and the floats on both sides of them, one row (token) after the other.

Activations are rounded to int8, each row on a grid of its own from its lowest to its highest value,
x = middle + step (coarse + rest / 253), so W x = middle (row sums of W) + step W coarse + ... What is worth a second
product also keeps the rest. Products of int8 with int8 are whole numbers, so they do not depend on rows beside them.
This module is imported by functions that need Numba only.

Notation: m rows, i in features, o out features; `grids` (m, 2) are steps and middles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from indexer.compiled import TINY, compiled

_HALF = np.float32(0.5)
# Of a step. The rest is at most half of one, so it fits into int8 whatever the last digit does.
_PARTS = np.float32(253)


class Rounded(NamedTuple):
    """What is multiplied, (m, i): as floats, in int8, and the grids of its rows."""

    floats: Any
    coarse: Any
    rest: Any
    grids: Any


class Product(NamedTuple):
    """What came of it: whole numbers (m, o), those of the rests for the last columns, and what makes floats of them."""

    whole: Any
    fine: Any  # (m, columns that have a rest)
    grids: Any
    sums: Any  # (o,), of the rows of the weights
    scales: Any


@compiled
def round_row(rounded: Rounded, token: int, with_rest: bool) -> None:
    """The floats of one row to int8."""
    x, coarse, rest, grid = rounded.floats[token], rounded.coarse[token], rounded.rest[token], rounded.grids[token]
    low, high = x[0], x[0]
    for place in range(x.shape[0]):
        low, high = min(low, x[place]), max(high, x[place])
    middle = (low + high) * _HALF
    step = max((high - low) / np.float32(254), TINY)
    grid[0], grid[1] = step, middle
    factor = np.float32(1) / step
    if not with_rest:
        for place in range(x.shape[0]):
            coarse[place] = np.int8(np.floor((x[place] - middle) * factor + _HALF))
        return
    for place in range(x.shape[0]):
        value = (x[place] - middle) * factor
        whole = np.floor(value + _HALF)
        coarse[place] = np.int8(whole)
        rest[place] = np.int8(np.floor((value - whole) * _PARTS + _HALF))


@compiled
def widen(product: Product, token: int, row: Any) -> None:
    """The floats of one row of a product, into row (o,)."""
    step, middle = product.grids[token, 0], product.grids[token, 1]
    whole, sums, scales = product.whole[token], product.sums, product.scales
    for place in range(row.shape[0]):
        row[place] = (np.float32(whole[place]) * step + middle * sums[place]) * scales[place]
    start, part = row.shape[0] - product.fine.shape[1], step / _PARTS
    for place in range(product.fine.shape[1]):
        row[start + place] += np.float32(product.fine[token, place]) * part * scales[start + place]
