"""When a model refuses: its doubt, held against a threshold that was chosen on held-out rows.

Greedy decoding refuses whenever the refusal is the likeliest beginning, which says little: an answer may begin in many
ways and a refusal in one. Here the refusal is a hypothesis of its own, as the empty answer is for extractive readers
(Devlin et al. 2019, arXiv 1810.04805, section 4.3). The doubt is r / (r + a): r is the probability of the whole
refusal, a that of the likeliest first token of any other answer. From the threshold on the refusal is said; below it,
the greedy answer among those that are not the refusal.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tuner.chat import closed_ids, plain_text
from tuner.decoding import Steps
from tuner.grouploss import Reading, group_logits
from tuner.groups import encode_rows
from tuner.objective import autocast
from tuner.prompt import REFUSAL
from tuner.rows import Row

# Rows to choose a threshold on: fewer of either kind say nothing, more cost time and change little.
_FEWEST, _MOST = 10, 300
# The gate and the check of citations refuse some answerable questions too: 15 percent is aimed at in all. Questions
# about other subjects than those it was chosen on may be refused more often (28 percent, corpora/manual/benchmarks.md).
MOST_OVER_REFUSED = 0.12
_REFUSED_KINDS = ("no-evidence", "misleading", "absent")


@dataclass(frozen=True, slots=True)
class Doubt:
    """Of one row: the `value` from 0 to 1, and whether the other answer begins as the row's own does."""

    value: float
    begins_right: bool


@dataclass(frozen=True, slots=True)
class Threshold:
    """`value` and what it does to held-out rows: shares of them refused, and how truthful they are then.

    `curve` lists (threshold, answerable refused, unanswerable refused, truthfulness) for others.
    """

    value: float
    answerable_refused: float
    unanswerable_refused: float
    truthfulness: float
    answerable: int
    unanswerable: int
    curve: tuple[tuple[float, float, float, float], ...]


def refusal_ids(tokenizer: Any) -> tuple[int, ...]:
    """The token ids of a refusal where an answer begins."""
    return closed_ids(tokenizer, REFUSAL)


def open_answer(steps: Steps, logits: Any, refusal: Sequence[int], threshold: float) -> tuple[tuple[int, ...], Any]:
    """The first tokens of an answer, and the (vocabulary,) logits to choose the next from; None after a refusal.

    `logits` are those of the first token, `refusal` are its ids. What is given back before logits has been read.
    """
    first = logits.float().softmax(-1)
    begins = float(first[refusal[0]])
    best = int(first.argmax())
    # The refusal is no likelier than its first token, so this doubt is the largest there can be.
    if best != refusal[0] and begins < threshold * (begins + float(first[best])):
        return (), logits
    after = steps.peek(refusal[:-1], len(refusal) - 1)
    shares = (first, *after.float().softmax(-1))
    chances = [float(share[token]) for share, token in zip(shares, refusal, strict=True)]
    if doubt(first, refusal[0], math.prod(chances)) >= threshold:
        return tuple(refusal), None
    whole, reached = math.prod(chances), 1.0
    for place, token in enumerate(refusal):
        if int(_without(shares[place], token, whole / reached if reached else 0.0).argmax()) != token:
            if place:
                steps.read(refusal[:place])
            other = (logits if place == 0 else after[place - 1]).clone()
            other[token] = -float("inf")
            return tuple(refusal[:place]), other
        reached *= chances[place]
    return tuple(refusal), None


def doubt(first: Any, token: int, refused: float) -> float:
    """`refused` against the likeliest first token of another answer; `first` (vocabulary,) are probabilities."""
    other = float(_without(first, token, refused).max())
    return refused / (refused + other) if refused else 0.0


def _without(shares: Any, token: int, refused: float) -> Any:
    """Probabilities (vocabulary,) once what `token` owes to the refusal is taken out."""
    rest = shares.clone()
    rest[token] -= refused
    return rest


def find_doubts(
    model: Any, tokenizer: Any, rows: Sequence[Row], reading: Reading, *, limit: int, precision: str
) -> list[Doubt]:
    """How much the model doubts each row. `limit` is the most tokens of a prompt."""
    import torch

    # Rows that show the same passages stand together, so that those are read once.
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, row in enumerate(rows):
        alike.setdefault(row.passages, []).append(place)
    places = [place for some in alike.values() for place in some]
    asked = [replace(rows[place], answer=REFUSAL) for place in places]
    token = refusal_ids(tokenizer)[0]
    found: list[tuple[float, int]] = []
    was = model.training
    model.eval()
    with torch.no_grad(), autocast(model, precision):
        for group in encode_rows(tokenizer, asked, limit=limit).groups:
            logs: list[list[float]] = [[] for _ in group.endings]
            firsts: list[Any] = [None] * len(group.endings)
            for logits, targets, ending in group_logits(model, group, reading):
                shares = logits.float().softmax(-1)
                chances = shares.gather(-1, targets[:, None])[:, 0].log()
                for row_share, number, value in zip(shares, ending.tolist(), chances.tolist(), strict=True):
                    if firsts[number] is None:
                        firsts[number] = row_share
                    logs[number].append(value)
            for first, values in zip(firsts, logs, strict=True):
                # Without the token that ends it: whatever follows a refusal, it is one.
                refused = math.exp(math.fsum(values[:-1]))
                found.append((doubt(first, token, refused), int(_without(first, token, refused).argmax())))
    model.train(was)
    doubts = [Doubt(0.0, False)] * len(rows)
    for place, (value, begun) in zip(places, found, strict=True):
        answer = closed_ids(tokenizer, plain_text(tokenizer, rows[place].answer))
        doubts[place] = Doubt(value, begun == answer[0])
    return doubts


def choose_threshold(answerable: Sequence[Doubt], unanswerable: Sequence[Doubt]) -> Threshold | None:
    """The lowest threshold that refuses at most MOST_OVER_REFUSED of the answerable.

    None when there are too few of either kind, or when it would refuse no larger share of the unanswerable. The
    truthfulness that `tandem compare` decides by (+1 for a right answer or a right refusal, -1 for a wrong answer) is
    told with it and not sought: a small model scores highest by refusing nearly everything. Whether an answer is right
    is judged here by its first token, which flatters it.
    """
    if min(len(answerable), len(unanswerable)) < _FEWEST:
        return None
    count = len(answerable) + len(unanswerable)
    curve = []
    for value in sorted({*(item.value for item in (*answerable, *unanswerable)), 1.0}):
        said = [item for item in answerable if item.value < value]
        refused = sum(item.value >= value for item in unanswerable)
        right = sum(item.begins_right for item in said)
        score = (2 * right - len(said) + 2 * refused - len(unanswerable)) / count
        curve.append((value, 1 - len(said) / len(answerable), refused / len(unanswerable), score))
    chosen = next((point for point in curve if point[1] <= MOST_OVER_REFUSED), None)
    if chosen is None or chosen[2] <= chosen[1]:
        return None
    shown = tuple((round(a, 6), round(b, 4), round(c, 4), round(d, 4)) for a, b, c, d in curve[:: len(curve) // 40 + 1])
    return Threshold(*chosen, len(answerable), len(unanswerable), shown)


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
    found = find_doubts(model, tokenizer, chosen[0] + chosen[1], reading, limit=limit, precision=precision)
    return choose_threshold(found[: len(chosen[0])], found[len(chosen[0]) :])
