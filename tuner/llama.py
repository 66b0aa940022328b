"""The forward pass of Llamas in int8 on a CPU, as the request of a RAG service needs it; others use the library's.

The library's pass is a few thousand calls for every token, and an adapter doubles them: three quarters of a step. Here
a few tokens go through all layers in one compiled call (tuner/llamastep.py), and a prompt is cut between the threads
once: each takes its tokens through the layers, with PyTorch's products and one loop between any two of them
(tuner/llamaprompt.py), and waits for nothing but the keys and values of the tokens before. Adapters are beside the
weights, as ever.
This module is imported by functions that need torch only.

Notation: as in tuner/llamastep.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from indexer.int8 import multiply
from tuner.crew import Crew, crew_of
from tuner.int8 import MOST_ROWS, exact_best
from tuner.kernels import count, few_rows, meet, normed, share, wait_for
from tuner.llamacache import LlamaCache
from tuner.llamacuts import blocks, cuts
from tuner.llamafiles import LlamaParts
from tuner.llamalora import (
    DOWN,
    HEADS,
    INNER,
    OUT,
    Lora,
    can_be_beside,
    lora_of,
    read_lora,
)
from tuner.llamaprompt import Places, place_heads, round_normed, round_product, round_seen, share_out, update
from tuner.llamaroom import PromptRoom, RoomFor
from tuner.llamastep import Pass, Rows, Scratch, Weights, step

_FAILED = 1 << 40


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt on its way through the layers: thread t has the rows from cuts[t] to cuts[t + 1].

    Attention is computed from one of the `edges` to the next; cuts are edges.
    """

    cache: LlamaCache
    x: Tensor  # (m, D)
    edges: tuple[int, ...]
    cuts: tuple[int, ...]
    last: int
    states: Any  # (last, D)


class Llama:
    """The passes of one model; `use` chooses the adapter. For one thread at a time."""

    def __init__(self, parts: LlamaParts, threads: int) -> None:
        self._parts = parts
        self._epsilon = np.float32(parts.epsilon)
        self._size = 2 * len(parts.frequencies)
        self._shape = (len(parts.norms), parts.groups, self._size)
        self._crew: Crew = crew_of(threads)
        self._weights = Weights(
            heads=parts.int8.heads.values.numpy(),
            heads_scales=parts.int8.heads.scales,
            out=parts.int8.out.values.numpy(),
            out_scales=parts.int8.out.scales,
            inner=parts.int8.inner.values.numpy(),
            inner_scales=parts.int8.inner.scales,
            down=parts.int8.down.values.numpy(),
            down_scales=parts.int8.down.scales,
            norms=parts.norms,
            norm=parts.norm,
            words=parts.int8.words,
            words_scales=parts.int8.words_scales,
        )
        self._none = Lora(self._weights)
        self._adapters: dict[str, Lora] = {}
        self._adapter = self._none
        self._cos = self._sin = np.empty((0, self._size // 2), np.float32)
        self._scratch: Scratch | None = None
        self._rooms, self._ends = ([PromptRoom(self._weights) for _ in range(threads)] for _ in range(2))

    @property
    def vocabulary(self) -> int:
        """How many logits there are."""
        return len(self._weights.words)

    @property
    def window(self) -> int:
        """Tokens that it was made for."""
        return self._parts.window

    @property
    def frequencies(self) -> Tensor:
        """(d / 2,), by which keys are turned to their places."""
        return self._parts.frequencies

    def prepare(self) -> None:
        """Compile what reading takes, or find it compiled, so that the first request does not wait for that."""
        cache = self.cache(MOST_ROWS + 2)
        self.read(cache, [0] * (MOST_ROWS + 1))
        self.read(cache, [0])

    def cache(self, room: int) -> LlamaCache:
        """An empty cache with room for so many tokens."""
        return LlamaCache(self._shape, room)

    def take(self, key: str, settings: dict[str, Any], tensors: dict[str, Tensor]) -> bool:
        """Know the adapter of these files as `key` from now on; False when it is not plain LoRA for this model."""
        lora = read_lora(settings, tensors, self._weights)
        if lora is not None:
            self._adapters[key] = lora
        return lora is not None

    def attach(self, key: str, peft_model: Any) -> bool:
        """Know the adapter `key` of the model from now on; False when it has parts that this pass has not."""
        if not can_be_beside(peft_model, key):
            return False
        self._adapters[key] = lora_of(peft_model.base_model.model.model.layers, key, self._weights)
        return True

    def detach(self, key: str) -> None:
        """Forget the adapter `key`."""
        self._adapters.pop(key, None)

    def use(self, key: str | None) -> None:
        """Read with this adapter from now on, or with none."""
        self._adapter = self._none if key is None else self._adapters[key]

    def read(self, cache: LlamaCache, ids: Sequence[int], last: int = 1, parts: Sequence[int] = ()) -> Tensor:
        """Read `ids` after what is in the cache; (last, V) logits of what may follow the last ones.

        `parts` are the lengths of the parts of a prompt that `ids` are, in their order: each is read as it would be
        alone, bit for bit. Without them `ids` are tokens of an answer if they are few, else one part.
        """
        if len(ids) <= MOST_ROWS and not parts:
            return self.read_together([(cache, ids)])[0][-last:]
        with torch.inference_mode():
            cache.make_room(len(ids))
            self._turn_to(cache.length + len(ids))
            states = np.empty((last, len(self._weights.norm)), np.float32)
            edges = blocks(parts or (len(ids),), self._crew.size)
            shares = cuts(cache.length, edges, self._crew.size)
            prompt = _Prompt(cache, self._embedded(ids), edges, shares, last, states)
            self._crew.counters[1:] = 0
            self._crew.do(lambda number: self._read_share(number, prompt))
            cache.length += len(ids)
            logits = np.empty((last, self._weights.words.shape[0]), np.float32)
            return self._named(lambda number: self._name_share(number, states, logits), states, logits)

    def read_together(self, parts: Sequence[tuple[LlamaCache, Sequence[int]]]) -> list[Tensor]:
        """The logits that follow each id of each part: a (len(ids), V) tensor a part."""
        for cache, ids in parts:
            cache.make_room(len(ids))
        places = [cache.length + place for cache, ids in parts for place in range(len(ids))]
        caches = [cache for cache, ids in parts for _ in ids]
        self._turn_to(max(places) + 1)
        with torch.inference_mode():
            x = self._embedded([token for _, ids in parts for token in ids]).numpy()
            rows = Rows(
                x,
                np.array(places, np.int64),
                np.array([cache.keys.data_ptr() for cache in caches], np.int64),
                np.array([cache.values.data_ptr() for cache in caches], np.int64),
                np.array([cache.room for cache in caches], np.int64),
            )
            states = np.empty_like(x)
            logits = np.empty((len(x), self._weights.words.shape[0]), np.float32)
            crew = self._crew
            work = Pass(
                crew.size,
                crew.counters,
                self._weights,
                self._adapter.arrays,
                self._epsilon,
                self._cos,
                self._sin,
                rows,
                self._room_for(len(x)),
            )
            found = self._named(lambda number: step(number, work, states, logits), states, logits)
            for cache, ids in parts:
                cache.length += len(ids)
            return list(torch.split(found, [len(ids) for _, ids in parts]))

    def _embedded(self, ids: Sequence[int]) -> Tensor:
        return self._parts.embedding[torch.tensor(list(ids))].float()

    def _named(self, work: Callable[[int], None], states: Any, logits: Any) -> Tensor:
        """Have the crew do what fills states and logits; the logits, exact where it counts."""
        found, weight = torch.from_numpy(logits), self._parts.embedding
        if not self._parts.is_tied:
            self._crew.do(work)
            return found
        exact: list[Tensor] = []

        def finish(number: int) -> None:
            work(number)
            # All have written their share of the logits when everybody is here. In a thread of the crew, because in
            # any other PyTorch would wake threads of its own, which then look for more work on the crew's cores.
            meet(self._crew.counters, self._crew.size)
            if number == 0:
                exact.append(exact_best(found, torch.from_numpy(states), weight))

        self._crew.do(finish)
        return exact[0]

    def _turn_to(self, places: int) -> None:
        """Know the rotations of the first `places` positions, as the library computes them."""
        if places > len(self._cos):
            positions = torch.arange(max(places, 2 * len(self._cos))).float()
            angles = torch.outer(positions, self._parts.frequencies)
            self._cos, self._sin = angles.cos().numpy(), angles.sin().numpy()

    def _room_for(self, tokens: int) -> Scratch:
        weights, rank = self._weights, self._adapter.rank
        if self._scratch is None or self._scratch.out_between.shape != (tokens, rank):
            queries, width, inner = weights.out.shape[2], weights.out.shape[1], weights.down.shape[2]
            widths = (weights.heads.shape[1], 3 * rank, queries, width, rank, 2 * inner, 2 * rank, inner, width, rank)
            self._scratch = Scratch(*(np.empty((tokens, each), np.float32) for each in widths))
        return self._scratch

    def _name_share(self, number: int, states: Any, logits: Any) -> None:
        words = self._weights.words
        few_rows(words, self._weights.words_scales, states, logits, *share(number, self._crew.size, len(words)))

    def _read_share(self, number: int, prompt: _Prompt) -> None:
        try:
            self._read_rows(number, prompt)
        except BaseException:
            # Whoever waits for this thread's keys would wait for ever.
            self._crew.counters[1 + number] = _FAILED
            raise

    def _read_rows(self, number: int, prompt: _Prompt) -> None:
        start, end = prompt.cuts[number : number + 2]
        if start == end:
            self._crew.counters[1 + number] = _FAILED
            return
        weights, cache, room = self._weights, prompt.cache, self._rooms[number].of(end - start)
        lora, counters, rows = self._adapter, self._crew.counters, end - start
        first = cache.length + start
        places = Places(first, self._cos, self._sin)
        x, plain = prompt.x[start:end].numpy(), weights.out.shape[2]
        queries = room.queries.view(len(cache.keys[0]), -1, self._size)
        for layer in range(len(weights.norms)):
            round_normed(x, weights.norms[layer, 0], self._epsilon, room.flat.rounded, True)
            values = self._parts.int8.heads.values[layer]
            multiply(room.flat.coarse, values, room.heads)
            multiply(room.flat.rest, values[plain:], room.fine)
            added = lora.added(HEADS, layer, room.flat, room.adapter)
            keys, past = cache.keys[layer], cache.values[layer]
            product = self._parts.int8.heads.product(layer, room.heads, room.fine, room.flat)
            place_heads(product, added, places, room.heads_rows, queries.numpy(), keys.numpy(), past.numpy())
            count(counters, 1 + number)
            for other in range(number):
                wait_for(counters, 1 + other, layer + 1)
            if layer == len(weights.norms) - 1:
                # Of the last layer the others were needed for their keys and values only.
                asked = max(0, prompt.cuts[-1] - prompt.last - start)
                if asked >= rows:
                    return
                queries, first = queries[:, asked * queries.shape[1] // rows :], first + asked
                x, rows, start = x[asked:], rows - asked, start + asked
                room = self._ends[number].of(rows)
            edges = [edge - start for edge in prompt.edges if start < edge < start + rows]
            _attend(queries, keys, past, first, (0, *edges, rows), room)
            multiply(room.seen.coarse, self._parts.int8.out.values[layer], room.out)
            added = lora.added(OUT, layer, room.seen, room.adapter)
            update(x, self._parts.int8.out.product(layer, room.out, None, room.seen), added, room.out_rows)
            round_normed(x, weights.norms[layer, 1], self._epsilon, room.flat.rounded, False)
            multiply(room.flat.coarse, self._parts.int8.inner.values[layer], room.gates)
            added = lora.added(INNER, layer, room.flat, room.adapter)
            product = self._parts.int8.inner.product(layer, room.gates, None, room.flat)
            round_product(product, added, room.gates_rows, room.inner.rounded)
            multiply(room.inner.both, self._parts.int8.down.values[layer], room.down)
            added = lora.added(DOWN, layer, room.inner, room.adapter)
            product = self._parts.int8.down.product(layer, room.down[:rows], room.down[rows:], room.inner)
            update(x, product, added, room.out_rows)
        for row in range(start, end):
            normed(x[row - start], weights.norm, self._epsilon, prompt.states[row - prompt.cuts[-1]])


def _attend(queries: Tensor, keys: Tensor, values: Tensor, first: int, edges: Sequence[int], room: RoomFor) -> None:
    """What the queries (g, m h / g, d) see of keys and values (g, n, d), rounded; their first token is at `first`.

    A block of tokens at a time, from edge to edge, so that little is computed of what a token must not see.
    """
    per = queries.shape[1] // room.tokens
    for start, end in pairwise(edges):
        scores, totals = room.scores(len(keys), (end - start) * per, first + end)
        torch.bmm(queries[:, start * per : end * per], keys[:, : first + end].transpose(1, 2), out=scores)
        share_out(scores.numpy(), first + start, totals)
        seen = torch.bmm(scores, values[:, : first + end])
        round_seen(seen.numpy(), totals, start, room.seen.rounded)
