"""Earlier turns and a follow-up question -> a question that stands alone, which is what can be searched for.

By rule and not by the model: the bundled base model is too small to rewrite reliably, a wrong rewriting searches for
the wrong thing without anybody seeing why, and a second generation would stand before every first token. What is
searched for is shown in the answer instead. The rule only adds words of the conversation, as in historical query
expansion (Lin et al. 2021, ACM TOIS 39(4), article 48):

- a pronoun becomes what the question before was about, when that is one thing: "What does it add?" after "What is
  LoRA?" asks "What does LoRA add?";
- otherwise a question that leans on the one before ("Why?", "And in winter?") is read together with it;
- every other question stands as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from indexer.words import STOP_WORDS
from service.citations import without_markers

# What stands between an answer and the list of sources that the OpenAI interface may put under it.
FOOTER = "\n\n**Sources**\n"
# Characters of the earlier questions that a question is read together with.
MOST_CARRIED = 400
_WORD = re.compile(r"[^\W_](?:[\w'’.+/#-]*\w)?")
_POSSESSIVE = re.compile(r"\b(?:its|their|his)\b", re.IGNORECASE)
_PRONOUN = re.compile(r"\b(?:it|they|them|he|him|she|her|this|that|these|those)\b", re.IGNORECASE)
# "This" and "that" stand for something only where no noun follows: at the end, or before one of these.
_POINTING = re.compile(
    r"\b(?:this|that|these|those)\b(?=\W*$|\s+(?:is|are|was|were|do|does|did|can|will|has|have|get|mean|matter|happen|work|cost|take|help)\b)",
    re.I,
)
_STANDS_FOR = re.compile(r"\b(?:it|its|itself|they|them|their|he|him|his|she|her)\b", re.IGNORECASE)
# "It" that stands for nothing: "Is it possible to ...", "How long does it take to ...".
_EMPTY_IT = re.compile(
    r"\bit (?:(?:is|was) )?(?:\w+ly )?(?:possible|necessary|safe|allowed|better|best|worth|enough|ok|okay|important)\b"
    r"|\bit takes? (?:\w+ ){0,3}to\b|\bit matters?\b",
    re.IGNORECASE,
)
_LEANS = re.compile(
    r"(?:and|but|or|so|then|also|else|otherwise)\b|(?:what|how) about\b"
    r"|(?:why|how|when|where|who|which)(?: not| so)?\W*$"
    r"|(?:tell|say|explain|show) (?:me )?more\b|(?:more|another|an) (?:details?|examples?)\b",
    re.IGNORECASE,
)
_NO_VERB = re.compile(
    r"(?:what|which|who|whose|when|where|how|in|on|at|for|by|with|from|to|of|during|after|before)\b", re.I
)
_VERB = re.compile(
    r"\b(?:is|are|was|were|be|do|does|did|has|have|had|can|could|will|would|should|may|might|must|\w+ed)\b"
    r"|^(?:who|what) \w+s\b",
    re.I,
)
_DEFINED = re.compile(r"(?:what|who) (?:is|are|was|were) ((?:the |an? )?[^?.,;:]+?)\W*$", re.IGNORECASE)
_OPENERS = frozenset(
    "what who where when why how which whose is are was were do does did can could will should".split()
)
MOST_TOPIC_WORDS = 5
SHORT_WORDS = 4

TurnRole = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One earlier message."""

    role: TurnRole
    content: str


def bounded(turns: Iterable[Turn], most: int, characters: int) -> tuple[Turn, ...]:
    """The last `most` turns that say something, from a question on, each cut to so many characters."""
    said = [Turn(turn.role, _said(turn.content)[:characters]) for turn in turns]
    kept = [turn for turn in said if turn.content][-most:] if most else []
    while kept and kept[0].role != "user":
        kept = kept[1:]
    return tuple(kept)


def standalone(question: str, history: Sequence[Turn]) -> str:
    """The question as it reads without the turns before it; unchanged where it leans on none of them."""
    before = ""
    for turn in history:
        if turn.role == "user":
            before = _rewritten(turn.content, before)
    return _rewritten(question, before)


def leans(question: str) -> bool:
    """Whether the question cannot be understood without the one before it."""
    text = _EMPTY_IT.sub(" ", question.strip())
    if _STANDS_FOR.search(text) or _POINTING.search(text) or _LEANS.match(text):
        return True
    return len(_WORD.findall(text)) <= SHORT_WORDS and bool(_NO_VERB.match(text)) and not _VERB.search(text)


def _rewritten(question: str, before: str) -> str:
    if not before or not leans(question):
        return question
    topic = _topic(before)
    if topic and not _LEANS.match(question) and (_STANDS_FOR.search(question) or _POINTING.search(question)):
        replaced = _POSSESSIVE.sub(f"{topic}'s", question)
        if replaced == question:
            replaced = _PRONOUN.sub(lambda match: topic, question, count=1)
        return replaced
    return f"{before[-MOST_CARRIED:]} {question}"


def _topic(question: str) -> str:
    """The one thing that a question is about; empty when it is about several, or it cannot be told."""
    defined = _DEFINED.match(question.strip())
    if defined and len(defined[1].split()) <= MOST_TOPIC_WORDS and not leans(question):
        return defined[1]
    names = _names(question)
    return names[0] if len(names) == 1 else ""


def _names(text: str) -> list[str]:
    """Runs of words with a capital or a digit within; the first word of the text counts where no question begins so."""
    words = _WORD.findall(text)
    named = [
        any(character.isupper() or character.isdigit() for character in word[1:])
        or (word[0].isupper() and (place > 0 or word.lower() not in _OPENERS | STOP_WORDS))
        for place, word in enumerate(words)
    ]
    runs = groupby(zip(words, named, strict=True), key=lambda pair: pair[1])
    found = [" ".join(word for word, _ in run) for is_name, run in runs if is_name]
    return list(dict.fromkeys(found))


def _said(content: str) -> str:
    return " ".join(without_markers(content.partition(FOOTER)[0]).replace("\x00", "").split())
