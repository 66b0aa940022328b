"""Every family of base models: tiny random models of each learn from rows, and read groups as they read rows alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_models import CHATML, make_tokenizer
from tuning_rows import make_rows

from tuner.basemodel import BaseModel, load_base_model
from tuner.chat import answer_end_id
from tuner.generation import Piece, TorchGenerator
from tuner.grouploss import Reading, find_reading, group_loss
from tuner.groups import Group, encode_rows
from tuner.objective import Supervised, learned_tokens
from tuner.prompt import build_prompt
from tuner.recipe import Recipe
from tuner.schedule import Schedule
from tuner.train import Training, evaluate, train
from tuner.trainable import make_trainable

# Gemma's template knows no system message and closes an answer with a token of its own.
GEMMA = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
)
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GROUPED = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 1024}
FAMILIES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "llama": ("LlamaConfig", GROUPED, CHATML),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 900}, CHATML),
    "falcon": ("FalconConfig", {**SMALL, "new_decoder_architecture": False, "multi_query": True}, None),
    "falcon-alibi": ("FalconConfig", {**SMALL, "alibi": True, "multi_query": False, "parallel_attn": False}, None),
    "qwen2": ("Qwen2Config", GROUPED, CHATML),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}, CHATML),
    "opt": (
        "OPTConfig",
        {
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 1024,
            "word_embed_proj_dim": 16,
        },
        None,
    ),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024}, None),
    "gemma2": ("Gemma2Config", {**GROUPED, "head_dim": 8, "query_pre_attn_scalar": 8}, GEMMA),
}


@pytest.fixture(params=FAMILIES, scope="module")
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    import torch
    import transformers

    config_name, settings, template = FAMILIES[request.param]
    folder: Path = tmp_path_factory.mktemp(request.param)
    tokenizer = make_tokenizer(template)
    config = getattr(transformers, config_name)(
        vocab_size=len(tokenizer), bos_token_id=0, eos_token_id=0, pad_token_id=0, **settings
    )
    torch.manual_seed(3)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_base_model(str(folder), cache=folder / "cache", device="cpu")


def groups_of(base: BaseModel) -> list[Group]:
    return encode_rows(base.tokenizer, make_rows(8), limit=900).groups


def plain_loss(model: Any, group: Group) -> float:
    """Each row through the model's own forward, as transformers computes a loss: the oracle."""
    import torch

    total = 0.0
    for ending in group.endings:
        ids = torch.tensor([group.prefix + ending.ids])
        labels = torch.tensor(
            [
                (-100,) * len(group.prefix)
                + tuple(id_ if learned else -100 for id_, learned in zip(ending.ids, ending.learned, strict=True))
            ]
        )
        total += float(model(input_ids=ids, labels=labels).loss) * sum(ending.learned)
    return total


def test_groups_are_read_as_rows_alone_are(base: BaseModel) -> None:
    import torch

    reading = find_reading(base.model, "none")
    with torch.no_grad():
        for group in groups_of(base):
            for way in (reading, Reading(False, False)):
                found = sum(float(part) for part in group_loss(base.model, group, way))
                assert found == pytest.approx(plain_loss(base.model, group), rel=1e-4)


def test_it_learns_in_three_steps_and_answers(base: BaseModel) -> None:
    groups = groups_of(base)
    trainable = make_trainable(base, Recipe("lora", r=4, target_modules="all-linear"))
    reading = find_reading(base.model, "none")
    schedule = Schedule(epochs=3, accumulation=len(groups), learning_rate=5e-3, warm_up=0, precision="float32")
    training = Training(base.model, trainable.parameters, Supervised(base.model, reading), groups, [], schedule)
    before = evaluate(training, groups)
    frozen = {name: p.detach().clone() for name, p in base.model.named_parameters() if "lora_" not in name}
    progress = train(training, Path(base.name) / "run" / "checkpoint.safetensors")
    assert progress.steps == 3 and evaluate(training, groups) < before
    assert all(bool((p == frozen[name]).all()) for name, p in base.model.named_parameters() if name in frozen)
    prompt = build_prompt(base.tokenizer, "What raises the tides?", make_rows(1)[0].passages, limit=900)
    base.model.eval()
    pieces = list(TorchGenerator(base).generate(prompt, max_tokens=5))
    assert pieces[-1].finish_reason in ("stop", "length")


def test_generation_ends_at_the_end_token(base: BaseModel) -> None:
    base.model.eval()
    (wanted,) = base.tokenizer("a", add_special_tokens=False)["input_ids"]

    def prefer(_module: Any, _given: Any, logits: Any) -> None:
        logits[..., wanted] = 1e6

    hook = base.model.get_output_embeddings().register_forward_hook(prefer)
    prompt = build_prompt(base.tokenizer, "What raises the tides?", make_rows(1)[0].passages, limit=900)
    try:
        running = TorchGenerator(base).generate(prompt, max_tokens=20)
        assert [next(running), next(running)] == [Piece("a", 1, None), Piece("a", 2, None)]
        wanted = answer_end_id(base.tokenizer)
        assert list(running) == [Piece("", 2, "stop")]
    finally:
        hook.remove()


def test_an_answer_ends_with_the_token_that_generation_stops_at(base: BaseModel) -> None:
    for group in groups_of(base):
        for ending in group.endings:
            assert ending.ids[-1] in base.eos_ids and ending.learned[-1]
            assert learned_tokens(group) > 0
    prompt = build_prompt(base.tokenizer, "Why?", None, limit=900)
    text = base.tokenizer.decode(prompt.ids)
    # A base without a chat template is asked in plain text; Gemma's refuses a system message, which opens the turn.
    assert text.endswith("Answer:" if base.tokenizer.chat_template is None else ("assistant\n", "model\n"))
