"""One JSON shape for every error, whatever raised it; what a client sent is never echoed."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.routing import Match

from indexer.errors import ErrorCode, TandemError
from service.api.openai.errors import OPENAI_STATUS, RequestError, is_openai, openai_error
from service.shapes import error_body

STATUS: dict[ErrorCode, int] = {
    "invalid_request": 422,
    "unauthorized": 401,
    "forbidden": 403,
    "not_found": 404,
    "conflict": 409,
    "no_answer": 422,
    "too_large": 413,
    "rate_limited": 429,
    "unavailable": 503,
    "timeout": 504,
}
RETRY_SECONDS = {"rate_limited": "5", "unavailable": "5"}
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_HTTP_CODES: dict[int, ErrorCode] = {404: "not_found", 405: "invalid_request", 413: "too_large"}


def error_headers(error: TandemError) -> dict[str, str]:
    """Headers that go with an error."""
    headers = {"WWW-Authenticate": "Bearer"} if error.code == "unauthorized" else {}
    if error.code in RETRY_SECONDS:
        headers["Retry-After"] = str(error.retry_after or RETRY_SECONDS[error.code])
    return headers


def encode_error(error: TandemError, request_id: str, path: str = "") -> bytes:
    """The body, as bytes, for places where there is no framework yet. Lone surrogates cannot be sent as UTF-8.

    Under /v1 it is OpenAI's.
    """
    body = openai_error(error) if is_openai(path) else error_body(error, request_id)
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def error_status(error: TandemError, path: str = "") -> int:
    """The status that goes with an error of a route; under /v1 that of OpenAI."""
    return OPENAI_STATUS.get(error.code, STATUS[error.code]) if is_openai(path) else STATUS[error.code]


def internal_error(request_id: str, path: str = "") -> dict[str, Any]:
    """The body for a bug: it says nothing but where to look, for a person who can read the log."""
    error = TandemError("An internal error.", do="The service's log has the details.")
    if is_openai(path):
        return openai_error(error, kind="server_error", code="internal")
    body = error_body(error, request_id)
    body["error"]["code"] = "internal"
    return body


def _response(request: Request, error: TandemError, status: int | None = None) -> JSONResponse:
    request_id = getattr(request.state, "request_id", "")
    path = request.url.path
    body = json.loads(encode_error(error, request_id, path))
    return JSONResponse(body, status or error_status(error, path), headers=error_headers(error))


def add_error_handlers(app: FastAPI) -> None:
    """Map every exception to the one shape."""

    @app.exception_handler(TandemError)
    async def tandem_error(request: Request, error: TandemError) -> JSONResponse:
        return _response(request, error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return _response(request, TandemError("The request body is not JSON.", expected="A JSON object."))
        # The place is of our own making but for unknown field names, which the client chose.
        place = ".".join(str(part) for part in first["loc"][1:] if first["type"] != "extra_forbidden")
        what = f"The field {place!r} is not valid" if place else "The request is not valid"
        return _response(
            request,
            RequestError(
                f"{what}: {first['msg']}.",
                expected="What /openapi.json describes.",
                do="Correct the request.",
                param=place or None,
            ),
        )

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        code = _HTTP_CODES.get(error.status_code, "invalid_request")
        happened = {
            404: "There is nothing at this address.",
            405: "This address does not take that method.",
            413: "The request body is too large.",
        }
        response = _response(
            request,
            TandemError(
                happened.get(error.status_code, "The request could not be handled."),
                expected=error.detail if error.status_code == 413 else "",
                do="The manual's page on the HTTP API lists the routes.",
                code=code,
            ),
            error.status_code,
        )
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            response.headers["Allow"] = ", ".join(_allowed(request))
        return response


def _allowed(request: Request) -> list[str]:
    """Every method that the address takes; the framework names those of its first route (RFC 9110, section 10.2.1)."""
    taken = []
    for method in METHODS:
        scope = {**request.scope, "method": method}
        if any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes):
            taken.append(method)
    return taken
