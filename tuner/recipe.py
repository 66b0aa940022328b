"""A recipe: which parameters of a base model are trained, over which weights, and how. Every setting is checked here.

qlora      LoRA over a base in 4 bits (NF4, double quantisation; Dettmers et al. 2023, arXiv 2305.14314)
lora       LoRA over the base as it is (Hu et al. 2021, arXiv 2106.09685)
lora-int8  LoRA over a base in 8 bits (LLM.int8(); Dettmers et al. 2022, arXiv 2208.07339)
partial    the last layers themselves; the result is a base model
full       every parameter; the result is a base model
dpo        an adapter that exists, trained further on preferences (Rafailov et al. 2023, arXiv 2305.18290)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from indexer.errors import TandemError
from tuner.basemodel import Quantisation
from tuner.schedule import Schedule

RecipeName = Literal["qlora", "lora", "lora-int8", "partial", "full", "dpo"]
RECIPES: tuple[RecipeName, ...] = get_args(RecipeName)
# Trained matrices are small beside the base, or all of it: what suits one is ruin to the other.
RATES: Mapping[str, float] = {
    "qlora": 4e-4,
    "lora": 4e-4,
    "lora-int8": 4e-4,
    "partial": 5e-5,
    "full": 2e-5,
    "dpo": 2e-5,
}
# What may change when a run is resumed, for it diverged or ran out of memory; its steps stay what they are.
CHANGEABLE = ("learning_rate", "gradient_checkpointing")
QUANTISATION: Mapping[str, Quantisation] = {"qlora": "nf4", "lora-int8": "llm-int8"}
# Names of the attention matrices in the families that transformers has.
_ATTENTION = {
    "qkvo": ("q_proj", "k_proj", "v_proj", "o_proj", "out_proj", "query_key_value", "dense", "c_attn", "qkv_proj"),
    "qv": ("q_proj", "v_proj", "query_key_value", "c_attn", "qkv_proj"),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides a run besides its rows.

    `target_modules` is all-linear, qkvo (attention), qv (queries and values) or names with commas; `layers` is how
    many last layers `partial` trains; without a `learning_rate` the recipe's own is taken; `longest` is the most tokens
    of a prompt; `beta` is DPO's.
    """

    name: RecipeName = "qlora"
    r: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: str = "all-linear"
    rslora: bool = False
    dora: bool = False
    layers: int = 4
    epochs: float = 2.0
    learning_rate: float | None = None
    warm_up: float = 0.05
    weight_decay: float = 0.0
    accumulation: int = 2
    gradient_checkpointing: bool = False
    precision: str = "auto"
    block_share: float = 0.0
    validation_share: float = 0.1
    validations: int = 4
    patience: int = 0
    longest: int = 2048
    beta: float = 0.1
    seed: int = 0
    start_from: str = ""

    def __post_init__(self) -> None:
        """Fill in the recipe's own learning rate. Raises TandemError naming the option that cannot be."""
        if self.name not in RECIPES:
            raise TandemError(
                f"There is no recipe {self.name!r}.", expected=f"One of: {', '.join(RECIPES)}.", do="Name one of them."
            )
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", RATES[self.name])
        for option, (low, high) in _BOUNDS.items():
            value = getattr(self, option)
            if not low <= value <= high:
                raise _wrong(option, value, f"From {low:g} to {high:g}.")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise _wrong("precision", self.precision, "auto, float32 or bfloat16.")
        if self.gradient_checkpointing and self.block_share:
            raise _wrong("block_share", self.block_share, "0 together with --gradient-checkpointing.")
        if self.start_from and not self.trains_adapter:
            raise _wrong("start_from", self.start_from, f"No adapter: the recipe {self.name} trains the base itself.")
        if self.name == "dpo" and not self.start_from:
            raise TandemError(
                "The recipe dpo trains an adapter further, and none is named.",
                expected="--start-from with an adapter that was tuned on rows.",
                do="Tune one with --recipe qlora first; `tandem adapters list` shows those there are.",
            )

    @property
    def trains_adapter(self) -> bool:
        """Whether an adapter comes out, rather than a base model."""
        return self.name not in ("partial", "full")

    @property
    def quantisation(self) -> Quantisation:
        """How the frozen base is stored."""
        return QUANTISATION.get(self.name, "none")

    @property
    def schedule(self) -> Schedule:
        """The part that the training loop reads."""
        own = {item.name for item in fields(Schedule)} & {item.name for item in fields(Recipe)}
        return Schedule(**{name: getattr(self, name) for name in own})

    def targets(self) -> str | list[str]:
        """What PEFT looks for: "all-linear", or ends of module names."""
        if self.target_modules == "all-linear":
            return self.target_modules
        names = _ATTENTION.get(self.target_modules, self.target_modules.split(","))
        return [name.strip() for name in names if name.strip()]


_BOUNDS: Mapping[str, tuple[float, float]] = {
    "r": (1, 1024),
    "alpha": (0.01, 4096),
    "dropout": (0, 0.9),
    "layers": (1, 1000),
    "epochs": (0.01, 1000),
    "learning_rate": (1e-8, 1),
    "warm_up": (0, 1),
    "weight_decay": (0, 1),
    "accumulation": (1, 4096),
    "block_share": (0, 1),
    "validation_share": (0, 0.9),
    "validations": (1, 1000),
    "patience": (0, 1000),
    "longest": (64, 1 << 20),
    "beta": (1e-4, 10),
}


def read_recipe(values: Mapping[str, Any]) -> Recipe:
    """The recipe that a run's file holds. Raises TandemError when it is none."""
    known = {item.name for item in fields(Recipe)}
    if not known >= set(values):
        raise TandemError(
            f"The recipe has unknown settings: {', '.join(sorted(set(values) - known))}.",
            expected="A recipe of this version.",
            do="Start the run again with --force.",
        )
    return Recipe(**values)


def _wrong(option: str, value: object, expected: str) -> TandemError:
    return TandemError(f"--{option.replace('_', '-')} is {value}.", expected=expected, do="Correct it.")
