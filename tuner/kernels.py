"""The inner loops of the int8 forward pass on a CPU, compiled by Numba: what PyTorch takes many small calls for.

Compiled at first use and kept in Numba's cache, for the processor they run on. None of them holds the interpreter's
lock, so each of a crew of threads (tuner/crew.py) runs one of them on its share of the rows.
Weights are int8 with one scale a row; `few_rows` multiplies them with floats, so a row's result is the same, bit for
bit, alone and beside others, which checking drafts (tuner/decoding.py) and sharing passes (tuner/batching.py) rely on.

Notation: m rows (tokens), i in features, o out features, d dimensions of a head, r rank of an adapter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from indexer.compiled import compiled, dot, exponentials

# Looks at a counter before the processor is offered to other threads.
_PATIENCE = 2_000
_yield = types.ExternalFunction("SwitchToThread" if sys.platform == "win32" else "sched_yield", types.int32())


def _builtin(function: Callable[..., Any]) -> Any:
    declared: Any = intrinsic
    return declared(function)


@_builtin
def _add_one(context: Any, counters: Any, place: Any) -> Any:
    """counters[place] += 1 as one step that all threads see; everything written before it is seen as well."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature, arguments)
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(counters, place), build


@_builtin
def _look(context: Any, counters: Any, place: Any) -> Any:
    """counters[place] as it is in memory now."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_pointer(context, builder, signature, arguments), "acquire", 8)

    return types.int64(counters, place), build


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(array.data, [arguments[1]])


@_builtin
def as_pointer(context: Any, address: Any) -> Any:
    """A whole number as the address of floats."""

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), build


@compiled
def meet(counters: Any, threads: int) -> None:
    """Go on when all `threads` are here. `counters` (1,) int64 only ever grows."""
    if threads == 1:
        return
    target = (_add_one(counters, 0) // threads + 1) * threads
    wait_for(counters, 0, target)


@compiled
def wait_for(counters: Any, place: int, target: int) -> None:
    """Go on when counters[place] is `target` or more."""
    looks = 0
    while _look(counters, place) < target:
        looks += 1
        if looks > _PATIENCE:
            _yield()


@compiled
def count(counters: Any, place: int) -> None:
    """Add one to counters[place]; whoever waits for it sees what was written before."""
    _add_one(counters, place)


@compiled
def share(thread: int, threads: int, size: int) -> tuple[int, int]:
    """The part of range(size) that is this thread's."""
    return size * thread // threads, size * (thread + 1) // threads


@compiled
def _dot_int8(weights: Any, x: Any) -> Any:
    total = np.float32(0)
    for place in range(x.shape[0]):
        total += np.float32(weights[place]) * x[place]
    return total


@compiled
def few_rows(values: Any, scales: Any, x: Any, out: Any, start: int, end: int) -> None:
    """Multiply x (m, i) with rows `start` to `end` of int8 weights (o, i), into the same columns of out (m, o)."""
    for row in range(start, end):
        weights = values[row]
        for token in range(x.shape[0]):
            # Widening them anew for each token costs less than keeping them: one token is the usual case.
            out[token, row] = _dot_int8(weights, x[token]) * scales[row]


@compiled
def few_float_rows(weights: Any, x: Any, out: Any, start: int, end: int) -> None:
    """As few_rows with float weights (o, i)."""
    for row in range(start, end):
        for token in range(x.shape[0]):
            out[token, row] = dot(weights[row], x[token])


@compiled
def add_low_rank(second: Any, inner: Any, first: int, out: Any, start: int, end: int) -> None:
    """Add an adapter's second matrix (r, o) times inner[first : first + r] to out[start:end] of (o,)."""
    rank, part = second.shape[0], out[start:end]
    by_four = rank - rank % 4
    # Four rows at once, because else reading and writing `out` takes longer than to add. All parts begin at 0: a loop
    # that begins elsewhere checks every place for being negative.
    for place in range(0, by_four, 4):
        a, b, c, d = inner[first + place], inner[first + place + 1], inner[first + place + 2], inner[first + place + 3]
        w, x = second[place, start:end], second[place + 1, start:end]
        y, z = second[place + 2, start:end], second[place + 3, start:end]
        for column in range(part.shape[0]):
            part[column] += a * w[column] + b * x[column] + c * y[column] + d * z[column]
    for place in range(by_four, rank):
        a, w = inner[first + place], second[place, start:end]
        for column in range(part.shape[0]):
            part[column] += a * w[column]


@compiled
def silu_times(gate: Any, up: Any, out: Any, bits: Any) -> None:
    """Write gate / (1 + exp(-gate)) * up to out, all (n,)."""
    size = out.shape[0]
    for place in range(size):
        out[place] = min(-gate[place], np.float32(87))
    exponentials(out, size, np.float32(0), bits)
    for place in range(size):
        out[place] = gate[place] / (np.float32(1) + out[place]) * up[place]


@compiled
def normed(x: Any, weight: Any, epsilon: Any, out: Any) -> None:
    """Root mean square norm (Zhang and Sennrich 2019, arXiv 1910.07467) of one row (i,)."""
    factor = np.float32(1) / np.sqrt(dot(x, x) / np.float32(x.shape[0]) + epsilon)
    for place in range(x.shape[0]):
        out[place] = x[place] * factor * weight[place]


@compiled
def turn(row: Any, start: int, size: int, cos: Any, sin: Any) -> None:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864) of row[start : start + size], in place."""
    half = size // 2
    for place in range(half):
        first, second = row[start + place], row[start + half + place]
        row[start + place] = first * cos[place] - second * sin[place]
        row[start + half + place] = second * cos[place] + first * sin[place]


@compiled
def attend(query: Any, keys: Any, values: Any, size: int, scores: Any, bits: Any, out: Any) -> None:
    """One head of one row: query (d,) over the first `size` of keys and values (n, d), into out (d,)."""
    top, factor = np.float32(-np.inf), np.float32(1 / np.sqrt(query.shape[0]))
    for place in range(size):
        score = dot(query, keys[place]) * factor
        scores[place] = score
        top = max(top, score)
    total = exponentials(scores, size, top, bits)
    for dimension in range(out.shape[0]):
        out[dimension] = np.float32(0)
    for place in range(size):
        weight = scores[place]
        value = values[place]
        for dimension in range(out.shape[0]):
            out[dimension] += weight * value[dimension]
    for dimension in range(out.shape[0]):
        out[dimension] /= total
