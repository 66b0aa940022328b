"""The base model and its tokenizer: name -> weights -> device, dtype, quantisation. The one place that decides them.

Quantisation, and what it is for:
    none   float32 on a CPU (bfloat16 is several times slower on most), bfloat16 on a GPU
    int8   CPU: dynamic int8 (tuner/int8.py), the fastest there; GPU: bitsandbytes LLM.int8(), half the memory
    nf4    bitsandbytes 4-bit: an eighth of float32's memory, slower; what QLoRA tunes over
    llm-int8  bitsandbytes LLM.int8() on either: has a gradient, which the fast int8 of a CPU has not
    auto   int8 on a CPU, none on a GPU
Only safetensors are loaded and no code that comes with a model is run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from indexer.cores import keep_to_container, told_threads
from indexer.errors import TandemError
from indexer.weights import Weights, named_weights
from tuner.chat import answer_end_id, tokenizer_sha256
from tuner.conversion import bundled_base_model
from tuner.quiet import quiet

if TYPE_CHECKING:
    from tuner.llama import Llama

Quantisation = Literal["none", "int8", "nf4", "auto", "llm-int8"]
Device = Literal["auto", "cpu", "cuda"]
Report = Callable[[str], None]

_DEFAULT_WINDOW = 2048


@dataclass
class BaseModel:
    """A loaded base model. `window` is in tokens; `eos_ids` end an answer; `quantisation` is the one in effect.

    `compiled` makes the passes of answers in place of `model`, where its kind has such (tuner/llama.py).
    """

    model: Any
    tokenizer: Any
    name: str
    sha256: str
    tokenizer_sha256: str
    device: str
    quantisation: str
    eos_ids: frozenset[int]
    window: int
    compiled: Llama | None = None


def base_model_weights(name: str, cache: Path, report: Report | None = None, *, verify: bool = False) -> Weights:
    """Where the base model `name` is ("bundled", a directory, a hub id), fetched and converted when needed.

    Raises TandemError when there is no such model, it cannot be fetched, or it is not safetensors.
    """
    if name == "bundled":
        return bundled_base_model(cache, report, verify=verify)
    return named_weights(name, cache, report, verify=verify)


def load_base_model(
    name: str,
    *,
    cache: Path,
    quantisation: Quantisation = "none",
    device: Device = "auto",
    threads: int = 0,
    report: Report | None = None,
) -> BaseModel:
    """Load `name` for generation or tuning. `threads` 0 uses the cores that this process may use.

    Raises TandemError when the weights are missing, the GPU asked for is not there, or the model is not one that
    transformers can load as a causal language model.
    """
    weights = base_model_weights(name, cache, report)
    if report is not None:
        report(f"Loading {weights.name}.")
    import torch

    place = _place(device)
    chosen = quantisation
    if chosen == "auto":
        chosen = "int8" if place == "cpu" else "none"
    if threads > 0:
        torch.set_num_threads(threads)
    else:
        keep_to_container()
    with quiet():
        model, tokenizer = _load(weights, chosen, place)
    model.eval().requires_grad_(False)
    return BaseModel(
        model=model,
        tokenizer=tokenizer,
        name=weights.name,
        sha256=weights.sha256,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        device=place,
        quantisation=chosen,
        eos_ids=_eos_ids(model, tokenizer),
        window=int(getattr(model.config, "max_position_embeddings", None) or _DEFAULT_WINDOW),
        compiled=_compiled(model, report) if chosen == "int8" and place == "cpu" else None,
    )


def processor(threads: int = 0) -> str:
    """What decides the speed of a CPU, in words: threads and why so many, vector width, instructions for int8.

    `threads` is the setting that the model was loaded with.
    """
    import torch

    int8 = "int8 instructions" if torch.cpu._is_vnni_supported() else "no int8 instructions, so activations of 7 bits"
    return f"{told_threads(threads)}, {torch.backends.cpu.get_cpu_capability()}, {int8}"


def _place(device: Device) -> str:
    import torch

    if device == "cpu":
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise TandemError(
            "The device is set to cuda, but PyTorch sees no GPU.",
            expected="A CUDA GPU and a PyTorch build for it.",
            do='Set device to "auto" or "cpu".',
            code="unavailable",
        )
    return "cpu"


def _load(weights: Weights, quantisation: Quantisation, place: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"dtype": torch.float32 if place == "cpu" else torch.bfloat16}
    if quantisation in ("nf4", "llm-int8") or (quantisation == "int8" and place == "cuda"):
        options["quantization_config"] = _bitsandbytes(quantisation, options["dtype"])
    if place == "cuda":
        options["device_map"] = {"": 0}
    # The folder is complete by now, so nothing may go to the network.
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(weights.path, **local)
        if quantisation == "int8" and place == "cpu":
            return _load_int8(weights.path, local | options), tokenizer
        model = AutoModelForCausalLM.from_pretrained(weights.path, use_safetensors=True, **local, **options)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TandemError(
            f"The base model {weights.name} cannot be loaded: {reason}",
            expected="A causal language model that transformers supports, with its tokenizer, in safetensors.",
            do="Name another model in base_model, or save this one again with save_pretrained.",
            code="unavailable",
        ) from error
    return model, tokenizer


def _compiled(model: Any, report: Report | None) -> Llama | None:
    import torch

    from tuner.llama import Llama, fits

    if not fits(model):
        return None
    if report is not None:
        report("Preparing the model; the first time on a processor this takes up to half a minute.")
    compiled = Llama(model, torch.get_num_threads())
    compiled.prepare()
    return compiled


def _load_int8(folder: Path, options: dict[str, Any]) -> Any:
    """With the fast int8 of a CPU, layer by layer where its files allow that."""
    from transformers import AutoModelForCausalLM

    from tuner.int8 import to_int8
    from tuner.streamed import load_streamed

    model = load_streamed(folder)
    if model is None:
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options)
        to_int8(model)
        # The weights are views into one mapped file; while one view is left, all of it stays in memory.
        for parameter in model.parameters():
            parameter.data = parameter.data.clone()
    return model


def _bitsandbytes(quantisation: Quantisation, dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    if quantisation != "nf4":
        return BitsAndBytesConfig(load_in_8bit=True)
    # NF4 and double quantisation as in QLoRA (Dettmers et al. 2023, arXiv 2305.14314).
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _eos_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The ends the model was published with, and the one its chat template closes an answer with."""
    published = model.generation_config.eos_token_id
    ends = published if isinstance(published, list) else [published]
    return frozenset(int(end) for end in [*ends, tokenizer.eos_token_id, answer_end_id(tokenizer)] if end is not None)
