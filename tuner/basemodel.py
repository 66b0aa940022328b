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

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from indexer.cores import keep_to_container, told_threads
from indexer.errors import TandemError
from indexer.folders import file_sha256
from indexer.weights import Weights, named_weights
from tuner.chat import answer_end_id, tokenizer_sha256
from tuner.conversion import bundled_base_model
from tuner.quiet import quiet

if TYPE_CHECKING:
    from tuner.llama import Llama
    from tuner.llamafiles import LlamaParts

Quantisation = Literal["none", "int8", "nf4", "auto", "llm-int8"]
Device = Literal["auto", "cpu", "cuda"]
Report = Callable[[str], None]

# What a merge leaves beside the model (tuner/merge.py).
MERGE_RECORD = "merged.json"
_DEFAULT_WINDOW = 2048


@dataclass
class BaseModel:
    """A loaded base model. `window` is in tokens; `eos_ids` end an answer; `quantisation` is the one in effect.

    `compiled` makes the passes of answers in place of `model`, where its kind has such (tuner/llama.py). `model` is the
    library's, which `load` gives when it is first asked for. Of one that an adapter was merged into (`is_merged`),
    `refusal_threshold` is that of the adapter's card.
    """

    load: Callable[[], Any]
    tokenizer: Any
    name: str
    sha256: str
    config_sha256: str
    tokenizer_sha256: str
    device: str
    quantisation: str
    eos_ids: frozenset[int]
    window: int
    vocabulary: int
    compiled: Llama | None = None
    is_merged: bool = False
    refusal_threshold: float | None = None

    @cached_property
    def model(self) -> Any:
        """The model of the library, for everything but the passes of a compiled one."""
        return self.load()

    @property
    def origin(self) -> tuple[str | int, ...]:
        """What the bits of a pass depend on: the model, and the machine, which adds numbers in an order of its own."""
        import torch

        model = (self.sha256, self.config_sha256, self.quantisation, self.device, self.compiled is not None)
        return (*model, torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())


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
        tokenizer = _tokenizer(weights)
        with _telling(weights):
            config_sha256 = file_sha256(weights.path / "config.json")
            merge = _merge_record(weights.path)
        parts = _llama(weights, cache, config_sha256) if chosen == "int8" and place == "cpu" else None

    def load() -> Any:
        with quiet():
            model = _load(weights, chosen, place)
        return model.eval().requires_grad_(False)

    compiled = None if parts is None else _compiled(parts, report)
    model: Any = load() if compiled is None else None
    return BaseModel(
        load=load if model is None else lambda: model,
        tokenizer=tokenizer,
        name=weights.name,
        sha256=weights.sha256,
        config_sha256=config_sha256,
        tokenizer_sha256=tokenizer_sha256(tokenizer),
        device=place,
        quantisation=chosen,
        eos_ids=_eos_ids(weights.path, tokenizer),
        window=compiled.window if compiled else _window(model.config),
        vocabulary=compiled.vocabulary if compiled else int(model.config.get_text_config().vocab_size),
        compiled=compiled,
        is_merged=merge is not None,
        refusal_threshold=merge["refusal_threshold"] if merge else None,
    )


def processor(threads: int = 0) -> str:
    """What decides the speed of a CPU, in words: threads and why so many, vector width, instructions for int8.

    `threads` is the setting that the model was loaded with.
    """
    import torch

    int8 = "int8 instructions" if torch.cpu._is_vnni_supported() else "no int8 instructions, so prompts in floats"
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


# The folder is complete by now, so nothing may go to the network.
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@contextmanager
def _telling(weights: Weights) -> Iterator[None]:
    """What a library says of a folder that it cannot load, as our error."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TandemError(
            f"The base model {weights.name} cannot be loaded: {reason}",
            expected="A causal language model that transformers supports, with its tokenizer, in safetensors.",
            do="Name another model in base_model, or save this one again with save_pretrained.",
            code="unavailable",
        ) from error


def _tokenizer(weights: Weights) -> Any:
    with _telling(weights):
        if _is_plain_tokenizer(weights.path):
            # To choose a class the library imports the model's, which takes two seconds; here it is chosen.
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(weights.path, **_LOCAL)
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(weights.path, **_LOCAL)


def _is_plain_tokenizer(folder: Path) -> bool:
    """Whether tokenizer.json is all of it, as its settings say."""
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    is_plain = settings.get("tokenizer_class") in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return is_plain and "auto_map" not in settings and (folder / "tokenizer.json").is_file()


def _llama(weights: Weights, cache: Path, config_sha256: str) -> LlamaParts | None:
    from tuner.llamafiles import read_llama
    from tuner.packed import packed_path

    with _telling(weights):
        return read_llama(weights.path, packed_path(cache, weights.sha256, config_sha256))


def _load(weights: Weights, quantisation: Quantisation, place: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": torch.float32 if place == "cpu" else torch.bfloat16}
    if quantisation in ("nf4", "llm-int8") or (quantisation == "int8" and place == "cuda"):
        options["quantization_config"] = _bitsandbytes(quantisation, options["dtype"])
    if place == "cuda":
        options["device_map"] = {"": 0}
    with _telling(weights):
        if quantisation == "int8" and place == "cpu":
            return _load_int8(weights.path, _LOCAL | options)
        return AutoModelForCausalLM.from_pretrained(weights.path, use_safetensors=True, **_LOCAL, **options)


def _compiled(parts: LlamaParts, report: Report | None) -> Llama:
    import torch

    from tuner.llama import Llama

    if report is not None:
        report("Preparing the model; the first time on a processor this takes up to half a minute.")
    compiled = Llama(parts, torch.get_num_threads())
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


def _window(config: Any) -> int:
    return int(getattr(config, "max_position_embeddings", None) or _DEFAULT_WINDOW)


def _merge_record(folder: Path) -> dict[str, Any] | None:
    """The record of a merge, with a checked `refusal_threshold`; None where no adapter was merged into the model."""
    path = folder / MERGE_RECORD
    record = json.loads(path.read_text("utf-8")) if path.is_file() else None
    # Another program may write a file of that name.
    if not isinstance(record, dict) or "adapter_sha256" not in record:
        return None
    threshold = record.setdefault("refusal_threshold", None)
    if threshold is not None and not (isinstance(threshold, float | int) and 0 <= threshold <= 1):
        raise ValueError(f"{MERGE_RECORD} has a refusal_threshold that is no share from 0 to 1.")
    return record


def _eos_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """The ends the model was published with, and the one its chat template closes an answer with."""
    files = [folder / "generation_config.json", folder / "config.json"]
    settings = [json.loads(path.read_text("utf-8")) for path in files if path.is_file()]
    published = next((part["eos_token_id"] for part in settings if "eos_token_id" in part), None)
    ends = published if isinstance(published, list) else [published]
    return frozenset(int(end) for end in [*ends, tokenizer.eos_token_id, answer_end_id(tokenizer)] if end is not None)
