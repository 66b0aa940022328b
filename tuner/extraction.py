"""Questions that rules make of a plain sentence: "The oven has two doors." -> "How many doors does the oven have?"

A rule only fits sentences whose grammar leaves one reading, and its answer is a part of the sentence, word for word. So
most of its pairs are correct; they are plain, and few sentences give any. English only. Each rule is a pattern, with
the answer in its group y, and the form of the question over the pattern's groups (tests/test_extraction.py has one
sentence for each).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
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
    " instead thus under over during among between of until unless while sometimes note currently see specifies"
    " indicates similarly additionally finally moreover furthermore please again later next first second third".split()
)
# Words that no plain subject holds.
_INSIDE = frozenset(
    "is are was were has have can will does do that which who not when if always never often usually also only then"
    " still now following above below previous first second third fourth fifth this these".split()
)
_OTHER_VERBS = {"has": "have", "means": "mean", "stands for": "stand for"} | {
    verb: verb[:-1] for verb in ("lets", "allows", "enables")
}
# Where a second clause begins: the answer ends before it.
_CLAUSE = re.compile(
    r",? (?:because|so that|which|who|until|unless|while|when|where|if|but)\b|, | \("
    rf"|(?: and| or) (?:{'|'.join(_VERBS)}|is|are)\b"
)
# An answer that is itself a clause ends before the next one.
_SECOND_CLAUSE = re.compile(r", |; | \(")
# What a heading has and no subject: a paragraph sign, a line of marks.
_MARKS = re.compile(r"¶|[+=~#^-]{3}")
# Words an answer cannot begin or end with: it was cut in the wrong place.
_NO_BEGINNING = frozenset("it them those these this that their its not no up out is are was were be been".split())
_NO_END = frozenset("a an the of to in on at by for with and or as is are that very more most your its".split())
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
    """A question with its answer and the evidence, all as a teacher gives them: nothing is checked yet.

    One that is `misleading` looks as if its passage held the answer, and has neither answer nor evidence.
    """

    question: str
    answer: str = ""
    evidence: str = ""
    misleading: bool = False


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a sentence must look like, what is asked of it, and whether its answer is a clause of its own."""

    pattern: re.Pattern[str]
    question: str
    clause: bool = False


def _rule(pattern: str, question: str, *, clause: bool = False) -> _Rule:
    return _Rule(re.compile(pattern), question, clause)


_BE = r"(?P<be>is|are|was|were)"
_MODAL = r"(?P<be>is|are|was|were|can|cannot|must|should|will|may)"
_PLACED = "stored|kept|located|defined|installed|saved|placed|found|written|declared|documented|configured|listed"
_DONE = (
    "ignored|required|needed|called|used|available|supported|created|deleted|removed|executed|run|loaded|enabled"
    "|disabled|shown|displayed|raised|returned|sent|started|stopped|checked|read|written|refused|allowed"
)
_BY = "controlled|set|created|called|written|used|defined|determined|made|provided|generated|managed|handled|replaced"
_ORDER = "use|run|set|call|add|specify|type|press|select|choose|pass|install|enable|open|click|enter|create|edit|start"
# The subject of a clause behind "If ..., ": what it stands for must be in the same sentence.
_CLAUSE_SUBJECT = r"(?:an?|the|no|all|every|each|only|[A-Z`*\d])"
# "2.1", "version 3", "Python 3.11", and neither a year nor a number of something.
_VERSION = r"v?\d+(?:\.\w+)+|(?:version |(?:[A-Z][\w+#]* )+)(?![12]\d{3}\b)\d+(?:\.\w+)*"
_GOAL = r"(?P<goal>[a-z][^,;:?!()]{4,70}?)"
_CASE = r"(?P<goal>(?!\w+ed\b)[^,;:?!()]{5,80}?)"

# The first rule that fits a sentence asks. In a question {does} is the verb without its s, and {cannot} is "can't" for
# "cannot".
_RULES: tuple[_Rule, ...] = (
    _rule(
        rf"{_SUBJECT} (?P<be>was|were) (?P<verb>\w+(?:ed|ilt|orn|itten|ought)) in (?P<y>[12]\d{{3}})\b",
        "In which year {be} {x} {verb}?",
    ),
    _rule(
        rf"{_SUBJECT} (?P<be>is|are|was|were|has been|have been) (?P<verb>added|introduced|deprecated|removed|released)"
        rf" in (?P<y>{_VERSION})\b",
        "In which version {be} {x} {verb}?",
    ),
    _rule(
        rf"{_SUBJECT} (?P<verb>has|supports|takes|accepts|contains|needs|uses|keeps|holds|reads|provides)"
        rf" (?P<y>{_NUMBERS}) (?P<things>[a-z]+s)\b",
        "How many {things} does {x} {does}?",
    ),
    _rule(
        rf"{_SUBJECT} {_MODAL} (?P<z>[^,;:]{{3,60}}?),? because (?P<y>.{{5,110}}?)\.?$",
        "Why {cannot} {x} {z}?",
        clause=True,
    ),
    _rule(rf"{_SUBJECT} defaults to {_REST}", "What does {x} default to?"),
    _rule(rf"By default, (?P<x>[^,;:()?!]{{2,70}}?) {_BE} {_REST}", "What {be} {x} by default?"),
    _rule(rf"{_SUBJECT} {_BE} (?P<z>{_PLACED}) (?P<y>(?:in|at|under|on) .{{2,90}}?)\.?$", "Where {be} {x} {z}?"),
    _rule(
        rf"{_SUBJECT} {_BE} (?P<z>{_DONE}) (?P<y>(?:only )?(?:when|if|after|before|until|unless) .{{4,100}}?)\.?$",
        "When {be} {x} {z}?",
        clause=True,
    ),
    _rule(rf"{_SUBJECT} {_BE} used (?P<y>(?:to|for) [^;:?!]{{4,100}}?)\.?$", "What {be} {x} used for?"),
    _rule(rf"{_SUBJECT} {_BE} (?P<z>{_BY}) by {_REST}", "What {be} {x} {z} by?"),
    _rule(
        rf"{_SUBJECT} (?P<verb>lets|allows|enables) (?P<z>you|users|a user|developers|clients|administrators)"
        r"(?P<to>(?: to)?) (?P<y>[a-z][^;:?!]{4,100}?)\.?$",
        "What does {x} {does} {z}{to} do?",
    ),
    _rule(rf"{_SUBJECT} (?P<be>must|should) be (?!\w+ed\b){_REST}", "What {be} {x} be?"),
    _rule(rf"To {_GOAL}, (?P<y>(?:{_ORDER}) [^;:?!]{{3,100}}?)\.?$", "How do I {goal}?"),
    _rule(rf"You can {_GOAL} (?P<y>(?:by|using) [^;:?!]{{4,100}}?)\.?$", "How can I {goal}?"),
    _rule(
        rf"(?P<when>If|When) {_CASE}, (?:then )?(?P<y>{_CLAUSE_SUBJECT}[^;:?!]{{4,110}}?)\.?$",
        "What happens {when} {goal}?",
        clause=True,
    ),
    _rule(rf"{_SUBJECT} consists of {_REST}", "What does {x} consist of?"),
    _rule(rf"{_SUBJECT} (?P<verb>means|stands for) {_REST}", "What does {x} {does}?"),
    _rule(rf"{_SUBJECT} (?P<verb>{'|'.join(_VERBS)}) {_REST}", "What does {x} {does}?"),
    _rule(rf"{_SUBJECT} {_BE} {_NOUN}{_REST}", "What {be} {x}?"),
)


def drafts(text: str) -> list[Draft]:
    """At most one draft for each sentence of `text`, in their order."""
    found = []
    for sentence in sentences(text):
        flat = " ".join(sentence.split())
        for rule in _RULES:
            match = rule.pattern.match(flat)
            if match is None:
                continue
            answer = (_SECOND_CLAUSE if rule.clause else _CLAUSE).split(match["y"].strip(), maxsplit=1)[0]
            if _fits(match, answer, clause=rule.clause):
                found.append(Draft(_ask(rule, match, text), answer, sentence))
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


def _ask(rule: _Rule, match: re.Match[str], text: str) -> str:
    """The question of a rule about what it found."""
    words = match.groupdict()
    verb = words.get("verb") or ""
    words["does"] = _VERBS.get(verb) or _OTHER_VERBS.get(verb) or verb
    # What "has been added" is asked as what "was".
    words["be"] = {"has been": "was", "have been": "were"}.get(words.get("be") or "", words.get("be"))
    words["cannot"] = "can't" if words.get("be") == "cannot" else words.get("be")
    if "x" in words:
        words["x"] = _lowered(match["x"], text)
    else:
        words["goal"] = _mine(_lowered(match["goal"], text))
        words["when"] = (words.get("when") or "").lower()
    return rule.question.format_map(words)


def _lowered(phrase: str, text: str) -> str:
    """The phrase with its first word in lower case, if the text also has it so: it is no name then."""
    first = phrase.split()[0]
    low = first.lower()
    common = low in ("the", "a", "an") or re.search(rf"(?<!\w){re.escape(low)}(?!\w)", text)
    return low + phrase[len(first) :] if common else phrase


def _mine(phrase: str) -> str:
    """What is said to you as you would ask it."""
    said = {"you": "I", "your": "my", "yourself": "myself", "yours": "mine"}
    return re.sub(r"\b(?:you|your|yourself|yours)\b", lambda found: said[found.group()], phrase)


def _fits(match: re.Match[str], answer: str, *, clause: bool) -> bool:
    groups = match.groupdict()
    words = re.findall(r"\w+", (groups.get("x") or groups.get("goal") or "").lower())
    if "x" in groups:
        if not words or words[0] in _POINTERS or words[0].endswith("ly") or len(words) > 9:
            return False
        # A verb inside the subject means that the sentence was cut in the wrong place.
        if (_INSIDE & set(words)) or set(words) & _VERBS.keys() or _MARKS.search(match["x"]):
            return False
        # "What does it use?" has as many answers as sentences, unless the subject is more than one common word.
        if groups.get("verb") in _VERBS and len(words) == 1 and not re.search(r"\d|[A-Z].*[A-Z]", match["x"]):
            return False
    elif {"it", "they", "them", "this", "these", "those", "its", "their", "he", "she"} & set(words):
        return False
    said = re.findall(r"[\w']+", answer.lower())
    # "Because it is large" answers; "it" as what something holds does not.
    begins = clause or (bool(said) and said[0] not in _NO_BEGINNING)
    return 1 <= len(said) <= 14 and begins and said[-1] not in _NO_END
