"""A few tokens read at once with, bit for bit, the results of reading them one by one.

Libraries sum in another order when there are more rows, so results differ in the last digits. In a float model nobody
sees that. Int8 layers round their input: a last digit moves a value over the border of a step, the next layer sees a
difference of a whole step, and after thirty layers a drafted token would be checked against another model than the one
that writes. So with int8 weights on a CPU everything that sums has to do it row by row: attention and LoRA here, the
layers themselves in tuner/int8.py. It is also faster: for a few tokens behind many, the library's attention copies
all keys and values for each group of heads and computes a mask.
This module is imported by functions that need torch only.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tuner.int8 import MOST_ROWS

_NAME = "tandem_rows"


def attend_by_rows(model: nn.Module) -> bool:
    """Have `model` attend row by row where that is what this module is for; False where it attends by another method.

    Only for models whose tokens see everything before them.
    """
    config: Any = model.config
    if config._attn_implementation == "sdpa":
        AttentionInterface.register(_NAME, _attend)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)  # type: ignore[operator]
    return bool(config._attn_implementation == _NAME)


class RowLinear(nn.Linear):
    """A linear layer whose rows do not depend on each other when they are few."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., i) -> (..., o)."""
        rows = input.numel() // self.in_features
        # One token each of several requests is always taken by rows, however many there are.
        if (rows > MOST_ROWS and input.shape[-2] > 1) or self.bias is not None:
            return super().forward(input)
        each = input.reshape(rows, 1, self.in_features)
        product = torch.bmm(each, self.weight.t().expand(rows, -1, -1))
        return product.reshape(*input.shape[:-1], self.out_features)


def sum_by_rows(model: nn.Module, key: str) -> None:
    """Have the LoRA matrices of the adapter `key` work row by row."""
    for module in model.modules():
        for name in ("lora_A", "lora_B"):
            matrices = getattr(module, name, None)
            if isinstance(matrices, nn.ModuleDict) and key in matrices and type(matrices[key]) is nn.Linear:
                # The same module with another forward; a copy would have to be kept in step with PEFT's.
                matrices[key].__class__ = RowLinear


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    shared: Any = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """As the library's attention: query (b, heads, q, d), key and value (b, h, n, d) -> (b, q, heads, d).

    With `shared` (tuner/together.py) query is (b, heads, 1, d), and each row sees what that cache says it does.
    """
    if shared is not None:
        each = [
            sdpa_attention_forward(module, query[row : row + 1], keys, values, None, **options)[0]
            for row, (keys, values) in enumerate(shared.seen)
        ]
        return torch.cat(each), None
    batch, rows, before = query.shape[0], query.shape[2], key.shape[2] - query.shape[2]
    if batch > 1 or before == 0 or not 1 < rows <= MOST_ROWS or module.training or query.device.type != "cpu":
        whole: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, **options)[0]
        return whole, None
    each = [
        sdpa_attention_forward(
            module,
            query[:, :, row : row + 1],
            key[:, :, : before + row + 1],
            value[:, :, : before + row + 1],
            None,
            **options,
        )[0]
        for row in range(rows)
    ]
    return torch.cat(each, dim=1), None
