"""POST /reindex and the jobs it starts. Jobs name documents and count them, so they are for administrators."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from service.api.access import Access, allowed
from service.api.described import EVENTS, answers, sends
from service.api.listings import JobBody, JobList, JobStarted
from service.api.streaming import Event, event_stream
from service.assembly import Reindex
from service.jobs import FINAL
from service.running import Service

# A job's state is looked at this often when nothing happens, so that a client that left is noticed.
LOOK_SECONDS = 1.0


def reindex_router(service: Service) -> APIRouter:
    """Routes that bring the index in step and follow the work."""
    router = APIRouter(tags=["reindex"])

    @router.post("/reindex", status_code=202, **answers(JobStarted, status=202, also=[200]))
    def reindex() -> JSONResponse:
        """Index the corpora in the background; questions are answered from the old generation meanwhile."""
        work = Reindex(service.settings, service.store, service.answerer.retriever.embedder)
        job, is_new = service.jobs.start("reindex", work)
        return JSONResponse({"job": service.jobs.get(job.id)}, 202 if is_new else 200)

    @router.get("/jobs", **answers(JobList))
    def jobs() -> dict[str, Any]:
        """The last jobs, newest first."""
        return {"jobs": service.jobs.list()}

    @router.get("/jobs/{job}", **answers(JobBody))
    def job(job: str) -> dict[str, Any]:
        """One job."""
        return service.jobs.get(job)

    @router.get("/jobs/{job}/events", **sends(EVENTS))
    def job_events(request: Request, job: str) -> Response:
        """The job at each change, as server-sent events, until it has ended."""
        service.jobs.get(job)
        access = allowed(request)
        return event_stream(request, lambda cancel: follow_job(service, job, access, cancel))

    @router.delete("/jobs/{job}", **answers(JobBody))
    def cancel(job: str) -> dict[str, Any]:
        """Ask the job to stop; what was published before stays."""
        return service.jobs.cancel(job)

    return router


def follow_job(service: Service, job: str, access: Access, cancel: threading.Event) -> Iterator[Event]:
    """The job at each change until it has ended. Raises TandemError once the key is not good any more."""
    body: dict[str, Any] | None = None
    while not cancel.is_set() and (body is None or body["state"] not in FINAL):
        seen, body = body, service.jobs.wait(job, body, LOOK_SECONDS)
        # A job may take hours; a key that is revoked meanwhile sees no more of it.
        access.check()
        if body != seen:
            yield "job", body
