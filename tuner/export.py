"""An adapter for other programs: a PEFT folder (vLLM), a merged model (anything), a GGUF file (llama.cpp, Ollama)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from indexer.errors import TandemError
from indexer.folders import publish_folder
from indexer.wheels import BASE_MODEL, bundled_wheel
from tuner.adapters import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, read_adapter_config, verify_adapter
from tuner.basemodel import BaseModel
from tuner.gguf_export import GgufNumbers, modelfile, write_gguf
from tuner.merge import Merged, merge_adapter, refuse_existing
from tuner.prompt import PASSAGES_INSTRUCTION

Format = Literal["peft", "safetensors", "gguf"]
FORMATS: tuple[Format, ...] = get_args(Format)

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and, for a merged model, how near it is to base and adapter."""

    folder: Path
    files: tuple[str, ...]
    merged: Merged | None = None


def export_peft(base: BaseModel, folder: Path, target: Path, *, card: bool = True) -> Exported:
    """Copy the adapter to `target` as PEFT itself reads it, naming its base model; without its card, it names no
    documents. Raises TandemError as verify_adapter does, and for a folder that exists.
    """
    refuse_existing(target)
    verify_adapter(folder, base)
    settings = read_adapter_config(folder)

    def build(fresh: Path) -> None:
        shutil.copyfile(folder / WEIGHTS_FILE, fresh / WEIGHTS_FILE)
        plain = {"peft_type": "LORA", "base_model_name_or_path": base.name, "bias": "none", "inference_mode": True}
        (fresh / CONFIG_FILE).write_text(json.dumps({**plain, **settings}, indent=1), "utf-8")
        if card:
            shutil.copyfile(folder / CARD_FILE, fresh / CARD_FILE)

    publish_folder(target, build)
    return Exported(target, _names(target))


def export_gguf(
    base: BaseModel,
    folder: Path,
    template: Path,
    target: Path,
    *,
    numbers: GgufNumbers = "f16",
    report: Report = lambda _: None,
) -> Exported:
    """Merge into float32 and write `target`/NAME.gguf with a Modelfile beside it.

    `template` is the GGUF file that the base model came from. Raises TandemError as merge_adapter does.
    """
    from safetensors.numpy import load_file

    refuse_existing(target)
    file = f"{folder.name}.gguf"
    found: list[Merged] = []

    def build(fresh: Path) -> None:
        whole = fresh / "merged"
        found.append(merge_adapter(base, folder, whole, numbers="float32", report=report))
        report("Writing GGUF.")
        tensors = {key: value for path in sorted(whole.glob("*.safetensors")) for key, value in load_file(path).items()}
        if base.model.config.tie_word_embeddings:
            # llama.cpp takes the token matrix where there is no output matrix.
            tensors.pop("lm_head.weight", None)
        write_gguf(tensors, template, fresh / file, name=folder.name, numbers=numbers)
        shutil.rmtree(whole)
        text = modelfile(
            base.tokenizer.chat_template, file=file, system=PASSAGES_INSTRUCTION, window=min(base.window, 4096)
        )
        (fresh / "Modelfile").write_text(text, "utf-8")

    publish_folder(target, build)
    return Exported(target, _names(target), found[0])


def gguf_of(name: str, cache: Path, report: Report = lambda _: None) -> Path:
    """The GGUF file that the base model `name` came from: the bundled one's, or the only one in a model's folder.

    Raises TandemError when there is none.
    """
    if name == "bundled":
        return bundled_wheel(BASE_MODEL, cache, report) / next(iter(BASE_MODEL.files))
    files = list(Path(name).expanduser().glob("*.gguf"))
    if len(files) != 1:
        raise TandemError(
            f"The base model {name} has {len(files) or 'no'} GGUF files beside its weights.",
            expected="One, in its folder: tokenizer and settings are copied from it.",
            do="Put it there, or export safetensors and convert those with llama.cpp.",
        )
    return files[0]


def check_format(name: str) -> Format:
    """`name` as a format. Raises TandemError for another."""
    for known in FORMATS:
        if name == known:
            return known
    raise TandemError(f"There is no format {name!r}.", expected=", ".join(FORMATS) + ".", do="Name one of them.")


def _names(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir()))
