"""GET /access: what the sender of a request may do and how much, so that a front end offers nothing that is refused."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from service.api.access import allowed
from service.api.bodies import Allowance
from service.api.described import answers
from service.running import Service


def allowances_router(service: Service) -> APIRouter:
    """The route about the sender's own key."""
    router = APIRouter(tags=["access"])

    @router.get("/access", **answers(Allowance))
    def access(request: Request) -> dict[str, Any]:
        """The sender's role, whether the service asks for keys, and the limits of a question and of an upload."""
        settings = service.settings
        return {
            "role": allowed(request).role,
            "keys": not service.keyring.is_open(),
            "question_chars": settings.question_chars,
            "history": settings.history,
            "body_bytes": settings.body_bytes,
            "upload_bytes": settings.upload_bytes,
            "upload_types": settings.upload_types.lower().split(),
        }

    return router
