"""Recipes, what they train, the warnings they earn, and the probe for what was forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_models import save_small_model
from tuning_rows import make_rows

from indexer.errors import TandemError
from tuner import forgetting
from tuner.basemodel import BaseModel, load_base_model
from tuner.forgetting import Knowledge, compare_knowledge, forgetting_warning, measure_knowledge
from tuner.groups import Encoded, Example, Group, encode_rows
from tuner.guards import check_count, check_learned, find_warnings, one_sided_warning
from tuner.recipe import RATES, RECIPES, Recipe, read_recipe
from tuner.trainable import make_trainable, parameter_count
from tuner.tuning import explained_memory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("base"), window=2048)


@pytest.fixture
def base(folder: Path) -> BaseModel:
    return load_base_model(str(folder), cache=folder / "cache", device="cpu")


def test_each_recipe_has_a_rate_of_its_own_and_survives_a_file() -> None:
    from dataclasses import asdict

    for name in RECIPES:
        recipe = Recipe(name, start_from="a" if name == "dpo" else "")
        assert recipe.learning_rate == RATES[name] == recipe.schedule.learning_rate
        assert read_recipe(asdict(recipe)) == recipe
    with pytest.raises(TandemError, match="unknown settings: magic"):
        read_recipe({"name": "lora", "magic": 1})


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"name": "magic"}, "no recipe"),
        ({"r": 0}, "--r is"),
        ({"learning_rate": -1.0}, "--learning-rate"),
        ({"learning_rate": 0.0}, "--learning-rate is 0"),
        ({"warm_up": 2.0}, "--warm-up"),
        ({"precision": "half"}, "--precision"),
        ({"gradient_checkpointing": True, "block_share": 0.5}, "--block-share"),
        ({"name": "full", "start_from": "a"}, "--start-from"),
        ({"name": "dpo"}, "none is named"),
    ],
)
def test_settings_that_cannot_be_are_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(TandemError, match=named):
        Recipe(**values)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ("all-linear", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("qkvo", {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ("qv", {"q_proj", "v_proj"}),
        ("q_proj, down_proj", {"q_proj", "down_proj"}),
    ],
)
def test_lora_stands_beside_the_modules_that_are_named_and_nowhere_else(
    base: BaseModel, targets: str, expected: set[str]
) -> None:
    total = parameter_count(base.model)
    trainable = make_trainable(base, Recipe("lora", r=2, target_modules=targets))
    assert {name.split(".")[-4] for name in trainable.parameters} <= expected
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trainable.parameters} == expected
    # r (inputs + outputs) for each matrix: sizes of the small model.
    sizes = {"q_proj": (32, 32), "k_proj": (32, 16), "v_proj": (32, 16), "o_proj": (32, 32), "gate_proj": (32, 64),
             "up_proj": (32, 64), "down_proj": (64, 32)}  # fmt: skip
    assert trainable.trained == 2 * sum(2 * sum(sizes[name]) for name in expected)
    assert parameter_count(base.model) == total


def test_a_module_that_is_not_there_is_named_with_those_that_are(base: BaseModel) -> None:
    with pytest.raises(TandemError, match="c_fc") as error:
        make_trainable(base, Recipe("lora", target_modules="q_proj,c_fc"))
    assert "down_proj" in error.value.expected


def test_partial_trains_the_last_layers_and_full_everything(folder: Path) -> None:
    def names(recipe: Recipe) -> set[str]:
        base = load_base_model(str(folder), cache=folder / "cache", device="cpu")
        return set(make_trainable(base, recipe).parameters)

    last = names(Recipe("partial", layers=1))
    assert last and all(".layers.1." in name for name in last)
    assert any("embed_tokens" in name for name in names(Recipe("full")))
    with pytest.raises(TandemError, match="--layers is 3, and the base model has 2"):
        names(Recipe("partial", layers=3))


@pytest.mark.parametrize("option", ["dora", "rslora"])
def test_variants_of_lora_learn(option: str, base: BaseModel, tmp_path: Path) -> None:
    from tuner.grouploss import find_reading
    from tuner.objective import Supervised
    from tuner.schedule import Schedule
    from tuner.train import Training, evaluate, train

    recipe = Recipe("lora", r=4, alpha=8, rslora=option == "rslora", dora=option == "dora")
    trainable = make_trainable(base, recipe)
    scales = {module.scaling["default"] for module in base.model.modules() if hasattr(module, "lora_A")}
    assert scales == {8 / 2 if recipe.rslora else 8 / 4}
    groups = encode_rows(base.tokenizer, make_rows(8), limit=1900).groups
    reading = find_reading(base.model, "none")
    schedule = Schedule(epochs=1, accumulation=len(groups), learning_rate=5e-3, precision="float32")
    training = Training(base.model, trainable.parameters, Supervised(base.model, reading), groups, [], schedule)
    before = evaluate(training, groups)
    first = {name: parameter.detach().clone() for name, parameter in trainable.parameters.items()}
    assert train(training, tmp_path / "c.safetensors").steps == 1
    assert evaluate(training, groups) < before
    # The first step leaves the matrices A: what stands behind them is still 0.
    kinds = {"lora_B", "lora_magnitude_vector"} if recipe.dora else {"lora_B"}
    changed = {name for name, parameter in trainable.parameters.items() if not bool((parameter == first[name]).all())}
    assert changed == {name for name in first if any(kind in name for kind in kinds)}
    assert any("lora_magnitude_vector" in name for name in first) == recipe.dora


@pytest.mark.parametrize("name", ["qlora", "lora-int8"])
def test_quantised_bases_are_learned_over(name: Any, tmp_path: Path) -> None:
    import torch
    from small_models import make_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    from tuner.grouploss import find_reading, group_loss
    from tuner.objective import Supervised
    from tuner.schedule import Schedule
    from tuner.train import Training, evaluate, train

    # Blocks of 64 numbers share a scale in 4 bits, so the matrices are as wide as that.
    folder, tokenizer = tmp_path / "base", make_tokenizer()
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    recipe = Recipe(name, r=4)
    base = load_base_model(str(folder), cache=folder / "cache", device="cpu", quantisation=recipe.quantisation)
    trainable = make_trainable(base, recipe)
    kinds = {type(module).__name__ for module in base.model.modules()}
    assert ("Linear4bit" if name == "qlora" else "Linear8bitLt") in kinds
    assert str(base.model.model.norm.weight.dtype) == "torch.float32"
    groups = encode_rows(base.tokenizer, make_rows(5), limit=1900).groups
    reading = find_reading(base.model, base.quantisation)
    schedule = Schedule(epochs=8, accumulation=3, learning_rate=5e-3, precision="float32")
    training = Training(base.model, trainable.parameters, Supervised(base.model, reading), groups, [], schedule)
    before = evaluate(training, groups)
    # The gradient of the first layer comes through every quantised one above it, after a reading for evaluation too.
    base.model.train()
    sum(group_loss(base.model, groups[0], reading)).backward()
    first = next(p for n, p in trainable.parameters.items() if "layers.0" in n and "q_proj" in n and "lora_B" in n)
    assert float(first.grad.abs().max()) > 0
    train(training, tmp_path / "c.safetensors")
    assert evaluate(training, groups) < before


# --- guards ----------------------------------------------------------------------------------------------------------


def test_sound_settings_earn_no_warning() -> None:
    for name in ("qlora", "lora", "lora-int8"):
        assert find_warnings(Recipe(name), 1000, 0) == []


@pytest.mark.parametrize(
    ("recipe", "rows", "shortened", "said"),
    [
        (Recipe("full", learning_rate=4e-4), 1000, 0, "learning rate 0.0004 is high for full"),
        (Recipe("lora", epochs=10), 1000, 0, "10 epochs"),
        (Recipe("lora", r=256), 1000, 0, "Rank 256"),
        (Recipe("lora", dora=True), 1000, 0, "with `quantisation` none"),
        (Recipe("lora"), 150, 0, "150 rows are few for training all layers"),
        (Recipe("lora"), 1000, 300, "300 of 1000 rows lost passages"),
    ],
)
def test_what_usually_goes_wrong_is_said_with_its_reason(recipe: Recipe, rows: int, shortened: int, said: str) -> None:
    (warning,) = find_warnings(recipe, rows, shortened)
    assert said in warning and ":" in warning
    assert find_warnings(Recipe("lora", target_modules="qv"), 150, 0) == []


def test_many_rows_that_are_left_out_are_told() -> None:
    (warning,) = find_warnings(Recipe("lora"), 900, 0, 100)
    assert "100 of 1000 rows are left out" in warning
    assert find_warnings(Recipe("lora"), 901, 0, 99) == []


def test_misleading_questions_that_leave_documents_out_are_told() -> None:
    warning = one_sided_warning(["a"] * 7 + ["b"] * 5, ["a"])
    assert warning is not None and "5 of 12 answerable questions are about documents, such as b, that" in warning
    # 5 of 17 are under 30 percent, 4 questions are few, and one misleading question tells that there are some.
    assert one_sided_warning(["a"] * 12 + ["b"] * 5, ["a"]) is None
    assert one_sided_warning(["a"] * 7 + ["b"] * 4 + ["c"] * 4, ["a"]) is None
    assert one_sided_warning(["a"] * 7 + ["b"] * 5, ["a", "b"]) is None
    assert one_sided_warning(["b"] * 50, []) is None, "nothing is told apart"
    assert one_sided_warning([], ["b"] * 50) is None


def test_too_few_rows_and_rows_without_an_answer_are_errors() -> None:
    with pytest.raises(TandemError, match="3 rows") as error:
        check_count(3)
    assert "At least 8" in error.value.expected
    check_count(8)
    group = Group((1, 2), (), (Example((3, 4), (False, False)),))
    with pytest.raises(TandemError, match="without a token to learn"):
        check_learned(Encoded([group], 1, 0))


@pytest.mark.parametrize("kind", ["python", "torch", "allocator"])
def test_out_of_memory_says_which_setting_to_lower(kind: str) -> None:
    import torch

    errors = {
        "python": MemoryError(),
        "torch": torch.OutOfMemoryError("CUDA out of memory"),
        "allocator": RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    }
    with pytest.raises(TandemError, match="not enough memory") as error, explained_memory(Recipe("lora"), "first"):
        raise errors[kind]
    assert "--resume --name first --gradient-checkpointing" in error.value.do
    assert "under another --name with a lower --longest (now 2048) or --recipe qlora" in error.value.do
    with pytest.raises(RuntimeError, match="shape"), explained_memory(Recipe("lora")):
        raise RuntimeError("shape mismatch")


@pytest.mark.parametrize(
    ("recipe", "run", "advice"),
    [
        (Recipe("lora", gradient_checkpointing=True), "first", "Start again under another --name with a lower"),
        (Recipe("lora", block_share=0.5), "first", "Start again under another --name with a lower"),
        (Recipe("dpo", start_from="a"), "first", "a --start-from of a smaller base model"),
        (Recipe("qlora"), "first", "a smaller --base-model"),
        (Recipe("lora"), "", "Start a new run with --recipe qlora."),
    ],
)
def test_out_of_memory_gives_no_advice_that_cannot_be_followed(recipe: Recipe, run: str, advice: str) -> None:
    with pytest.raises(TandemError, match="not enough memory") as error, explained_memory(recipe, run):
        raise MemoryError
    assert advice in error.value.do
    possible = bool(run) and not recipe.gradient_checkpointing and not recipe.block_share
    assert ("--gradient-checkpointing" in error.value.do) is ("--resume" in error.value.do) is possible
    assert ("--recipe qlora" in error.value.do) is (recipe.name == "lora")


# --- forgetting ------------------------------------------------------------------------------------------------------


def test_perplexity_is_that_of_the_library_and_questions_are_counted(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    import math

    import torch

    monkeypatch.setattr(forgetting, "QUESTIONS", forgetting.QUESTIONS[:2])
    found = measure_knowledge(base, base.model, "float32")
    ids = torch.tensor([base.tokenizer(forgetting.TEXT)["input_ids"][:2048]])
    with torch.no_grad():
        expected = math.exp(float(base.model(input_ids=ids, labels=ids).loss))
    assert found.perplexity == pytest.approx(expected, rel=1e-4) and found.right == 0
    with torch.no_grad():
        for parameter in base.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.manual_seed(0)))
    assert measure_knowledge(base, base.model, "float32").perplexity > found.perplexity


def test_more_than_a_tenth_worse_is_said(base: BaseModel) -> None:
    assert forgetting_warning(compare_knowledge(Knowledge(20, 9), Knowledge(21.9, 9))) is None
    warning = forgetting_warning(compare_knowledge(Knowledge(20, 9), Knowledge(22.5, 4)))
    assert warning and "from 20 to 22.5" in warning and "--replay" in warning
    assert len(forgetting.QUESTIONS) == 20 and 30 <= forgetting.TEXT.count(". ") + 1 <= 40


@pytest.mark.slow
def test_the_bundled_model_knows_some_of_it(base_model: BaseModel) -> None:
    known = measure_knowledge(base_model, base_model.model, "float32")
    assert known.perplexity < 20 and known.right >= 8
