"""The base model as loaded: the right weights, the right tokenizer, and what each quantisation does to them."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import save_small_model
from torch import nn

from indexer.errors import TandemError
from tuner.basemodel import BaseModel, base_model_weights, load_base_model
from tuner.conversion import bundled_base_model
from tuner.int8 import Int8Head, Int8Linear

ENGLISH = (
    "The water cycle describes how water moves on Earth. Water evaporates from the sea, rises into the air, cools, "
    "and falls again as rain or snow. Some of it flows back to the sea in rivers."
)


def perplexity(base: BaseModel, text: str = ENGLISH) -> float:
    ids = torch.tensor([base.tokenizer(text)["input_ids"]])
    with torch.inference_mode():
        logits = base.model(ids).logits[0, :-1]
    return math.exp(nn.functional.cross_entropy(logits, ids[0, 1:]).item())


def test_a_directory_loads_as_it_was_saved(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = save_small_model(tmp_path / "model", window=64)
    base = load_base_model(str(folder), cache=tmp_path / "cache", device="cpu")
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(base.model.get_parameter(name), value) for name, value in saved.items())
    assert (base.device, base.quantisation, base.window) == ("cpu", "none", 64)
    # The model's own eos (0) and the token that its chat template closes an answer with (2).
    assert base.eos_ids == {0, 2}
    assert base.sha256 == base_model_weights(str(folder), tmp_path / "cache").sha256


def test_auto_is_int8_on_a_cpu(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "model")
    base = load_base_model(str(folder), cache=tmp_path, device="cpu", quantisation="auto")
    assert base.quantisation == "int8"
    assert all(isinstance(layer, Int8Linear) for layer in base.model.modules() if isinstance(layer, nn.Linear))
    assert isinstance(base.model.lm_head, Int8Head)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "model")
    with pytest.raises(TandemError, match="no GPU") as caught:
        load_base_model(str(folder), cache=tmp_path, device="cuda")
    assert caught.value.code == "unavailable"


def test_a_model_that_is_not_a_language_model_is_said_so(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "model")
    (folder / "config.json").write_text('{"model_type": "no-such-family"}')
    with pytest.raises(TandemError, match="cannot be loaded") as caught:
        load_base_model(str(folder), cache=tmp_path, device="cpu")
    assert caught.value.code == "unavailable"


def test_code_in_a_model_folder_is_not_run(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "model")
    ran = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w')")
    config = '{"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}}'
    (folder / "config.json").write_text(config)
    with pytest.raises(TandemError):
        load_base_model(str(folder), cache=tmp_path, device="cpu")
    assert not ran.exists()


@pytest.mark.parametrize("rows", [(1, 1), (1, 7), (2, 5)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("fine", "most"), [(False, 0.02), (True, 0.008)])
def test_int8_is_close_to_float_for_every_token(rows: tuple[int, int], bias: bool, fine: bool, most: float) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=bias)
    input = torch.randn(*rows, 64) + 0.3
    # One token in a call may be a thousand times the others; they must not pay for it.
    input[0, 0] *= 1000
    expected = linear(input)
    error = (Int8Linear(linear, fine=fine)(input) - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.max() < most


def test_the_int8_output_layer_names_the_best_tokens_exactly() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(32, 5000, bias=False)
    input = torch.randn(1, 20, 32)
    exact, int8 = linear(input).topk(5), Int8Head(linear)(input).topk(5)
    assert torch.equal(exact.indices, int8.indices)
    assert torch.allclose(exact.values, int8.values, atol=1e-5)


@pytest.mark.slow
def test_the_bundled_weights_are_the_gguf_s(base_model: BaseModel, weights_cache: Path) -> None:
    from gguf import GGUFReader, dequantize

    file = next((weights_cache / "SmolLM2-135M-Instruct-GGUF").glob("*.gguf"))
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    # GGUF permutes q and k for another rotary layout, so their values are compared sorted.
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.7.ffn_down.weight": "model.layers.7.mlp.down_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "blk.3.attn_q.weight": "model.layers.3.self_attn.q_proj.weight",
    }
    for theirs, ours in pairs.items():
        expected = torch.from_numpy(dequantize(tensors[theirs].data, tensors[theirs].tensor_type).copy())
        found = base_model.model.get_parameter(ours)
        if "attn_q" in theirs:
            expected, found = expected.flatten().sort().values, found.flatten().sort().values
        assert torch.equal(found, expected), ours


@pytest.mark.slow
def test_the_bundled_model_reads_english(base_model: BaseModel) -> None:
    # A model with its rotary halves swapped, or another tokenizer, is in the hundreds.
    assert perplexity(base_model) < 12
    assert base_model.eos_ids == {2}
    assert base_model.window == 8192
    assert base_model.tokenizer.decode([2]) == "<|im_end|>"


@pytest.mark.slow
@pytest.mark.parametrize(("quantisation", "most"), [("int8", 1.05), ("nf4", 1.35)])
def test_quantised_models_read_nearly_as_well(
    base_model: BaseModel, weights_cache: Path, quantisation: Any, most: float
) -> None:
    base = load_base_model("bundled", cache=weights_cache, quantisation=quantisation, device="cpu")
    assert base.sha256 == base_model.sha256
    assert perplexity(base) < most * perplexity(base_model)


@pytest.mark.slow
def test_a_damaged_conversion_is_made_again(weights_cache: Path, tmp_path: Path) -> None:
    for name in ("SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct-GGUF"):
        bundled_base_model(weights_cache)
        (tmp_path / name).mkdir()
        for file in (weights_cache / name).iterdir():
            # Hard links: no copy of half a gigabyte; the test replaces files, it never writes into them.
            (tmp_path / name / file.name).hardlink_to(file)
    broken = tmp_path / "SmolLM2-135M-Instruct" / "model.safetensors"
    good = broken.stat().st_size
    broken.unlink()
    broken.write_bytes(b"half")
    said: list[str] = []
    bundled_base_model(tmp_path, said.append)
    assert broken.stat().st_size == good
    assert said == ["Converting SmolLM2-135M-Instruct to safetensors, once."]


@pytest.mark.slow
def test_loading_says_nothing_on_the_terminal(weights_cache: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tuner.basemodel import load_base_model; "
        "load_base_model('bundled', cache=Path(sys.argv[1]), quantisation='nf4', device='cpu')"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:tuner", "-c", code, str(weights_cache)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (done.stdout, done.stderr) == ("", "")
