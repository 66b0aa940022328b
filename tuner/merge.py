"""An adapter merged into its base model: W + s B A in place of W, a model of its own that needs no PEFT.

What was saved is loaded again and must say what base and adapter said together; otherwise nothing is left behind.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from indexer.errors import TandemError
from indexer.folders import publish_folder
from tuner.adapters import verify_adapter
from tuner.attach import AttachedAdapters
from tuner.basemodel import MERGE_RECORD, BaseModel, load_base_model
from tuner.prompt import Source, build_prompt
from tuner.quiet import quiet

Numbers = Literal["float32", "bfloat16", "float16"]
NUMBERS: tuple[Numbers, ...] = get_args(Numbers)
# How far the best-known rounding may move a logit, as a share of the largest: float32 sums in another order, and
# 8 or 11 bits of mantissa in every weight.
_TOLERANCE: dict[str, float] = {"float32": 1e-3, "float16": 0.05, "bfloat16": 0.15}
_PROBES = (
    ("How hot is the oven?", Source("Bread", "The oven is heated to 230 degrees. Bread rises because of yeast.")),
    ("Who leads the hive?", Source("Bees", "The queen leads the hive. A hive holds fifty thousand workers.")),
    ("What is the capital of France?", None),
)

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Merged:
    """How far the saved model is from base and adapter: `distance` is the largest difference of any logit.

    `largest` is the largest logit, for scale; `same_token` the share of positions with the same best token.
    `refusal_threshold` is that of the adapter's card: the weights cannot hold it, so Tandem reads it from the record.
    """

    adapter: str
    adapter_sha256: str
    base_model: str
    base_sha256: str
    numbers: str
    distance: float
    largest: float
    same_token: float
    refusal_threshold: float | None


def merge_adapter(
    base: BaseModel, folder: Path, target: Path, *, numbers: Numbers | None = None, report: Report = lambda _: None
) -> Merged:
    """Write base and adapter as one model folder `target`; its weights are `numbers`, else as the base's config says.

    `base` must be unquantised, and is merged itself: it cannot be used afterwards.
    Raises TandemError (conflict) for another base model, a quantised one, or a folder that exists; and when the
    merged model does not answer as the two did, in which case `target` is not written.
    """
    refuse_existing(target)
    if base.quantisation != "none":
        raise TandemError(
            f"The base model is loaded as {base.quantisation}; merging rounds the adapter away in such weights.",
            expected="The unquantised base model.",
            do='Set quantisation to "none" and merge again.',
            code="conflict",
        )
    card = verify_adapter(folder, base)
    attached = AttachedAdapters(base)
    attached.register(folder.name, folder)
    with attached.selected(folder.name):
        before = probe(base)
    report("Merging.")
    model = attached.merge(folder.name)
    chosen = numbers or _published(model)
    found: list[Merged] = []

    def build(fresh: Path) -> None:
        _save(model, base, fresh, chosen)
        report("Comparing the merged model with base and adapter.")
        with tempfile.TemporaryDirectory() as cache:
            again = load_base_model(str(fresh), cache=Path(cache), device="cpu")
        distance, largest, same = compare(before, probe(again))
        merged = Merged(
            adapter=folder.name,
            adapter_sha256=card.weights_sha256,
            base_model=base.name,
            base_sha256=base.sha256,
            numbers=chosen,
            distance=distance,
            largest=largest,
            same_token=same,
            refusal_threshold=card.refusal_threshold,
        )
        if not distance <= _TOLERANCE[chosen] * largest:
            raise TandemError(
                f"The merged model does not answer as the adapter did: logits differ by {distance:.3g}.",
                expected=f"At most {_TOLERANCE[chosen] * largest:.3g}.",
                do="Merge into float32, or serve the adapter beside its base model.",
                code="conflict",
            )
        (fresh / MERGE_RECORD).write_text(json.dumps(asdict(merged), indent=1), "utf-8")
        found.append(merged)

    publish_folder(target, build)
    return found[0]


def refuse_existing(target: Path) -> None:
    """Raise TandemError (conflict) when there is something at `target` already."""
    if target.exists():
        raise TandemError(
            f"There is something at {target} already.",
            expected="A folder that does not exist yet.",
            do="Name another one.",
            code="conflict",
        )


def probe(base: BaseModel) -> list[Any]:
    """Logits (t, vocabulary), float32, for each of a few fixed prompts."""
    import torch

    found = []
    with torch.inference_mode():
        for question, source in _PROBES:
            prompt = build_prompt(base.tokenizer, question, [source] if source else None, limit=base.window - 1)
            ids = torch.tensor([prompt.ids], device=base.device)
            found.append(base.model(input_ids=ids).logits[0].float().cpu())
    return found


def compare(first: list[Any], second: list[Any]) -> tuple[float, float, float]:
    """The largest difference, the largest logit, and the share of positions with the same best token."""
    pairs = list(zip(first, second, strict=True))
    distance = max(float((one - other).abs().max()) for one, other in pairs)
    largest = max(float(one.abs().max()) for one, _ in pairs)
    same = sum(int((one.argmax(-1) == other.argmax(-1)).sum()) for one, other in pairs)
    return distance, largest, same / sum(len(one) for one, _ in pairs)


def _published(model: Any) -> Numbers:
    name = str(getattr(model.config, "dtype", None) or "float32").removeprefix("torch.")
    return next((known for known in NUMBERS if known == name), "float32")


def _save(model: Any, base: BaseModel, folder: Path, numbers: Numbers) -> None:
    import torch

    model.to(getattr(torch, numbers))
    # A folder of this machine must not go into the config.
    model.config._name_or_path = base.name if "/" not in base.name else Path(base.name).name
    with quiet():
        model.save_pretrained(folder)
        base.tokenizer.save_pretrained(folder)
