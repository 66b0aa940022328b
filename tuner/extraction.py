"""Questions that rules make of a plain sentence: "The oven has two doors." -> "How many doors does the oven have?"

A rule only fits sentences whose grammar leaves one reading, and its answer is a part of the sentence, word for word. So
its pairs are correct where they exist; they are plain, and few sentences give any. English only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

# Verbs whose subject and object can change places in a question, with the form that "does" takes.
_VERBS = {
    "accepts": "accept", "adds": "add", "causes": "cause", "checks": "check", "contains": "contain",
    "costs": "cost", "covers": "cover", "creates": "create", "deletes": "delete", "describes": "describe",
    "gives": "give", "holds": "hold", "includes": "include", "keeps": "keep", "limits": "limit", "lists": "list",
    "loads": "load", "makes": "make", "measures": "measure", "names": "name", "needs": "need", "prints": "print",
    "produces": "produce", "protects": "protect", "provides": "provide", "raises": "raise", "reads": "read",
    "receives": "receive", "removes": "remove", "replaces": "replace", "requires": "require", "returns": "return",
    "saves": "save", "sends": "send", "sets": "set", "shows": "show", "stores": "store", "supports": "support",
    "takes": "take", "uses": "use", "weighs": "weigh", "writes": "write",
}  # fmt: skip
_NUMBERS = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|hundreds|thousands|[0-9][0-9.,]*"
# Words a subject cannot begin with: what they stand for is in another sentence.
_POINTERS = frozenset(
    "it this that these those they he she we you i there here his her its their our your my such both each some many"
    " most other others another one if when while although because since but and or so however therefore for in on at"
    " by with without after before from as to not no nothing all every what which who how why where then also only"
    " instead thus under over during among between of until unless while".split()
)
# Words that no plain subject holds.
_INSIDE = frozenset(
    "is are was were has have can will does do that which who not when if always never often usually also only then"
    " still".split()
)
# Where a second clause begins: the answer ends before it.
_CLAUSE = re.compile(
    r",? (?:because|so that|which|who|until|unless|while|when|where|if|but)\b|, | \("
    rf"|(?: and| or) (?:{'|'.join(_VERBS)}|is|are)\b"
)
# A noun phrase, and not a participle or an adjective, which would be what was done to the subject or how it is.
_NOUN = r"(?=(?:an?|the|one|two|three|all|each|any|every)\b|[`A-Z0-9])"
_ENDS = re.compile(
    r"(?<=[.!?])(?<!et al\.)(?<!e\.g\.)(?<!i\.e\.)[\"')\]]*\s+(?=[\"'(\[`]?[A-Z0-9`])"
    r"|\n\s*\n|\n(?=\s*(?:[-*#|>]|\d+\. ))"
)
_SUBJECT = r"(?P<x>[A-Z`\"][^,;:()?!]{1,70}?)"
_REST = r"(?P<y>[^;:?!]{2,110}?)\.?$"


@dataclass(frozen=True, slots=True)
class Draft:
    """A question with its answer and the evidence, all as a teacher gives them: nothing is checked yet."""

    question: str
    answer: str
    evidence: str


def _year(match: re.Match[str]) -> str:
    return f"In which year {match['be']} {_subject(match)} {match['verb']}?"


def _count(match: re.Match[str]) -> str:
    return f"How many {match['things']} does {_subject(match)} have?"


def _means(match: re.Match[str]) -> str:
    return f"What does {_subject(match)} {match['verb'].replace('stands', 'stand').replace('means', 'mean')}?"


def _does(match: re.Match[str]) -> str:
    return f"What does {_subject(match)} {_VERBS[match['verb']]}?"


def _is(match: re.Match[str]) -> str:
    return f"What {match['be']} {_subject(match)}?"


_Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], str]]
_RULES: tuple[_Rule, ...] = (
    (
        re.compile(rf"{_SUBJECT} (?P<be>was|were) (?P<verb>\w+(?:ed|ilt|orn|itten|ought)) in (?P<y>[12]\d{{3}})\b"),
        _year,
    ),
    (re.compile(rf"{_SUBJECT} has (?P<y>{_NUMBERS}) (?P<things>[a-z]+s)\b"), _count),
    (re.compile(rf"{_SUBJECT} (?P<verb>means|stands for) {_REST}"), _means),
    (re.compile(rf"{_SUBJECT} (?P<verb>{'|'.join(_VERBS)}) {_REST}"), _does),
    (re.compile(rf"{_SUBJECT} (?P<be>is|are|was|were) {_NOUN}{_REST}"), _is),
)


def drafts(text: str) -> list[Draft]:
    """At most one draft for each sentence of `text`, in their order."""
    found = []
    for sentence in sentences(text):
        flat = " ".join(sentence.split())
        for pattern, ask in _RULES:
            match = pattern.match(flat)
            answer = _CLAUSE.split(match["y"].strip(), maxsplit=1)[0] if match else ""
            if match and _fits(match, answer):
                found.append(Draft(_lowered(ask(match), match["x"], text), answer, sentence))
                break
    return found


def sentences(text: str) -> Iterator[str]:
    """Spans of the text that end like sentences, without headings, table rows and list marks."""
    start = 0
    for end in [*(match.start() for match in _ENDS.finditer(text)), len(text)]:
        span = text[start:end].strip()
        start = end
        span = re.sub(r"^(?:[-*>]|\d+\.)\s+", "", span)
        if span.endswith((".", ".)", '."')) and not span.startswith(("#", "|")) and 4 <= len(span.split()) <= 40:
            yield span


def _subject(match: re.Match[str]) -> str:
    return str(match["x"])


def _lowered(question: str, subject: str, text: str) -> str:
    """The question with its subject's first word in lower case, if the text also has it so: it is no name then."""
    first = subject.split()[0]
    low = first.lower()
    common = low in ("the", "a", "an") or re.search(rf"(?<!\w){re.escape(low)}(?!\w)", text)
    return question.replace(subject, low + subject[len(first) :], 1) if common else question


def _fits(match: re.Match[str], answer: str) -> bool:
    words = re.findall(r"\w+", match["x"].lower())
    if not words or words[0] in _POINTERS or len(words) > 9:
        return False
    # A verb inside the subject means that the sentence was cut in the wrong place.
    if (_INSIDE & set(words)) or set(words) & _VERBS.keys():
        return False
    # "What does it use?" has as many answers as sentences, unless the subject is more than one common word.
    if match.groupdict().get("verb") in _VERBS and len(words) == 1 and not re.search(r"\d|[A-Z].*[A-Z]", match["x"]):
        return False
    said = re.findall(r"\w+", answer.lower())
    pronouns = {"it", "them", "those", "these", "this", "that", "their", "its", "not", "no", "up", "out"}
    return 1 <= len(said) <= 14 and said[0] not in pronouns
