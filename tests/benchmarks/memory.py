"""Measured peak memory of every tuning method against what `tandem plan` says, on this machine.

Each method runs in a process of its own: the bundled model is loaded, the peak that the kernel keeps is reset, and two
optimiser steps of two accumulated micro-steps each are taken. On a CPU that peak is the resident set; on a GPU it is
what PyTorch has reserved, to which the plan's runtime is added, because the driver does not tell it by process.

    python tests/benchmarks/memory.py [--sequence 512] [--batch 1] [--methods lora qlora] [--checkpointing] [--dropout]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import torch

from tuner.basemodel import load_base_model
from tuner.memory import METHODS, RUNTIME_BYTES, Workload, plan
from tuner.recipe import QUANTISATION, Recipe
from tuner.shapes import model_shape
from tuner.trainable import make_trainable


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def load(method: str, work: Workload, cache: Path) -> tuple[Any, list[Any]]:
    """The bundled model as the recipe trains it, and what it trains."""
    base = load_base_model(
        "bundled", cache=cache, device=work.place, quantisation=QUANTISATION.get(method, "none"),  # type: ignore[arg-type]
    )  # fmt: skip
    recipe = Recipe(
        name=method,  # type: ignore[arg-type]
        r=work.rank,
        layers=work.layers,
        dropout=0.05 * work.dropout,
        gradient_checkpointing=work.checkpointing,
    )
    trainable = make_trainable(base, recipe)
    trainable.model.train()
    return trainable.model, list(trainable.parameters.values())


def measure(method: str, work: Workload, cache: Path, answer: Any) -> None:
    """Train for two steps and send {"before": bytes, "peak": bytes, "trained": parameters}."""
    torch.manual_seed(0)
    empty = resident("VmRSS")
    model, parameters = load(method, work, cache)
    optimiser = torch.optim.AdamW(parameters, lr=1e-5)
    loaded = resident("VmHWM")
    if work.place == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    for _ in range(2):
        for _ in range(2):
            ids = torch.randint(3, 49000, (work.batch, work.sequence), device=model.device)
            with torch.autocast(work.place, dtype=torch.bfloat16, enabled=work.place == "cuda"):
                hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, -work.answer - 1 : -1]
                logits = model.lm_head(hidden)
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, -work.answer :].flatten())
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    peak = resident("VmHWM")
    if work.place == "cuda":
        peak = torch.cuda.max_memory_reserved() + RUNTIME_BYTES["cuda"]
    trained = sum(parameter.numel() for parameter in parameters)
    answer.put({"libraries": empty, "loading": loaded, "peak": peak, "trained": trained})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(".tandem/weights"))
    parser.add_argument("--sequence", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--answer", type=int, default=64)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--dropout", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    work = Workload(
        sequence=options.sequence,
        batch=options.batch,
        answer=options.answer,
        rank=options.rank,
        place=options.device,
        checkpointing=options.checkpointing,
        dropout=options.dropout,
    )
    shape = model_shape("bundled")
    context = multiprocessing.get_context("spawn")
    for method in options.methods:
        answers = context.Queue()
        process = context.Process(target=measure, args=(method, work, options.cache, answers))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(process.exitcode)
        found, planned = answers.get(), plan(shape, method, work)
        line = {
            "method": method,
            "planned_mb": planned.total // 10**6,
            "measured_mb": found["peak"] // 10**6,
            "off": f"{planned.total / found['peak'] - 1:+.1%}",
            "loading_mb": found["loading"] // 10**6,
            "libraries_mb": found["libraries"] // 10**6,
            "trained_as_planned": planned.trained == found["trained"],
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
