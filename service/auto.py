"""What the mode `auto` stands for: the winner of the last comparison, where that was about what is served now."""

from __future__ import annotations

from indexer.errors import TandemError
from service.compare.history import StoredVerdict, last_verdict
from service.settings import Settings
from tuner.active import was_forced
from tuner.adapters import adapter_path, read_card

PROVEN = ("better", "no better", "worse")


def auto_mode(settings: Settings, active: str | None, *, from_documents: bool) -> str:
    """The mode for a question that names neither a mode nor an adapter; `active` is the adapter that is active.

    The last comparison decides if it had enough questions, and was made with this base model and these adapter weights
    or, where no adapter is active, served none. Otherwise, and for an adapter that was activated against the verdict,
    it is rag+tuned with an active adapter and rag without. A closed-book winner is passed over where the answer must
    come `from_documents`.
    """
    usual = "rag+tuned" if active else "rag"
    verdict = last_verdict(settings.home)
    if verdict is None or verdict.serve is None or not _applies(settings, verdict, active):
        return usual
    closed = {"base": "rag", "tuned": "rag+tuned"}
    return closed.get(verdict.serve, verdict.serve) if from_documents else verdict.serve


def _applies(settings: Settings, verdict: StoredVerdict, active: str | None) -> bool:
    if not verdict.decided or verdict.base_model != settings.base_model or verdict.adapter not in (None, active):
        return False
    if active is None:
        return True
    judged = verdict.adapters.get(active, {})
    if judged.get("outcome") not in PROVEN or was_forced(settings.home):
        return False
    try:
        return read_card(adapter_path(settings.home, active)).weights_sha256 == judged.get("weights_sha256")
    except TandemError:
        return False
