"""Facts that can be changed in a document: a short answer that stands in its file, and what to write instead."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from service.compare.questions import Item
from service.compare.run import Prepared
from service.compare.sandbox import Sandbox
from service.compare.squad import tokens

MOST_CHARACTERS = 60
MOST_TIMES = 3
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Fact:
    """`old` stands in the copied file `path`, as the answer to the item's question; `new` does not."""

    item: Item
    path: Path
    old: str
    new: str


def find_facts(prepared: Prepared, copy: Sandbox, count: int) -> list[Fact]:
    """Up to `count` facts of different files, in the order of the questions."""
    others = [answer for item in prepared.items for answer in item.pair.answers]
    facts: dict[Path, Fact] = {}
    for item in prepared.items:
        if len(facts) == count:
            break
        named = item.pair.document
        path = copy.file_of(prepared.documents.get(named, named)) if item.answerable and named else None
        if path is not None and path not in facts and (fact := _fact(item, path, others, prepared.options.seed)):
            facts[path] = fact
    return list(facts.values())


def _fact(item: Item, path: Path, others: Sequence[str], seed: int) -> Fact | None:
    text = path.read_text("utf-8", "replace")
    for old in sorted(item.pair.answers, key=len):
        if (
            2 <= len(old) <= MOST_CHARACTERS
            and tokens(old) not in ([], ["yes"], ["no"], ["true"], ["false"])
            and 1 <= text.count(old) <= MOST_TIMES
            and old.lower() not in item.pair.question.lower()
        ):
            new = _other(old, others, text, seed)
            return None if new is None else Fact(item, path, old, new)
    return None


def _other(old: str, others: Sequence[str], text: str, seed: int) -> str | None:
    """Another number where there is one, else another pair's answer of as many words and the same case."""
    if _NUMBER.search(old):
        new = _NUMBER.sub(lambda match: str(int(match.group()) + 3), old, count=1)
        return new if new not in text else None
    alike = sorted(
        {
            answer
            for answer in others
            if len(answer.split()) == len(old.split())
            and answer[:1].isupper() == old[:1].isupper()
            and answer not in text
            and not set(tokens(answer)) & set(tokens(old))
        }
    )
    return random.Random(f"{seed} {old}").choice(alike) if alike else None


def rewrite(copy: Sandbox, fact: Fact) -> None:
    """Write the new fact where the old one stood."""
    copy.rewrite(fact.path, fact.path.read_bytes().replace(fact.old.encode(), fact.new.encode()))
