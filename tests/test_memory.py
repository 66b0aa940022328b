"""What `tandem plan` says, held against published figures and against the tensors that autograd really keeps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from indexer.errors import TandemError
from service.cli import app
from tuner.memory import METHODS, Workload, layer_bytes, plan
from tuner.shapes import model_shape

GB = 10**9


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # As their publishers count them.
        ("bundled", 134_515_008),
        ("llama-7b", 6_738_415_616),
        ("llama-65b", 65_285_660_672),
        ("llama-3-8b", 8_030_261_248),
        ("mistral-7b", 7_241_732_096),
    ],
)
def test_published_parameter_counts(name: str, parameters: int) -> None:
    assert model_shape(name).parameters == parameters


def test_65b_by_qlora_fits_one_gpu_with_48_gb_and_nothing_else_does() -> None:
    shape = model_shape("llama-65b")
    work = Workload(sequence=512, checkpointing=True)
    assert [method for method in METHODS if 48 in plan(shape, method, work).fits()] == ["qlora"]
    # The paper puts full tuning at more than 780 GB.
    assert plan(shape, "full", work).total > 780 * GB
    # Double quantisation leaves 4.127 bits a parameter.
    tokens = 32000 * 8192
    paper = 4.127 / 8 * shape.linear_parameters + (4 + 2) * tokens + 4 * 161 * 8192
    found = plan(shape, "qlora", work)
    assert found.weights - 4 * found.trained == pytest.approx(paper, rel=1e-3)


@pytest.mark.parametrize("name", ["llama-7b", "mistral-7b"])
def test_7b_by_qlora_fits_a_consumer_gpu_with_24_gb(name: str) -> None:
    found = plan(model_shape(name), "qlora", Workload(sequence=2048, checkpointing=True))
    assert 24 in found.fits()
    assert 24 in plan(model_shape(name), "lora", Workload(sequence=512)).fits()


@pytest.mark.parametrize("name", ["llama-7b", "llama-13b", "llama-33b", "llama-65b", "mistral-7b", "llama-3-8b"])
def test_lora_trains_less_than_one_percent(name: str) -> None:
    shape = model_shape(name)
    found = plan(shape, "lora", Workload())
    assert 0 < found.trained < 0.01 * shape.parameters
    assert found.gradients + found.optimiser == 12 * found.trained


def small_config(**other: Any) -> Any:
    from transformers import LlamaConfig

    values = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    return LlamaConfig(**values | other)


def kept_by_autograd(method: str, layers: int, *, dropout: bool, half: bool, tokens: int = 48) -> int:
    """Bytes of the distinct tensors, weights and their copies left out, that a forward pass keeps."""
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(small_config(num_hidden_layers=layers))
    if method == "lora":
        model.to(torch.bfloat16 if half else torch.float32)
        model.requires_grad_(False)
        inject_adapter_in_model(
            LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1 * dropout, task_type="CAUSAL_LM"), model
        )
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    model.train()
    kept: dict[int, tuple[int, Any]] = {}

    def pack(tensor: Any) -> Any:
        if tensor.dim() > 1 and tokens in tensor.shape:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.arange(tokens)[None]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            hidden = model.model(inputs_embeds=model.model.embed_tokens(ids).requires_grad_(), use_cache=False)
        assert hidden is not None
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(
    ("method", "dropout", "half"),
    [("full", False, False), ("lora", True, False), ("lora", False, False), ("full", False, True)],
)
def test_activations_are_the_tensors_that_autograd_keeps(
    tmp_path: Path, method: Any, dropout: bool, half: bool
) -> None:
    counts = [kept_by_autograd(method, layers, dropout=dropout, half=half) for layers in (2, 4)]
    small_config(num_hidden_layers=4).save_pretrained(tmp_path)
    shape = model_shape(str(tmp_path))
    work = Workload(rank=4, place="cuda" if half else "cpu", dropout=dropout)
    # The inverse norms, one float a token, and the attention's log sums are not planned for.
    assert layer_bytes(shape, method, work) == pytest.approx((counts[1] - counts[0]) / 2 / 48, rel=0.04)


def test_checkpointing_keeps_one_layer_and_the_inputs_of_the_others() -> None:
    shape, work = model_shape("llama-7b"), Workload(sequence=512, batch=2)
    whole = plan(shape, "lora", work).activations
    again = plan(shape, "lora", replace(work, checkpointing=True)).activations
    assert again == whole // shape.layers + 1024 * shape.layers * shape.hidden * 2


def test_more_of_anything_never_takes_less() -> None:
    shape = model_shape("bundled")
    for method in METHODS:
        total = plan(shape, method, Workload()).total
        for more in ({"sequence": 2048}, {"batch": 2}, {"answer": 128}, {"rank": 32}, {"layers": 5}, {"dropout": True}):
            assert plan(shape, method, replace(Workload(), **more)).total >= total  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("mistral", {"num_key_value_heads": 2, "intermediate_size": 64}),
        ("qwen2", {"num_key_value_heads": 2, "intermediate_size": 64}),
        ("gemma", {"num_key_value_heads": 2, "intermediate_size": 64, "head_dim": 8}),
        ("opt", {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64}),
        ("falcon", {"new_decoder_architecture": False}),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    ],
)
def test_other_families(tmp_path: Path, family: str, values: dict[str, Any]) -> None:
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoConfig, AutoModelForCausalLM

    common = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(family, **({} if family == "gpt2" else common), **values)
    config.save_pretrained(tmp_path)
    shape = model_shape(str(tmp_path))
    model = AutoModelForCausalLM.from_config(config)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (shape.layers, shape.hidden) == (2, 32)
    settings = LoraConfig(r=3, target_modules="all-linear", fan_in_fan_out=family == "gpt2", task_type="CAUSAL_LM")
    inject_adapter_in_model(settings, model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert plan(shape, "lora", Workload(rank=3, sequence=8)).trained == trained


def test_what_cannot_be_planned_is_told(tmp_path: Path) -> None:
    for name in ("no-such-model", "a/../b"):
        with pytest.raises(TandemError) as caught:
            model_shape(name)
        assert caught.value.do
    for text, message in (("{", "cannot be read"), ("[]", "no model_type"), ('{"model_type": "bert3"}', "bert3")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(TandemError, match=message):
            model_shape(str(tmp_path))
    experts = {"model_type": "mixtral", "num_local_experts": 4, "hidden_size": 32, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(experts))
    with pytest.raises(TandemError, match="mixture of experts"):
        model_shape(str(tmp_path))
    shape = model_shape("bundled")
    with pytest.raises(TandemError, match="30 layers"):
        plan(shape, "partial", Workload(layers=31))
    with pytest.raises(TandemError, match="8192"):
        plan(shape, "lora", Workload(sequence=8193))
    with pytest.raises(TandemError, match="--rank"):
        Workload(rank=0)


def test_a_config_from_elsewhere_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TandemError, match="cannot|not one"):
        model_shape(str(tmp_path))


def test_the_command_prints_parts_that_sum_to_the_total() -> None:
    runner = CliRunner()
    options = ["--base-model", "llama-65b", "--sequence", "512", "--gradient-checkpointing"]
    result = runner.invoke(app, ["plan", *options, "--json"])
    assert result.exit_code == 0
    methods = json.loads(result.stdout)["methods"]
    assert list(methods) == list(METHODS)
    for body in methods.values():
        parts = dict(body["bytes"])
        assert parts.pop("total") == sum(parts.values())
    assert methods["qlora"]["fits_gb"] == [48, 80]
    shown = runner.invoke(app, ["plan", *options, "--method", "qlora"])
    assert "fits a GPU with 48 GB" in shown.stdout
    for wrong in (["--method", "magic"], ["--device", "tpu"], ["--batch", "0"]):
        assert runner.invoke(app, ["plan", *wrong]).exit_code == 2
