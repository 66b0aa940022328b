"""Pairs into parts to train on, to validate on and to test on, so that no part knows anything of another.

What may not be torn apart: pairs of one document, and nearly equal questions, with their documents. Such groups are
shuffled and dealt out; shares are of pairs and are met as nearly as whole groups allow.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from indexer.errors import TandemError
from tuner.neardup import near_duplicates
from tuner.paircheck import question
from tuner.pairs import Instruction, Pair

TRAIN = "train"


def split_items(
    items: Sequence[Pair | Instruction], shares: Mapping[str, float], seed: int
) -> dict[str, list[Pair | Instruction]]:
    """The items by part, each part in the order given; `shares` are of the parts beside "train", which gets the rest.

    Equal items, shares and seed give an equal split. Raises TandemError for shares that leave nothing to train on,
    and when there are fewer groups than parts.
    """
    wanted = {name: share for name, share in shares.items() if share > 0}
    if any(not 0 <= share < 1 for share in shares.values()) or sum(wanted.values()) >= 1 or not wanted:
        raise TandemError(
            f"The shares are {', '.join(f'{name} {share:g}' for name, share in shares.items())}.",
            expected="Shares from 0 to 1, one of them at least over 0, that leave a part to train on.",
            do="Correct --validation and --test.",
        )
    groups = _groups(items)
    if len(groups) < len(wanted) + 1:
        raise TandemError(
            f"The pairs fall into {len(groups)} groups that belong together, for {len(wanted) + 1} parts.",
            expected="Pairs about at least one document for each part.",
            do="Add pairs about other documents, or leave out a part.",
        )
    random.Random(seed).shuffle(groups)
    chosen: dict[int, str] = {}
    for name, share in wanted.items():
        room = share * len(items)
        taken = 0
        # The first group always fits: a part is never empty.
        while groups and len(groups) > 1 and (taken == 0 or taken + len(groups[-1]) / 2 <= room):
            group = groups.pop()
            taken += len(group)
            chosen |= dict.fromkeys(group, name)
    parts: dict[str, list[Pair | Instruction]] = {TRAIN: [], **{name: [] for name in wanted}}
    for place, item in enumerate(items):
        parts[chosen.get(place, TRAIN)].append(item)
    return parts


def _groups(items: Sequence[Pair | Instruction]) -> list[list[int]]:
    """Places that belong together, by first place."""
    parent = list(range(len(items)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    first: dict[str, int] = {}
    for place, item in enumerate(items):
        if isinstance(item, Pair) and item.document is not None:
            parent[root(place)] = root(first.setdefault(item.document, place))
    for one, two in near_duplicates([question(item) for item in items]):
        parent[root(two)] = root(one)
    groups: dict[int, list[int]] = {}
    for place in range(len(items)):
        groups.setdefault(root(place), []).append(place)
    return list(groups.values())
