"""What is asked, and whether it can be: checked before any model is loaded or any work is done."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from indexer.errors import TandemError
from indexer.filters import Filter
from service.auto import auto_mode
from service.history import Turn
from service.settings import Settings
from service.structured import Form

Mode = Literal["base", "tuned", "rag", "rag+tuned"]
MODES: tuple[Mode, ...] = ("base", "tuned", "rag", "rag+tuned")


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. None takes the setting; `mode` may be "auto"; `adapter` None takes the active one.

    `where` says which documents may answer. `history` are the turns before, oldest first. `form` asks for JSON.
    A `task` is no question but work that a front end has for the model, such as a title; it is answered closed book.
    """

    text: str
    mode: str | None = None
    k: int | None = None
    adapter: str | None = None
    max_tokens: int | None = None
    where: Filter = Filter()
    history: tuple[Turn, ...] = ()
    form: Form | None = None
    task: bool = False


def check_question(question: Question, settings: Settings) -> str:
    """The text to answer. Raises TandemError for an empty or long question and for max_tokens out of range."""
    text = question.text.replace("\x00", "").strip()
    if not text:
        raise TandemError("The question is empty.", expected="A question in words.", do="Ask one.")
    most = settings.question_chars
    if len(text) > most:
        raise TandemError(
            f"The question has {len(text):,} characters.",
            expected=f"At most {most:,}.",
            do="Shorten it, or raise the `question_chars` setting.",
            code="too_large",
        )
    if question.max_tokens is not None and not 1 <= question.max_tokens <= 4096:
        raise TandemError(f"max_tokens is {question.max_tokens}.", expected="1 to 4096.")
    return text


def resolve_mode(question: Question, settings: Settings, active: str | None) -> tuple[Mode, str | None]:
    """The mode and the adapter that will answer, `active` being the adapter for questions that name none.

    Raises TandemError when there is no such mode, or no adapter for a mode that needs one.
    """
    named = question.mode or settings.mode
    adapter = question.adapter or active
    if named == "auto":
        filtered = bool(question.where.conditions)
        named = "rag+tuned" if question.adapter else auto_mode(settings, active, from_documents=filtered)
    if named not in MODES:
        raise TandemError(
            f"There is no mode {named!r}.", expected=f"auto, {', '.join(MODES)}.", do="Choose one of these."
        )
    if named not in ("tuned", "rag+tuned"):
        if question.adapter:
            raise TandemError(
                f"The mode {named} uses no adapter, and {question.adapter!r} was asked for.",
                do="Use the mode tuned or rag+tuned, or leave the adapter out.",
            )
        return named, None
    if adapter is None:
        raise TandemError(
            f"The mode {named} needs an adapter, and none is active.",
            expected="An active adapter, or one named in the question.",
            do="Run `tandem adapters list` and `tandem adapters activate NAME`, or use the mode rag.",
            code="conflict",
        )
    return cast(Mode, named), adapter
