"""Adapters: what is refused and why, and a base model that is itself again after each of them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from small_models import save_adapter, save_small_model

from indexer.errors import TandemError
from tuner.active import activate, active_adapter, deactivate
from tuner.adapters import adapter_path, list_adapters, read_card, save_card, verify_adapter
from tuner.basemodel import BaseModel, load_base_model
from tuner.generation import TorchGenerator
from tuner.prompt import build_prompt


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture
def base(model_folder: Path) -> BaseModel:
    return load_base_model(str(model_folder), cache=model_folder.parent, device="cpu")


@pytest.fixture
def adapter(tmp_path: Path, base: BaseModel) -> Path:
    return save_adapter(tmp_path / "adapters" / "bees", base, seed=1)


def text_of(generator: TorchGenerator, adapter: str | None) -> str:
    prompt = build_prompt(generator.tokenizer, "Who leads the hive?", None, limit=400)
    return "".join(piece.text for piece in generator.generate(prompt, max_tokens=16, adapter=adapter))


def test_a_whole_adapter_is_verified(adapter: Path, base: BaseModel) -> None:
    card = verify_adapter(adapter, base)
    assert (card.name, card.base_sha256, len(card.weights_sha256)) == ("bees", base.sha256, 64)


@pytest.mark.parametrize(
    ("field", "named"),
    [("base_sha256", "base model"), ("tokenizer_sha256", "tokenizer"), ("prompt_fingerprint", "prompt")],
)
def test_a_mismatch_is_refused_by_name(adapter: Path, base: BaseModel, field: str, named: str) -> None:
    save_card(adapter, replace(read_card(adapter), **{field: "0" * 64}))
    with pytest.raises(TandemError, match=f"'bees' was trained with another {named}") as caught:
        verify_adapter(adapter, base)
    assert caught.value.code == "conflict"
    assert caught.value.do


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_mapping", {"parent_library": "os", "base_model_class": "system"}),
        ("megatron_config", {"a": 1}),
        ("megatron_core", "os"),
        ("tokenizer_kwargs", {"trust_remote_code": True}),
        ("peft_type", "PROMPT_TUNING"),
        ("target_modules", "(a+)+$"),
        ("init_lora_weights", "corda"),
        ("corda_config", {"cache_file": "/etc/passwd"}),
        ("loftq_config", {"loftq_bits": 4}),
        ("layer_replication", [[0, 1]]),
        ("r", 10**9),
        ("r", True),
        ("bias", "all"),
        ("something_new", 1),
    ],
)
def test_settings_that_could_do_more_are_refused(adapter: Path, base: BaseModel, key: str, value: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(TandemError, match=key):
        verify_adapter(adapter, base)


def test_the_base_model_that_a_configuration_names_is_ignored(adapter: Path, base: BaseModel) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "someone/else"}))
    verify_adapter(adapter, base)


@pytest.mark.parametrize("name", ["adapter_model.bin", "optimizer.pt", "x.PKL", "modeling.py"])
def test_pickles_and_code_are_refused(adapter: Path, base: BaseModel, name: str) -> None:
    (adapter / name).write_bytes(b"")
    with pytest.raises(TandemError, match="pickle or code"):
        verify_adapter(adapter, base)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "card.json"])
@pytest.mark.parametrize("damage", ["missing", "damaged", "another"])
def test_missing_and_damaged_files_are_refused(adapter: Path, base: BaseModel, name: str, damage: str) -> None:
    file = adapter / name
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(b"\xff" * 100 if damage == "damaged" else b"[]")
    with pytest.raises(TandemError) as caught:
        verify_adapter(adapter, base)
    assert caught.value.code == ("not_found" if damage == "missing" else "invalid_request")
    assert name in str(caught.value)


def test_list_and_activate(tmp_path: Path, adapter: Path, base: BaseModel) -> None:
    save_adapter(tmp_path / "adapters" / "ants", base, seed=2)
    (tmp_path / "adapters" / "empty").mkdir()
    assert [card.name for card in list_adapters(tmp_path)] == ["default", "ants", "bees"]
    assert [card.name for card in list_adapters(tmp_path / "nothing")] == ["default"]
    assert active_adapter(tmp_path) == "default"
    assert active_adapter(tmp_path, "another/base") is None
    activate(tmp_path, "bees")
    activate(tmp_path, "ants")
    assert active_adapter(tmp_path) == "ants"
    with pytest.raises(TandemError) as caught:
        activate(tmp_path, "empty")
    assert caught.value.code == "not_found"
    assert active_adapter(tmp_path) == "ants"
    deactivate(tmp_path)
    deactivate(tmp_path)
    assert active_adapter(tmp_path) is None


@pytest.mark.parametrize("name", ["../bees", "a/b", "", ".hidden", "x" * 65, "a\n"])
def test_names_cannot_leave_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(TandemError, match="cannot name an adapter"):
        adapter_path(tmp_path, name)


@pytest.mark.parametrize("quantisation", ["none", "int8"])
def test_adapters_are_chosen_per_request(tmp_path: Path, model_folder: Path, quantisation: Any) -> None:
    base = load_base_model(str(model_folder), cache=tmp_path, device="cpu", quantisation=quantisation)
    folders = {name: save_adapter(tmp_path / name, base, seed=n) for n, name in enumerate(["v1.0", "ants"])}
    generator = TorchGenerator(base, folders)
    plain = text_of(generator, None)
    first, second = text_of(generator, "v1.0"), text_of(generator, "ants")
    assert len({plain, first, second}) == 3
    assert text_of(generator, None) == plain
    assert text_of(generator, "v1.0") == first
    with pytest.raises(TandemError, match="ants, v1.0") as caught:
        text_of(generator, "wasps")
    assert caught.value.code == "not_found"
    # Tuned again under the same name: the new weights answer.
    generator.register("v1.0", folders["ants"])
    assert text_of(generator, "v1.0") == second
    generator.unregister("ants")
    with pytest.raises(TandemError):
        text_of(generator, "ants")
    assert text_of(generator, None) == plain


def test_the_adapter_does_what_its_matrices_say(tmp_path: Path, base: BaseModel) -> None:
    """Oracle: W + (alpha / r) B A, added into the weights of a second copy by hand."""
    import torch
    from safetensors.torch import load_file

    folder = save_adapter(tmp_path / "bees", base, seed=3)
    generator = TorchGenerator(base, {"bees": folder})
    ids = torch.tensor([[5, 9, 30, 7]])
    with generator._attached.selected("bees"), torch.inference_mode():
        found = base.model(ids).logits
    with torch.inference_mode():
        plain = base.model(ids).logits
        tensors = load_file(folder / "adapter_model.safetensors")
        for key in [key for key in tensors if key.endswith("lora_A.weight")]:
            module = base.model.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            module.base_layer.weight += 2.0 * tensors[key.replace("lora_A", "lora_B")] @ tensors[key]
        expected = base.model(ids).logits
    assert not torch.allclose(plain, expected, atol=1e-2)
    assert torch.allclose(found, expected, atol=1e-4)


def test_tensors_that_do_not_fit_leave_the_model_usable(tmp_path: Path, base: BaseModel) -> None:
    from safetensors.torch import load_file, save_file

    folders = {name: save_adapter(tmp_path / name, base, seed=4) for name in ("good", "missing", "shape")}
    tensors = load_file(folders["good"] / "adapter_model.safetensors")
    key = next(iter(tensors))
    save_file({**tensors, key: tensors[key][:1].clone()}, folders["shape"] / "adapter_model.safetensors")
    tensors.pop(key)
    save_file(tensors, folders["missing"] / "adapter_model.safetensors")
    for name in ("missing", "shape"):
        save_card(folders[name], read_card(folders[name]))
    generator = TorchGenerator(base, folders)
    plain = text_of(generator, None)
    for name in ("missing", "shape"):
        with pytest.raises(TandemError, match="does not fit") as caught:
            text_of(generator, name)
        assert caught.value.code == "conflict"
    assert text_of(generator, None) == plain
    assert text_of(generator, "good") != plain


def test_int8_layers_refuse_what_reads_their_weights(adapter: Path, base: BaseModel) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "use_dora": True}))
    verify_adapter(adapter, base)
    with pytest.raises(TandemError, match="use_dora") as caught:
        verify_adapter(adapter, replace(base, quantisation="int8"))
    assert "none" in caught.value.do


@pytest.mark.slow
@pytest.mark.parametrize("quantisation", ["none", "int8", "nf4"])
def test_the_bundled_model_is_itself_again_after_an_adapter(
    weights_cache: Path, tmp_path: Path, quantisation: Any
) -> None:
    base = load_base_model("bundled", cache=weights_cache, device="cpu", quantisation=quantisation)
    folder = save_adapter(tmp_path / "random", base, seed=5)
    generator = TorchGenerator(base, {"random": folder})
    before = text_of(generator, None)
    assert text_of(generator, "random") != before
    assert text_of(generator, None) == before
