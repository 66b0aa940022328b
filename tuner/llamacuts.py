"""Where a prompt is cut: into passes, into blocks of tokens whose attention is computed at once, between threads.

A prompt is made of parts (its beginning, each passage, the question), of which some may be known already. The blocks
of a part depend on its length and the number of threads only, and threads and passes are cut where blocks are. So what
is computed of a part has the same bits whether it is read alone or with the parts around it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Keys that a product of one token with all of its weights costs as much as: what cuts of a prompt are weighed by.
_PRODUCTS = 1000
# Tokens of a block: fewer make attention slower, more are cut worse between threads.
_MOST, _LEAST = 32, 8


def passes(parts: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """Parts of so many tokens -> those of each pass, all of about the same size, at most one and a half times `most`.

    A part of more than `most` tokens is cut, wherever it stands.
    """
    pieces = [min(most, part - start) for part in parts for start in range(0, part, most)]
    aim = sum(pieces) / -(-sum(pieces) // most) if pieces else 0
    found: list[list[int]] = []
    for piece in pieces:
        if found and sum(found[-1]) + piece / 2 <= aim:
            found[-1].append(piece)
        else:
            found.append([piece])
    return [tuple(each) for each in found]


def blocks(parts: Sequence[int], threads: int) -> tuple[int, ...]:
    """Where the blocks of parts that are read one behind the other begin, and the end of the last one.

    Each part has blocks of about one size, as many for each thread as for the others.
    """
    edges = [0]
    for part in parts:
        start = edges[-1]
        count = min(threads * -(-part // (_MOST * threads)), -(-part // _LEAST))
        edges += [start + part * place // count for place in range(1, count + 1)]
    return tuple(edges)


def cuts(before: int, edges: Sequence[int], threads: int) -> tuple[int, ...]:
    """The edges between which each thread reads, so that all have about as much to do: later tokens see more keys.

    `before` other tokens were read before.
    """
    tokens = edges[-1]
    work = np.concatenate([[0], np.cumsum(_PRODUCTS + before + np.arange(tokens))])[list(edges)]
    aims = work[-1] * np.arange(1, threads) / threads
    inner = np.abs(work - aims[:, None]).argmin(axis=1)
    return (0, *(edges[place] for place in inner), tokens)
