"""The routes under /v1."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from indexer.errors import TandemError
from service.api.access import allowed
from service.api.described import EVENTS, answers, errors
from service.api.errors import internal_error
from service.api.openai.bodies import ChatCompletion, EmbeddingList, Model, ModelList, OpenAIErrorBody
from service.api.openai.chat import Completion, chunks
from service.api.openai.embeddings import EmbeddingsBody, embed
from service.api.openai.errors import PREFIX, openai_error
from service.api.openai.models import list_models, read_model
from service.api.openai.request import ChatBody, read_chat
from service.api.streaming import Event, open_stream, run_while_connected
from service.running import Service


def openai_router(service: Service) -> APIRouter:
    """Routes for clients of OpenAI."""
    router = APIRouter(prefix=PREFIX, tags=["openai"], responses=errors(OpenAIErrorBody))
    since = int(time.time())

    @router.get("/models", **answers(ModelList))
    def models() -> dict[str, Any]:
        """The modes and the adapters as models."""
        return {"object": "list", "data": list_models(service.settings.home, since)}

    @router.get("/models/{model}", **answers(Model))
    def model(model: str) -> dict[str, Any]:
        """One model."""
        read_model(service.settings.home, model)
        return next(item for item in list_models(service.settings.home, since) if item["id"] == model)

    @router.post("/chat/completions", **answers(ChatCompletion, EVENTS))
    async def chat_completions(request: Request, body: ChatBody) -> Response:
        """Answer the last message of the user from the documents."""
        answerer, settings = service.answerer, service.settings
        question = await run_in_threadpool(read_chat, body, answerer, settings)
        access, base_url = allowed(request), _base_url(request, settings.public_url)
        question = replace(question, where=access.filter(question.where))
        completion = Completion.begin(body.model, base_url, settings.chat_sources, access.link)
        if not body.stream:
            answer = await run_while_connected(request, lambda cancel: answerer.answer(question, cancel))
            return JSONResponse(completion.whole(answer, in_form=question.form is not None))
        with_usage = bool(body.stream_options and body.stream_options.include_usage)
        return await open_stream(
            request,
            lambda cancel: chunks(service, question, completion, cancel, with_usage=with_usage),
            _failure,
        )

    @router.post("/embeddings", **answers(EmbeddingList))
    def embeddings(body: EmbeddingsBody) -> dict[str, Any]:
        """The vectors of texts, by the embedder of the index."""
        return embed(service.answerer.retriever.embedder, body)

    return router


def _base_url(request: Request, public_url: str) -> str:
    return public_url.rstrip("/") if public_url else str(request.base_url).rstrip("/")


def _failure(error: TandemError | None, request_id: str) -> Event:
    return None, internal_error(request_id, PREFIX) if error is None else openai_error(error)
