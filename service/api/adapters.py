"""GET /adapters, POST /adapters/{name}/activate and /adapters/deactivate: which adapters there are, and which answers.

An adapter's card names the documents that it was trained on, so only an administrator sees it whole.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel as Body
from pydantic import ConfigDict

from indexer.errors import TandemError
from indexer.store import Snapshot
from service.activation import activate_checked
from service.api.access import allowed
from service.api.described import answers
from service.api.listings import Activated, AdapterList, Deactivated
from service.running import Service
from tuner.active import active_adapter, deactivate
from tuner.adapters import AdapterCard, list_adapters
from tuner.basemodel import BaseModel
from tuner.generation import TorchGenerator
from tuner.staleness import stale_documents

AdapterName = Annotated[str, Path(max_length=64)]


class ActivateBody(Body):
    """How to activate. `force` does it although the adapter lost its last comparison."""

    model_config = ConfigDict(extra="forbid")

    force: bool = False


def adapters_router(service: Service) -> APIRouter:
    """Routes about adapters."""
    router = APIRouter(tags=["adapters"])

    @router.get("/adapters", **answers(AdapterList))
    def adapters(request: Request) -> dict[str, Any]:
        """The adapters of the home folder by name, each with whether its documents have changed since."""
        home = service.settings.home
        active = active_adapter(home, service.settings.base_model)
        is_admin = allowed(request).is_admin
        cards = list_adapters(home)
        stale = stale_by_name(service, cards)
        return {"active": active, "adapters": [_body(card, active, stale.get(card.name), is_admin) for card in cards]}

    @router.post("/adapters/deactivate", **answers(Deactivated))
    def stop() -> dict[str, Any]:
        """Answer without an adapter from the next question on."""
        deactivate(service.settings.home)
        return {"active": None}

    @router.post("/adapters/{name}/activate", **answers(Activated))
    def start(name: AdapterName, body: ActivateBody | None = None) -> dict[str, Any]:
        """Answer with this adapter from the next question on, where a question names none; it is checked first."""
        force = body is not None and body.force
        card = activate_checked(service.settings, name, served_base(service), force=force)
        return {"active": name, "base_model": card.base_model}

    return router


def served_base(service: Service) -> BaseModel:
    """The base model that answers. Raises TandemError (unavailable) while it loads."""
    generator = service.answerer.generator
    if not isinstance(generator, TorchGenerator):
        raise TandemError("The model that answers here takes no adapters.", code="conflict")
    return generator.base


def stale_by_name(service: Service, cards: list[AdapterCard]) -> dict[str, list[dict[str, str]]]:
    """For each adapter the documents that changed or are gone since it was trained; empty when nothing is indexed."""
    try:
        with service.store.read() as snapshot:
            return {card.name: _stale(card, snapshot) for card in cards}
    except TandemError:
        return {}


def _stale(card: AdapterCard, snapshot: Snapshot) -> list[dict[str, str]]:
    return [dict(entry) for entry in stale_documents(card, snapshot)]


def _body(card: AdapterCard, active: str | None, stale: list[dict[str, str]] | None, is_admin: bool) -> dict[str, Any]:
    body: dict[str, Any] = {
        "name": card.name,
        "active": card.name == active,
        "base_model": card.base_model,
        "created": card.created,
        "stale": None if stale is None else bool(stale),
    }
    if is_admin:
        body |= {"stale_documents": stale, "card": asdict(card)}
    return body
