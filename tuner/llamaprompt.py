"""Between the products of a layer: the loops over many tokens of a prompt, each in one pass over memory.

Activations are rounded to int8 (indexer/rounding.py). The rest is only kept for what narrows (keys, values, the end of
a feed-forward block): the former have the largest outliers, the latter are read by every later token.

Notation: as in tuner/llamastep.py; the m rows are those of one thread.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from indexer.compiled import compiled, exponentials
from indexer.rounding import Product, Rounded, round_row, widen
from tuner.kernels import add_low_rank, normed, silu_times, turn

# Tokens that are made floats at once, and the columns that an adapter adds to at once.
TOGETHER = 4
_COLUMNS = 256


class Adapted(NamedTuple):
    """What an adapter adds to a product: inner values (m, blocks r), (0, 0) for none, its second matrix (r, o).

    Block b of the inner values is for the columns from ends[b] to ends[b + 1].
    """

    between: Any
    second: Any
    ends: Any


class Places(NamedTuple):
    """Where the tokens stand: at `first` and after it. cos and sin are those of all places, (places, d / 2)."""

    first: int
    cos: Any
    sin: Any


@compiled
def _widen(product: Product, adapted: Adapted, start: int, rows: Any) -> int:
    """The floats of tokens from `start` on, the adapter's part with them, into rows (TOGETHER, o); returns how many."""
    count: int = min(rows.shape[0], product.whole.shape[0] - start)
    for place in range(count):
        widen(product, start + place, rows[place])
    if adapted.between.shape[0]:
        rank = adapted.second.shape[0]
        for block in range(adapted.ends.shape[0] - 1):
            end = adapted.ends[block + 1]
            # Columns of which the adapter's rows stay in the first cache, while all of these tokens take them.
            for column in range(adapted.ends[block], end, _COLUMNS):
                last = min(end, column + _COLUMNS)
                for place in range(count):
                    between = adapted.between[start + place]
                    add_low_rank(adapted.second, between, block * rank, rows[place], column, last)
    return count


@compiled
def widen_inner(product: Product, out: Any) -> None:
    """The floats of a product, into out (m, o)."""
    for token in range(out.shape[0]):
        widen(product, token, out[token])


@compiled
def round_normed(x: Any, weight: Any, epsilon: Any, rounded: Rounded, with_rest: bool) -> None:
    """Norm x (m, D) and round it."""
    for token in range(x.shape[0]):
        normed(x[token], weight, epsilon, rounded.floats[token])
        round_row(rounded, token, with_rest)


@compiled
def place_heads(
    product: Product, adapted: Adapted, places: Places, rows: Any, queries: Any, keys: Any, values: Any
) -> None:
    """Products (m, (h + 2 g) d) -> queries (g, m h / g, d), and keys and values in the cache (g, n, d).

    The heads of a group stand beside each other, and are divided by the root of d. `rows` is room for some tokens.
    """
    groups, tokens, size = keys.shape[0], product.whole.shape[0], keys.shape[2]
    per = queries.shape[1] // tokens
    heads, factor = per * groups, np.float32(1 / np.sqrt(size))
    for start in range(0, tokens, TOGETHER):
        for token in range(start, start + _widen(product, adapted, start, rows)):
            place, row = places.first + token, rows[token - start]
            for head in range(heads + groups):
                turn(row, head * size, size, places.cos[place], places.sin[place])
            by_head = row.reshape((heads + 2 * groups, size))
            for head in range(heads):
                query = queries[head // per, token * per + head % per]
                for dimension in range(size):
                    query[dimension] = by_head[head, dimension] * factor
            keys[:, place] = by_head[heads : heads + groups]
            values[:, place] = by_head[heads + groups :]


@compiled
def share_out(scores: Any, before: int, totals: Any) -> None:
    """Scores (g, rows, n) to their exponentials, 0 for tokens that come later; `totals` (g, rows) are their sums.

    The first row is of the token at `before`; rows a token: those of its heads.
    """
    groups, rows, known = scores.shape
    per = rows // (known - before)
    bits = np.empty(known, np.int32)
    for group in range(groups):
        for row in range(rows):
            line, seen = scores[group, row], before + row // per + 1
            top = line[0]
            for place in range(seen):
                top = max(top, line[place])
            totals[group, row] = exponentials(line, seen, top, bits)
            line[seen:] = np.float32(0)


@compiled
def round_seen(seen: Any, totals: Any, start: int, rounded: Rounded) -> None:
    """What the heads saw (g, rows, d), by their totals, one behind the other and rounded, from token `start` on."""
    groups, rows, size = seen.shape
    per = rounded.floats.shape[1] // (groups * size)
    for token in range(rows // per):
        floats = rounded.floats[start + token]
        for group in range(groups):
            for row in range(token * per, (token + 1) * per):
                factor = np.float32(1) / totals[group, row]
                part = floats[(group * per + row % per) * size : (group * per + row % per + 1) * size]
                for dimension in range(size):
                    part[dimension] = seen[group, row, dimension] * factor
        round_row(rounded, start + token, False)


@compiled
def update(x: Any, product: Product, adapted: Adapted, rows: Any) -> None:
    """Add the product to x (m, D); `rows` is room for some tokens."""
    for start in range(0, x.shape[0], TOGETHER):
        for token in range(start, start + _widen(product, adapted, start, rows)):
            row = rows[token - start]
            for place in range(row.shape[0]):
                x[token, place] += row[place]


@compiled
def round_product(product: Product, adapted: Adapted, rows: Any, rounded: Rounded) -> None:
    """Products (m, 2 F) of gate and up -> silu(gate) up, rounded. `rows` is room for some tokens."""
    inner = rounded.floats.shape[1]
    bits = np.empty(inner, np.int32)
    for start in range(0, product.whole.shape[0], TOGETHER):
        for token in range(start, start + _widen(product, adapted, start, rows)):
            row = rows[token - start]
            silu_times(row[:inner], row[inner:], rounded.floats[token], bits)
            round_row(rounded, token, True)
