"""Questions that say nearly the same: the Jaccard similarity of their sets of words is at least SIMILAR.

Exact, without comparing every question with every other: of two sets that similar, the rarest words of one must hold
one of the rarest words of the other (prefix filtering: Chaudhuri et al. 2006; Bayardo et al. 2007).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence

# "Which port does it use?" and "Which host does it use?" share 4 words of 6 and are two questions; above this, long
# questions differ in one word at most.
SIMILAR = 0.85
_WORD = re.compile(r"\w+")


def near_duplicates(texts: Sequence[str], similar: float = SIMILAR) -> Iterator[tuple[int, int]]:
    """The places (first, second) of all pairs of nearly equal texts, first < second, by second."""
    sets = [frozenset(_WORD.findall(text.casefold())) for text in texts]
    counts = Counter(word for words in sets for word in words)
    by_rarity = [sorted(words, key=lambda word: (counts[word], word)) for words in sets]
    places: dict[str, list[int]] = {}
    for second, words in enumerate(by_rarity):
        candidates: dict[int, None] = {}
        # A text without words is like no other.
        prefix = words[: len(words) - math.ceil(similar * len(words)) + 1] if words else []
        for word in prefix:
            candidates.update(dict.fromkeys(places.get(word, ())))
            places.setdefault(word, []).append(second)
        for first in sorted(candidates):
            shared = len(sets[first] & sets[second])
            if shared >= similar * (len(sets[first]) + len(sets[second]) - shared):
                yield first, second
