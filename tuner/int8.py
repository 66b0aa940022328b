"""Dynamic int8 linear layers for the CPU: y = x W^T + b with W in int8, one scale a row, x quantised as it comes.

Through PyTorch's operators (fbgemm) instead of `quantize_dynamic`, for four reasons:
- that function makes modules which are not `nn.Linear`, so PEFT cannot attach to them. `Int8Linear` is one: PEFT
  wraps it like any other and adds the float LoRA product to its output. What it cannot carry is anything that reads
  or copies the weight (merge, DoRA, modules_to_save); nor has it a gradient, so it is not tuned over;
- the operator has one scale for all activations of a call. Language models have a few tokens with activations
  hundreds of times larger than the rest, which leaves nothing for the others. Here each token is stretched
  to [0, 1] first and the product is shifted back, so each token has steps of its own and a token's result is the
  same alone and beside others, which checking several drafted tokens at once (tuner/decoding.py) relies on;
- layers that narrow (the end of a feed-forward block, keys and values) get activations of 16 bits, as two products
  over the same weights: the former have the largest outliers, the latter are read by every later token;
- the output layer only has to name the best token: see `Int8Head`.
Measured on the bundled model against float32, 500 tokens each of a licence, a manual and two technical texts, mean KL
divergence 0.008 and 94 % the same best token. With 8 bits in every layer 0.032 and 91 %, with nf4 0.28 and 70 %;
with one scale a call, on 1,000 tokens of one of them, 0.47 and 59 %.

Notation: i in_features, o out_features.
"""

from __future__ import annotations

import warnings
from typing import cast

import torch
from torch import Tensor, nn

_TINY = torch.finfo(torch.float32).tiny
# Entries of the output layer that are computed exactly. The best float token was never below rank 4 of int8.
_SHORTLIST = 64
_ROWS_SUMMED = 4096
# Rows for which one call is faster than two.
_FEW = 2


class Int8Linear(nn.Linear):
    """A drop-in for a float `nn.Linear`: (..., i) float32 -> (..., o) float32."""

    def __init__(self, linear: nn.Linear, *, fine: bool = False, stretching: Stretching | None = None) -> None:
        nn.Module.__init__(self)
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        # No values: PEFT reads only the device and dtype, to place its own matrices.
        self.weight = nn.Parameter(torch.empty(0), requires_grad=False)
        self.register_parameter("bias", None)
        self._packed, sums = _pack(linear.weight.detach())
        self._sums, self._half_sums = sums, sums / 2
        # A copy, so that nothing here keeps the memory of the float model.
        self._bias = None if linear.bias is None else linear.bias.detach().clone()
        # Without VNNI the kernel sums pairs of products in int16, which overflows unless activations keep to 7 bits.
        self._seven_bits = not torch.cpu._is_vnni_supported()
        self._steps = 127 if self._seven_bits else 255
        self._fine = fine
        self._stretching = stretching or Stretching()

    def forward(self, input: Tensor) -> Tensor:
        """(..., i) -> (..., o). A row's result does not depend on the rows beside it."""
        # x = low + spread * u with u in [0, 1], so W x = low * (row sums of W) + spread * W u.
        unit, low, spread = self._stretching.unit(input)
        product = self._multiply_fine(unit) if self._fine else self._multiply(unit)
        # In place, for many rows: a pass over memory that is not in the cache costs a tenth of the product.
        product = product.mul_(spread).addcmul_(low, self._sums)
        return product if self._bias is None else product.add_(self._bias)

    def _multiply(self, unit: Tensor) -> Tensor:
        return cast(Tensor, torch.ops.quantized.linear_dynamic(unit, self._packed, self._seven_bits))

    def _multiply_fine(self, unit: Tensor) -> Tensor:
        # u = coarse + (v - 1/2) / steps: what rounding took away is stretched to [0, 1] and multiplied as well.
        coarse, rest = self._multiply(self._stretching.halves(unit, self._steps))
        return cast(Tensor, coarse.add_(rest.sub_(self._half_sums), alpha=1 / self._steps))


class Stretching:
    """Rows stretched to [0, 1]; the last result is kept, because several layers read the same input."""

    def __init__(self) -> None:
        self._unit: tuple[Tensor, tuple[Tensor, Tensor, Tensor]] | None = None
        self._halves: tuple[Tensor, Tensor] | None = None

    def unit(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., i) -> the rows stretched to [0, 1] (..., i), their lowest values (..., 1), their ranges (..., 1)."""
        kept = self._unit
        if kept is None or kept[0] is not input:
            low, high = _extremes(input)
            spread = (high - low).clamp_min(_TINY)
            kept = (input, ((input - low).div_(spread), low, spread))
            self._unit = kept
        return kept[1]

    def halves(self, unit: Tensor, steps: int) -> Tensor:
        """(..., i) -> (2, ..., i): rounded to `steps`, and what that took away; both fill [0, 1] and no more."""
        kept = self._halves
        if kept is None or kept[0] is not unit:
            both = unit.new_empty((2, *unit.shape))
            coarse = torch.mul(unit, steps, out=both[0]).round_().div_(steps)
            torch.sub(unit, coarse, out=both[1]).mul_(steps).add_(0.5).clamp_(0, 1)
            kept = (unit, both)
            self._halves = kept
        return kept[1]


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
        logits = super().forward(input)
        best = logits.topk(min(_SHORTLIST, self.out_features), dim=-1).indices
        exact = (self._tied[0][best] @ input.unsqueeze(-1)).squeeze(-1)
        if self._bias is not None:
            exact = exact + self._bias[best]
        return logits.scatter(-1, best, exact)


def _extremes(input: Tensor) -> tuple[Tensor, Tensor]:
    """(..., i) -> the lowest and the highest value of each row (..., 1)."""
    if input.numel() <= _FEW * input.shape[-1]:
        return input.aminmax(dim=-1, keepdim=True)
    # `aminmax` over rows is not vectorised: for many of them it takes eight times as long as the two.
    return input.amin(dim=-1, keepdim=True), input.amax(dim=-1, keepdim=True)


def to_int8(model: nn.Module) -> None:
    """Replace every linear layer of `model` in place."""
    stretching = Stretching()
    for parent in list(model.modules()):
        embeddings = [child.weight for child in parent.modules() if isinstance(child, nn.Embedding)]
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                tied = any(child.weight is weight for weight in embeddings)
                setattr(parent, name, Int8Head(child) if tied else int8_layer(child, stretching))


def int8_layer(linear: nn.Linear, stretching: Stretching) -> Int8Linear:
    """What takes the place of `linear`; the layers of one model share `stretching`."""
    return Int8Linear(linear, fine=linear.in_features > linear.out_features, stretching=stretching)


def _pack(weight: Tensor) -> tuple[object, Tensor]:
    """(o, i) float -> the kernel's packed weights, and the sums (o,) of their rows. Scale of a row = max |w| / 127."""
    weight = weight.float()
    low, high = weight.amin(dim=1), weight.amax(dim=1)
    scales = (torch.maximum(high, -low) / 127).clamp_min(_TINY)
    zeros = torch.zeros(len(scales), dtype=torch.long)
    with warnings.catch_warnings():
        # PyTorch announces that quantised tensors will leave; the pinned release has them, and they are the fast path.
        warnings.filterwarnings("ignore", message="[\\s\\S]*quantized tensor creation functions")
        rows = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        # In parts: a sum first makes eight bytes of every one.
        whole = rows.int_repr()
        sums = torch.cat(
            [whole[start : start + _ROWS_SUMMED].sum(dim=1) for start in range(0, len(whole), _ROWS_SUMMED)]
        )
        del whole
        engines, before = torch.backends.quantized.supported_engines, torch.backends.quantized.engine
        try:
            # For one row, as in every step of an answer, it takes a third of the time of PyTorch's own choice (oneDNN).
            if "fbgemm" in engines:
                torch.backends.quantized.engine = "fbgemm"
            return torch.ops.quantized.linear_prepack(rows, None), sums * scales
        finally:
            torch.backends.quantized.engine = before
