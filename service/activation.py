"""Making an adapter the one that answers: the same checks from the command line and over HTTP."""

from __future__ import annotations

from indexer.errors import TandemError
from service.compare.history import last_verdict_on
from service.settings import Settings
from tuner.active import activate
from tuner.adapters import AdapterCard, adapter_path, verify_adapter
from tuner.basemodel import BaseModel


def activate_checked(settings: Settings, name: str, base: BaseModel, *, force: bool = False) -> AdapterCard:
    """Make `name` the active adapter after it was verified against the base model that is served; returns its card.

    Takes effect with the next question, in every process on this home folder. Raises TandemError as verify_adapter
    does, and (conflict) for one that the last comparison it took part in spoke against, unless `force`, which is kept
    in active.json; then what was active before stays so.
    """
    card = verify_adapter(adapter_path(settings.home, name), base)
    against = spoken_against(settings, card)
    if against and not force:
        raise TandemError(
            f"The last comparison speaks against the adapter {name!r}. {against}",
            expected="An adapter that beats rag on questions it was not trained on.",
            do="Compare again after tuning it anew, serve the mode rag, or override with --force.",
            code="conflict",
        )
    activate(settings.home, name, against=against)
    return card


def spoken_against(settings: Settings, card: AdapterCard) -> str:
    """Why the newest comparison with these weights would not have them live; "" if it would, or if there is none."""
    found = last_verdict_on(settings.home, card.weights_sha256)
    if found is None or found[1].get("activate"):
        return ""
    verdict, judged = found
    return f"{' '.join(judged.get('reasons', ()))} (comparisons/{verdict.folder}/report.md)"
