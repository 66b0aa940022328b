"""One task tuned with and without rows of another: what is learned, and what is forgotten.

    python tests/benchmarks/tradeoff/replay.py LABELLED INSTRUCTIONS --home DIR [--labels 8] [--per-label 8]

LABELLED holds {"text", "label"} a line, INSTRUCTIONS {"instruction", "input", "output"}. The task is to name the label
of a text; the other task is to follow instructions. Measured on held-out lines: labels named rightly and the loss on
both tasks, in nats a learned token, beside the probe of general knowledge that every tuning makes.
"""

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from experiment import keep, parse, read_lines, training, tuned

from indexer.evaluation import interval
from service.commands.rows import RowSources
from service.settings import Settings, load_settings
from tuner.adapters import adapter_path
from tuner.basemodel import BaseModel, load_base_model
from tuner.generation import TorchGenerator
from tuner.grouploss import find_reading
from tuner.groups import encode_rows, row_prompt
from tuner.objective import Supervised
from tuner.recipe import Recipe
from tuner.rowfile import write_rows
from tuner.rows import Row, instruction_row
from tuner.train import Training, evaluate
from tuner.trainable import make_trainable

LONGEST = 512


def label_rows(path: Path, labels: int, most: int, seed: int) -> list[list[Row]]:
    """For each of `labels` labels, `most` rows."""
    texts = defaultdict(list)
    for item in read_lines(path):
        texts[item["label"]].append(item["text"])
    rng = random.Random(seed)
    chosen = rng.sample(sorted(texts), labels)
    task = f"Which topic does the text have: {', '.join(chosen)}?"
    return [[instruction_row(task, text, label) for text in rng.sample(texts[label], most)] for label in chosen]


def loss(settings: Settings, rows: list[Row], name: str) -> float:
    """Nats a learned token, of the base model or with an adapter."""
    base = load_base_model(settings.base_model, cache=settings.weights_folder, device=settings.device)
    recipe = Recipe("lora")
    model = make_trainable(base, recipe, adapter_path(settings.home, name)).model if name else base.model
    groups = encode_rows(base.tokenizer, rows, limit=LONGEST).groups
    reading = find_reading(model, base.quantisation)
    return evaluate(Training(model, {}, Supervised(model, reading), [], groups, recipe.schedule), groups)


def named(base: BaseModel, generator: TorchGenerator, rows: list[Row], adapter: str | None) -> list[float]:
    """For each row, whether the model says its label and nothing else."""
    right = []
    for row in rows:
        prompt = row_prompt(base.tokenizer, row, LONGEST)
        said = "".join(piece.text for piece in generator.generate(prompt, max_tokens=24, adapter=adapter))
        right.append(float(said.strip(" .") == row.answer))
    return right


def main() -> None:
    parser = parse(__doc__, labelled="Texts with their labels.", instructions="Instructions with their outputs.")
    parser.add_argument("--labels", type=int, default=8)
    parser.add_argument("--per-label", type=int, default=8)
    parser.add_argument("--replayed", type=int, default=64, help="Rows of the other task beside them.")
    options = parser.parse_args()
    options.home.mkdir(parents=True, exist_ok=True)
    per_test = -(-options.questions // options.labels)
    by_label = label_rows(options.labelled, options.labels, options.per_label + per_test, options.seed)
    test = [row for rows in by_label for row in rows[options.per_label :]]
    others = [instruction_row(*(item[name] for name in ("instruction", "input", "output")))
              for item in read_lines(options.instructions)]  # fmt: skip
    random.Random(options.seed).shuffle(others)
    other_test, replayed = others[: options.questions], others[options.questions :][: options.replayed]
    write_rows(options.home / "task.jsonl", [row for rows in by_label for row in rows[: options.per_label]])
    write_rows(options.home / "replay.jsonl", replayed)
    settings = load_settings(home=options.home.resolve())
    recipe = Recipe("lora", epochs=options.epochs, validation_share=0, longest=LONGEST, seed=options.seed)
    task = (options.home / "task.jsonl",)
    metrics = {
        "alone": tuned(settings, "alone", RowSources(rows=task), recipe),
        "replayed": tuned(settings, "replayed", RowSources(rows=task, replay=(options.home / "replay.jsonl",)), recipe),
    }
    base = load_base_model(settings.base_model, cache=settings.weights_folder, device=settings.device)
    generator = TorchGenerator(base, {name: adapter_path(settings.home, name) for name in metrics})
    result: dict[str, Any] = {"training": {name: training(each) for name, each in metrics.items()}}
    print("| Adapter | Labels named | Loss on labels | Loss on instructions | Perplexity | General questions right |")
    print("|---|---|---|---|---|---|")
    for name in ("", *metrics):
        found = interval(np.asarray(named(base, generator, test, name or None), np.float64), options.seed)
        probe = next(iter(metrics.values()))["forgetting"] if not name else metrics[name]["forgetting"]
        when = "after" if name else "before"
        result[name or "none"] = {
            "labels": [found.value, found.low, found.high, len(test)],
            "loss": loss(settings, test, name),
            "other_loss": loss(settings, other_test, name),
            "perplexity": probe[f"perplexity_{when}"],
            "right": probe[f"right_{when}"],
        }
        got = result[name or "none"]
        cells = [name or "none", f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})", f"{got['loss']:.3f}"]
        cells += [f"{got['other_loss']:.3f}", str(got["perplexity"]), f"{got['right']} of {probe['questions']}"]
        print("| " + " | ".join(cells) + " |", flush=True)
        keep(options.json, result)


if __name__ == "__main__":
    main()
