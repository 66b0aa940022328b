"""An answer in the making: pieces and sentences go in as they come, and the answer comes out."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from indexer.records import Passage
from service.answer import Answer, Mark, RefusalReason
from service.citations import Citation
from service.observation import note_answer
from service.question import Mode
from service.structured import Filled
from tuner.generation import FinishReason, Piece
from tuner.prompt import REFUSAL

_MARKER = re.compile(r"\[(\d+)\]")


@dataclass(slots=True)
class Draft:
    """An answer in the making."""

    mode: Mode
    adapter: str | None
    started: float
    sentences: list[str] = field(default_factory=list)
    citations: list[Citation] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    filled: Filled | None = None
    searched_for: str | None = None
    passages: tuple[Passage, ...] = ()
    relevance: float | None = None
    answerability: float | None = None
    generation: int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    retrieve_ms: float = 0.0
    first_token_ms: float | None = None
    finish_reason: FinishReason = "stop"

    def milliseconds(self) -> float:
        """Since the request came."""
        return (time.perf_counter() - self.started) * 1000

    def take(self, piece: Piece) -> str:
        """The text of a piece, after noting what came with it."""
        if self.first_token_ms is None and piece.text:
            self.first_token_ms = self.milliseconds()
        self.completion_tokens = piece.completion_tokens
        self.finish_reason = piece.finish_reason or self.finish_reason
        return piece.text

    def say(self, sentence: str, citations: Sequence[Citation]) -> str:
        """Add a sentence; returns it with the space that joins it to the one before."""
        joined = sentence if not self.sentences else f" {sentence}"
        begin = sum(map(len, self.sentences)) + len(self.sentences)
        of_number = {citation.n: citation for citation in citations}
        for match in _MARKER.finditer(sentence):
            if citation := of_number.get(int(match[1])):
                self.marks.append(Mark(begin + match.start(), begin + match.end(), citation))
        self.sentences.append(sentence)
        self.citations.extend(citations)
        return joined

    def finish(self, refusal: RefusalReason | None) -> Answer:
        """The answer, or a refusal for this reason, which is noted for whoever observes."""
        cited = self.filled.citations if self.filled else [("", item) for item in self.citations]
        citations = {(place, item.n, item.start, item.end): item for place, item in cited}
        answer = Answer(
            answer=REFUSAL if refusal else self.filled.text if self.filled else " ".join(self.sentences),
            refused=refusal is not None,
            refusal_reason=refusal,
            mode=self.mode,
            adapter=self.adapter,
            citations=() if refusal else tuple(citations.values()),
            passages=self.passages,
            relevance=self.relevance,
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            retrieve_ms=self.retrieve_ms,
            first_token_ms=self.first_token_ms,
            total_ms=self.milliseconds(),
            index_generation=self.generation,
            finish_reason=self.finish_reason,
            searched_for=self.searched_for,
            marks=() if refusal else tuple(self.marks),
            value=self.filled.value if self.filled else None,
            fields=tuple(place for place, *_ in citations) if self.filled else (),
            answerability=self.answerability,
        )
        note_answer(answer)
        return answer
