"""When to say that the documents do not answer: before generation, on what was retrieved; after it, on what was said.

Before: a logistic regression over how similar the first passage is to the question, and how many of the question's
telling words stand together in one passage, because names and numbers that a small embedder blurs are exact there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from indexer.records import Passage
from service.words import telling_words
from tuner.prompt import REFUSAL

# Fitted on the answerable questions of seven public sets and as many about other things: 0.5 means that such a question
# is as often answerable as not. At 0.25, on questions about other documents than those fitted on, 2.8 % of 316
# answerable ones are refused (validation: 4.5 %), 91 % of 669 about other things (ROC AUC 0.987), and 21 % of those
# whose own documents were taken out of a corpus that is about the same (AUC 0.756): these are left to the model.
SIMILARITY_WEIGHT = 13.5
WORDS_WEIGHT = 6.25
INTERCEPT = -8.5
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
    """How likely the passages, best first, have to do with the question: 0 to 1."""
    if not passages:
        return 0.0
    similarity, words = evidence(question, passages)
    return 1 / (1 + math.exp(-(SIMILARITY_WEIGHT * similarity + WORDS_WEIGHT * words + INTERCEPT)))


def evidence(question: str, passages: Sequence[Passage]) -> tuple[float, float]:
    """The first passage's similarity, and the largest share of the question's telling words that one passage holds."""
    asked = telling_words(question)
    shares = [len(asked & telling_words(passage.chunk.embedded_text)) / len(asked) for passage in passages if asked]
    return passages[0].similarity, max(shares, default=0.0)


def is_refusal(text: str) -> bool:
    """Whether a generated text says, in the trained words or in its own, that there is no answer."""
    return REFUSAL.rstrip(".").lower() in text.lower() or _REFUSALS.search(text) is not None
