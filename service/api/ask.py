"""POST /ask and GET /modes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from indexer.errors import TandemError
from indexer.filters import read_filter
from service.answer import Answer
from service.api.access import Access, allowed
from service.api.bodies import AnswerBody, ModeList
from service.api.described import EVENTS, answers
from service.api.streaming import Event, event_stream, run_while_connected
from service.history import Turn
from service.jsonschemas import read_response_format
from service.question import MODES, Question
from service.running import Service
from service.shapes import answer_body
from service.structured import Form


class TurnBody(BaseModel):
    """An earlier message of the conversation."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["user", "assistant"]
    content: str


class AskBody(BaseModel):
    """What is asked. Unknown fields are refused: a misspelt option must not be silently ignored."""

    model_config = ConfigDict(extra="forbid")

    question: Annotated[str, StringConstraints(min_length=1)]
    mode: str | None = None
    k: int | None = Field(None, ge=1, le=100)
    adapter: Annotated[str, StringConstraints(max_length=64)] | None = None
    max_tokens: int | None = Field(None, ge=1, le=4096)
    filter: dict[str, str | list[str]] = Field(default_factory=dict)
    history: Annotated[list[TurnBody], Field(max_length=1000)] = Field(default_factory=list)
    response_format: dict[str, Any] | None = None
    stream: bool = False

    def read(self, access: Access) -> Question:
        """The question. Raises TandemError for a filter or a form that cannot be used."""
        schema = read_response_format(self.response_format)
        return Question(
            self.question,
            self.mode,
            self.k,
            self.adapter,
            self.max_tokens,
            access.filter(read_filter(self.filter)),
            tuple(Turn(turn.role, turn.content) for turn in self.history),
            None if schema is None else Form(schema),
        )


def ask_router(service: Service) -> APIRouter:
    """Routes that answer questions."""
    router = APIRouter(tags=["ask"])

    @router.post("/ask", **answers(AnswerBody, EVENTS))
    async def ask(request: Request, body: AskBody) -> Response:
        """Answer a question from the documents; `stream` sends the sentences as they are ready."""
        question = body.read(allowed(request))
        answerer = service.answerer
        if body.stream:
            return event_stream(request, lambda cancel: _events(service, question, cancel))
        answer = await run_while_connected(request, lambda cancel: answerer.answer(question, cancel))
        return JSONResponse(answer_body(_in_form(question, answer)))

    @router.get("/modes", **answers(ModeList))
    def modes() -> dict[str, Any]:
        """The modes, which of them can answer now, and why not."""
        return {"default": service.settings.mode, "modes": [_mode(service, name) for name in ("auto", *MODES)]}

    def _mode(service: Service, name: str) -> dict[str, Any]:
        try:
            mode, adapter = service.answerer.resolve(Question("", mode=name))
        except TandemError as error:
            return {"name": name, "available": False, "reason": str(error), "adapter": None}
        return {"name": name, "available": True, "reason": "", "answers_as": mode, "adapter": adapter}

    return router


def _events(service: Service, question: Question, cancel: threading.Event) -> Iterator[Event]:
    for part in service.answerer.stream(question, cancel):
        if isinstance(part, Answer):
            body = answer_body(_in_form(question, part))
            if question.form:
                # It was held back: without an answer in the form there is only the error.
                yield "token", {"text": part.answer}
            yield "citations", {"citations": body["citations"]}
            yield "done", body
        elif not question.form:
            yield "token", {"text": part}


def _in_form(question: Question, answer: Answer) -> Answer:
    """The answer. Raises TandemError (no_answer) for a refusal where JSON was asked for: it has no place in it."""
    if question.form and answer.refused:
        raise TandemError(
            "The documents do not say what was asked for."
            if answer.refusal_reason == "nothing_relevant"
            else "What the model filled in is not supported by the documents.",
            do="Ask without response_format to see what was searched, or ask for less.",
            code="no_answer",
        )
    return answer
