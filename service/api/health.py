"""GET /healthz (the process lives) and /readyz (it can answer)."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from indexer.errors import TandemError
from service.running import Service


def health_router(service: Service) -> APIRouter:
    """Routes for whatever keeps the service running; open to everyone, so they tell nothing about documents."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """The process answers HTTP, in the event loop, so also when every thread is busy."""
        return {"status": "ok", "version": version("tandem-qa")}

    @router.get("/readyz")
    def readyz() -> JSONResponse:
        """200 when a question would be answered, else 503 with the reason."""
        try:
            body: dict[str, Any] = {"status": "ready", "generation": service.ready()}
        except TandemError as error:
            return JSONResponse({"status": "loading", "reason": str(error)}, 503, headers={"Retry-After": "2"})
        return JSONResponse(body)

    return router
