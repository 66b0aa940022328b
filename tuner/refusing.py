"""When a model refuses: its own probability of the refusal, held against a threshold that was chosen on held-out rows.

Greedy decoding refuses whenever the refusal is the likeliest beginning, however unlikely it is as a whole: an answer
may begin in many ways and a refusal in one, so a tuned model refuses far more than its doubts are worth. Here the
refusal is a hypothesis of its own: refused is what has at least the threshold's probability of it, and every other
answer is the greedy one among those that are not the refusal.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuner.chat import closed_ids
from tuner.decoding import Steps
from tuner.grouploss import Reading, group_logits
from tuner.groups import encode_rows
from tuner.objective import autocast
from tuner.prompt import REFUSAL
from tuner.rows import Row

# The most held-out questions with an answer that a threshold may refuse; more would be worse than a wrong answer now
# and then, to most people who ask.
MOST_REFUSED = 0.1
# Rows to choose a threshold on: fewer of either kind say nothing, more cost time and change little.
_FEWEST, _MOST = 10, 300
_REFUSED_KINDS = ("no-evidence", "misleading", "absent")


@dataclass(frozen=True, slots=True)
class Threshold:
    """`value` and what it does to held-out rows: shares of them refused. `curve` lists such triples for others."""

    value: float
    answerable_refused: float
    unanswerable_refused: float
    answerable: int
    unanswerable: int
    curve: tuple[tuple[float, float, float], ...]


def refusal_ids(tokenizer: Any) -> tuple[int, ...]:
    """The token ids of a refusal where an answer begins."""
    return closed_ids(tokenizer, REFUSAL)


def open_answer(steps: Steps, logits: Any, refusal: Sequence[int], threshold: float) -> tuple[tuple[int, ...], Any]:
    """The first tokens of an answer, and the (vocabulary,) logits to choose the next from; None after a refusal.

    `logits` are those of the first token, `refusal` are its ids. What is given back before logits has been read.
    """
    first = logits.float().softmax(-1)
    if int(first.argmax()) != refusal[0] and float(first[refusal[0]]) < threshold:
        return (), logits
    after = steps.peek(refusal[:-1], len(refusal) - 1)
    chances = [float(first[refusal[0]])]
    chances += [float(row[token]) for row, token in zip(after.float().softmax(-1), refusal[1:], strict=True)]
    whole = 1.0
    for chance in chances:
        whole *= chance
    if whole >= threshold:
        return tuple(refusal), None
    reached = 1.0
    for place, token in enumerate(refusal):
        here = logits if place == 0 else after[place - 1]
        share = here.float().softmax(-1)
        # What is left of this token once the refusal it may lead to is taken out.
        share[token] -= whole / reached if reached else 0.0
        if int(share.argmax()) != token:
            if place:
                steps.read(refusal[:place])
            other = here.clone()
            other[token] = -float("inf")
            return tuple(refusal[:place]), other
        reached *= chances[place]
    return tuple(refusal), None


def refusal_chances(
    model: Any, tokenizer: Any, rows: Sequence[Row], reading: Reading, *, limit: int, precision: str
) -> list[float]:
    """For each row, the probability that the model answers it with the refusal. `limit` is a prompt's most tokens."""
    import torch

    asked = [replace(row, answer=REFUSAL) for row in rows]
    # One row after the other would read shared passages again; groups are in the order of their first row.
    order: dict[tuple[object, ...], list[int]] = {}
    for place, row in enumerate(asked):
        order.setdefault(row.passages, []).append(place)
    places = [place for alike in order.values() for place in alike]
    groups = encode_rows(tokenizer, [asked[place] for place in places], limit=limit).groups
    logs: list[float] = []
    was = model.training
    model.eval()
    with torch.no_grad(), autocast(model, precision):
        for group in groups:
            parts: list[list[float]] = [[] for _ in group.endings]
            for logits, targets, ending in group_logits(model, group, reading):
                found = logits.float().log_softmax(-1).gather(-1, targets[:, None])[:, 0]
                for number, value in zip(ending.tolist(), found.tolist(), strict=True):
                    parts[number].append(value)
            # Without the token that ends it: whatever follows a refusal, it is one.
            logs += [math.fsum(values[:-1]) for values in parts]
    model.train(was)
    chances = [0.0] * len(rows)
    for place, value in zip(places, logs, strict=True):
        chances[place] = math.exp(value)
    return chances


def choose_threshold(answerable: Sequence[float], unanswerable: Sequence[float]) -> Threshold | None:
    """The threshold that tells the two apart best (Youden 1950: largest difference of the shares refused) among those
    that refuse at most MOST_REFUSED of the answerable; None when there are too few of either, or none does better
    than refusing nothing.
    """
    if min(len(answerable), len(unanswerable)) < _FEWEST:
        return None
    curve = []
    for value in sorted({*answerable, *unanswerable}):
        over = sum(chance >= value for chance in answerable) / len(answerable)
        right = sum(chance >= value for chance in unanswerable) / len(unanswerable)
        curve.append((value, over, right))
    value, over, right = max(
        (point for point in curve if point[1] <= MOST_REFUSED), key=lambda point: point[2] - point[1], default=(1, 0, 0)
    )
    if right <= over:
        return None
    shown = tuple((round(a, 6), round(b, 4), round(c, 4)) for a, b, c in curve[:: max(1, len(curve) // 40)])
    return Threshold(value, over, right, len(answerable), len(unanswerable), shown)


def calibrate(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Row],
    reading: Reading,
    *,
    limit: int,
    precision: str = "auto",
    seed: int = 0,
) -> Threshold | None:
    """The threshold for this model, chosen on (a sample of) held-out rows that show passages."""
    rng = random.Random(seed)
    kinds = [[row for row in rows if row.passages and row.kind in some] for some in (("evidence",), _REFUSED_KINDS)]
    if min(map(len, kinds)) < _FEWEST:
        return None
    chosen = [rng.sample(some, min(len(some), _MOST)) for some in kinds]
    found = refusal_chances(model, tokenizer, chosen[0] + chosen[1], reading, limit=limit, precision=precision)
    return choose_threshold(found[: len(chosen[0])], found[len(chosen[0]) :])
