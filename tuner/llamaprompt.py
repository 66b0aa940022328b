"""Between the products of a layer: the loops over many tokens of a prompt, each in one pass over memory.

Activations are rounded to int8, each token on a grid of its own from its lowest to its highest value,
x = middle + step (coarse + rest / 253), so W x = middle (row sums of W) + step W coarse + ... The rest is only kept for
what narrows (keys, values, the end of a feed-forward block): the former have the largest outliers, the latter are read
by every later token. Products of int8 with int8 are whole numbers, so they do not depend on the rows beside them.

Notation: as in tuner/llamastep.py; the m rows are those of one thread, `grids` (m, 2) are steps and middles.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tuner.kernels import TINY, compiled, normed, silu_times, turn

_HALF = np.float32(0.5)
# Of a step. The rest is at most half of one, so it fits into int8 whatever the last digit does.
_PARTS = np.float32(253)


@compiled
def _round(x: Any, coarse: Any, rest: Any, with_rest: bool, grid: Any) -> None:
    """One row (n,) to int8."""
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


class Rounded(NamedTuple):
    """What is multiplied, (m, n): as floats, in int8, and the grids of its rows."""

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
    added: Any  # an adapter's part


class Places(NamedTuple):
    """Where the tokens stand: at `first` and after it. cos and sin are those of all places, (places, d / 2)."""

    first: int
    cos: Any
    sin: Any


@compiled
def round_normed(x: Any, weight: Any, epsilon: Any, rounded: Rounded, with_rest: bool) -> None:
    """Norm x (m, D) and round it."""
    for token in range(x.shape[0]):
        normed(x[token], weight, epsilon, rounded.floats[token])
        _round(rounded.floats[token], rounded.coarse[token], rounded.rest[token], with_rest, rounded.grids[token])


@compiled
def _widen(product: Product, token: int, row: Any) -> None:
    """The floats of one token, into row (o,)."""
    step, middle = product.grids[token, 0], product.grids[token, 1]
    whole, sums, scales = product.whole[token], product.sums, product.scales
    for place in range(row.shape[0]):
        row[place] = (np.float32(whole[place]) * step + middle * sums[place]) * scales[place]
    start, part = row.shape[0] - product.fine.shape[1], step / _PARTS
    for place in range(product.fine.shape[1]):
        row[start + place] += np.float32(product.fine[token, place]) * part * scales[start + place]
    if product.added.shape[0]:
        added = product.added[token]
        for place in range(row.shape[0]):
            row[place] += added[place]


@compiled
def place_heads(product: Product, places: Places, row: Any, queries: Any, keys: Any, values: Any) -> None:
    """Products (m, (h + 2 g) d) -> queries (h, m, d), and keys and values in the cache (g, n, d).

    `row` is room for one token.
    """
    heads, tokens, size = queries.shape
    groups = keys.shape[0]
    for token in range(tokens):
        place = places.first + token
        _widen(product, token, row)
        for head in range(heads + groups):
            turn(row, head * size, size, places.cos[place], places.sin[place])
        by_head = row.reshape((heads + 2 * groups, size))
        queries[:, token] = by_head[:heads]
        keys[:, place] = by_head[heads : heads + groups]
        values[:, place] = by_head[heads + groups :]


@compiled
def round_seen(seen: Any, rounded: Rounded) -> None:
    """What the heads saw (h, m, d), one behind the other (m, h d) and rounded."""
    heads, tokens, size = seen.shape
    for token in range(tokens):
        floats = rounded.floats[token]
        for head in range(heads):
            floats[head * size : (head + 1) * size] = seen[head, token]
        _round(floats, rounded.coarse[token], rounded.rest[token], False, rounded.grids[token])


@compiled
def update(x: Any, product: Product, row: Any) -> None:
    """Add the product to x (m, D); `row` is room for one token."""
    for token in range(x.shape[0]):
        _widen(product, token, row)
        for place in range(row.shape[0]):
            x[token, place] += row[place]


@compiled
def round_product(product: Product, row: Any, rounded: Rounded) -> None:
    """Products (m, 2 F) of gate and up -> silu(gate) up, rounded. `row` is room for one token."""
    inner = rounded.floats.shape[1]
    bits = np.empty(inner, np.int32)
    for token in range(product.whole.shape[0]):
        _widen(product, token, row)
        silu_times(row[:inner], row[inner:], rounded.floats[token], bits)
        _round(rounded.floats[token], rounded.coarse[token], rounded.rest[token], True, rounded.grids[token])
