"""The outermost layer: gives every request its id, notes what it did, and tells the log, the metrics and the traces.

A client may bring its own `X-Request-ID`, so that one id runs through its log and ours; anything but a short plain
word is replaced, since it is written to logs and headers. The trace context of W3C (`traceparent`) is taken likewise.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.observation import Observation, observe
from service.running import Service

log = logging.getLogger(__name__)

# Asked every few seconds by whatever watches the service; what is well there is no news.
PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# W3C Trace Context, section 3.2: version, trace id, parent id, flags. No id is all zeros.
TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


class Observer:
    """ASGI middleware around everything else."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and tell what came of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        observation = _begin(scope)
        scope.setdefault("state", {})["request_id"] = observation.id
        observe(observation)
        began = time.perf_counter()

        async def send_noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                observation.status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = observation.id
            await send(message)

        self._service.in_flight += 1
        try:
            await self._app(scope, receive, send_noting)
        finally:
            self._service.in_flight -= 1
            observation.seconds = time.perf_counter() - began
            observation.route = _route(scope)
            self._tell(observation)

    def _tell(self, observation: Observation) -> None:
        service = self._service
        service.metrics.count(observation)
        if service.tracer:
            service.tracer.export(observation)
        fields = request_fields(observation, with_question=service.settings.log_questions)
        log.log(
            logging.DEBUG if observation.route in PROBES and observation.status < 400 else logging.INFO,
            "%s %s %s %.0f ms [%s]",
            observation.method,
            observation.path,
            observation.status,
            observation.seconds * 1000,
            observation.id,
            extra={"fields": fields},
        )


def request_fields(observation: Observation, *, with_question: bool = False) -> dict[str, Any]:
    """What is logged of a request: never its text or its key, unless `with_question` the question."""
    fields: dict[str, Any] = {
        "request_id": observation.id,
        "method": observation.method,
        "route": observation.route,
        "status": observation.status,
        "ms": round(observation.seconds * 1000, 1),
    }
    if observation.turned_away:
        fields["turned_away"] = observation.turned_away
    if observation.key:
        fields["key"] = observation.key
    if with_question and observation.question:
        fields["question"] = observation.question
    for answer in observation.answers[-1:]:
        fields |= {
            "mode": answer.mode,
            "adapter": answer.adapter,
            "refused": answer.refused,
            "finish_reason": answer.finish_reason,
            "generation": answer.index_generation,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "retrieve_ms": round(answer.retrieve_ms, 1),
            "first_token_ms": None if answer.first_token_ms is None else round(answer.first_token_ms, 1),
        }
        if answer.answerability is not None:
            fields["answerability"] = round(answer.answerability, 4)
    return fields


def _begin(scope: Scope) -> Observation:
    headers = Headers(scope=scope)
    given, parent = headers.get("x-request-id", ""), headers.get("traceparent", "")
    return Observation(
        id=given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8),
        method=_shown(scope["method"])[:16],
        path=_shown(scope["path"]),
        parent=parent if TRACEPARENT.fullmatch(parent) else "",
    )


def _route(scope: Scope) -> str:
    """The template of the address; "other" where no route was reached: unknown, refused at the gate."""
    route = scope.get("route")
    return str(route.path) if route is not None else "other"


def _shown(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text[:200])
