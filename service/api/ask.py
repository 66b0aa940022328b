"""POST /ask and GET /modes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from indexer.errors import TandemError
from indexer.filters import read_filter
from service.answering import Answer
from service.api.streaming import Event, event_stream, run_while_connected
from service.question import MODES, Question
from service.running import Service
from service.shapes import answer_body


class AskBody(BaseModel):
    """What is asked. Unknown fields are refused: a misspelt option must not be silently ignored."""

    model_config = ConfigDict(extra="forbid")

    question: Annotated[str, StringConstraints(min_length=1)]
    mode: str | None = None
    k: int | None = Field(None, ge=1, le=100)
    adapter: Annotated[str, StringConstraints(max_length=64)] | None = None
    max_tokens: int | None = Field(None, ge=1, le=4096)
    filter: dict[str, str | list[str]] = Field(default_factory=dict)
    stream: bool = False


def ask_router(service: Service) -> APIRouter:
    """Routes that answer questions."""
    router = APIRouter(tags=["ask"])

    @router.post("/ask")
    async def ask(request: Request, body: AskBody) -> Response:
        """Answer a question from the documents; `stream` sends the sentences as they are ready."""
        question = Question(body.question, body.mode, body.k, body.adapter, body.max_tokens, read_filter(body.filter))
        answerer = service.answerer
        if body.stream:
            return event_stream(request, lambda cancel: _events(service, question, cancel))
        answer = await run_while_connected(request, lambda cancel: answerer.answer(question, cancel))
        return JSONResponse(answer_body(answer))

    @router.get("/modes")
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
            body = answer_body(part)
            yield "citations", {"citations": body["citations"]}
            yield "done", body
        else:
            yield "token", {"text": part}
