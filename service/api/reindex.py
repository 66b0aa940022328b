"""POST /reindex and the jobs it starts."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from service.api.streaming import Event, event_stream
from service.assembly import Reindex
from service.jobs import FINAL
from service.running import Service

# A job's state is looked at this often when nothing happens, so that a client that left is noticed.
LOOK_SECONDS = 1.0


def reindex_router(service: Service) -> APIRouter:
    """Routes that bring the index in step and follow the work."""
    router = APIRouter(tags=["reindex"])

    @router.post("/reindex", status_code=202)
    def reindex() -> JSONResponse:
        """Index the corpora in the background; questions are answered from the old generation meanwhile."""
        work = Reindex(service.settings, service.store, service.answerer.retriever.embedder)
        job, is_new = service.jobs.start("reindex", work)
        return JSONResponse({"job": service.jobs.get(job.id)}, 202 if is_new else 200)

    @router.get("/jobs")
    def jobs() -> dict[str, Any]:
        """The last jobs, newest first."""
        return {"jobs": service.jobs.list()}

    @router.get("/jobs/{job}")
    def job(job: str) -> dict[str, Any]:
        """One job."""
        return service.jobs.get(job)

    @router.get("/jobs/{job}/events")
    def job_events(request: Request, job: str) -> Response:
        """The job at each change, as server-sent events, until it has ended."""
        service.jobs.get(job)
        return event_stream(request, lambda cancel: _events(service, job, cancel))

    @router.delete("/jobs/{job}")
    def cancel(job: str) -> dict[str, Any]:
        """Ask the job to stop; what was published before stays."""
        return service.jobs.cancel(job)

    return router


def _events(service: Service, job: str, cancel: threading.Event) -> Iterator[Event]:
    body: dict[str, Any] | None = None
    while not cancel.is_set() and (body is None or body["state"] not in FINAL):
        seen, body = body, service.jobs.wait(job, body, LOOK_SECONDS)
        if body != seen:
            yield "job", body
