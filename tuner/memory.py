"""How much memory tuning takes, from the shape of a model alone: weights, gradients, optimiser, activations, logits.

Notation: h hidden, a width of the queries, k of the keys, f of the feed-forward; t tokens in one step (rows x length);
r rank; e bytes of a computed value: 2 on a GPU (bfloat16 by autocast), 4 on a CPU (float32).

Weights. Frozen ones e bytes each; NF4 takes 4 bits and, with double quantisation, 8/64 + 32/(64 * 256) = 0.127 bits
for its constants (QLoRA, Dettmers et al. 2023, arXiv 2305.14314, section 3); LLM.int8() one byte and a scale a row.
Neither touches the token matrix; norms and the output layer are kept in float32 beside quantised layers.
Trained weights are float32: with gradient (4) and the two moments of AdamW (8) that is the 16 bytes a parameter of
ZeRO (Rajbhandari et al. 2019, arXiv 1910.02054); on a GPU autocast adds a bfloat16 copy of them.

Activations. What a layer keeps for its gradient, counted as Korthikanti et al. 2022 (arXiv 2205.05198) do, for a
pre-norm layer with fused attention, which keeps no t x t matrix: both norm inputs in float32; queries, keys and values;
what enters and leaves the feed-forward's activation. Trained weights need their inputs too (every map its own copy
where autocast converts them) and norms their output before the weight. Frozen ones do not, but every LoRA pair keeps
its input and r values; with dropout, maps of one input share no copy and masks are kept (bytes, on a CPU float32).
With checkpointing only the input of each layer is kept, and one layer at a time is computed again.
tests/test_memory.py counts the tensors that autograd keeps and holds these sums against them.

Logits are computed for the answer tokens only (tuner/grouploss.py), in float32: with the softmax and the gradient of
both three matrices of answer tokens x vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from indexer.errors import TandemError
from tuner.shapes import ModelShape

Method = Literal["full", "partial", "lora", "lora-int8", "qlora"]
METHODS: tuple[Method, ...] = get_args(Method)
Place = Literal["cuda", "cpu"]
# Sizes that GPUs are sold with, in 10^9 bytes; a card holds a little more and its driver takes about that.
CARDS = (8, 16, 24, 48, 80)
# What a process takes before the model: on a GPU the CUDA context and the kernels of its libraries, on a CPU the
# resident libraries (PyTorch, transformers, PEFT, bitsandbytes: measured 447 MB).
RUNTIME_BYTES = {"cuda": 900_000_000, "cpu": 450_000_000}
# What the C library's heap holds of memory that was freed and not given back: so many float32 values for every input
# and output of a map, token and layer. Fitted to LoRA at 256 tokens, and within 10 % for the other methods and at 512
# (tests/benchmarks/memory.py). With a mapping of its own for every tensor it is near 0, and steps are slower.
_CPU_HEAP = 2
_NF4_BYTES = (4 + 8 / 64 + 32 / (64 * 256)) / 8
_MASTER = 4
_ADAM = 8


@dataclass(frozen=True, slots=True)
class Workload:
    """What a step reads and what is trained: `answer` of the `sequence` tokens of each row are learned."""

    sequence: int = 1024
    batch: int = 1
    answer: int = 64
    rank: int = 16
    layers: int = 4
    place: Place = "cuda"
    checkpointing: bool = False
    dropout: bool = False

    def __post_init__(self) -> None:
        """Raise TandemError for a size that cannot be."""
        for name in ("sequence", "batch", "answer", "rank", "layers"):
            if getattr(self, name) < 1:
                raise TandemError(f"--{name} is {getattr(self, name)}.", expected="At least 1.", do="Correct it.")


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes by what they are for, and how many parameters are trained."""

    method: Method
    trained: int
    weights: int
    gradients: int
    optimiser: int
    activations: int
    logits: int
    workspace: int
    runtime: int

    @property
    def total(self) -> int:
        """All of it at once, as when gradients of several steps are summed before the optimiser runs."""
        parts = (self.weights, self.gradients, self.optimiser, self.activations, self.logits, self.workspace)
        return sum(parts) + self.runtime

    def fits(self) -> tuple[int, ...]:
        """The CARDS it fits on."""
        return tuple(card for card in CARDS if self.total <= card * 10**9)


def plan(shape: ModelShape, method: Method, work: Workload) -> Memory:
    """The memory of one method. Raises TandemError for more layers than the model has, or rows over its window."""
    if method == "partial" and work.layers > shape.layers:
        raise TandemError(
            f"--layers is {work.layers}, and {shape.name} has {shape.layers} layers.",
            expected="At most as many as the model has.",
            do="Lower it, or plan for the method full.",
        )
    if shape.window and work.sequence > shape.window:
        raise TandemError(
            f"--sequence is {work.sequence}, over the window of {shape.name}.",
            expected=f"At most {shape.window} tokens.",
            do="Lower it.",
        )
    trained = trained_parameters(shape, method, work)
    activations = _activations(shape, method, work)
    logits = 3 * 4 * work.batch * min(work.answer, work.sequence) * shape.vocabulary
    return Memory(
        method=method,
        trained=trained,
        weights=_weights(shape, method, trained, work),
        gradients=_MASTER * trained,
        optimiser=_ADAM * trained,
        activations=activations,
        logits=logits,
        workspace=_workspace(shape, method, trained, work),
        runtime=RUNTIME_BYTES[work.place],
    )


def trained_parameters(shape: ModelShape, method: Method, work: Workload) -> int:
    """How many parameters the method trains; LoRA has r (inputs + outputs) beside each linear map of the layers."""
    if method == "full":
        return shape.parameters
    if method == "partial":
        return work.layers * shape.layer_parameters
    return sum(work.rank * (linear.inputs + linear.outputs) * linear.count for linear in shape.linears)


def _weights(shape: ModelShape, method: Method, trained: int, work: Workload) -> int:
    frozen = 2 if work.place == "cuda" else 4
    if method in ("full", "partial"):
        return _MASTER * trained + frozen * (shape.parameters - trained)
    if method == "lora":
        return frozen * shape.parameters + _MASTER * trained
    others = _MASTER * (shape.parameters - shape.linear_parameters)
    tokens = shape.vocabulary * shape.hidden
    if shape.parameters - shape.linear_parameters >= 2 * tokens:
        # An output layer of its own is kept in float32, and the token matrix as it is.
        others -= (_MASTER - frozen) * tokens
    if method == "qlora":
        return round(_NF4_BYTES * shape.linear_parameters) + others + _MASTER * trained
    scales = sum(4 * linear.outputs * linear.count for linear in shape.linears)
    return shape.linear_parameters + scales + others + _MASTER * trained


def _workspace(shape: ModelShape, method: Method, trained: int, work: Workload) -> int:
    if work.place == "cuda":
        if method in ("full", "partial"):
            return 2 * trained
        # A quantised matrix is turned back into numbers of the computation while it is multiplied.
        return 0 if method == "lora" else 2 * max(linear.inputs * linear.outputs for linear in shape.linears)
    # The heap also keeps room of the float32 matrices that quantised ones were made from.
    loading = 4 * shape.linear_parameters if method in ("lora-int8", "qlora") else 0
    widths = sum((linear.inputs + linear.outputs) * linear.count for linear in shape.linears) // shape.layers
    layers = 1 if work.checkpointing else _layers(shape, method, work)
    return _CPU_HEAP * 4 * widths * layers * work.batch * work.sequence + loading


def _layers(shape: ModelShape, method: Method, work: Workload) -> int:
    """The layers that keep activations: a frozen body keeps nothing, gradients end at the first layer trained."""
    return work.layers if method == "partial" else shape.layers


def _activations(shape: ModelShape, method: Method, work: Workload) -> int:
    tokens = work.batch * work.sequence
    layer = tokens * layer_bytes(shape, method, work)
    layers = _layers(shape, method, work)
    if not work.checkpointing:
        return layers * layer
    half = work.place == "cuda" and method in ("lora", "partial")
    return layers * tokens * shape.hidden * (2 if half else 4) + layer


def layer_bytes(shape: ModelShape, method: Method, work: Workload) -> int:
    """Bytes that one token keeps in one layer until its gradient is computed."""
    cpu = work.place == "cpu"
    e = 4 if cpu else 2
    h, a, f = shape.hidden, shape.attention, shape.feed_forward
    # Of a gated feed-forward both maps' outputs and the activation's; the product is the last map's input.
    kept = 2 * h * 4 + e * (a + 2 * shape.keys) + e * (3 if shape.gated else 1) * f
    separate = sum(linear.inputs * linear.count for linear in shape.linears) // shape.layers
    distinct = 2 * h + a + f
    if method in ("full", "partial"):
        return kept + 2 * h * 4 + e * (distinct if cpu else separate)
    maps = sum(linear.count for linear in shape.linears) // shape.layers
    kept += e * maps * work.rank
    if work.dropout:
        # Attention's result is kept by attention itself, beside the dropped copy.
        return kept + e * a + separate * (e + (4 if cpu else 1))
    return kept + e * (distinct if cpu else separate)
