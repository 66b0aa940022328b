"""Between the products of a BERT's layer: the loops over many tokens, each in one pass over memory.

This module is imported by functions that need Numba only.

Notation: m tokens of all texts of a batch, one behind the other; D width, F inner width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from indexer.compiled import compiled
from indexer.rounding import Product, Rounded, round_row, widen

# The share of the normal distribution between 0 and x, divided by x, as a polynomial in x^2 / 8 - 1 up to |x| = 4.
# It is fitted so that x times the share below x is right to 5e-5 there and to 5e-5 of x beyond; steps of int8 are
# hundreds of times larger. With the exponential and the quotient that erf takes, this loop was a quarter of a pass.
_FARTHEST = np.float32(4)
_SHARE = tuple(
    np.float32(factor)
    for factor in (
        -0.00272969017,
        0.00821160711,
        -0.0132590961,
        0.0216213688,
        -0.0364956968,
        0.0560508929,
        -0.0843574405,
        0.175947741,
    )
)


@compiled
def widen_rows(product: Product, bias: Any, out: Any) -> None:
    """The floats of a product, and the bias (o,), into out (m, o)."""
    for token in range(out.shape[0]):
        row = out[token]
        widen(product, token, row)
        for place in range(row.shape[0]):
            row[place] += bias[place]


@compiled
def round_rows(rounded: Rounded) -> None:
    """Round the floats."""
    for token in range(rounded.floats.shape[0]):
        round_row(rounded, token, False)


@compiled
def _norm_row(x: Any, weight: Any, bias: Any, epsilon: Any) -> None:
    """Layer norm (Ba, Kiros and Hinton 2016, arXiv 1607.06450) of one row (D,), in place."""
    size = np.float32(x.shape[0])
    total = np.float32(0)
    for place in range(x.shape[0]):
        total += x[place]
    mean, squares = total / size, np.float32(0)
    for place in range(x.shape[0]):
        x[place] -= mean
        squares += x[place] * x[place]
    factor = np.float32(1) / np.sqrt(squares / size + epsilon)
    for place in range(x.shape[0]):
        x[place] = x[place] * factor * weight[place] + bias[place]


@compiled
def norm_rows(rounded: Rounded, weight: Any, bias: Any, epsilon: Any) -> None:
    """Norm the floats (m, D), in place, and round them."""
    for token in range(rounded.floats.shape[0]):
        _norm_row(rounded.floats[token], weight, bias, epsilon)
        round_row(rounded, token, False)


@compiled
def add_product(product: Product, bias: Any, row: Any, x: Any) -> None:
    """Add a product and its bias to x (m, D). `row` (D,) is room for one token."""
    for token in range(x.shape[0]):
        widen(product, token, row)
        for place in range(row.shape[0]):
            x[token, place] += row[place] + bias[place]


@compiled
def gelu_rows(product: Product, bias: Any, rounded: Rounded) -> None:
    """GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415) of a product (m, F) and its bias, rounded.

    x times the share of the normal distribution below x.
    """
    for token in range(rounded.floats.shape[0]):
        x = rounded.floats[token]
        widen(product, token, x)
        for place in range(x.shape[0]):
            value = x[place] + bias[place]
            near = min(max(value, -_FARTHEST), _FARTHEST)
            v = near * near * np.float32(0.125) - np.float32(1)
            share = _SHARE[0]
            for factor in _SHARE[1:]:
                share = share * v + factor
            x[place] = value * (np.float32(0.5) + near * share)
        round_row(rounded, token, False)
