"""What a run makes smaller: cross-entropy of rows, or (tuner/preference.py) the loss of preferences."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from tuner.grouploss import Reading, group_logits, group_loss
from tuner.groups import Group


class Objective(Protocol):
    """How an item of the training data is weighed and what is minimised. Losses are sums over what `weight` counts."""

    def weight(self, item: Any) -> int:
        """How many learned tokens, or preferences, the item has."""

    def tokens(self, item: Any) -> int:
        """How many tokens are read for it."""

    def losses(self, item: Any, *, blocks: bool) -> Iterable[Any]:
        """The loss of the item in parts, scalar tensors, each of which may be freed before the next is computed."""


@dataclass(frozen=True, slots=True)
class Supervised:
    """Cross-entropy of the learned tokens of groups of rows."""

    model: Any
    reading: Reading

    def weight(self, item: Group) -> int:
        """Learned tokens."""
        return learned_tokens(item)

    def tokens(self, item: Group) -> int:
        """Tokens read."""
        shared = self.reading.shared
        return item.tokens if shared else item.tokens + len(item.prefix) * (len(item.endings) - 1)

    def losses(self, item: Group, *, blocks: bool) -> Iterable[Any]:
        """Summed cross-entropy."""
        return group_loss(self.model, item, self.reading, blocks=blocks)


def learned_tokens(group: Group) -> int:
    """How many tokens of a group are learned."""
    return sum(sum(ending.learned) for ending in group.endings)


def token_accuracy(model: Any, groups: Iterable[Group], reading: Reading, precision: str) -> float:
    """The share of the learned tokens that are the model's first choice."""
    import torch

    right = count = 0
    training = model.training
    model.eval()
    with torch.no_grad(), autocast(model, precision):
        for group in groups:
            for logits, targets, _ in group_logits(model, group, reading):
                right += int((logits.argmax(-1) == targets).sum())
                count += len(targets)
    model.train(training)
    return right / count


def autocast(model: Any, precision: str) -> Any:
    """The context that training runs in: bfloat16 products where the machine has instructions for them."""
    import torch

    device = torch.device(model.device).type
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" or has_bfloat16() else "float32"
    return torch.autocast(device, torch.bfloat16) if precision == "bfloat16" else contextlib.nullcontext()


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; without it, it is several times slower than float32."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
