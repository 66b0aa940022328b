"""One run from rows to what it learned: encode, attach, measure, train, measure again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from indexer.folders import write_file
from tuner.basemodel import BaseModel
from tuner.forgetting import Knowledge, compare_knowledge, forgetting_warning, measure_knowledge
from tuner.grouploss import find_reading
from tuner.groups import ANSWER_ROOM, encode_rows
from tuner.guards import check_count, check_learned, find_warnings, one_sided_warning
from tuner.objective import Objective, Supervised, token_accuracy
from tuner.peak import peak_bytes
from tuner.preference import Preference, PreferenceObjective, encode_preferences, weigh
from tuner.quiet import quiet
from tuner.recipe import Recipe
from tuner.refusing import Threshold, calibrate
from tuner.rows import Row, RowKind, count_kinds
from tuner.runs import Material, Run, explained_writing
from tuner.schedule import Progress
from tuner.train import Training, evaluate, train
from tuner.trainable import Trainable, check_trainable, keep_gradients, make_trainable, parameter_count


@dataclass(frozen=True, slots=True)
class Watch:
    """How a run tells what it does: sentences, progress after each step, and whether it should stop."""

    tell: Callable[[str], None] = lambda text: None
    progress: Callable[[Progress], None] = lambda progress: None
    stop: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a run made, and what is known of it (for the card)."""

    trainable: Trainable
    progress: Progress
    counts: Mapping[str, int]
    metrics: Mapping[str, Any]
    warnings: tuple[str, ...]
    refusal_threshold: float | None = None


@dataclass(frozen=True, slots=True)
class _Encoded:
    items: list[Any]
    rows: int
    shortened: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is learned and what is held out, cut to `limit` tokens a prompt."""

    limit: int
    learned: _Encoded
    held_out: _Encoded | None


def prepare(base: BaseModel, recipe: Recipe, material: Material, start: Path | None = None) -> Prepared:
    """Encode the rows, and check all that can be before anything is written; `start` is the folder of an adapter.

    Raises TandemError: too few rows, none with an answer, a setting the model cannot have.
    """
    with explained_memory(recipe), quiet():
        keep_gradients(base.model)
        check_trainable(base, recipe, start)
        if recipe.block_share:
            find_reading(base.model, base.quantisation, blocks=True)
        limit = min(recipe.longest, base.window - ANSWER_ROOM)
        learned = _encode(base, material.rows, limit)
        check_count(learned.rows, "preferences" if recipe.name == "dpo" else "rows")
        return Prepared(limit, learned, _encode(base, material.validation, limit) if material.validation else None)


def tune(base: BaseModel, run: Run, prepared: Prepared, watch: Watch, start: Path | None = None) -> Tuned:
    """Train what the run's recipe says, on from its checkpoint if it has one, on what `prepare` gave.

    Raises TandemError: no memory left (saying how to go on with less), a file that cannot be written, and what
    `train` raises.
    """
    recipe, material = run.recipe, run.material
    limit, learned, held_out = prepared.limit, prepared.learned, prepared.held_out
    began = time.monotonic()
    # LLM.int8() logs a line for each product that it casts.
    with explained_memory(recipe, run.name), quiet():
        warnings = find_warnings(recipe, learned.rows, learned.shortened, learned.dropped)
        one_sided = one_sided_warning(_documents(material.rows, "evidence"), _documents(material.rows, "misleading"))
        warnings += [f"{one_sided} --altered makes some."] if one_sided else []
        for warning in warnings:
            watch.tell(f"Warning: {warning}")
        before = _knowledge_before(base, run, watch)
        trainable = make_trainable(base, recipe, start)
        total = parameter_count(base.model)
        watch.tell(
            f"{trainable.trained:,} of {total:,} parameters are trained ({trainable.trained / total:.2%})."
            f" {_counts_line(material.rows)} {learned.shortened} rows were shortened, {learned.dropped} left out."
        )
        training = _training(base, recipe, trainable, learned.items, held_out.items if held_out else [], watch.tell)
        loss_before = evaluate(training, training.validation) if training.validation else 0.0
        progress = train(training, run.checkpoint, report=watch.progress, tell=watch.tell, stop=watch.stop)
        metrics: dict[str, Any] = {"train_loss": round(progress.loss, 4)}
        if training.validation:
            metrics |= _validated(training, loss_before, progress)
        threshold = _threshold(base, run, training, limit) if recipe.trains_adapter else None
        if threshold is not None:
            metrics["refusal"] = asdict(threshold)
            watch.tell(
                f"It refuses from a doubt of {threshold.value:.2g} on: {threshold.answerable_refused:.0%} of"
                f" {threshold.answerable} held-out questions with an answer, {threshold.unanswerable_refused:.0%} of"
                f" {threshold.unanswerable} without."
            )
        watch.tell("Asking what it still knows of other things.")
        metrics["forgetting"] = dict(compare_knowledge(before, measure_knowledge(base, base.model, recipe.precision)))
    found = (forgetting_warning(metrics["forgetting"]), _worse(metrics))
    counts = {
        **_kinds(material.rows),
        "rows": learned.rows,
        "held_out": held_out.rows if held_out else 0,
        "shortened": learned.shortened,
        "trainable_parameters": trainable.trained,
        "total_parameters": total,
    }
    metrics |= {
        "steps": progress.step,
        "best_step": progress.best_step,
        "tokens": progress.tokens,
        "tokens_per_second": round(progress.tokens / max(progress.seconds, 1e-9), 1),
        "seconds": round(progress.seconds, 1),
        "whole_seconds": round(time.monotonic() - began, 1),
        "peak_bytes": peak_bytes(base.device),
    }
    warned = (*warnings, *(text for text in found if text))
    return Tuned(trainable, progress, counts, metrics, warned, threshold.value if threshold else None)


@contextmanager
def explained_memory(recipe: Recipe, run: str = "") -> Iterator[None]:
    """Turn running out of memory into a TandemError (unavailable) that says how to go on with less.

    `run` is the name of the run that can be resumed, once there is one.
    """
    import torch

    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        # A CPU allocator that fails raises a plain RuntimeError.
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and "not enough memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        raise TandemError(
            f"There is not enough memory for the recipe {recipe.name}.",
            expected="What `tandem plan` says that this base model needs.",
            do=_with_less(recipe, run),
            code="unavailable",
        ) from error


def _with_less(recipe: Recipe, run: str) -> str:
    smaller = "--recipe qlora"
    if recipe.name in ("qlora", "dpo"):
        smaller = "a --start-from of a smaller base model" if recipe.start_from else "a smaller --base-model"
    if not run:
        return f"Start a new run with {smaller}."
    lower = f"start again under another --name with a lower --longest (now {recipe.longest}) or {smaller}."
    # Blocks of passages and gradient checkpointing cannot be together.
    if recipe.gradient_checkpointing or recipe.block_share:
        return lower.capitalize()
    return f"Go on by `tandem tune --resume --name {run} --gradient-checkpointing`, or {lower}"


def _encode(base: BaseModel, items: Sequence[Row | Preference], limit: int) -> _Encoded:
    preferences = [item for item in items if isinstance(item, Preference)]
    if preferences:
        groups, shortened, dropped = encode_preferences(base.tokenizer, preferences, limit=limit)
        return _Encoded(groups, len(groups), shortened, dropped)
    encoded = encode_rows(base.tokenizer, [item for item in items if isinstance(item, Row)], limit=limit)
    check_learned(encoded)
    return _Encoded(list(encoded.groups), encoded.rows, encoded.shortened, encoded.dropped)


def _training(
    base: BaseModel,
    recipe: Recipe,
    trainable: Trainable,
    items: list[Any],
    validation: list[Any],
    tell: Callable[[str], None],
) -> Training:
    model = trainable.model
    reading = find_reading(
        model, base.quantisation, shared=not recipe.gradient_checkpointing, blocks=recipe.block_share > 0
    )
    if not reading.shared:
        why = "with gradient checkpointing" if recipe.gradient_checkpointing else "by this model"
        tell(f"Passages are read again for every row that shows them {why}; that takes longer than once for all.")
    objective: Objective = Supervised(model, reading)
    if recipe.name == "dpo":
        objective = PreferenceObjective(model, reading, recipe.beta)
        # Before the first step and before a checkpoint is loaded, the model is the reference.
        items = weigh(model, items, reading, recipe.precision)
        validation = weigh(model, validation, reading, recipe.precision)
    paged = recipe.name == "qlora" and base.device == "cuda"
    return Training(model, trainable.parameters, objective, items, validation, recipe.schedule, paged)


def _validated(training: Training, before: float, progress: Progress) -> dict[str, Any]:
    after = evaluate(training, training.validation)
    values: dict[str, Any] = {
        "validation_loss_before": round(before, 4),
        "validation_loss_after": round(after, 4),
        "validation_losses": [[step, round(loss, 4)] for step, loss in progress.validation],
    }
    if isinstance(training.objective, Supervised):
        share = token_accuracy(
            training.model, training.validation, training.objective.reading, training.schedule.precision
        )
        values["validation_token_accuracy"] = round(share, 4)
    return values


def _threshold(base: BaseModel, run: Run, training: Training, limit: int) -> Threshold | None:
    objective = training.objective
    rows = [item for item in run.material.validation or () if isinstance(item, Row)]
    if not isinstance(objective, Supervised):
        return None
    return calibrate(
        training.model,
        base.tokenizer,
        rows,
        objective.reading,
        limit=limit,
        precision=run.recipe.precision,
        seed=run.recipe.seed,
    )


def _worse(metrics: Mapping[str, Any]) -> str | None:
    before, after = metrics.get("validation_loss_before"), metrics.get("validation_loss_after")
    if before is None or after is None or after < before:
        return None
    return (
        f"On documents that were held out the loss did not fall ({before:g} before, {after:g} after): what was learned"
        " holds only for the rows it was trained on. More rows, a lower --learning-rate or fewer --epochs help."
    )


def _knowledge_before(base: BaseModel, run: Run, watch: Watch) -> Knowledge:
    """What the bare base knows; kept beside the run, since a resumed one would only measure the same again."""
    kept = run.folder / "before.json"
    try:
        return Knowledge(**json.loads(kept.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        watch.tell("Asking the base model what it knows of other things.")
        before = measure_knowledge(base, base.model, run.recipe.precision)
        with explained_writing(run, "What the base model knows"):
            write_file(kept, json.dumps(asdict(before)).encode())
        return before


def _documents(items: Sequence[Row | Preference], kind: RowKind) -> Iterator[str]:
    """The document that each row of this kind is about."""
    return (name for item in items if isinstance(item, Row) and item.kind == kind for name in item.documents[:1])


def _kinds(items: Sequence[Row | Preference]) -> dict[str, int]:
    rows = [item for item in items if isinstance(item, Row)]
    return dict(count_kinds(rows)) if rows else {"preference": len(items)}


def _counts_line(items: Sequence[Row | Preference]) -> str:
    return "Rows: " + ", ".join(f"{count} {kind}" for kind, count in _kinds(items).items()) + "."
