"""A second task for an encoder that learns to judge: to point at the answer.

Yes or no is one bit a passage; where the answer stands teaches what to look for. A linear layer over the vector of
each token tells the first and the last token of the answer, and points at the first token of all where there is none
(Devlin et al. 2019, arXiv 1810.04805, sections 4.2 and 4.3). It is needed while learning only and thrown away then.

b passages in a batch, n tokens, h numbers a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# The place of an answer that is not known: nothing is learned from it.
NOWHERE = -100
# Where a passage without an answer points: at [CLS].
NO_ANSWER = 0


class Pointing(nn.Module):
    """The encoder `judge`, which gives one logit a passage, with the layer that points. `forward` gives the loss."""

    def __init__(self, judge: Any) -> None:
        super().__init__()
        self.judge = judge
        self.pointer = nn.Linear(judge.config.hidden_size, 2, device=judge.device)

    def forward(self, texts: Mapping[str, Tensor], labels: Tensor, places: Tensor) -> dict[str, Tensor]:
        """{"loss": ()} of padded `texts` (b, n), `labels` (b,) 0 or 1, and `places` (b, 2) of first and last token."""
        read = self.judge(**texts, output_hidden_states=True)
        judging = functional.binary_cross_entropy_with_logits(read.logits[:, 0].float(), labels)
        points = self.pointer(read.hidden_states[-1]).float()
        points = points.masked_fill(texts["attention_mask"][:, :, None] == 0, torch.finfo(torch.float32).min)
        losses = functional.cross_entropy(points, places, ignore_index=NOWHERE, reduction="sum")
        return {"loss": judging + losses / (places != NOWHERE).sum().clamp(min=1)}
