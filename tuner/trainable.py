"""Which parameters a recipe trains, attached to or found in a loaded base model, and how they are saved.

LoRA matrices are float32 whatever the base is stored in; so are parameters of the base that are trained themselves,
and, over a quantised base, its norms and its output layer: sums of many small steps are lost in 16 bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from tuner.adapters import CONFIG_FILE, WEIGHTS_FILE, read_adapter_config, verify_adapter
from tuner.basemodel import BaseModel
from tuner.quiet import quiet
from tuner.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Trainable:
    """`parameters` by name of the causal language model `model`; `peft` wraps it when an adapter is trained."""

    model: Any
    parameters: Mapping[str, Any]
    peft: Any = None

    @property
    def trained(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.parameters.values())


def check_trainable(base: BaseModel, recipe: Recipe, start: Path | None = None) -> None:
    """Raise the errors of `make_trainable` that can be known without changing `base.model`."""
    if recipe.gradient_checkpointing and not base.model.supports_gradient_checkpointing:
        raise TandemError(
            "This base model has no gradient checkpointing.",
            expected="A family that transformers supports it for.",
            do="Leave --gradient-checkpointing out.",
        )
    if recipe.name == "partial":
        _last_layers(base.model, recipe.layers)
    if recipe.trains_adapter:
        _lora_config(base, recipe, start)


def make_trainable(base: BaseModel, recipe: Recipe, start: Path | None = None) -> Trainable:
    """Prepare `base` for the recipe, from the adapter in the folder `start` if there is one. Changes `base.model`.

    Raises TandemError when no matrix has the names of --target-modules, there are fewer layers than --layers, the
    model has no gradient checkpointing, or the adapter is not one of this base model.
    """
    check_trainable(base, recipe, start)
    model = base.model
    model.requires_grad_(False)
    if recipe.precision == "float32" and base.quantisation == "none":
        model.float()
    keep_gradients(model)
    if recipe.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    if base.quantisation != "none":
        _steady(model)
    if recipe.trains_adapter:
        return _with_adapter(base, recipe, start)
    chosen = model if recipe.name == "full" else _last_layers(model, recipe.layers)
    for parameter in chosen.parameters():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    return Trainable(model, {name: p for name, p in model.named_parameters() if p.requires_grad})


def lora_settings(peft: Any) -> dict[str, Any]:
    """What an adapter is made of, in the words of a recipe; one that started from another has that one's."""
    config = peft.peft_config["default"]
    targets = config.target_modules
    return {
        "r": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "target_modules": targets if isinstance(targets, str) else ",".join(sorted(targets)),
        "rslora": config.use_rslora,
        "dora": config.use_dora,
    }


def keep_gradients(model: Any) -> None:
    """Before a 4-bit model is first read: keep bitsandbytes from repacking its weights for answering on a CPU.

    Once it has, products over them have no gradient, and PyTorch only warns: the layers below learn nothing.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


def parameter_count(model: Any) -> int:
    """The parameters of a base model, those stored in 4 bits counted whole, tied ones once, LoRA's left out."""
    total = 0
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            state = getattr(parameter, "quant_state", None)
            total += state.shape.numel() if state is not None else parameter.numel()
    return total


def save_adapter_weights(trainable: Trainable, folder: Path) -> None:
    """Write the safetensors file and adapter_config.json of a trained adapter to `folder`."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(trainable.peft)
    save_file({key: value.detach().cpu().contiguous() for key, value in state.items()}, folder / WEIGHTS_FILE)
    settings = trainable.peft.peft_config["default"].to_dict()
    # The card says which base is meant, by its hash; a path of this machine says nothing elsewhere.
    settings = {**settings, "base_model_name_or_path": "", "inference_mode": True}
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}
    (folder / CONFIG_FILE).write_text(json.dumps(plain, indent=1, default=str), "utf-8")


def save_model(trainable: Trainable, tokenizer: Any, folder: Path) -> None:
    """Write the whole trained base model, in the precision it was loaded in, with its tokenizer."""
    import torch

    if trainable.model.device.type == "cuda":
        trainable.model.to(torch.bfloat16)
    with quiet():
        trainable.model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _steady(model: Any) -> None:
    """Norms (and other vectors) and the output layer in float32."""
    import torch

    head = model.get_output_embeddings()
    for parameter in (*model.parameters(), *(head.parameters() if head is not None else ())):
        is_head = head is not None and parameter is getattr(head, "weight", None)
        if parameter.is_floating_point() and (parameter.ndim == 1 or is_head) and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def _with_adapter(base: BaseModel, recipe: Recipe, start: Path | None) -> Trainable:
    import torch

    with quiet():
        from peft import get_peft_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    config = _lora_config(base, recipe, start)
    torch.manual_seed(recipe.seed)
    try:
        with quiet():
            peft = get_peft_model(base.model, config)
            if start is not None:
                set_peft_model_state_dict(peft, load_file(start / WEIGHTS_FILE))
    except ValueError as error:
        raise TandemError(
            f"No adapter fits this base model: {str(error).splitlines()[0]}",
            expected="Names of linear modules of the base model.",
            do="Give --target-modules all-linear.",
        ) from error
    parameters = {name: parameter for name, parameter in peft.named_parameters() if parameter.requires_grad}
    return Trainable(peft.get_base_model(), parameters, peft)


def _lora_config(base: BaseModel, recipe: Recipe, start: Path | None) -> Any:
    with quiet():
        from peft import LoraConfig

    if start is not None:
        verify_adapter(start, base)
        return LoraConfig(**read_adapter_config(start))
    return LoraConfig(
        r=recipe.r,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=_targets(base.model, recipe),
        use_rslora=recipe.rslora,
        use_dora=recipe.dora,
        fan_in_fan_out=_is_transposed(base.model),
        task_type="CAUSAL_LM",
    )


def _targets(model: Any, recipe: Recipe) -> str | list[str]:
    targets = recipe.targets()
    if isinstance(targets, str):
        return targets
    # PEFT refuses what has no matrix, such as a norm, only once it changes the model.
    named = model.named_parameters(remove_duplicate=False)
    ends = {name.split(".")[-2] for name, value in named if name.endswith(".weight") and value.ndim > 1}
    found = [name for name in targets if name in ends]
    if recipe.target_modules in ("qkvo", "qv") and found:
        return found
    missing = [name for name in targets if name not in ends]
    if missing or not found:
        raise TandemError(
            f"The base model has no matrix called {', '.join(missing or targets)}.",
            expected="Ends of module names, such as: " + ", ".join(sorted(_linear_ends(model))) + ".",
            do="Name some of those in --target-modules, or all-linear.",
        )
    return found


def _linear_ends(model: Any) -> set[str]:
    return {
        name.rpartition(".")[2] for name, module in model.named_modules() if type(module).__name__.startswith("Linear")
    }


def _is_transposed(model: Any) -> bool:
    """GPT-2 keeps its matrices the other way round, in modules of its own."""
    return any(type(module).__name__ == "Conv1D" for module in model.modules())


def _last_layers(model: Any, count: int) -> Any:
    """The last layers: the end of the longest list of modules of one kind."""
    from torch.nn import ModuleList

    lists = [module for module in model.modules() if isinstance(module, ModuleList)]
    layers = max(lists, key=len, default=ModuleList())
    if not 1 <= count <= len(layers):
        raise TandemError(
            f"--layers is {count}, and the base model has {len(layers)} layers.",
            expected="At most as many as it has.",
            do="Lower it, or use --recipe full.",
        )
    return layers[-count:]
