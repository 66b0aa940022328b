"""A merged model as one GGUF file, which llama.cpp and Ollama read.

The tokenizer and the settings are copied from the GGUF file that the base model itself came from, so they are exactly
its own; the tensors are written anew. llama.cpp rotates neighbouring elements of queries and keys where transformers
rotates halves, so the rows of those two matrices are interleaved (`interleave`), as llama.cpp's own converter does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from indexer.errors import TandemError

GgufNumbers = Literal["f32", "f16", "q8_0"]
GGUF_NUMBERS: tuple[GgufNumbers, ...] = get_args(GgufNumbers)
Array = npt.NDArray[np.float32]

_ARCHITECTURE = "llama"
_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.weight")
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    tensors: Mapping[str, Array], template: Path, target: Path, *, name: str, numbers: GgufNumbers = "f16"
) -> None:
    """Write `tensors` (by their names in transformers) to `target` with the metadata and tokenizer of `template`.

    Vectors stay float32, as llama.cpp expects. Raises TandemError for a template of another architecture, and for
    tensors that are not those which the template's header describes.
    """
    from gguf import GGMLQuantizationType, GGUFReader, GGUFWriter, LlamaFileType, quants

    header = GGUFReader(template)
    architecture = header.fields["general.architecture"].contents()
    if architecture != _ARCHITECTURE:
        raise _cannot(f"the base model's GGUF file is of the architecture {architecture}")
    heads = int(header.fields["llama.attention.head_count"].contents())
    key_heads = int(header.fields["llama.attention.head_count_kv"].contents())
    kind = GGMLQuantizationType[numbers.upper()]
    file_type = {"f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "q8_0": LlamaFileType.MOSTLY_Q8_0}
    writer = GGUFWriter(target, _ARCHITECTURE)
    _copy_fields(header, writer)
    writer.add_name(name)
    writer.add_file_type(int(file_type[numbers]))
    written = set()
    for key, values in tensors.items():
        known = gguf_name(key)
        if known is None:
            raise _cannot(f"it has a tensor {key}")
        if ".attn_q." in known:
            values = interleave(values, heads)
        elif ".attn_k." in known:
            values = interleave(values, key_heads)
        as_kind = GGMLQuantizationType.F32 if values.ndim == 1 else kind
        writer.add_tensor(known, quants.quantize(np.ascontiguousarray(values), as_kind), raw_dtype=as_kind)
        written.add(known)
    expected = _expected(int(header.fields["llama.block_count"].contents()))
    if written - {"output.weight"} != expected:
        raise _cannot("its tensors are not those of its base model's GGUF file")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(key: str) -> str | None:
    """The name of a Llama tensor in a GGUF file; None for one that has none."""
    if key in _NAMES:
        return _NAMES[key]
    match = _LAYER.fullmatch(key)
    short = _LAYER_NAMES.get(match.group(2)) if match else None
    return f"blk.{match.group(1)}.{short}.weight" if match and short else None


def interleave(values: Array, heads: int) -> Array:
    """(heads * d, n) with each head's halves interleaved: rows 0, d/2, 1, d/2 + 1, ... of every head."""
    rows = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return rows.swapaxes(1, 2).reshape(values.shape)


def modelfile(template: str | None, *, file: str, system: str, window: int) -> str:
    """An Ollama Modelfile for `file`. `template` is the tokenizer's chat template; ChatML is written out in Ollama's
    language, any other is left to Ollama, which reads it from the GGUF file.
    """
    lines = [f"FROM ./{file}"]
    if template and "<|im_start|>" in template:
        turn = "<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n"
        turns = f"{{{{- range .Messages }}}}{turn}{{{{ end }}}}<|im_start|>assistant\n"
        lines += [f'TEMPLATE """{turns}"""', 'PARAMETER stop "<|im_end|>"']
    # Greedy, as Tandem answers; a refusal threshold (tuner/refusing.py) has no place here.
    lines += ["PARAMETER temperature 0", f"PARAMETER num_ctx {window}", f'SYSTEM """{system}"""']
    return "\n".join(lines) + "\n"


def _copy_fields(header: Any, writer: Any) -> None:
    from gguf import GGUFValueType

    skipped = {"general.architecture", "general.name", "general.file_type"}
    for key, field in header.fields.items():
        if key.startswith("GGUF.") or key in skipped:
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=inner)


def _expected(layers: int) -> set[str]:
    whole = {f"blk.{layer}.{name}.weight" for layer in range(layers) for name in _LAYER_NAMES.values()}
    return whole | {"token_embd.weight", "output_norm.weight"}


def _cannot(problem: str) -> TandemError:
    return TandemError(
        f"The model cannot be written as GGUF: {problem}.",
        expected="A model of the Llama architecture with the GGUF file that it came from.",
        do="Export safetensors and convert those with llama.cpp.",
    )
