"""The citation contract: what is emitted is supported by a passage of this request, and says which.

A generated sentence is held until it is whole. It is emitted only if some passage supports it, with the markers [n]
that survive the check, or with the marker of the passage that supports it best; other sentences are dropped. So every
[n] names a passage of the request, and every quote stands in that passage, streaming or not.

Support is lexical, because a check must be cheaper than the model it checks and explainable to a reader: the words a
sentence adds to the question must stand together in one window of a passage, its numbers and names without exception,
and what the window denies cannot be affirmed, nor the other way round. A passage that never speaks of the names asked
about supports nothing said of them, and one without an address none that names it (links.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from indexer.records import Passage
from service.links import addresses, as_text
from service.sentences import MARK, Span, sentence_spans
from service.words import Words, read_words

_MARKER = re.compile(rf"\s*{MARK}")
# A marker that was cut off by the end of the sentence; with the next one it would be whole again.
_OPEN_MARKER = re.compile(r"\s*\[[\d\s,;–-]*$")
_NUMBER = re.compile(r"\d+")
# As every reader of documents marks one (loaders/blocks.py). A single # also begins a comment in code, which may tell.
_HEADING = re.compile(r"#{2,6} ")
_LIST_ITEM = re.compile(r"\A\s*(?:[-*+•]|\d{1,2}[.)])\s+(?=\S)")
_YES_NO = re.compile(r"(yes|no)(?:[.,;:!]\s*|$)", re.IGNORECASE)
# Share of a sentence's new words that one window of a passage must hold; a sentence of one or two words needs all,
# and so does one that only says again what was asked.
SUPPORT = 0.6
SHORT = 2
WINDOW_SENTENCES = 2
QUOTE_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class Citation:
    """Passage `n` (from 1, its rank) supports the answer with `quote` == document.text[start:end]."""

    n: int
    passage: Passage
    start: int
    end: int
    quote: str


@dataclass(frozen=True, slots=True)
class Supported:
    """A sentence as it is emitted, markers included, with its citations."""

    text: str
    citations: tuple[Citation, ...]


@dataclass(frozen=True, slots=True)
class _Claim:
    """What a window must hold: a share of `wanted`, all `exact` words (or the heading has them), no contradiction.

    `about` are names that the question gave: the passage must speak of them too, if not in the same window.
    """

    wanted: frozenset[str]
    needed: float
    exact: frozenset[str]
    about: frozenset[str]
    words: Words


@dataclass(frozen=True, slots=True)
class _Evidence:
    share: float
    span: Span


def check_sentence(sentence: str, question: str, passages: Sequence[Passage]) -> Supported | None:
    """The sentence with its verified markers and citations, or None when no passage supports it."""
    # Its place in a list is the model's own, so nothing can support it; answers are running text anyway.
    bare = as_text(_LIST_ITEM.sub("", without_markers(sentence), count=1))
    claim = _claim(bare, question)
    if claim is None:
        return None
    # Words could be mixed into an address that sends something away; only the passage's own may be named.
    named = [address for address in addresses(bare) if address not in question]
    evidence = {
        number: found
        for number, passage in enumerate(passages, start=1)
        if all(address in passage.chunk.text for address in named)
        and (found := _find_evidence(claim, passage.chunk.text, passage.chunk.context))
    }
    if not evidence:
        return None
    claimed = {
        int(n) for mark in _MARKER.findall(sentence) for n in _NUMBER.findall(mark) if len(n) <= len(str(len(passages)))
    }
    cited = sorted(claimed & evidence.keys()) or [max(evidence, key=lambda number: (evidence[number].share, -number))]
    citations = tuple(_citation(number, passages[number - 1], evidence[number].span) for number in cited)
    return Supported(_with_markers(bare, cited), citations)


def without_markers(text: str) -> str:
    """The text without anything that looks like a marker, also where taking one out would leave another."""
    while (cut := _OPEN_MARKER.sub("", _MARKER.sub("", text))) != text:
        text = cut
    return text.strip()


def _claim(sentence: str, question: str) -> _Claim | None:
    """What the sentence says, None when it says nothing. "Yes" and "no" stand on what the question says."""
    asked = read_words(question)
    lead = _YES_NO.match(sentence)
    words = read_words(sentence[lead.end() :] if lead else sentence)
    if not words.all and lead:
        is_no = lead[1].lower() == "no"
        words = Words(frozenset(), asked.all, asked.numbers, asked.names) if is_no else asked
        return _Claim(asked.all, 1.0, asked.numbers | asked.names, frozenset(), words) if asked.all else None
    if not words.all:
        return None
    new = words.all - asked.all
    needed = 1.0 if len(new) <= SHORT else SUPPORT
    exact = words.numbers | (words.names - asked.all)
    return _Claim(new or words.all, needed, exact, words.names & asked.all, words)


def _find_evidence(claim: _Claim, text: str, heading: str) -> _Evidence | None:
    """The window of the text that supports the claim best, or None when none supports it enough."""
    titled = read_words(heading).all
    if not claim.about <= titled | read_words(text).all:
        return None
    exact = claim.exact - titled
    best: _Evidence | None = None
    for window in _windows(text):
        held = read_words(text[window[0] : window[1]])
        share = len(claim.wanted & held.all) / len(claim.wanted)
        # Of equal windows the shorter one comes first, so a quote is no longer than it must be.
        is_better = share >= claim.needed and (best is None or share > best.share)
        if is_better and exact <= held.all and not _contradict(claim.words, held):
            best = _Evidence(share, window)
    return best


def _contradict(claim: Words, held: Words) -> bool:
    """Whether one of them denies what the other says. Words that are said and denied at once tell neither."""
    claim_said, claim_denied = claim.said - claim.denied, claim.denied - claim.said
    said, denied = held.said - held.denied, held.denied - held.said
    apart = len(claim_said & denied) + len(claim_denied & said)
    # "Needs no GPU" and "does not need a GPU" disagree on "need" only: a shared denial outweighs as many such words.
    return apart > len(claim_denied & denied) or bool(claim_denied and not claim_denied & held.denied)


def _windows(text: str) -> list[Span]:
    """Sentences and pairs of neighbours, none longer than a quote; a longer sentence in overlapping parts.

    A heading is none: it names what is told below it and tells nothing itself.
    """
    spans = [span for span in sentence_spans(text) if not _HEADING.match(text, *span)]
    sentences = [part for span in spans for part in _parts(text, span)]
    pairs = [(first[0], last[1]) for first, last in zip(sentences, sentences[WINDOW_SENTENCES - 1 :], strict=False)]
    return sentences + [pair for pair in pairs if pair[1] - pair[0] <= QUOTE_CHARACTERS]


def _parts(text: str, span: Span) -> Iterator[Span]:
    start, stop = span
    while stop - start > QUOTE_CHARACTERS:
        space = text.rfind(" ", start + 1, start + QUOTE_CHARACTERS)
        end = space if space > start + QUOTE_CHARACTERS // 2 else start + QUOTE_CHARACTERS
        yield start, end
        middle = start + QUOTE_CHARACTERS // 2
        space = text.find(" ", middle, end)
        start = space + 1 if space >= 0 else middle
    yield start, stop


def _citation(number: int, passage: Passage, span: Span) -> Citation:
    start, end = span
    chunk = passage.chunk
    return Citation(number, passage, chunk.start + start, chunk.start + end, chunk.text[start:end])


def _with_markers(sentence: str, numbers: Sequence[int]) -> str:
    """Markers stand before the closing punctuation: "It trains adapters [1]."."""
    body = sentence.rstrip(".!?")
    closing = sentence[len(body) :]
    return f"{body.rstrip()} {''.join(f'[{number}]' for number in numbers)}{closing}"
