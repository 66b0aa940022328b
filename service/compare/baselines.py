"""What costs nothing: the sentence of the passages that looks most like the question, and always refusing.

A model that does not beat these has not earned its memory. They are made from the passages that a retrieving arm was
shown, so they read exactly what the models read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from service.compare.arms import ALWAYS_REFUSE, BEST_SENTENCE, Arm
from service.compare.records import Record, ShownCitation
from service.sentences import sentence_spans
from service.words import telling_words
from tuner.prompt import REFUSAL


def with_baselines(question: str, answers: Mapping[str, Record], arms: Mapping[str, Arm]) -> dict[str, Record]:
    """The records of one question by arm, and those of the baselines; without a retrieving arm only one of them."""
    records = dict(answers)
    shown = next((record for name, record in answers.items() if arms[name].retrieves), None)
    any_record = shown or next(iter(answers.values()))
    free = replace(
        any_record,
        prompt_tokens=0,
        completion_tokens=0,
        first_token_ms=None,
        total_ms=any_record.retrieve_ms,
        peak_memory=None,
        citations=(),
        judged=None,
        finish_reason="stop",
    )
    records[ALWAYS_REFUSE] = replace(
        free, arm=ALWAYS_REFUSE, answer=REFUSAL, refused=True, refusal_reason=None, passages=(), total_ms=0.0
    )
    if shown is not None:
        records[BEST_SENTENCE] = _best_sentence(question, free)
    return records


def _best_sentence(question: str, free: Record) -> Record:
    asked = telling_words(question)
    best: tuple[float, int, int, int] | None = None
    for number, passage in enumerate(free.passages, start=1):
        for start, end in sentence_spans(passage.text):
            said = telling_words(passage.text[start:end])
            # As Jaccard's index, so that a long sentence does not win by its length.
            share = len(asked & said) / len(asked | said) if asked | said else 0.0
            if best is None or share > best[0]:
                best = share, number, start, end
    if free.refusal_reason == "nothing_relevant" or best is None:
        return replace(free, arm=BEST_SENTENCE, answer=REFUSAL, refused=True)
    _, number, start, end = best
    passage = free.passages[number - 1]
    quote = passage.text[start:end]
    cited = ShownCitation(number, passage.start + start, passage.start + end, quote)
    answer = f"{' '.join(quote.split())} [{number}]"
    return replace(free, arm=BEST_SENTENCE, answer=answer, refused=False, refusal_reason=None, citations=(cited,))
