"""A few tokens through all layers of a Llama in one compiled call: the step of an answer.

What bounds a step is reading every weight once from memory; here nothing else is left of it that counts. Each thread of
the crew calls `step` with its number, takes its share of the rows of every matrix and of the heads, and meets the
others between the parts. The tokens may be of several requests: each row has a place and a cache of its own.

Notation: m rows, L layers, D width, F inner width, h heads, g heads of keys, d dimensions of a head, r rank, V words.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import carray  # type: ignore[attr-defined]

from indexer.compiled import compiled
from tuner.kernels import (
    add_low_rank,
    as_pointer,
    attend,
    few_float_rows,
    few_rows,
    meet,
    normed,
    share,
    silu_times,
    turn,
)


class Weights(NamedTuple):
    """The model: int8 values (L, o, i) and scales (L, o); queries, keys and values are one matrix, gate and up, too."""

    heads: Any  # ((h + 2 g) d, D) a layer
    heads_scales: Any
    out: Any  # (D, h d)
    out_scales: Any
    inner: Any  # (2 F, D): gate, then up
    inner_scales: Any
    down: Any  # (D, F)
    down_scales: Any
    norms: Any  # (L, 2, D) float32: before the attention, before the feed-forward part
    norm: Any  # (D,): before the output layer
    words: Any  # (V, D) int8
    words_scales: Any


class Adapter(NamedTuple):
    """LoRA beside Weights, float32: first matrices (L, blocks r, i), scaled as the adapter is, second (L, r, o).

    Blocks are q, k, v of `heads` and gate, up of `inner`. Rank 0 is no adapter.
    """

    heads_first: Any
    heads_second: Any
    out_first: Any
    out_second: Any
    inner_first: Any
    inner_second: Any
    down_first: Any
    down_second: Any


class Rows(NamedTuple):
    """What is read: x (m, D) are the tokens' embeddings; a row's cache is (L, g, rooms, d) floats at an address."""

    x: Any
    places: Any  # (m,) int64
    keys: Any  # (m,) int64
    values: Any
    rooms: Any


class Scratch(NamedTuple):
    """Room for what threads hand each other, (m, ...) float32."""

    heads: Any
    heads_between: Any
    seen: Any
    out: Any
    out_between: Any
    inner: Any
    inner_between: Any
    product: Any
    down: Any
    down_between: Any


class Pass(NamedTuple):
    """All that one pass works with; cos and sin are (places, d / 2)."""

    threads: int
    counters: Any
    weights: Weights
    adapter: Adapter
    epsilon: Any
    cos: Any
    sin: Any
    rows: Rows
    scratch: Scratch


@compiled
def step(thread: int, work: Pass, states: Any, logits: Any) -> None:
    """Read the rows, write their keys and values to their caches, and what follows each.

    That is the states (m, D) which the output layer gets, and its logits (m, V), those of int8 weights.
    """
    weights, tokens, width = work.weights, work.rows.x.shape[0], work.rows.x.shape[1]
    # Every thread keeps the whole of x for itself: adding up twice is faster than waiting for each other.
    x, flat = work.rows.x.copy(), np.empty((tokens, width), np.float32)
    longest = max(np.int64(work.rows.places.max()) + 1, weights.down.shape[2])
    scores, bits = np.empty(longest, np.float32), np.empty(longest, np.int32)
    for layer in range(weights.norms.shape[0]):
        for token in range(tokens):
            normed(x[token], weights.norms[layer, 0], work.epsilon, flat[token])
        _find_heads(thread, work, layer, flat)
        _look_back(thread, work, layer, scores, bits)
        _leave_heads(thread, work, layer)
        _add(x, work.scratch.out, work.adapter.out_second[layer], work.scratch.out_between)
        for token in range(tokens):
            normed(x[token], weights.norms[layer, 1], work.epsilon, flat[token])
        _feed_forward(thread, work, layer, flat, bits)
        _add(x, work.scratch.down, work.adapter.down_second[layer], work.scratch.down_between)
    for token in range(tokens):
        normed(x[token], weights.norm, work.epsilon, flat[token])
    if thread == 0:
        states[:] = flat
    start, end = share(thread, work.threads, weights.words.shape[0])
    few_rows(weights.words, weights.words_scales, flat, logits, start, end)


@compiled
def _multiply(thread: int, work: Pass, side: Any, x: Any, out: Any) -> None:
    """Multiply x (m, i) with a matrix, its scales and an adapter's first matrix: both products are there afterwards."""
    values, scales, first = side
    product, between = out
    start, end = share(thread, work.threads, values.shape[0])
    few_rows(values, scales, x, product, start, end)
    start, end = share(thread, work.threads, first.shape[0])
    few_float_rows(first, x, between, start, end)
    meet(work.counters, work.threads)


@compiled
def _find_heads(thread: int, work: Pass, layer: int, flat: Any) -> None:
    """Queries, keys and values of the rows, turned to their places; keys and values into the caches."""
    weights, adapter, rows, room = work.weights, work.adapter, work.rows, work.scratch
    side = (weights.heads[layer], weights.heads_scales[layer], adapter.heads_first[layer])
    _multiply(thread, work, side, flat, (room.heads, room.heads_between))
    layers, queries, size = weights.heads.shape[0], weights.out.shape[2], 2 * work.cos.shape[1]
    groups, heads = (weights.heads.shape[1] - queries) // (2 * size), queries // size
    start, end = share(thread, work.threads, heads + 2 * groups)
    for head in range(start, end):
        block = 0 if head < heads else (1 if head < heads + groups else 2)
        second, first = adapter.heads_second[layer], block * adapter.heads_second.shape[1]
        for token in range(rows.x.shape[0]):
            begin = head * size
            add_low_rank(second, room.heads_between[token], first, room.heads[token], begin, begin + size)
            place = rows.places[token]
            if block < 2:
                turn(room.heads[token], head * size, size, work.cos[place], work.sin[place])
            if block > 0:
                address = rows.keys[token] if block == 1 else rows.values[token]
                kept = carray(as_pointer(address), (layers, groups, rows.rooms[token], size), np.float32)
                for dimension in range(size):
                    kept[layer, (head - heads) % groups, place, dimension] = room.heads[token, head * size + dimension]
    meet(work.counters, work.threads)


@compiled
def _look_back(thread: int, work: Pass, layer: int, scores: Any, bits: Any) -> None:
    """What the heads of the rows see, each row in its own cache."""
    weights, rows, room = work.weights, work.rows, work.scratch
    layers, queries, size = weights.heads.shape[0], weights.out.shape[2], 2 * work.cos.shape[1]
    groups, heads = (weights.heads.shape[1] - queries) // (2 * size), queries // size
    tokens = rows.x.shape[0]
    start, end = share(thread, work.threads, heads * tokens)
    for item in range(start, end):
        head, token = item // tokens, item % tokens
        shape, group = (layers, groups, rows.rooms[token], size), head * groups // heads
        attend(
            room.heads[token, head * size : (head + 1) * size],
            carray(as_pointer(rows.keys[token]), shape, np.float32)[layer, group],
            carray(as_pointer(rows.values[token]), shape, np.float32)[layer, group],
            rows.places[token] + 1,
            scores,
            bits,
            room.seen[token, head * size : (head + 1) * size],
        )
    meet(work.counters, work.threads)


@compiled
def _leave_heads(thread: int, work: Pass, layer: int) -> None:
    """What the heads saw, in the width of the model."""
    weights, adapter, room = work.weights, work.adapter, work.scratch
    side = (weights.out[layer], weights.out_scales[layer], adapter.out_first[layer])
    _multiply(thread, work, side, room.seen, (room.out, room.out_between))


@compiled
def _feed_forward(thread: int, work: Pass, layer: int, flat: Any, bits: Any) -> None:
    """The feed-forward part of the rows."""
    weights, adapter, room = work.weights, work.adapter, work.scratch
    inner = weights.down.shape[2]
    side = (weights.inner[layer], weights.inner_scales[layer], adapter.inner_first[layer])
    _multiply(thread, work, side, flat, (room.inner, room.inner_between))
    start, end = share(thread, work.threads, inner)
    second = adapter.inner_second[layer]
    for token in range(flat.shape[0]):
        between, product = room.inner_between[token], room.inner[token]
        add_low_rank(second, between, 0, product, start, end)
        add_low_rank(second, between, second.shape[0], product, inner + start, inner + end)
        silu_times(
            room.inner[token, start:end],
            room.inner[token, inner + start : inner + end],
            room.product[token, start:end],
            bits,
        )
    meet(work.counters, work.threads)
    side = (weights.down[layer], weights.down_scales[layer], adapter.down_first[layer])
    _multiply(thread, work, side, room.product, (room.down, room.down_between))


@compiled
def _add(x: Any, product: Any, second: Any, between: Any) -> None:
    """Add a product, and an adapter's part of it, to x (m, D)."""
    for token in range(x.shape[0]):
        for place in range(x.shape[1]):
            x[token, place] += product[token, place]
        add_low_rank(second, between[token], 0, x[token], 0, x.shape[1])
