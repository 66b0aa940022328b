"""What of a question the word search looks for.

The search is BM25 (Robertson & Zaragoza 2009) as FTS5 computes it over Porter stems: k1 = 1.2, b = 0.75, a chunk's
context and text counted as one field. Documents indexed whole, it reaches nDCG@10 0.691 on this project's half of the
SciFact test questions and 0.320 on NFCorpus; bm25s with the constants of Anserini (k1 = 0.9, b = 0.4) reaches 0.687 and
0.308 there. So no index beside FTS5 is needed, a commit costs what its own chunks cost, and deletes hold at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

WORD = re.compile(r"\w+", re.UNICODE)
# Words that say nothing about the subject; BM25 gives them little weight and FTS5 would still visit every match.
STOP_WORDS = frozenset(
    "a an and are as at be been but by can could did do does for from had has have he her his how i if in into is it"
    " its me my no not of on or our she should so some such that the their them then there these they this those to"
    " was we were what when where which who whom whose why will with would you your".split()
)


def word_expression(question: str) -> str:
    """An FTS5 expression that matches any telling word of the question; empty when it has no word."""
    return any_of(telling_words(question))


def telling_words(question: str) -> list[str]:
    """The words of the question without the stop words, each once; all words when nothing else is left."""
    words = list(dict.fromkeys(word.lower() for word in WORD.findall(question)))
    return [word for word in words if word not in STOP_WORDS] or words


def any_of(words: Iterable[str]) -> str:
    """An FTS5 expression that matches any of the words."""
    return " OR ".join(f'"{word}"' for word in words)


def rarest(counts: Mapping[str, int], most: int) -> list[str]:
    """The rarest words, as many as occur `most` times together, and one at least.

    FTS5 computes BM25 for every chunk that has a word of the expression, and the commonest words, which weigh least,
    bring most of those. What has none of the rarer words is seldom among the best (cf. MaxScore, Turtle & Flood 1995).
    """
    kept: list[str] = []
    total = 0
    for word in sorted(counts, key=lambda word: counts[word]):
        total += counts[word]
        if kept and total > most:
            break
        kept.append(word)
    return kept
