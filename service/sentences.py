"""Text to sentences: of a passage as spans, and of a stream of generated pieces as they become whole."""

from __future__ import annotations

import re
from collections.abc import Iterator

Span = tuple[int, int]

# What a citation marker looks like, in range or not: "[1]", "[1, 2]", "[1-3]".
MARK = r"\[\s*\d[\d\s,;–-]*\]"
# A sentence ends at . ! ? (with closing quotes, brackets or markers) before white space and something that can begin
# one, or at a line break. Initials, common short forms and the number of a list item do not end one.
_END = re.compile(rf"(?<=[.!?])[\"')\]’”]*(?:{MARK})*\s+(?=[\"'(\[“‘A-Z0-9À-Þ#*`-])|\n+")
_ABBREVIATION = re.compile(
    r"(?:\b(?:[A-Z]|Dr|Mr|Mrs|Ms|Prof|St|vs|etc|No|Fig|Eq|Sec|Inc|Ltd|Co|Corp|approx|cf|al|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sep|Sept"
    r"|Oct|Nov|Dec|pp?)|\be\.g|\bi\.e|\bU\.S)\.$"
)
_LIST_NUMBER = re.compile(r"\s*\d{1,2}\.")
_MARKS = re.compile(rf"(?:\s*{MARK})*\s*")
# The end of what was said so far, when the next pieces may make a marker of it.
_UNDECIDED = re.compile(r"\s*(?:\[[\d\s,;–-]*)?")


def sentence_spans(text: str) -> list[Span]:
    """Spans of the sentences, trimmed of white space; a passage without punctuation is one span a line."""
    spans: list[Span] = []
    start = 0
    for end, after in _boundaries(text):
        _append(spans, text, start, end)
        start = after
    _append(spans, text, start, len(text))
    return spans


def _append(spans: list[Span], text: str, start: int, end: int) -> None:
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    end = start + len(piece.strip())
    if end > start:
        spans.append((start, end))


def _boundaries(text: str) -> Iterator[tuple[int, int]]:
    """(end of a sentence, start of the next), in order."""
    begin = 0
    for match in _END.finditer(text):
        stop = match.start()
        if "\n" not in match.group() and (
            _ABBREVIATION.search(text[max(0, stop - 12) : stop]) or _LIST_NUMBER.fullmatch(text, begin, stop)
        ):
            continue
        begin = match.end()
        yield begin - len(match.group()) + len(match.group().rstrip()), begin


class SentenceStream:
    """Pieces in, whole sentences out. A marker behind a full stop ("so. [1] Next") goes with the sentence before."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> list[str]:
        """The sentences that this piece completes, in order."""
        self._held += piece
        whole: list[str] = []
        while (cut := self._first_whole()) is not None:
            whole.append(self._held[:cut].strip())
            self._held = self._held[cut:].lstrip()
        return [sentence for sentence in whole if sentence]

    def finish(self) -> list[str]:
        """What is left, as the last sentence; none when nothing is."""
        left, self._held = self._held.strip(), ""
        return [left] if left else []

    def _first_whole(self) -> int | None:
        for _, start in _boundaries(self._held):
            marks = _MARKS.match(self._held, start)
            after = marks.end() if marks else start
            return None if _UNDECIDED.fullmatch(self._held, after) else after
        return None
