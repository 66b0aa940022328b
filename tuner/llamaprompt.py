"""Between the products of a layer: the loops over many tokens of a prompt, each in one pass over memory.

Activations are rounded to int8 (indexer/rounding.py). The rest is only kept for what narrows (keys, values, the end of
a feed-forward block): the former have the largest outliers, the latter are read by every later token.

Notation: as in tuner/llamastep.py; the m rows are those of one thread.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from indexer.compiled import compiled
from indexer.rounding import Product, Rounded, round_row, widen
from tuner.kernels import normed, silu_times, turn


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
        round_row(rounded, token, with_rest)


@compiled
def place_heads(product: Product, places: Places, row: Any, queries: Any, keys: Any, values: Any) -> None:
    """Products (m, (h + 2 g) d) -> queries (h, m, d), and keys and values in the cache (g, n, d).

    `row` is room for one token.
    """
    heads, tokens, size = queries.shape
    groups = keys.shape[0]
    for token in range(tokens):
        place = places.first + token
        widen(product, token, row)
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
        round_row(rounded, token, False)


@compiled
def update(x: Any, product: Product, row: Any) -> None:
    """Add the product to x (m, D); `row` is room for one token."""
    for token in range(x.shape[0]):
        widen(product, token, row)
        for place in range(row.shape[0]):
            x[token, place] += row[place]


@compiled
def round_product(product: Product, row: Any, rounded: Rounded) -> None:
    """Products (m, 2 F) of gate and up -> silu(gate) up, rounded. `row` is room for one token."""
    inner = rounded.floats.shape[1]
    bits = np.empty(inner, np.int32)
    for token in range(product.whole.shape[0]):
        widen(product, token, row)
        silu_times(row[:inner], row[inner:], rounded.floats[token], bits)
        round_row(rounded, token, True)
