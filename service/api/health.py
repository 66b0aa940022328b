"""GET /healthz (the process lives), /readyz (it can answer) and /metrics (what it did)."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from indexer.errors import TandemError
from service.api.bodies import Health, NotReady, Ready
from service.api.described import answers, sends
from service.running import Service


def health_router(service: Service) -> APIRouter:
    """Routes for whatever keeps the service running; open to everyone, so they tell nothing about documents."""
    router = APIRouter(tags=["health"])

    @router.get("/healthz", **answers(Health))
    async def healthz() -> dict[str, str]:
        """The process answers HTTP, in the event loop, so also when every thread is busy."""
        return {"status": "ok", "version": version("tandem-qa")}

    @router.get("/readyz", response_model=None, responses={200: {"model": Ready}, 503: {"model": NotReady}})
    def readyz() -> JSONResponse:
        """200 when a question would be answered, else 503 with the reason."""
        try:
            body: dict[str, Any] = {"status": "ready", "generation": service.ready()}
        except TandemError as error:
            status = "stopping" if service.draining else "loading"
            return JSONResponse({"status": status, "reason": str(error)}, 503, headers={"Retry-After": "2"})
        return JSONResponse(body)

    @router.get("/metrics", **sends("text/plain"))
    def metrics() -> Response:
        """Prometheus metrics in the text format; for administrators."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
