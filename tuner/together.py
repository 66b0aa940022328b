"""The next tokens of several requests, read in one pass.

A step of an answer reads every weight once for a single token, and reading the weights is what takes the time: several
requests that step together share it (as in Orca, Yu et al. 2022, OSDI). A compiled pass (tuner/llama.py) takes rows of
several requests as it is; tuner/sharedcache.py has the library's model do it.
With int8 weights on a CPU a row has, bit for bit, the results it has by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tuner.basemodel import BaseModel
from tuner.decoding import Steps

if TYPE_CHECKING:
    from torch import Tensor

# Of the largest logit: two ways to sum, in half precision; a model that reads something else is far from it.
_CLOSE = 5e-2


@dataclass(frozen=True, slots=True)
class Part:
    """What one request reads in a pass: `ids` after what is in `cache`."""

    cache: Any
    ids: Sequence[int]


def read_together(base: BaseModel, parts: Sequence[Part]) -> list[Tensor]:
    """The logits that follow each id of each part: a (len(ids), vocabulary) tensor a part. Only of plain caches."""
    if base.compiled:
        return base.compiled.read_together([(part.cache, part.ids) for part in parts])
    from tuner.sharedcache import read_by_rows

    return read_by_rows(base, parts)


def can_read_together(base: BaseModel) -> bool:
    """Whether several requests can share a pass of this model: tried on two, against reading them one by one."""
    if base.compiled:
        return True
    from tuner.rowwise import attend_by_rows

    steps = [Steps(base, 8) for _ in range(4)]
    if not steps[0].cache.is_plain or not attend_by_rows(base.model):
        return False
    texts, then = [(3, 5, 4, 6), (5, 4)] * 2, [(4,), (6, 3)] * 2
    for each, text in zip(steps, texts, strict=True):
        each.read(text)
    alone = [each.read(ids, len(ids)) for each, ids in zip(steps[:2], then[:2], strict=True)]
    try:
        parts = [Part(each.cache, ids) for each, ids in zip(steps[2:], then[2:], strict=True)]
        together = read_together(base, parts)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        # Whatever a family of models does not take, its requests are read in turns.
        return False
    return all(
        one.shape == other.shape and bool((one - other).abs().max() <= _CLOSE * one.abs().max())
        for one, other in zip(alone, together, strict=True)
    )
