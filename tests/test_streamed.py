"""A model quantised while it is read is the model that was read whole and quantised then, in less memory."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import save_small_model
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tuner import streamed
from tuner.basemodel import load_base_model
from tuner.int8 import Int8Head, Int8Linear, int8_layer, to_int8
from tuner.streamed import load_streamed

IDS = torch.tensor([[5, 6, 7, 8, 9, 40, 41, 42]])


def whole(folder: Path) -> Any:
    """The oracle: the library's loading, then every layer replaced."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    to_int8(model)
    return model.eval()


def assert_same(found: Any, folder: Path) -> None:
    with torch.inference_mode():
        assert torch.equal(found.eval()(IDS).logits, whole(folder)(IDS).logits)


def llama(folder: Path, **options: bool) -> Path:
    torch.manual_seed(1)
    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(vocab_size=300, num_key_value_heads=2, initializer_range=0.5, **sizes, **options)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_the_logits_are_those_of_the_model_read_whole(tmp_path: Path, tied: bool, biased: bool) -> None:
    folder = llama(tmp_path / "model", tie_word_embeddings=tied, attention_bias=biased)
    model = load_streamed(folder)
    assert model is not None
    assert_same(model, folder)
    assert isinstance(model.lm_head, Int8Head) == tied


def test_a_model_in_several_files_is_read_from_all_of_them(tmp_path: Path) -> None:
    torch.manual_seed(2)
    folder = save_small_model(tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "parts", max_shard_size="20KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    assert_same(load_streamed(tmp_path / "parts"), folder)


def test_half_precision_files_become_float(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(folder).bfloat16().save_pretrained(tmp_path / "half")
    model = load_streamed(tmp_path / "half")
    assert model is not None
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_same(model, tmp_path / "half")


def test_no_layer_is_kept_as_floats_while_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_small_model(tmp_path / "model")
    replaced: list[weakref.ref[nn.Module]] = []
    alive: list[int] = []

    def noting(linear: nn.Linear) -> Int8Linear:
        alive.append(sum(earlier() is not None for earlier in replaced))
        replaced.append(weakref.ref(linear))
        return int8_layer(linear)

    monkeypatch.setattr(streamed, "int8_layer", noting)
    assert load_streamed(folder) is not None
    assert len(alive) == 14  # two layers of seven matrices
    assert max(alive) <= 1


@pytest.mark.parametrize("change", ["renamed", "missing", "more", "another shape"])
def test_files_that_do_not_fit_the_model_are_left_to_the_library(tmp_path: Path, change: str) -> None:
    folder = llama(tmp_path / "model", tie_word_embeddings=False)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    if change == "another shape":
        settings = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(settings | {"vocab_size": 301}))
    elif change == "more":
        tensors["more.weight"] = torch.zeros(2)
    else:
        value = tensors.pop("model.layers.0.mlp.up_proj.weight")
        if change == "renamed":
            tensors["model.layers.0.mlp.other.weight"] = value
    save_file(tensors, file, metadata={"format": "pt"})
    assert load_streamed(folder) is None


def test_what_is_left_to_the_library_comes_out_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_small_model(tmp_path / "model")
    one = load_base_model(str(folder), cache=tmp_path, device="cpu", quantisation="int8")
    monkeypatch.setattr(streamed, "load_streamed", lambda folder: None)
    two = load_base_model(str(folder), cache=tmp_path, device="cpu", quantisation="int8")
    with torch.inference_mode():
        assert torch.equal(one.model(IDS).logits, two.model(IDS).logits)
    assert one.eos_ids == two.eos_ids and one.window == two.window
    assert one.model.config.to_dict() == two.model.config.to_dict()
    assert one.model.generation_config.to_dict() == two.model.generation_config.to_dict()
    assert not any(parameter.requires_grad for parameter in one.model.parameters())


def test_another_family_with_layers_of_its_own(tmp_path: Path) -> None:
    torch.manual_seed(3)
    config = GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    assert_same(load_streamed(tmp_path / "model"), tmp_path / "model")


@pytest.mark.slow
def test_the_bundled_model_is_streamed(weights_cache: Path) -> None:
    from tuner.conversion import bundled_base_model

    weights = bundled_base_model(weights_cache)
    model = load_streamed(weights.path)
    assert model is not None
    assert_same(model, weights.path)
