"""Questions changed so that their passages no longer answer them: what teaches not to be misled.

The ways are three of those in which people wrote the unanswerable questions of SQuAD 2.0 (Rajpurkar et al. 2018, arXiv
1806.03822, table 1): another entity (a number or a name), an opposite, a negation. A number or name that takes the
place of one is never one that stands in the passages, so that they cannot happen to answer the new question. The lists
are English; a question in which nothing can be changed is left out.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from tuner.embedder_rows import holds

_NUMBER = re.compile(r"(?<![\w.,])\d{1,4}(?![\w]|[.,]\d)")
# Words with a capital, joined by small ones that names have inside; never the first word, which always has one.
_NAME = re.compile(r"(?<=[\w,;:)\"'’] )[A-Z][\w'’-]+(?: (?:(?:of|the|de|von|van) )*[A-Z][\w'’-]+)*")
_OPPOSITES = """first last, before after, largest smallest, biggest smallest, most least, highest lowest, oldest newest,
longest shortest, best worst, more fewer, greater lesser, higher lower, larger smaller, older younger, north south,
northern southern, east west, eastern western, increase decrease, increased decreased, rise fall, rose fell, win lose,
won lost, begin end, began ended, start stop, started stopped, open close, opened closed, enter leave, entered left,
support oppose, supported opposed, accept reject, accepted rejected, allow forbid, allowed forbade, include exclude,
included excluded, create destroy, created destroyed, found dissolve, founded dissolved, join leave, joined left,
maximum minimum, early late, earlier later, public private, internal external, legal illegal, positive negative,
majority minority, strong weak, stronger weaker, advantage disadvantage, advantages disadvantages, major minor, with
without, inside outside, above below, buy sell, bought sold, male female, direct indirect, common rare, agree disagree,
agreed disagreed, gain lose, gained lost, attack defend, attacked defended, arrive depart, arrived departed"""
_NEGATED = {
    **{word: f"{word}n't" for word in "is are was were did does do could has have had would should".split()},
    "can": "can't",
    "will": "won't",
}
_NEGATIONS = 0.09


def alter(question: str, shown: str, names: Sequence[str], rng: random.Random) -> str | None:
    """The question with one thing in it changed, or None where nothing can be.

    `shown` is the text of all passages; `names` may take the place of a name, those in `shown` are never used.
    """
    ways = [_other_number, _other_name, _opposite]
    rng.shuffle(ways)
    # Nearly every question can be negated, few people ask so: as often as they did for SQuAD 2.0.
    for way in [_negated] * (rng.random() < _NEGATIONS) + ways:
        changed = way(question, shown, names, rng)
        if changed is not None:
            return changed
    return None


def names_in(text: str) -> list[str]:
    """The names in a text, in their order, each once."""
    return list(dict.fromkeys(found.group() for found in _NAME.finditer(text)))


def _other_number(question: str, shown: str, names: Sequence[str], rng: random.Random) -> str | None:
    places = [found for found in _NUMBER.finditer(question) if holds(shown, [found.group()])]
    if not places:
        return None
    place = rng.choice(places)
    value = int(place.group())
    # Years move by less than a lifetime, other numbers to between a half and twice themselves.
    low, high = (value - 60, value + 60) if value >= 1000 else (value // 2, 2 * value + 3)
    return _put_one_of(list(map(str, range(max(1, low), high + 1))), question, place, shown, rng)


def _other_name(question: str, shown: str, names: Sequence[str], rng: random.Random) -> str | None:
    places = [found for found in _NAME.finditer(question) if holds(shown, [found.group()])]
    if not places:
        return None
    place = rng.choice(places)
    words = len(place.group().split())
    return _put_one_of([name for name in names if len(name.split()) == words], question, place, shown, rng)


def _opposite(question: str, shown: str, names: Sequence[str], rng: random.Random) -> str | None:
    places = [found for found in re.finditer(r"[a-z]+", question) if found.group() in _OPPOSITE]
    if not places:
        return None
    place = rng.choice(places)
    return _put(question, place, _OPPOSITE[place.group()])


def _negated(question: str, shown: str, names: Sequence[str], rng: random.Random) -> str | None:
    if "n't" in question or re.search(r"\b(?:not|never|no)\b", question):
        return None
    place = next((found for found in re.finditer(r"(?<= )[a-z]+", question) if found.group() in _NEGATED), None)
    return _put(question, place, _NEGATED[place.group()]) if place else None


def _put_one_of(others: list[str], question: str, place: re.Match[str], shown: str, rng: random.Random) -> str | None:
    rng.shuffle(others)
    free = next((other for other in others if not holds(shown + question, [other])), None)
    return None if free is None else _put(question, place, free)


def _put(question: str, place: re.Match[str], words: str) -> str:
    return question[: place.start()] + words + question[place.end() :]


def _both_ways(pairs: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for pair in pairs.split(","):
        one, other = pair.split()
        # "smallest" has two opposites; the first that is listed stands.
        found.setdefault(one, other)
        found.setdefault(other, one)
    return found


_OPPOSITE = _both_ways(_OPPOSITES)
