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
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from indexer.freed import give_back
from tuner.crew import Crew, crew_of
from tuner.int8 import MOST_ROWS, Int8Head, Int8Linear, exact_best, multiply
from tuner.kernels import count, few_rows, meet, normed, share, wait_for
from tuner.llamalora import (
    ATTENTION,
    DOWN,
    FEED_FORWARD,
    HEADS,
    INNER,
    OUT,
    Lora,
    can_be_beside,
    lora_of,
    read_lora,
)
from tuner.llamaprompt import Places, Product, place_heads, round_normed, round_product, round_seen, update
from tuner.llamaroom import Part, PromptRoom
from tuner.llamastep import Pass, Rows, Scratch, Weights, step
from tuner.stepcache import Kept

# Keys that a product of one token with all of its weights costs as much as: what cuts of a prompt are weighed by.
_PRODUCTS = 1000
_FAILED = 1 << 40
_NO_FINE = np.empty((0, 0), np.int32)


class LlamaCache:
    """Keys and values of one request, (L, g, room, d) each; grows when it must. As StepCache."""

    is_plain = True

    def __init__(self, shape: tuple[int, int, int], room: int) -> None:
        self.length = 0
        self._shape = shape
        self.keys, self.values = self._empty(room), self._empty(room)

    def _empty(self, room: int) -> Tensor:
        layers, groups, size = self._shape
        return torch.from_numpy(np.empty((layers, groups, room, size), np.float32))

    @property
    def room(self) -> int:
        """Tokens that fit."""
        return self.keys.shape[2]

    def make_room(self, tokens: int) -> None:
        """Have room for so many more."""
        if self.length + tokens > self.room:
            keys, values = self._empty(self.length + tokens), self._empty(self.length + tokens)
            keys[:, :, : self.length] = self.keys[:, :, : self.length]
            values[:, :, : self.length] = self.values[:, :, : self.length]
            self.keys, self.values = keys, values

    def take_back(self, tokens: int) -> None:
        """Forget the last tokens."""
        self.length -= tokens

    def copy(self, start: int, end: int) -> Kept:
        """A copy of the keys and values of the tokens from `start` to `end`."""
        with torch.inference_mode():
            return Kept(self.keys[:, :, start:end].clone(), self.values[:, :, start:end].clone())

    def join(self, kept: Kept) -> None:
        """Go on as if its tokens had been read."""
        tokens = kept.keys.shape[2]
        self.make_room(tokens)
        with torch.inference_mode():
            self.keys[:, :, self.length : self.length + tokens] = kept.keys
            self.values[:, :, self.length : self.length + tokens] = kept.values
        self.length += tokens


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One matrix of every layer: int8 values (L, o, i), the scales and the sums of their rows (L, o)."""

    values: Tensor
    scales: Any
    sums: Any

    def product(self, layer: int, whole: Tensor, fine: Tensor | None, rounded: Part, added: Any) -> Product:
        """What came of multiplying it with what was rounded, for compiled code."""
        rest = _NO_FINE if fine is None else fine.numpy()
        return Product(whole.numpy(), rest, rounded.rounded.grids, self.sums[layer], self.scales[layer], added)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A prompt on its way through the layers: thread t has the rows from cuts[t] to cuts[t + 1]."""

    cache: LlamaCache
    x: Tensor  # (m, D)
    cuts: tuple[int, ...]
    last: int
    states: Any  # (last, D)


class Llama:
    """The passes of one model; `use` chooses the adapter. For one thread at a time."""

    def __init__(self, model: Any, threads: int) -> None:
        config = model.config
        self._body, self._head = model.model, model.lm_head
        self._epsilon = np.float32(config.rms_norm_eps)
        self._size = int(config.head_dim)
        self._shape = (config.num_hidden_layers, config.num_key_value_heads, self._size)
        self._crew: Crew = crew_of(threads)
        self._heads, self._out, self._inner, self._down = (
            _joined(self._body.layers, names)
            for names in (ATTENTION[:3], ATTENTION[3:], FEED_FORWARD[:2], FEED_FORWARD[2:])
        )
        norms = [[layer.input_layernorm.weight, layer.post_attention_layernorm.weight] for layer in self._body.layers]
        self._weights = Weights(
            heads=self._heads.values.numpy(),
            heads_scales=self._heads.scales,
            out=self._out.values.numpy(),
            out_scales=self._out.scales,
            inner=self._inner.values.numpy(),
            inner_scales=self._inner.scales,
            down=self._down.values.numpy(),
            down_scales=self._down.scales,
            norms=np.stack([np.stack([_array(weight) for weight in pair]) for pair in norms]),
            norm=_array(self._body.norm.weight),
            words=_array(self._head.values),
            words_scales=_array(self._head.scales),
        )
        self._none = Lora(self._weights)
        self._adapters: dict[str, Lora] = {}
        self._adapter = self._none
        self._cos = self._sin = np.empty((0, self._size // 2), np.float32)
        self._scratch: Scratch | None = None
        self._rooms = [PromptRoom(self._weights) for _ in range(threads)]

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
        self._adapters[key] = lora_of(self._body.layers, key, self._weights)
        return True

    def detach(self, key: str) -> None:
        """Forget the adapter `key`."""
        self._adapters.pop(key, None)

    def use(self, key: str | None) -> None:
        """Read with this adapter from now on, or with none."""
        self._adapter = self._none if key is None else self._adapters[key]

    def read(self, cache: LlamaCache, ids: Sequence[int], last: int = 1) -> Tensor:
        """Read `ids` after what is in the cache; (last, V) logits of what may follow the last ones."""
        if len(ids) <= MOST_ROWS:
            return self.read_together([(cache, ids)])[0][-last:]
        with torch.inference_mode():
            cache.make_room(len(ids))
            self._turn_to(cache.length + len(ids))
            states = np.empty((last, self._body.norm.weight.shape[0]), np.float32)
            prompt = _Prompt(cache, self._embedded(ids), _cuts(cache.length, len(ids), self._crew.size), last, states)
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
        return self._body.embed_tokens.weight[torch.tensor(list(ids))].float()  # type: ignore[no-any-return]

    def _named(self, work: Callable[[int], None], states: Any, logits: Any) -> Tensor:
        """Have the crew do what fills states and logits; the logits, exact where it counts."""
        found, weight = torch.from_numpy(logits), self._body.embed_tokens.weight
        if not isinstance(self._head, Int8Head):
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
            positions = torch.arange(max(places, 2 * len(self._cos)))[None]
            cos, sin = self._body.rotary_emb(torch.empty(0), positions)
            half = self._size // 2
            self._cos, self._sin = (_array(part[0, :, :half].contiguous()) for part in (cos, sin))

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
        first, known = cache.length + start, cache.length + end
        places = Places(first, self._cos, self._sin)
        x, plain = prompt.x[start:end].numpy(), weights.out.shape[2]
        queries = room.queries.view(-1, rows, self._size)
        mask = torch.ones((rows, known), dtype=torch.bool).tril(first)
        for layer in range(len(weights.norms)):
            round_normed(x, weights.norms[layer, 0], self._epsilon, room.flat.rounded, True)
            values = self._heads.values[layer]
            multiply(room.flat.coarse, values, room.heads)
            multiply(room.flat.rest, values[plain:], room.fine)
            added = lora.product(HEADS, layer, room.flat.floats, room.added)
            keys, past = cache.keys[layer], cache.values[layer]
            product = self._heads.product(layer, room.heads, room.fine, room.flat, added)
            place_heads(product, places, room.heads_row, queries.numpy(), keys.numpy(), past.numpy())
            count(counters, 1 + number)
            for other in range(number):
                wait_for(counters, 1 + other, layer + 1)
            seen = scaled_dot_product_attention(
                queries[None], keys[None, :, :known], past[None, :, :known], attn_mask=mask, enable_gqa=True
            )[0]
            round_seen(seen.contiguous().numpy(), room.seen.rounded)
            multiply(room.seen.coarse, self._out.values[layer], room.out)
            added = lora.product(OUT, layer, room.seen.floats, room.added)
            update(x, self._out.product(layer, room.out, None, room.seen, added), room.out_row)
            round_normed(x, weights.norms[layer, 1], self._epsilon, room.flat.rounded, False)
            multiply(room.flat.coarse, self._inner.values[layer], room.gates)
            added = lora.product(INNER, layer, room.flat.floats, room.added)
            product = self._inner.product(layer, room.gates, None, room.flat, added)
            round_product(product, room.gates_row, room.inner.rounded)
            multiply(room.inner.both, self._down.values[layer], room.down)
            added = lora.product(DOWN, layer, room.inner.floats, room.added)
            product = self._down.product(layer, room.down[:rows], room.down[rows:], room.inner, added)
            update(x, product, room.out_row)
        for row in range(max(start, prompt.cuts[-1] - prompt.last), end):
            normed(x[row - start], weights.norm, self._epsilon, prompt.states[row - prompt.cuts[-1]])


def fits(model: Any) -> bool:
    """Whether the pass of this model, on a CPU and with int8 layers, is the one written here."""
    config = model.config
    return (
        config.model_type == "llama"
        and config.hidden_act == "silu"
        and model.model.rotary_emb.rope_type in ("default", "linear", "llama3")
        and all(type(layer) is Int8Linear and not layer.has_bias for layer in _linear_layers(model.model.layers))
        and isinstance(model.lm_head, Int8Linear)
        and not model.lm_head.has_bias
    )


def _linear_layers(layers: Any) -> list[Any]:
    return [layer.get_submodule(name) for layer in layers for name in (*ATTENTION, *FEED_FORWARD)]


def _joined(layers: Any, names: Sequence[str]) -> _Matrix:
    """The weights of these layers, one behind the other; the layers keep views of them."""
    parts = [[layer.get_submodule(name) for name in names] for layer in layers]
    rows = sum(part.out_features for part in parts[0])
    values = torch.from_numpy(np.empty((len(parts), rows, parts[0][0].in_features), np.int8))
    scales, sums = torch.empty((len(parts), rows)), torch.empty((len(parts), rows))
    for layer, modules in enumerate(parts):
        start = 0
        for module in modules:
            end = start + module.out_features
            values[layer, start:end], scales[layer, start:end] = module.values, module.scales
            module.values, module.scales = values[layer, start:end], scales[layer, start:end]
            start = end
        sums[layer] = values[layer].sum(dim=1)
        # Both copies of all layers at once would be the largest thing that was ever in memory.
        give_back()
    return _Matrix(values, scales.numpy(), sums.numpy())


def _array(tensor: Tensor) -> Any:
    return tensor.detach().float().numpy() if tensor.is_floating_point() else tensor.numpy()


def _cuts(before: int, tokens: int, threads: int) -> tuple[int, ...]:
    """Where to cut `tokens` behind `before` others so that all threads have as much to do: later ones see more keys."""
    work = np.cumsum(_PRODUCTS + before + np.arange(tokens))
    inner = np.searchsorted(work, work[-1] * np.arange(1, threads) / threads)
    return (0, *(int(cut) for cut in inner), tokens)
