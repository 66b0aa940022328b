"""The bodies of responses as /openapi.json describes them. They are written by hand, and tests hold routes to them.

No route is slowed by checking its own answer against these: what an answer holds is decided where it is made.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from indexer.errors import ErrorCode


class Body(BaseModel):
    """A JSON object with these members and no others."""

    model_config = ConfigDict(extra="forbid")


class ErrorDetail(Body):
    """What happened, what was expected, what to do about it, and the id that stands in the log."""

    code: Literal[ErrorCode, "internal"]
    message: str
    expected: str
    do: str
    request_id: str


class ErrorBody(Body):
    """Every error."""

    error: ErrorDetail


class Health(Body):
    """The process lives."""

    status: Literal["ok"]
    version: str


class Ready(Body):
    """A question would be answered, from this generation of the index."""

    status: Literal["ready"]
    generation: int


class NotReady(Body):
    """No question would be answered, and why."""

    status: Literal["loading", "stopping"]
    reason: str


class Allowance(Body):
    """What the sender may do, and the limits."""

    role: Literal["user", "admin"]
    keys: bool
    question_chars: int
    history: int
    body_bytes: int
    upload_bytes: int
    upload_types: list[str]


class ModeState(Body):
    """A mode, and whether it can answer now. `answers_as` is what `auto` stands for."""

    name: str
    available: bool
    reason: str
    adapter: str | None
    answers_as: str = ""


class ModeList(Body):
    """The modes."""

    default: str
    modes: list[ModeState]


class CitationItem(Body):
    """A quote that supports a sentence; start and end are character offsets in its document."""

    n: int
    document: str
    chunk: str
    title: str
    page: int | None
    start: int
    end: int
    quote: str
    score: float
    url: str
    field: str = Field("", description="Of an answer as JSON: a JSON Pointer to the value that is supported.")


class PassageItem(Body):
    """A passage without its text."""

    rank: int
    score: float
    similarity: float
    document: str
    title: str
    context: str
    chunk: str
    start: int
    end: int
    page: int | None


class FoundPassage(PassageItem):
    """A passage with its text."""

    text: str


class Usage(Body):
    """Tokens."""

    prompt_tokens: int
    completion_tokens: int


class Timings(Body):
    """Milliseconds since the request."""

    retrieve: float
    first_token: float | None
    total: float


class AnswerBase(Body):
    """What an answer came from."""

    refused: bool
    refusal_reason: Literal["nothing_relevant", "model_refused", "unsupported"] | None
    mode: Literal["base", "tuned", "rag", "rag+tuned"]
    adapter: str | None
    value: Any = Field(..., alias="json")
    searched_for: str | None
    citations: list[CitationItem]
    relevance: float | None
    timings_ms: Timings
    index_generation: int | None


class AnswerBody(AnswerBase):
    """An answer."""

    answer: str
    passages: list[PassageItem]
    usage: Usage
    finish_reason: Literal["stop", "length", "cancelled"]


class SourceBody(Body):
    """A passage with the text around it; quote_start and quote_end are offsets in `text`."""

    document: str
    title: str
    chunk: str
    page: int | None
    start: int
    end: int
    before: str
    text: str
    after: str
    context: str
    quote_start: int = 0
    quote_end: int = 0
