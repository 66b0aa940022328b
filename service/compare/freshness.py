"""What is still said after the documents say something else: the stale-memory test and the deletion test.

In a copy of the index facts are changed, the copy is indexed again, and the questions about them are asked in every
arm: an answer with the old fact comes from weights (or from another document that says the same). Then the documents
are deleted, and what is still told of them is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from indexer.errors import TandemError
from indexer.outcome import Progress
from indexer.store import Store
from service.answering import Answerer
from service.assembly import load_retriever
from service.compare.facts import Fact, find_facts, rewrite
from service.compare.run import Prepared, Report
from service.compare.sandbox import sandbox
from service.compare.squad import as_prediction, contains
from service.question import Question

FACTS = 10
CHANGED = ("new", "old", "refused", "other")
DELETED = ("told", "refused", "other")


def freshness(prepared: Prepared, store: Store, answerer: Answerer, count: int, report: Report) -> dict[str, Any]:
    """Up to `count` facts changed, then deleted. Raises TandemError when no fact of the pairs can be changed.

    {"facts": [{pair, question, document, old, new, answers}], "changed": {arm: {new, old, refused, other}},
    "deleted": {arm: {told, refused, other}}, "seconds": {"changed", "deleted"}}.
    """
    with sandbox(prepared.settings, store, answerer.retriever.embedder) as copy:
        facts = find_facts(prepared, copy, count)
        if not facts:
            raise TandemError(
                "No fact of the pairs can be changed.",
                expected="Answerable pairs that name a text file of the corpora, with short answers that stand in it.",
                do="Give the pairs their `document`, and answers in the words of the document.",
            )
        retriever = load_retriever(prepared.settings, copy.store, embedder=copy.embedder)
        fresh = Answerer(retriever, answerer.generator, prepared.settings, answerer.adapters)
        for fact in facts:
            rewrite(copy, fact)
        seconds = {"changed": round(copy.index(), 3)}
        changed = _ask(prepared, fresh, facts, lambda done, of: report(Progress("change", done, of, "")))
        for fact in facts:
            copy.delete(fact.path)
        seconds["deleted"] = round(copy.index(), 3)
        deleted = _ask(prepared, fresh, facts, lambda done, of: report(Progress("delete", done, of, "")))
    return {
        "facts": [
            {
                "pair": fact.item.pair.id,
                "question": fact.item.pair.question,
                "document": fact.item.pair.document,
                "old": fact.old,
                "new": fact.new,
                "changed": {arm: answers[place] for arm, answers in changed.items()},
                "deleted": {arm: answers[place] for arm, answers in deleted.items()},
            }
            for place, fact in enumerate(facts)
        ],
        "changed": {arm: _counts(CHANGED, map(_said, answers, facts)) for arm, answers in changed.items()},
        "deleted": {arm: _counts(DELETED, map(_told, answers, facts)) for arm, answers in deleted.items()},
        "seconds": seconds,
    }


def _ask(
    prepared: Prepared, answerer: Answerer, facts: Sequence[Fact], told: Callable[[int, int], None]
) -> dict[str, list[str]]:
    """Arm -> what it predicts for each fact; "" is a refusal."""
    answers: dict[str, list[str]] = {name: [] for name in prepared.asked_arms}
    for done, fact in enumerate(facts):
        told(done, len(facts))
        for arm in prepared.arms:
            if arm.mode is not None:
                answer = answerer.answer(Question(fact.item.pair.question, arm.mode, adapter=arm.adapter))
                answers[arm.name].append(as_prediction(answer.answer, answer.refused))
    return answers


def _said(prediction: str, fact: Fact) -> str:
    if not prediction:
        return "refused"
    if contains(prediction, [fact.new]):
        return "new"
    return "old" if contains(prediction, [fact.old]) else "other"


def _told(prediction: str, fact: Fact) -> str:
    if not prediction:
        return "refused"
    return "told" if contains(prediction, [fact.old, fact.new]) else "other"


def _counts(names: Sequence[str], found: Iterable[str]) -> dict[str, int]:
    counts = Counter(found)
    return {name: counts[name] for name in names}
