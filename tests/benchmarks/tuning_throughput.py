"""Tandem's training loop against trl's SFTTrainer with its defaults: the same rows, base model and machine, one run.

    python tests/benchmarks/tuning_throughput.py ROWS [--base-model bundled] [--rows 256] [--longest 1632] [--threads 1]
                                                [--trl-learning-rate 4e-4]

ROWS is a file that `tandem rows` wrote. A token is a token of a row as trl counts it: every row's prompt and answer,
whether or not its beginning was read before; so tokens/s says how fast rows are learned from, by the clock and by the
processor time, which other processes disturb less (on a CPU with --threads 1). Both train LoRA of rank 16 on all
linear layers over one pass, in the same precision: bfloat16 products where the machine has instructions for them, else
float32. trl keeps its own batch size, order and schedule, and its learning rate unless another is given. After each
quarter of the rows both are measured on the same held-out rows by the same function; that is the loss curve.
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tuner.basemodel import BaseModel, load_base_model
from tuner.grouploss import Reading, find_reading
from tuner.groups import Group, encode_rows
from tuner.objective import Supervised, has_bfloat16
from tuner.recipe import Recipe
from tuner.rowfile import read_rows
from tuner.rows import Row, split_rows
from tuner.schedule import Progress
from tuner.train import Training, evaluate, train
from tuner.trainable import make_trainable

QUARTERS = 4


@dataclass(frozen=True, slots=True)
class Spent:
    """Seconds by the clock and of the processor."""

    seconds: float
    processor: float

    def less(self, other: "Spent") -> "Spent":
        return Spent(self.seconds - other.seconds, self.processor - other.processor)

    def times(self, count: int) -> "Spent":
        return Spent(self.seconds * count, self.processor * count)

    def rates(self, tokens: int) -> dict[str, float]:
        return {
            "seconds": self.seconds,
            "processor_seconds": self.processor,
            "tokens_per_second": tokens / self.seconds,
            "tokens_per_processor_second": tokens / self.processor,
        }


class Clock:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._started = time.monotonic(), time.process_time()

    def read(self) -> Spent:
        return Spent(time.monotonic() - self._started[0], time.process_time() - self._started[1])


def row_tokens(groups: list[Group]) -> int:
    """Tokens of all rows, each counted whole."""
    return sum(len(group.prefix) + len(ending.ids) for group in groups for ending in group.endings)


def examples(groups: list[Group]) -> list[dict[str, list[int]]]:
    """The same rows as trl takes tokenised ones: ids, and which of them the loss is of."""
    return [
        {
            "input_ids": [*group.prefix, *ending.ids],
            "completion_mask": [0] * len(group.prefix) + [int(learned) for learned in ending.learned],
        }
        for group in groups
        for ending in group.endings
    ]


def ours(base: BaseModel, groups: list[Group], held_out: list[Group], work: Path) -> dict[str, Any]:
    recipe = Recipe("lora", epochs=1, validations=QUARTERS)
    trainable = make_trainable(base, recipe)
    reading = find_reading(base.model, base.quantisation)
    training = Training(
        base.model, trainable.parameters, Supervised(base.model, reading), groups, held_out, recipe.schedule
    )

    def follow(progress: Progress) -> None:
        if progress.step % 20 == 0:
            print(f"ours: step {progress.step} of {progress.steps}, loss {progress.loss:.3f}", flush=True)

    before = evaluate(training, held_out)
    measured = Clock()
    evaluate(training, held_out)
    held = measured.read()
    started = Clock()
    progress = train(training, work / "checkpoint.safetensors", report=follow)
    # Reading held-out rows is no training; trl's callback does not count its own either.
    spent = started.read().less(held.times(len(progress.validation)))
    curve = [before, *(loss for _, loss in progress.validation)]
    return {**spent.rates(row_tokens(groups)), "held_out_loss": curve}


def theirs(
    base: BaseModel, groups: list[Group], held_out: list[Group], work: Path, rate: float | None
) -> dict[str, Any]:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    curve: list[float] = []
    pauses: list[Spent] = []

    def measure(model: Any) -> None:
        began = Clock()
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        forward = Training(inner, {}, Supervised(inner, Reading(False, True)), [], held_out, Recipe("lora").schedule)
        curve.append(evaluate(forward, held_out))
        pauses.append(began.read())

    class Quarters(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            if state.global_step in {round(state.max_steps * n / QUARTERS) for n in range(1, QUARTERS + 1)}:
                measure(given["model"])

    data = Dataset.from_list(examples(groups))
    config = SFTConfig(
        output_dir=str(work),
        num_train_epochs=1,
        max_length=None,
        report_to=[],
        save_strategy="no",
        use_cpu=base.device == "cpu",
        bf16=base.device == "cuda" or has_bfloat16(),
        **({} if rate is None else {"learning_rate": rate}),
    )
    trainer = SFTTrainer(
        model=base.model,
        args=config,
        train_dataset=data,
        processing_class=base.tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Quarters()],
    )
    measure(trainer.model)
    pauses.clear()
    started = Clock()
    trainer.train()
    spent = started.read()
    for pause in pauses:
        spent = spent.less(pause)
    return {
        **spent.rates(row_tokens(groups)),
        "batch": config.per_device_train_batch_size,
        "learning_rate": config.learning_rate,
        "gradient_checkpointing": config.gradient_checkpointing,
        "bfloat16": config.bf16,
        "held_out_loss": curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--base-model", default="bundled")
    parser.add_argument("--weights", type=Path, default=Path(".tandem/weights"))
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--held-out", type=int, default=40)
    parser.add_argument("--longest", type=int, default=1632)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 uses every core.")
    parser.add_argument("--trl-learning-rate", type=float, help="Instead of trl's default.")
    options = parser.parse_args()
    rows, rest = split_rows(read_rows(options.file), 0.2, seed=0)
    result: dict[str, Any] = {"rows": len(take(rows, options.rows))}
    trl = partial(theirs, rate=options.trl_learning_rate)
    for name, work in (("ours", ours), ("trl", trl)):
        base = load_base_model(options.base_model, cache=options.weights, threads=options.threads)
        groups = encode_rows(base.tokenizer, take(rows, options.rows), limit=options.longest).groups
        held_out = encode_rows(base.tokenizer, take(rest, options.held_out), limit=options.longest).groups
        with tempfile.TemporaryDirectory() as folder:
            result[name] = work(base, groups, held_out, Path(folder))
        print(json.dumps({name: result[name]}), flush=True)
    result["row_tokens"] = row_tokens(groups)
    result["read_tokens"] = sum(group.tokens for group in groups)
    for rate in ("tokens_per_second", "tokens_per_processor_second"):
        result[f"ratio_of_{rate}"] = result["ours"][rate] / result["trl"][rate]
    print(json.dumps(result, indent=1))


def take(rows: list[Row], count: int) -> list[Row]:
    """About `count` rows: those that show the same passages stay together, as they are in the whole file."""
    shown: dict[object, list[Row]] = {}
    for row in rows:
        if row.passages:
            shown.setdefault(row.passages, []).append(row)
    taken: list[Row] = []
    for alike in shown.values():
        if len(taken) < count:
            taken += alike
    return taken


if __name__ == "__main__":
    main()
