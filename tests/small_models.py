"""A byte-level tokenizer and a model of 60,000 random weights, made here: real code paths in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel

MARKS = ["<|end|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(template: str | None = CHATML, *, bos: str | None = None) -> Any:
    """Every byte is a token, so no text is unknown; `MARKS` are its control tokens."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        ["the queen of the hive"],
        trainers.BpeTrainer(special_tokens=MARKS, initial_alphabet=alphabet, show_progress=False),
    )
    if bos is not None:
        backend.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=bos,
        eos_token="<|end|>",
        additional_special_tokens=MARKS[1:],
        chat_template=template,
    )


def save_small_model(folder: Path, *, seed: int = 0, window: int = 512) -> Path:
    """A random Llama with `make_tokenizer`'s vocabulary, saved as a model folder; its output layer is tied."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=window,
        tie_word_embeddings=True,
        initializer_range=0.5,
        bos_token_id=1,
        eos_token_id=0,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter(
    folder: Path,
    base: Any,
    *,
    seed: int,
    name: str = "",
    rank: int = 4,
    targets: tuple[str, ...] = ("q_proj", "down_proj"),
    **card: Any,
) -> Path:
    """A LoRA with random, non-zero matrices for `base`, with the card that belongs to it."""
    import json

    import torch
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM

    from tuner.adapters import AdapterCard, save_card
    from tuner.prompt import PROMPT_FINGERPRINT

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, target_modules=list(targets), init_lora_weights=False, task_type="CAUSAL_LM")
    with torch.device("cpu"):
        copy = AutoModelForCausalLM.from_config(base.model.config)
    state = get_peft_model_state_dict(inject_adapter_in_model(config, copy, adapter_name="default"))
    folder.mkdir(parents=True)
    save_file(
        {f"base_model.model.{key}": value.contiguous() for key, value in state.items()},
        folder / "adapter_model.safetensors",
    )
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    (folder / "adapter_config.json").write_text(json.dumps(settings, default=str))
    values = {
        "name": name or folder.name,
        "base_model": base.name,
        "base_sha256": base.sha256,
        "tokenizer_sha256": base.tokenizer_sha256,
        "prompt_fingerprint": PROMPT_FINGERPRINT,
        "recipe": {"name": "lora"},
        "created": "2026-01-01T00:00:00Z",
        **card,
    }
    save_card(folder, AdapterCard(**values))
    return folder
