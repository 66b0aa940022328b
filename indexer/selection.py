"""Which of the ranked passages are shown: no passage twice, and not all from one document if that is not wanted.

Two passages are duplicates when they share almost all runs of three words and have the same numbers: two versions of
a table share all words, and the numbers are what is asked for. A short text is read with its title and headings, which
may be all that tells it from another.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from indexer.records import Chunk, Passage

SAME = 0.9
RUN = 3
SHORT_WORDS = 20
_WORD = re.compile(r"\w+")


def select(passages: Sequence[Passage], k: int, per_source: int) -> tuple[Passage, ...]:
    """The k first passages that repeat none before them, ranked anew.

    Not more than `per_source` of one document (0: any number), unless fewer than k would be left.
    """
    kept: list[tuple[int, Passage]] = []
    spare: list[tuple[int, Passage]] = []
    seen: list[_Fingerprint] = []
    of_document: Counter[str] = Counter()
    for place, passage in enumerate(passages):
        if len(kept) == k:
            break
        fingerprint = _Fingerprint(passage.chunk)
        if any(fingerprint.repeats(other) for other in seen):
            continue
        seen.append(fingerprint)
        if per_source and of_document[passage.document] == per_source:
            spare.append((place, passage))
            continue
        of_document[passage.document] += 1
        kept.append((place, passage))
    chosen = sorted([*kept, *spare[: k - len(kept)]], key=lambda item: item[0])
    return tuple(replace(passage, rank=rank) for rank, (_, passage) in enumerate(chosen, start=1))


class _Fingerprint:
    """The runs of words and the numbers of a chunk."""

    def __init__(self, chunk: Chunk) -> None:
        words = _WORD.findall(chunk.text.lower())
        if len(words) < SHORT_WORDS:
            words = _WORD.findall(chunk.embedded_text.lower())
        self.runs = {tuple(words[place : place + RUN]) for place in range(max(1, len(words) - RUN + 1))}
        self.numbers = {word for word in words if any(character.isdigit() for character in word)}

    def repeats(self, other: _Fingerprint) -> bool:
        shared = len(self.runs & other.runs)
        return self.numbers == other.numbers and shared >= SAME * max(len(self.runs), len(other.runs))
