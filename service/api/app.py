"""The ASGI application of one service."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI

from service.api.adapters import adapters_router
from service.api.allowances import allowances_router
from service.api.ask import ask_router
from service.api.described import ERRORS, describe
from service.api.documents import documents_router
from service.api.errors import add_error_handlers
from service.api.feedback import feedback_router
from service.api.gate import PUBLIC_PATHS, Gate
from service.api.health import health_router
from service.api.limits import Limits
from service.api.observing import Observer
from service.api.openai.routes import openai_router
from service.api.page import page_router
from service.api.reindex import reindex_router
from service.api.uploading import uploading_router
from service.running import Service


def create_app(service: Service) -> FastAPI:
    """All routes behind the gate. Closing the application stops the service's jobs."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    # The interactive documentation loads scripts from elsewhere; /openapi.json stays.
    app = FastAPI(
        title="Tandem",
        version=version("tandem-qa"),
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        responses=ERRORS,
    )
    for router in (
        health_router(service),
        allowances_router(service),
        ask_router(service),
        documents_router(service),
        uploading_router(service),
        reindex_router(service),
        adapters_router(service),
        feedback_router(service),
        openai_router(service),
        page_router(),
    ):
        app.include_router(router)
    add_error_handlers(app)
    describe(app, PUBLIC_PATHS)
    # From the inside out: who may ask so often, who may ask at all, what came of it.
    app.add_middleware(Limits, service=service)
    app.add_middleware(Gate, service=service)
    app.add_middleware(Observer, service=service)
    return app
