"""POST /documents and DELETE /documents/{document}: change what was uploaded, then bring the index in step with it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from indexer.errors import TandemError
from service.api.described import answers
from service.api.listings import Deleted, Uploaded
from service.api.uploadform import UPLOAD_BODY, read_form
from service.assembly import Reindex
from service.running import Service
from service.uploads import delete_upload, list_uploads, store_upload, uploads_folder


def uploading_router(service: Service) -> APIRouter:
    """Routes for administrators."""
    router = APIRouter(tags=["documents"])

    @router.post("/documents", status_code=202, openapi_extra=UPLOAD_BODY, **answers(Uploaded, status=202))
    async def upload(request: Request) -> JSONResponse:
        """Store a file, in place of one of the same name, and index it in the background."""
        async with read_form(request) as (name, content, groups):
            stored = await run_in_threadpool(store_upload, service.settings, service.store, name, content, groups)
        body = {"document": stored.name, "replaced": stored.replaced, "groups": list(stored.groups)}
        return JSONResponse(body | {"job": await run_in_threadpool(_start, service)}, 202)

    @router.delete("/documents/{document}", status_code=202, **answers(Deleted, status=202))
    def delete(document: str) -> JSONResponse:
        """Delete an uploaded file, by its name or the id of its document, and take it out of the index."""
        name = _uploaded(service, document)
        if not delete_upload(service.settings, name):
            raise _no_document()
        return JSONResponse({"document": name, "job": _start(service)}, 202)

    return router


def _start(service: Service) -> dict[str, Any]:
    """The job that brings the index in step with what was just written: one that begins after it."""
    work = Reindex(service.settings, service.store, service.answerer.retriever.embedder)
    job, _ = service.jobs.start("reindex", work, fresh=True)
    return service.jobs.get(job.id)


def _uploaded(service: Service, document: str) -> str:
    """The name of the uploaded file that is meant. Raises TandemError not_found, or conflict for one of a folder."""
    if document in list_uploads(service.settings.home):
        return document
    with service.store.read() as snapshot:
        found = snapshot.file_of(document)
    if found is None:
        raise _no_document()
    corpus, path = found
    if corpus != str(uploads_folder(service.settings.home)):
        raise TandemError(
            "This document was not uploaded: it lies in a corpus folder.",
            expected="A document that was uploaded.",
            do="Delete its file in that folder, then POST /reindex.",
            code="conflict",
        )
    return path


def _no_document() -> TandemError:
    return TandemError(
        "There is no such document.",
        expected="The id of a document, or the name of an uploaded file.",
        do="`GET /documents` shows what is indexed.",
        code="not_found",
    )
