"""What is read when, and how large each step is. Everything follows from the seed, the epoch and the step number.

The rate rises linearly, then falls as a cosine to a tenth of its peak (Hoffmann et al. 2022, arXiv 2203.15556,
appendix B). An epoch has its own order, and the last one may be cut.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass, field

FLOOR = 0.1


@dataclass(frozen=True, slots=True)
class Schedule:
    """How to train. `accumulation` is items (groups of rows, or preferences) an optimiser step averages over.

    `block_share` is the share of groups whose passages do not see each other (tuner/blocks.py). `validations` is how
    often the held-out items are read, `patience` how many of those without a gain end the run (0: none does),
    `seconds` how often a checkpoint is written. `precision` is auto, float32 or bfloat16.
    """

    epochs: float = 2.0
    learning_rate: float = 4e-4
    warm_up: float = 0.05
    weight_decay: float = 0.0
    clip: float = 1.0
    accumulation: int = 2
    block_share: float = 0.0
    validations: int = 4
    patience: int = 0
    seconds: float = 120.0
    precision: str = "auto"
    seed: int = 0


def running_mean(mean: float, loss: float) -> float:
    """The mean of the losses so far, in which a step weighs a twentieth of what is left."""
    return 0.95 * mean + 0.05 * loss


@dataclass(slots=True)
class Progress:
    """Where a run is. Losses are nats a learned token (DPO: a preference); `validation` lists (step, loss).

    `losses` are those of the steps so far, in their order; `loss` is their running mean, which is shown.
    """

    step: int = 0
    steps: int = 0
    loss: float = math.nan
    tokens: int = 0
    seconds: float = 0.0
    validation: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    losses: list[float] = field(default_factory=list)

    def take(self, loss: float) -> None:
        """Keep the loss of a step, and take it into the running mean."""
        self.losses.append(loss)
        self.loss = loss if math.isnan(self.loss) else running_mean(self.loss, loss)

    def improves(self, measured: float) -> bool:
        """Whether a held-out loss is a number, and lower than every one before it."""
        return math.isfinite(measured) and all(measured < value for _, value in self.validation)

    def stalled(self, patience: int) -> bool:
        """Whether so many measurements in a row (0: never) brought no lower loss."""
        return patience > 0 and sum(step > self.best_step for step, _ in self.validation) >= patience


def reading_order(count: int, schedule: Schedule) -> list[tuple[int, bool]]:
    """Which of `count` items is read when, and whether in blocks: whole epochs, each shuffled, the last one cut."""
    order: list[tuple[int, bool]] = []
    for epoch in range(math.ceil(schedule.epochs)):
        rng = random.Random(f"{schedule.seed} {epoch}")
        places = list(range(count))
        rng.shuffle(places)
        order += [(place, rng.random() < schedule.block_share) for place in places]
    return order[: max(1, round(schedule.epochs * count))]


def learning_rate(step: int, steps: int, schedule: Schedule) -> float:
    """The rate of step `step` (from 0)."""
    rising = max(1, round(schedule.warm_up * steps))
    if step < rising:
        return schedule.learning_rate * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return schedule.learning_rate * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2)


def validation_steps(steps: int, validations: int) -> set[int]:
    """After which steps the held-out items are read: evenly spaced, the last step among them."""
    return {round(steps * (number + 1) / validations) for number in range(validations)} - {0}


def step_seed(seed: int, step: int) -> int:
    """The seed of the dropout of one step: the same in every process, unlike any other step's."""
    digest = hashlib.sha256(f"{seed} {step}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
