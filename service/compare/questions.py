"""The questions of a comparison: pairs that can be scored, which of them to ask, and in which order.

Two fields of a line are for comparisons alone: `tag` names a further group to report (`stale`, `format`, `domain`, any
word), and `written_by` who or what wrote the pair, so that pairs of the writer of the training pairs can be told apart.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from indexer.errors import TandemError
from tuner.pairs import Pair, read_lines, read_pairs


@dataclass(frozen=True, slots=True)
class Item:
    """A pair with what only a comparison reads of its line."""

    pair: Pair
    tag: str = ""
    written_by: str = ""

    @property
    def answerable(self) -> bool:
        """Whether an answer is expected; otherwise a refusal is."""
        return self.pair.kind == "answerable"


def read_items(path: Path) -> list[Item]:
    """The pairs of a file. Raises TandemError for one that cannot be scored, naming it, and for an empty file."""
    pairs = read_pairs(path)
    if not pairs:
        raise TandemError(
            f"The pairs file {path} holds no pair.", expected="One JSON object a line.", do="Name another file."
        )
    silent = [pair.id for pair in pairs if pair.kind == "answerable" and not any(map(str.strip, pair.answers))]
    if silent:
        raise TandemError(
            f"{len(silent)} answerable pairs of {path} have no answer: {_some(silent)}.",
            expected="At least one right answer for each answerable pair.",
            do='Add the answers, or give these pairs the kind "absent" if the documents do not answer them.',
        )
    answered = [pair.id for pair in pairs if pair.kind != "answerable" and pair.answers]
    if answered:
        raise TandemError(
            f"{len(answered)} absent or misleading pairs of {path} have an answer: {_some(answered)}.",
            expected="No answer where a refusal is right.",
            do='Remove the answers, or give these pairs the kind "answerable".',
        )
    extra = _extra(path)
    return [Item(pair, *extra.get(pair.id, ("", ""))) for pair in pairs]


def _extra(path: Path) -> dict[str, tuple[str, str]]:
    found = {}
    for line in read_lines(path):
        if not isinstance(line.item, TandemError):
            value = json.loads(line.text)
            found[line.item.id] = (str(value.get("tag") or ""), str(value.get("written_by") or ""))
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def sample(items: Sequence[Item], count: int | None, seed: int) -> list[Item]:
    """`count` of the items (None: all) in a seeded order in which every beginning holds each kind in its share.

    So a comparison that stops early, for whatever reason but the answers, has asked a fair sample.
    """
    random_order = random.Random(seed)
    groups: dict[tuple[str, str], list[Item]] = {}
    for item in sorted(items, key=lambda item: item.pair.id):
        groups.setdefault((item.pair.kind, item.tag), []).append(item)
    placed: list[tuple[float, float, Item]] = []
    for _, members in sorted(groups.items()):
        random_order.shuffle(members)
        # Member i of n belongs at (i + 1/2) / n of the whole order.
        placed += [((place + 0.5) / len(members), random_order.random(), item) for place, item in enumerate(members)]
    placed.sort(key=lambda entry: entry[:2])
    return [item for _, _, item in placed][:count]
