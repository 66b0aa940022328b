"""The training loop: items -> trained parameters, with checkpoints that continue the same run bit for bit.

Nothing random is drawn from a running generator: the order of an epoch, which groups are read in blocks and every
dropout come from (seed, epoch, step). So a checkpoint is the parameters, what the optimiser remembers and a step
number; a run killed at any moment and resumed equals one that was not.
AdamW with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101); gradients are clipped by their norm.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from indexer.errors import TandemError
from tuner.checkpoint import RunState
from tuner.objective import Objective, autocast
from tuner.schedule import Progress, Schedule, learning_rate, reading_order, step_seed, validation_steps

Report = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Training:
    """What is trained (`parameters` of `model`, by name) on what; with `validation` items, the best are kept."""

    model: Any
    parameters: Mapping[str, Any]
    objective: Objective
    items: Sequence[Any]
    validation: Sequence[Any]
    schedule: Schedule
    paged: bool = False


def train(
    training: Training,
    checkpoint: Path,
    *,
    report: Report = lambda progress: None,
    tell: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
) -> Progress:
    """Train in place; returns how it went. Continues from `checkpoint` when that file exists.

    A checkpoint that cannot be written on the way or at the end is only told. Raises TandemError when a loss is no
    longer a number (the last checkpoint stays), when a gradient is not or `stop` says so (a checkpoint is written
    first, or that fails), and when the checkpoint is of another run.
    """
    schedule, items = training.schedule, training.items
    order = reading_order(len(items), schedule)
    progress = Progress(steps=math.ceil(len(order) / schedule.accumulation))
    best: dict[str, Any] = {}
    state = RunState(training.parameters, make_optimiser(training), _identity(training))
    if checkpoint.exists():
        progress, best = state.load(checkpoint)
    checks = validation_steps(progress.steps, schedule.validations) if training.validation else set()
    saved = started = time.monotonic()
    spent = progress.seconds
    training.model.train()
    while progress.step < progress.steps and not progress.stalled(schedule.patience):
        if stop():
            state.save(checkpoint, progress, best)
            raise _stopped(progress)
        chosen = order[progress.step * schedule.accumulation : (progress.step + 1) * schedule.accumulation]
        where = f"step {progress.step + 1} of {progress.steps}"
        loss, norm = _find_gradients(training, chosen, progress)
        _check_number(loss, "loss", where, training, checkpoint)
        # Only now are the parameters known to be worth keeping: their loss is a number.
        if not math.isfinite(norm):
            state.save(checkpoint, progress, best)
        _check_number(norm, "gradient", where, training, checkpoint)
        if time.monotonic() - saved > schedule.seconds:
            with _only_told(tell, "The training goes on and tries again at the next one: free space until then."):
                state.save(checkpoint, progress, best)
            saved = time.monotonic()
        _step(training, state.optimiser, progress)
        progress.step += 1
        progress.take(loss)
        progress.tokens += sum(training.objective.tokens(items[index]) for index, _ in chosen)
        progress.seconds = spent + time.monotonic() - started
        if progress.step in checks:
            measured = evaluate(training, training.validation)
            _check_number(measured, "held-out loss", where, training, checkpoint)
            if progress.improves(measured):
                best, progress.best_step = _copy(training.parameters), progress.step
            progress.validation.append((progress.step, measured))
        report(progress)
    with _only_told(tell, "The training is finished, and its result is made all the same: free space for it."):
        state.save(checkpoint, progress, best)
    _restore(training.parameters, best)
    return progress


def evaluate(training: Training, items: Sequence[Any], *, blocks: bool = False) -> float:
    """The mean loss of the items (nats a learned token, or a preference's loss), without dropout."""
    import torch

    model, objective = training.model, training.objective
    was = model.training
    model.eval()
    total = 0.0
    with torch.no_grad(), autocast(model, training.schedule.precision):
        for item in items:
            total += sum(float(loss) for loss in objective.losses(item, blocks=blocks))
    model.train(was)
    return total / sum(objective.weight(item) for item in items)


def make_optimiser(training: Training) -> Any:
    """AdamW; `paged`: bitsandbytes' 32-bit AdamW whose state can move out of a full GPU (arXiv 2305.14314)."""
    import torch

    schedule = training.schedule
    parameters = list(training.parameters.values())
    if training.paged:
        from bitsandbytes.optim import PagedAdamW32bit

        return PagedAdamW32bit(parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    return torch.optim.AdamW(parameters, lr=schedule.learning_rate, weight_decay=schedule.weight_decay)


def _find_gradients(training: Training, chosen: Sequence[tuple[int, bool]], progress: Progress) -> tuple[float, float]:
    """The mean loss of the chosen items, and the norm of its gradient before it is clipped."""
    import torch

    objective, schedule = training.objective, training.schedule
    torch.manual_seed(step_seed(schedule.seed, progress.step))
    weight = sum(objective.weight(training.items[index]) for index, _ in chosen)
    total = 0.0
    for index, blocks in chosen:
        parts = iter(objective.losses(training.items[index], blocks=blocks))
        while True:
            with autocast(training.model, schedule.precision):
                loss = next(parts, None)
            if loss is None:
                break
            (loss / weight).backward()
            total += float(loss.detach())
    norm = torch.nn.utils.clip_grad_norm_(training.parameters.values(), schedule.clip)
    return total / weight, float(norm)


def _step(training: Training, optimiser: Any, progress: Progress) -> None:
    schedule = training.schedule
    for setting in optimiser.param_groups:
        setting["lr"] = learning_rate(progress.step, progress.steps, schedule)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def _identity(training: Training) -> str:
    # The tokens that are read are more with gradient checkpointing, which a resumed run may switch on.
    weights = [training.objective.weight(item) for item in training.items]
    # How often checkpoints are written changes nothing else, and a resumed run may have another rate.
    schedule = asdict(replace(training.schedule, seconds=0, learning_rate=0))
    return json.dumps([schedule, len(weights), sum(weights), sorted(training.parameters)])


def _copy(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def _restore(parameters: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    import torch

    with torch.no_grad():
        for name, value in values.items():
            parameters[name].copy_(value)


def _stopped(progress: Progress) -> TandemError:
    return TandemError(
        f"The training was stopped at step {progress.step} of {progress.steps}; its checkpoint is written.",
        do="Go on with --resume.",
        code="conflict",
    )


@contextmanager
def _only_told(tell: Callable[[str], None], then: str) -> Iterator[None]:
    try:
        yield
    except TandemError as error:
        tell(f"Warning: {error.happened} {then}")


def _check_number(value: float, what: str, where: str, training: Training, checkpoint: Path) -> None:
    if not math.isfinite(value):
        kept = "The checkpoint from before that is kept." if checkpoint.exists() else "There is no checkpoint yet."
        raise TandemError(
            f"The {what} is no longer a number at {where}. {kept}",
            expected="A loss that falls.",
            do=f"Go on with --resume and a lower --learning-rate (now {training.schedule.learning_rate:g}).",
            code="conflict",
        )
