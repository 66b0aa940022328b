"""What is asked: questions whose passages no other question has, and the same asked again in other words.

A passage that stands in one group only is cold when its question is asked first. The other wording of a question is
one for which retrieval gives the same passages in the same order, so that by then they are known and only the question
after them is new. That order is the best case of every cache here: one of prefixes needs it, and in Tandem the number
before a passage is read with it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from indexer.records import Passage
from indexer.retrieval import Retriever
from service.refusal import relevance
from service.settings import Settings
from tuner.chat import render_text
from tuner.pairs import read_pairs
from tuner.prompt import Source, build_prompt

# They change the question's embedding a little and hardly what words are searched for; the first that fits is taken.
WORDINGS = ("Tell me: {}", "Please: {}", "{} Please be brief.", "{} Thank you.", "So, {}", "{0} {0}")


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, the text that the model reads, its length in tokens, and its passages, best first."""

    question: str
    prompt: str
    tokens: int
    passages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Twice:
    """A question and its other wording, over the same passages in the same order."""

    cold: Asked
    known: Asked


def choose(
    retriever: Retriever, tokenizer: Any, pairs: Path, settings: Settings, count: int
) -> tuple[Asked, tuple[Twice, ...]]:
    """One question to warm up with and `count` to ask, no two of which share a passage. Exits where there are fewer."""
    taken, chosen = set[str](), list[Twice]()
    for pair in read_pairs(pairs):
        if pair.kind != "answerable":
            continue
        cold = _asked(retriever, tokenizer, settings, pair.question)
        if cold is None or taken & set(cold.passages):
            continue
        known = next(_reworded(retriever, tokenizer, settings, cold), None)
        if known is None:
            continue
        taken |= set(cold.passages)
        chosen.append(Twice(cold, known))
        if len(chosen) == count + 1:
            return chosen[0].cold, tuple(chosen[1:])
    raise SystemExit(
        f"{pairs} has {max(len(chosen) - 1, 0)} questions that share no passage, and {count} are wanted:"
        " lower --questions or --k, or use a larger corpus."
    )


def _reworded(retriever: Retriever, tokenizer: Any, settings: Settings, cold: Asked) -> Iterator[Asked]:
    for wording in WORDINGS:
        again = _asked(retriever, tokenizer, settings, wording.format(cold.question))
        if again is not None and again.passages == cold.passages:
            yield again


def _asked(retriever: Retriever, tokenizer: Any, settings: Settings, question: str) -> Asked | None:
    """None for a question that Tandem would refuse before it generates, or whose passages do not all fit."""
    passages: Sequence[Passage] = retriever.retrieve(question, settings.k).passages
    if len(passages) < settings.k or relevance(question, passages) < settings.min_relevance:
        return None
    sources = [Source(passage.chunk.context, passage.chunk.text) for passage in passages]
    prompt = build_prompt(tokenizer, question, sources, limit=settings.prompt_tokens)
    if prompt.passages < len(passages):
        return None
    text = render_text(tokenizer, prompt.messages)
    if tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) != prompt.ids:
        raise SystemExit("this base model's prompt is not what its text says, so that others cannot be given it")
    return Asked(question, text, len(prompt.ids), tuple(passage.chunk.id for passage in passages))
