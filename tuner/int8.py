"""Int8 linear layers for the CPU: y = x W^T + b with W in int8, one scale a row, x in floats or rounded as it comes.

Not `quantize_dynamic`: that makes modules which are not `nn.Linear`, so PEFT cannot attach to them. `Int8Linear` is
one: PEFT wraps it like any other and adds the float LoRA product to its output. What it cannot carry is anything that
reads or copies the weight (merge, DoRA, modules_to_save); nor has it a gradient, so it is not tuned over.

- A few tokens, as in every step of an answer, are multiplied as floats (tuner/kernels.py): a step waits for the
  weights to come from memory anyway.
- Many tokens are rounded, each with a step of its own. Language models have a few tokens with activations hundreds of
  times larger than the rest, and one scale for all would leave nothing for the others. Layers that narrow (the end
  of a feed-forward block, keys and values) get them in two parts, coarse and rest, over the same weights: the former
  have the largest outliers, the latter are read by every later token.
- The output layer only has to name the best token: see `Int8Head`.

Llamas do not come through here (tuner/llama.py); they have the same weights, and the same products in fewer passes.

Notation: m rows (tokens), i in_features, o out_features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from indexer.int8 import multiply, to_int8_rows
from tuner.kernels import few_rows

# Up to so many tokens are taken row by row; a draft with the token before it is shorter.
MOST_ROWS = 16
_TINY = torch.finfo(torch.float32).tiny
# Entries of the output layer that are computed exactly. The best float token was never below rank 4 of int8.
_SHORTLIST = 64


class Int8Linear(nn.Linear):
    """A drop-in for a float `nn.Linear`: (..., i) float32 -> (..., o) float32. `values` (o, i) int8, `scales` (o,)."""

    def __init__(self, linear: nn.Linear, *, fine: bool = False) -> None:
        nn.Module.__init__(self)
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        # No values: PEFT reads only the device and dtype, to place its own matrices.
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        self.register_parameter("bias", None)
        self.values, self.scales = to_int8_rows(linear.weight.detach())
        # A copy, so that nothing here keeps the memory of the float model.
        self._bias = None if linear.bias is None else linear.bias.detach().clone()
        self._fine = fine

    @property
    def has_bias(self) -> bool:
        """Whether something is added to the product."""
        return self._bias is not None

    def forward(self, input: Tensor) -> Tensor:
        """(..., i) -> (..., o). A row's result does not depend on the rows beside it where they are few."""
        rows = input.reshape(-1, self.in_features)
        # One token each of several requests is always taken by rows, however many there are.
        product = self._few(rows) if len(rows) <= MOST_ROWS or input.shape[-2] == 1 else self._many(rows)
        if self._bias is not None:
            product += self._bias
        return product.reshape(*input.shape[:-1], self.out_features)

    def _few(self, rows: Tensor) -> Tensor:
        product = rows.new_empty((len(rows), self.out_features))
        x = rows.detach().contiguous().numpy()
        few_rows(self.values.numpy(), self.scales.numpy(), x, product.numpy(), 0, self.out_features)
        return product

    def _many(self, rows: Tensor) -> Tensor:
        # x = middle + step (coarse + rest / 253), so W x = middle (row sums of W) + step W (coarse + rest / 253).
        low, high = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
        step, middle = ((high - low) / 254).clamp_min_(_TINY), (low + high) / 2
        shares = (rows - middle).div_(step)
        coarse = shares.round()
        product = multiply(coarse.to(torch.int8), self.values).float()
        if self._fine:
            rest = shares.sub_(coarse).mul_(253).round_()
            product += multiply(rest.to(torch.int8), self.values) / 253
        sums = self.values.sum(dim=1, dtype=torch.float32)
        return product.mul_(step).add_(middle * sums).mul_(self.scales)


class Int8Head(Int8Linear):
    """An output layer whose float weights are kept anyway, because they are the input embedding.

    Logits are int8 approximations, but for the largest ones of each position, which are exact: the best token is
    found for a fortieth of the memory traffic. Only the order of the best is meant to be used.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        # In a tuple, so that the embedding's parameter is not listed a second time as this layer's.
        self._tied = (linear.weight,)

    def forward(self, input: Tensor) -> Tensor:
        """(..., i) -> (..., o)."""
        return exact_best(super().forward(input), input, self._tied[0], self._bias)


def exact_best(logits: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Logits (..., o), the largest ones computed again from the states (..., i) and the float weights (o, i)."""
    best = logits.topk(min(_SHORTLIST, logits.shape[-1]), dim=-1).indices
    exact = (weight[best].float() @ states.unsqueeze(-1)).squeeze(-1)
    if bias is not None:
        exact = exact + bias[best]
    return logits.scatter(-1, best, exact)


def to_int8(model: nn.Module) -> None:
    """Replace every linear layer of `model` in place."""
    for parent in list(model.modules()):
        embeddings = [child.weight for child in parent.modules() if isinstance(child, nn.Embedding)]
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                tied = any(child.weight is weight for weight in embeddings)
                setattr(parent, name, Int8Head(child) if tied else int8_layer(child))


def int8_layer(linear: nn.Linear) -> Int8Linear:
    """What takes the place of `linear`."""
    return Int8Linear(linear, fine=linear.in_features > linear.out_features)
