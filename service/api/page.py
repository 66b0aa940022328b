"""The chat page: the files of service/web, read once, from memory."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from fastapi import APIRouter, Request
from fastapi.responses import Response

from indexer.errors import TandemError

TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


def page_router() -> APIRouter:
    """Routes of the page. Only files that were there at the start exist, so no name can lead elsewhere."""
    router = APIRouter(include_in_schema=False)
    found = {
        item.name: (item.read_bytes(), TYPES[suffix])
        for item in files("service").joinpath("web").iterdir()
        if (suffix := item.name[item.name.rfind(".") :]) in TYPES
    }

    def respond(request: Request, name: str) -> Response:
        if name not in found:
            raise TandemError("There is no such file.", code="not_found")
        data, kind = found[name]
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers=headers)
        return Response(data, media_type=f"{kind}; charset=utf-8", headers=headers)

    @router.get("/")
    def index(request: Request) -> Response:
        return respond(request, "index.html")

    @router.get("/static/{name}")
    def static(request: Request, name: str) -> Response:
        return respond(request, name)

    return router
