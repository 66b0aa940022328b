"""The bodies of responses under /v1, as /openapi.json describes them; see service/api/bodies.py."""

from __future__ import annotations

from typing import Literal

from service.api.bodies import AnswerBase, Body, Usage


class OpenAIErrorDetail(Body):
    """What OpenAI's clients read of an error."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIErrorBody(Body):
    """Every error under /v1."""

    error: OpenAIErrorDetail


class Model(Body):
    """A model: a mode or an adapter. `created` is a Unix time."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["tandem"]


class ModelList(Body):
    """The models."""

    object: Literal["list"]
    data: list[Model]


class UrlCitation(Body):
    """Where a source is; the offsets are those of the marker in the content."""

    start_index: int
    end_index: int
    url: str
    title: str


class Annotation(Body):
    """A source."""

    type: Literal["url_citation"]
    url_citation: UrlCitation


class Message(Body):
    """The answer, or a refusal where JSON was asked for."""

    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    annotations: list[Annotation]


class Choice(Body):
    """The one choice."""

    index: Literal[0]
    message: Message
    logprobs: None
    finish_reason: Literal["stop", "length"]


class CompletionUsage(Usage):
    """Tokens."""

    total_tokens: int


class ChatCompletion(Body):
    """A completion; `tandem` is what OpenAI's shape has no place for."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[Choice]
    usage: CompletionUsage
    tandem: AnswerBase


class Embedding(Body):
    """The vector of one text: numbers, or base64 of little-endian 32-bit floats."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(Body):
    """Tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Body):
    """The vectors in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
