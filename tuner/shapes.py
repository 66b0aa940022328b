"""The shape of a base model from its config alone: what memory and speed depend on, without any weights.

The model is built on PyTorch's meta device, where tensors have sizes and no values. So every architecture that
transformers knows is counted exactly, 65 billion parameters take a second, and no formula has to follow each family.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from tuner.quiet import quiet


@dataclass(frozen=True, slots=True)
class Linear:
    """`count` weight matrices of this size that an adapter can stand beside."""

    inputs: int
    outputs: int
    count: int


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Counts of parameters, and widths in elements.

    `attention` is the width of all query heads, `keys` that of all key heads, `feed_forward` the inner width, entered
    through one matrix or, `gated`, through two. `linears` are those of the layers; `window` is in tokens, 0 if unknown.
    """

    name: str
    parameters: int
    linears: tuple[Linear, ...]
    layers: int
    layer_parameters: int
    hidden: int
    attention: int
    keys: int
    feed_forward: int
    gated: bool
    vocabulary: int
    window: int

    @property
    def linear_parameters(self) -> int:
        """Parameters in the matrices of the layers: what quantisation stores in fewer bits."""
        return sum(linear.inputs * linear.outputs * linear.count for linear in self.linears)


def _llama(hidden: int, inner: int, layers: int, heads: int, vocabulary: int = 32000, **other: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        **other,
    }


# Shapes as published: LLaMA (Touvron et al. 2023, arXiv 2302.13971, table 2; the inner width is 2/3 * 4 * hidden,
# rounded up to 256), Llama 2 70B and 3 8B (their model cards), Mistral 7B (arXiv 2310.06825), SmolLM2 (2502.02737).
SHAPES: Mapping[str, dict[str, Any]] = {
    "smollm2-135m": _llama(
        576, 1536, 30, 9, 49152, num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=8192
    ),
    "smollm2-360m": _llama(
        960, 2560, 32, 15, 49152, num_key_value_heads=5, tie_word_embeddings=True, max_position_embeddings=8192
    ),
    "smollm2-1.7b": _llama(2048, 8192, 24, 32, 49152, tie_word_embeddings=True, max_position_embeddings=8192),
    "llama-7b": _llama(4096, 11008, 32, 32),
    "llama-13b": _llama(5120, 13824, 40, 40),
    "llama-33b": _llama(6656, 17920, 60, 52),
    "llama-65b": _llama(8192, 22016, 80, 64),
    "llama-2-70b": _llama(8192, 28672, 80, 64, num_key_value_heads=8, max_position_embeddings=4096),
    "llama-3-8b": _llama(4096, 14336, 32, 32, 128256, num_key_value_heads=8, max_position_embeddings=8192),
    "mistral-7b": {
        **_llama(4096, 14336, 32, 32, num_key_value_heads=8, max_position_embeddings=32768),
        "model_type": "mistral",
    },
}
BUNDLED = "smollm2-135m"


def model_shape(name: str) -> ModelShape:
    """The shape of `name`: "bundled", one of SHAPES, a directory with config.json, or a hub id.

    Raises TandemError: (not_found) no such model, (unavailable) a hub that cannot be reached,
    (invalid_request) not a dense causal language model that transformers knows.
    """
    known = BUNDLED if name == "bundled" else name.lower()
    directory = Path(name).expanduser()
    if known in SHAPES:
        values: Any = SHAPES[known]
    else:
        values = _read_config(directory / "config.json" if directory.is_dir() else _hub_config(name))
    try:
        return _shape(known if known in SHAPES else name, values)
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TandemError(
            f"The config of {name} is not one that can be planned for: {reason[:300]}",
            expected="A dense causal language model that transformers knows.",
            do="Name another model.",
        ) from None


def _read_config(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TandemError(
            f"The config {path} cannot be read: {error}.",
            expected="A model folder with config.json.",
            do="Name a folder that save_pretrained wrote.",
            code="not_found",
        ) from None


def _hub_config(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    unknown = TandemError(
        f"There is no model called {name!r}.",
        expected=f'"bundled", a directory, a hub id such as "organisation/model", or one of {", ".join(SHAPES)}.',
        do="Correct the name.",
        code="not_found",
    )
    if "/" not in name:
        raise unknown
    try:
        return Path(hf_hub_download(name, "config.json", local_files_only=True))
    except HFValidationError:
        raise unknown from None
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(hf_hub_download(name, "config.json", etag_timeout=5))
    except EntryNotFoundError:
        raise unknown from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TandemError(
            f"The config of {name} could not be fetched from the hub: {reason}",
            expected="A model of that name, access to it, and a network.",
            do=f"Name a directory that holds its config.json, or one of {', '.join(SHAPES)}.",
            code="unavailable",
        ) from error


def _shape(name: str, values: Mapping[str, Any]) -> ModelShape:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    if not isinstance(values, Mapping) or not isinstance(values.get("model_type"), str):
        raise ValueError("it names no model_type")
    options = {key: value for key, value in values.items() if key not in ("model_type", "auto_map", "dtype")}
    with quiet():
        config = AutoConfig.for_model(values["model_type"], **options)
        for key in ("num_local_experts", "num_experts", "n_routed_experts"):
            if getattr(config, key, None):
                raise ValueError("it is a mixture of experts")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        model.tie_weights()
    layers = _layers(model, torch.nn.ModuleList)
    sizes = [_matrix(module) for module in layers.modules()]
    linears = [size for size in sizes if size is not None]
    counted = {size: linears.count(size) for size in linears}
    if not linears:
        raise ValueError("its layers hold no linear maps")
    text = config.get_text_config()
    hidden, heads = int(text.hidden_size), int(text.num_attention_heads)
    width = int(getattr(text, "head_dim", None) or hidden // heads)
    inner = max(inputs for inputs, _ in linears)
    per_layer = [size for size in linears[: len(linears) // len(layers)] if size[0] == hidden and size[1] >= inner]
    return ModelShape(
        name=name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        linears=tuple(Linear(*size, count) for size, count in sorted(counted.items())),
        layers=len(layers),
        layer_parameters=sum(parameter.numel() for parameter in layers[-1].parameters()),
        hidden=hidden,
        attention=heads * width,
        keys=int(getattr(text, "num_key_value_heads", None) or heads) * width,
        feed_forward=inner,
        gated=sum(outputs for _, outputs in per_layer) >= 2 * inner,
        vocabulary=int(text.vocab_size),
        window=int(getattr(text, "max_position_embeddings", None) or 0),
    )


def _layers(model: Any, container: Any) -> Any:
    """The list of the decoder's layers: the longest list of equal modules."""
    lists = [module for module in model.modules() if isinstance(module, container) and len(module) > 0]
    if not lists:
        raise ValueError("it has no list of layers")
    return max(lists, key=lambda found: sum(parameter.numel() for parameter in found.parameters()))


def _matrix(module: Any) -> tuple[int, int] | None:
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)
    # GPT-2's Conv1D holds the transpose.
    return tuple(module.weight.shape) if hasattr(module, "nf") and hasattr(module, "nx") else None
