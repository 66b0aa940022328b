"""What /openapi.json says beyond the routes' own parameters: the bodies of their answers, the errors, and the keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI, Response
from pydantic import BaseModel

from service.api.bodies import ErrorBody

# Any route may answer these; RFC 9110 has the status codes, the manual's page on the HTTP API what each means here.
WHEN = {
    400: "The body cannot be decoded.",
    401: "No key, or one that is not known any more.",
    403: "The key may not do this.",
    404: "There is no such name, id or address.",
    405: "The address does not take this method; the header Allow says which it takes.",
    408: "The request did not arrive in time.",
    409: "It collides with the present state.",
    413: "Over a stated limit.",
    422: "It cannot work as it is.",
    429: "Too many requests for now.",
    500: "A bug; the log has the details under the id of the request.",
    503: "Not ready, or the queue is full.",
    504: "A stated deadline passed.",
}
_RETRY = {
    "Retry-After": {"description": "Seconds until it is worth trying again.", "schema": {"type": "integer"}},
}
EVENTS = "text/event-stream"
# One event of a stream, in the words of OpenAPI 3.2 for lists that are sent piece by piece.
_EVENT = {
    "type": "object",
    "required": ["data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
}
Responses = dict[int | str, dict[str, Any]]


def errors(body: type[BaseModel]) -> Responses:
    """Every error, in one shape."""
    return {
        status: {"model": body, "description": when} | ({"headers": _RETRY} if status in (429, 503) else {})
        for status, when in WHEN.items()
    }


ERRORS = errors(ErrorBody)


def answers(model: type[BaseModel] | Any, *more: str, status: int = 200, also: Iterable[int] = ()) -> dict[str, Any]:
    """Options of a route that answers this body, with `status` or one of `also`, or of the media types `more`."""
    found: dict[str, Any] = {"model": model, "content": {kind: _content(kind) for kind in more}}
    codes = (status, *also)
    responses = {code: found | ({"description": "Successful Response"} if code != status else {}) for code in codes}
    return {"response_model": None, "responses": responses}


def sends(kind: str) -> dict[str, Any]:
    """Options of a route that answers a text of this media type. Its errors are JSON like all others."""
    return {"response_class": Response, "responses": {200: {"content": {kind: _content(kind)}}}}


def _content(kind: str) -> dict[str, Any]:
    return {"itemSchema": _EVENT} if kind == EVENTS else {"schema": {"type": "string"}}


def describe(app: FastAPI, is_open: Iterable[str]) -> None:
    """Say in the description that everything but the routes `is_open` asks for a key once there is one."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = made()
            schemes = found["components"].setdefault("securitySchemes", {})
            schemes["key"] = {"type": "http", "scheme": "bearer", "description": "A key; none while none exist."}
            found["security"] = [{}, {"key": []}]
            for path in set(is_open) & found["paths"].keys():
                for operation in found["paths"][path].values():
                    operation["security"] = []
        return made()

    app.openapi = openapi  # type: ignore[method-assign]
