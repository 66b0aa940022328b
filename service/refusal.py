"""When to say that the documents do not answer: before generation, on what was retrieved; after it, on what was said.

Before: the relevance of the best passage is its cosine similarity, raised by the share of the question's telling words
that stand in the passages, because names and numbers that a small embedder blurs are exact there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from indexer.records import Passage
from service.words import telling_words
from tuner.prompt import REFUSAL

WORD_WEIGHT = 0.3
_SUBJECT = r"(?:documents?|passages?|texts?|context|sources?|information)"
_VERB = r"(?:say|mention|contain|provide|state|specify|answer|include|describe|explain)"
_STATED = "said|mentioned|stated|specified|provided|described|given|included|explained"
_REFUSALS = re.compile(
    rf"\b{_SUBJECT}\b[^.]{{0,40}}\b(?:do|does|did)(?: not|n['’]t) {_VERB}"
    rf"|\b(?:is|are|was|were) not (?:{_STATED}) in (?:the|this|these|any) {_SUBJECT}"
    r"|\bi (?:do not|don['’]t|cannot|can['’]t) (?:know|answer|find)\b"
    r"|\bno (?:answer|information) (?:is|was|can be) (?:found|given|available)",
    re.IGNORECASE,
)


def relevance(question: str, passages: Sequence[Passage]) -> float:
    """How much the passages have to do with the question: about 0 for nothing, over 0.5 for a close match."""
    if not passages:
        return 0.0
    asked = telling_words(question)
    held = frozenset[str]().union(*(telling_words(passage.chunk.embedded_text) for passage in passages))
    covered = len(asked & held) / len(asked) if asked else 0.0
    return max(passage.similarity for passage in passages) * (1 - WORD_WEIGHT) + WORD_WEIGHT * covered


def is_refusal(text: str) -> bool:
    """Whether a generated text says, in the trained words or in its own, that there is no answer."""
    return REFUSAL.rstrip(".").lower() in text.lower() or _REFUSALS.search(text) is not None
