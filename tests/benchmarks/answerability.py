"""What a second opinion on refusals is worth: taught on train, chosen on validation, told on test; split by article.

    tandem index; python tests/benchmarks/answerability.py --train FILE --validation FILE --test FILE --out FOLDER

Runs in a folder with an index. FOLDER gets the model and scores.json, and is read instead of teaching when it is there.
--train-questions, --held-out and --questions take at most so many of each kind from the three files.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from indexer.store import Store
from indexer.weights import embedder_weights
from service.assembly import load_retriever
from service.refusal import relevance
from service.settings import load_settings
from tuner.answerability import AnswerabilityRecipe, judge_all, tune_answerability
from tuner.answerability_measure import auc, by_kind, measured, threshold_behind, worth
from tuner.answerability_model import AnswerabilityModel
from tuner.answerability_rows import Asked, ask_for, make_judged_rows
from tuner.embedder_rows import Library
from tuner.encoders import Step
from tuner.pairs import Pair, read_pairs


def tell(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def some(pairs: list[Pair], most: int, seed: int) -> list[Pair]:
    """At most so many of each kind; 0 takes all."""
    chooser = random.Random(seed)
    kept: list[Pair] = []
    for kind in ("answerable", "misleading", "absent"):
        of_kind = [pair for pair in pairs if pair.kind == kind]
        kept += chooser.sample(of_kind, most) if most and most < len(of_kind) else of_kind
    return kept


def on_step(step: Step) -> None:
    if step.validation is not None:
        tell(f"epoch {step.epoch}: loss {step.loss:.4f}, held-out AUC {step.validation:.4f}")
    elif step.step % 25 == 0:
        tell(f"step {step.step} of {step.steps}: loss {step.loss:.3f}, {time.process_time():.0f} s of processor time")


def part(asked: list[Asked], scores: np.ndarray[Any, Any]) -> dict[str, list[Any]]:
    return {
        "kinds": [item.kind for item in asked],
        "questions": [item.question for item in asked],
        "relevance": [relevance(item.question, item.passages) for item in asked],
        "scores": [float(score) for score in scores],
    }


def report(parts: dict[str, dict[str, list[Any]]], gate: float) -> None:
    """The tables of the manual: areas, and refused shares at the threshold that validation chooses behind the gate."""
    validation = parts["validation"]
    kinds, scores = validation["kinds"], np.asarray(validation["scores"])
    passed = np.asarray(validation["relevance"]) >= gate
    threshold = threshold_behind(kinds, scores, passed)
    print(f"threshold {threshold:.4f}")
    for name, values in parts.items():
        kinds, relevances = values["kinds"], np.asarray(values["relevance"])
        opinion = np.asarray(values["scores"])
        for label, found in (("gate", relevances), ("opinion", opinion), ("product", relevances * opinion)):
            kept = by_kind(kinds, found)
            areas = {kind: auc(kept["answerable"], kept[kind]) for kind in ("missed", "misleading", "absent")}
            print(name, label, {kind: round(area, 3) for kind, area in areas.items() if area is not None})
        before, after = relevances < gate, (relevances < gate) | (opinion < threshold)
        print(name, measured(kinds, opinion, threshold)["questions"])
        for label, refused in (("gate", before), ("opinion", opinion < threshold), ("both", after)):
            shares = by_kind(kinds, refused.astype(float))
            print(name, label, "refused", {kind: round(float(share.mean()), 3) for kind, share in shares.items()})
        print(name, worth(kinds, before, after, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "validation", "test", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=AnswerabilityRecipe().epochs)
    parser.add_argument("--learning-rate", type=float, default=AnswerabilityRecipe().learning_rate)
    parser.add_argument("--train-questions", type=int, default=0)
    parser.add_argument("--questions", type=int, default=0)
    parser.add_argument("--held-out", type=int, default=0)
    arguments = parser.parse_args()
    settings = load_settings()
    store = Store(settings.home)
    retriever = load_retriever(settings, store)
    held_out = ask_for(retriever, some(read_pairs(arguments.validation), arguments.held_out, 0), settings.k)
    if not arguments.out.exists():
        with store.read() as snapshot:
            pairs = some(read_pairs(arguments.train), arguments.train_questions, 0)
            rows, dropped = make_judged_rows(Library(snapshot), retriever, pairs)
        tell(f"{len(rows)} rows, {sum(row.holds for row in rows)} hold the answer, dropped {dict(dropped)}")
        base = embedder_weights("bundled", settings.weights_folder).path
        recipe = AnswerabilityRecipe(arguments.epochs, arguments.learning_rate)
        taught = tune_answerability(base, rows, held_out, recipe, report=on_step)
        arguments.out.mkdir(parents=True)
        taught.model.save(arguments.out)
        tell(f"epoch {taught.epoch} kept, {time.process_time():.0f} s of processor time")
    saved = arguments.out / "scores.json"
    if not saved.exists():
        model = AnswerabilityModel(arguments.out)
        asked = ask_for(retriever, some(read_pairs(arguments.test), arguments.questions, 0), settings.k)
        started = time.process_time()
        parts = {"validation": part(held_out, judge_all(model, held_out)), "test": part(asked, judge_all(model, asked))}
        spent = (time.process_time() - started) / (len(asked) + len(held_out))
        tell(f"{spent * 1000:.0f} ms of processor time a question")
        saved.write_text(json.dumps(parts))
    report(json.loads(saved.read_text()), settings.min_relevance)
    store.close()


if __name__ == "__main__":
    main()
