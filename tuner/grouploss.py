"""Logits of the learned tokens of a group of rows: the shared beginning is read once, the endings beside each other.

Logits only for learned tokens: a vocabulary of 49,152 makes those of every prompt token cost more than a fifth of the
whole model. Gradients flow through the keys and values of the beginning, so the result is that of reading every row
alone (tests hold it against that). Where a model cannot be read so, `find_reading` finds out and rows are read alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from indexer.errors import TandemError
from tuner.groups import Example, Group

# How far losses may differ between readings: float32 sums in another order; shorter numbers round differently.
_CLOSE = {"exact": 1e-3, "rounded": 0.05}


@dataclass(frozen=True, slots=True)
class Reading:
    """How a model is read. `shared`: beginnings once. `body`: output layer for the learned tokens only."""

    shared: bool = True
    body: bool = True


def group_logits(model: Any, group: Group, reading: Reading, *, blocks: bool = False) -> Iterator[tuple[Any, Any, Any]]:
    """(logits (n, vocabulary), target ids (n,), which ending each belongs to (n,)) of the learned tokens.

    All endings at once when beginnings are shared, otherwise one by one, so that each one's gradient can be taken
    before the next is read. `model` is the causal language model itself (what PEFT wraps). With `blocks`, passages
    do not see each other; a group without known passages is read as without `blocks`.
    """
    import torch

    if not reading.shared:
        for number, ending in enumerate(group.endings):
            whole = _whole(group.prefix, ending)
            ids = torch.tensor([whole.ids], device=model.device)
            learned = torch.tensor([whole.learned], device=model.device)[:, 1:]
            targets = ids[:, 1:][learned]
            logits = _logits(model, reading, learned, input_ids=ids, attention_mask=torch.ones_like(ids))
            yield logits, targets, torch.full_like(targets, number)
        return
    cache = _read_prefix(model, group, blocks) if group.prefix else None
    longest = max(len(ending.ids) for ending in group.endings)
    ids = torch.zeros((len(group.endings), longest), dtype=torch.long)
    learned = torch.zeros((len(group.endings), longest), dtype=torch.bool)
    for row, ending in enumerate(group.endings):
        ids[row, : len(ending.ids)] = torch.tensor(ending.ids)
        learned[row, : len(ending.ids)] = torch.tensor(ending.learned)
    ids, learned = ids.to(model.device), learned[:, 1:].to(model.device)
    positions = torch.arange(len(group.prefix), len(group.prefix) + longest, device=model.device)[None]
    # Padding stands to the right of every real token, which causal attention never looks at.
    logits = _logits(
        model, reading, learned, cache, input_ids=ids, position_ids=positions.expand(len(group.endings), -1)
    )
    yield logits, ids[:, 1:][learned], learned.nonzero()[:, 0]


def group_loss(model: Any, group: Group, reading: Reading, *, blocks: bool = False) -> Iterator[Any]:
    """The summed cross-entropy of the learned tokens, in nats, in the parts that `group_logits` gives."""
    from torch.nn.functional import cross_entropy

    for logits, targets, _ in group_logits(model, group, reading, blocks=blocks):
        yield cross_entropy(logits.float(), targets, reduction="sum")


def find_reading(model: Any, quantisation: str, *, shared: bool = True, blocks: bool = False) -> Reading:
    """The cheapest way to read this model that gives the losses of reading every row alone, found by trying it.

    Raises TandemError when `blocks` are wanted and the model cannot be read so.
    """
    import torch

    weight = model.get_input_embeddings().weight
    group, short = _probe(int(weight.shape[0])), weight.dtype != torch.float32
    close = _CLOSE["rounded" if short or quantisation != "none" else "exact"]
    training = model.training
    model.eval()
    try:
        # Parameters that are trained are float32 also where the others are not, and only autocast joins the two.
        with torch.no_grad(), torch.autocast(weight.device.type, torch.bfloat16, enabled=short):
            expected = _total(model, group, Reading(False, False))
            wanted = [Reading(True, True), Reading(True, False)] if shared else []
            for reading in (*wanted, Reading(False, True)):
                if _agrees(model, group, reading, expected, close, blocks and reading.shared):
                    if blocks and not reading.shared:
                        break
                    return reading
    finally:
        model.train(training)
    if blocks:
        raise TandemError(
            "This model cannot read passages apart from each other while it is tuned.",
            expected="A model whose attention takes a mask and a cache, without gradient checkpointing.",
            do="Leave --block-share out.",
        )
    return Reading(False, False)


def _agrees(model: Any, group: Group, reading: Reading, expected: float, close: float, blocks: bool) -> bool:
    try:
        found = [_total(model, group, reading)]
        if reading.shared:
            rows = tuple(_whole(group.prefix, ending) for ending in group.endings)
            found.append(_total(model, Group((), (), rows), reading))
        if blocks:
            # One span over everything hides nothing, so the mask must change nothing.
            whole = Group(group.prefix, ((0, len(group.prefix)),), group.endings)
            found.append(_total(model, whole, reading, blocks=True))
    except (TypeError, ValueError, RuntimeError, AttributeError, NotImplementedError):
        # Whatever a family of models does not take, reading rows alone asks for none of it.
        return False
    return all(abs(value - expected) <= close * max(1.0, abs(expected)) for value in found)


def _total(model: Any, group: Group, reading: Reading, *, blocks: bool = False) -> float:
    return sum(float(loss) for loss in group_loss(model, group, reading, blocks=blocks))


def _probe(vocabulary: int) -> Group:
    """A beginning and endings of unequal length, of ids that every vocabulary has."""
    ids = [(7 * place + 3) % min(vocabulary, 200) for place in range(40)]
    endings = (ids[18:24], ids[24:28], ids[28:40])
    learned = [tuple(place > 0 for place in range(len(ending))) for ending in endings]
    return Group(tuple(ids[:18]), (), tuple(Example(tuple(e), some) for e, some in zip(endings, learned, strict=True)))


def _whole(prefix: tuple[int, ...], ending: Example) -> Example:
    return Example(prefix + ending.ids, (False,) * len(prefix) + ending.learned)


def _logits(model: Any, reading: Reading, learned: Any, cache: Any = None, **inputs: Any) -> Any:
    """Logits (n, vocabulary) of the positions before each learned token; `learned` is (rows, length - 1), boolean."""
    options = {"past_key_values": cache, "use_cache": True} if cache is not None else {"use_cache": False}
    if not reading.body:
        return model(**inputs, **options).logits[:, :-1][learned]
    hidden = getattr(model, model.base_model_prefix)(**inputs, **options).last_hidden_state
    return model.get_output_embeddings()(hidden[:, :-1][learned])


def _read_prefix(model: Any, group: Group, blocks: bool) -> Any:
    """A cache with the keys and values of the prefix, once for every ending, in the graph."""
    import torch
    from transformers import DynamicCache

    ids = torch.tensor([group.prefix], device=model.device)
    cache = DynamicCache(config=model.config)
    mask = None
    if blocks and group.spans:
        mask = block_mask(len(group.prefix), group.spans, model.device, model.get_input_embeddings().weight.dtype)
    positions = torch.arange(len(group.prefix), device=model.device)[None]
    getattr(model, model.base_model_prefix)(
        input_ids=ids, position_ids=positions, attention_mask=mask, past_key_values=cache, use_cache=True
    )
    cache.batch_repeat_interleave(len(group.endings))
    return cache


def block_mask(length: int, spans: tuple[tuple[int, int], ...], device: Any, dtype: Any) -> Any:
    """(1, 1, length, length): 0 where a token may look, the lowest number of `dtype` where not."""
    import torch

    block = torch.zeros(length, dtype=torch.long)
    for number, (start, end) in enumerate(spans, start=1):
        block[start:end] = number
    places = torch.arange(length)
    behind = places[:, None] >= places[None]
    after = places[:, None] >= (spans[-1][1] if spans else 0)
    seen = behind & ((block[:, None] == block[None]) | after)
    return torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)[None, None].to(device)
