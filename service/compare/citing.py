"""Citations of an answer, judged by what is known of the right answer and not by the check that let them through."""

from __future__ import annotations

import re

from service.citations import without_markers
from service.compare.questions import Item
from service.compare.records import Record, ShownPassage
from service.compare.squad import contains
from service.sentences import sentence_spans
from service.words import read_words

_NUMBERS_IN_MARKER = re.compile(r"\[([\d\s,;–-]+)\]")
# Share of a sentence's telling words that the passages it cites must hold.
SUPPORTED = 0.6


def citation_scores(record: Record, item: Item) -> dict[str, float]:
    """Measure -> 0 to 1, of those that apply.

    Validity: share of the citations that name a passage which was shown and quote it to the letter. Precision: share
    whose passage is of the pair's document or holds a right answer. Recall: whether one of them is, a refusal counting
    0. Groundedness: share of the sentences whose telling words stand in the passages they cite, all numbers included.
    """
    scores: dict[str, float] = {}
    if record.citations:
        scores["citation_validity"] = _share([_is_valid(record, place) for place in range(len(record.citations))])
    if item.answerable:
        right = [_is_right(record.passages[cited.n - 1], item) for cited in record.citations if _shown(record, cited.n)]
        if record.citations:
            scores["citation_precision"] = sum(right) / len(record.citations)
        scores["citation_recall"] = float(any(right))
    if not record.refused and (sentences := [record.answer[start:end] for start, end in sentence_spans(record.answer)]):
        scores["groundedness"] = _share([_is_grounded(record, sentence) for sentence in sentences])
    return scores


def _shown(record: Record, number: int) -> bool:
    return 1 <= number <= len(record.passages)


def _is_valid(record: Record, place: int) -> bool:
    cited = record.citations[place]
    if not _shown(record, cited.n):
        return False
    passage = record.passages[cited.n - 1]
    start, end = cited.start - passage.start, cited.end - passage.start
    return 0 <= start < end and passage.text[start:end] == cited.quote


def _is_right(passage: ShownPassage, item: Item) -> bool:
    named = item.pair.document
    return named in (passage.document, passage.id) or contains(passage.text, item.pair.answers) == 1


def _is_grounded(record: Record, sentence: str) -> bool:
    numbers = {int(n) for mark in _NUMBERS_IN_MARKER.findall(sentence) for n in re.findall(r"\d+", mark) if len(n) < 4}
    cited = [record.passages[number - 1] for number in sorted(numbers) if _shown(record, number)]
    held = read_words(" \n".join(f"{passage.title}\n{passage.text}" for passage in cited))
    said = read_words(without_markers(sentence))
    if not said.all:
        return bool(cited)
    return said.numbers <= held.all and len(said.all & held.all) / len(said.all) >= SUPPORTED


def _share(hits: list[bool]) -> float:
    return sum(hits) / len(hits)
