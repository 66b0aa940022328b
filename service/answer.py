"""An answer as it is given out: its text, what it cites and rests on, and what it took."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from indexer.records import Passage
from service.citations import Citation
from service.question import Mode
from tuner.generation import FinishReason

RefusalReason = Literal["nothing_relevant", "model_refused", "unsupported"]


@dataclass(frozen=True, slots=True)
class Mark:
    """A marker [n] of the answer, at answer[start:end], and what it points to."""

    start: int
    end: int
    citation: Citation


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of /ask. Times in milliseconds from the start of the request; first_token is None if none came.

    Of an answer in a form, `value` is the JSON and `fields` are the places in it (JSON Pointers), one a citation.
    `searched_for` is the question as it was searched for, None closed book. `answerability` is the second opinion.
    """

    answer: str
    refused: bool
    refusal_reason: RefusalReason | None
    mode: Mode
    adapter: str | None
    citations: tuple[Citation, ...]
    passages: tuple[Passage, ...]
    relevance: float | None
    prompt_tokens: int
    completion_tokens: int
    retrieve_ms: float
    first_token_ms: float | None
    total_ms: float
    index_generation: int | None
    finish_reason: FinishReason
    searched_for: str | None = None
    marks: tuple[Mark, ...] = ()
    value: Any = None
    fields: tuple[str, ...] = ()
    answerability: float | None = None
