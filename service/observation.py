"""What one request did, noted while it runs and read once at its end, by the log, the metrics and the traces.

The note travels in a context variable, which the threads that answer inherit: no function between the HTTP route
and the answerer has to carry it, and on the command line, where there is none, nothing is noted.
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from service.answer import Answer

TurnedAway = Literal["rate", "queue", "stopping"]


@dataclass(slots=True)
class Observation:
    """One request. `started` is Unix time, `seconds` how long it took, `route` the template of its address.

    `key` is the name of the access key, never the key, and `groups` are its groups; `question` is there for those who
    chose to log questions. `parent` is the caller's trace, as W3C's traceparent.
    """

    id: str
    method: str
    route: str = ""
    path: str = ""
    status: int = 0
    key: str = ""
    groups: tuple[str, ...] = ()
    parent: str = ""
    question: str = ""
    turned_away: TurnedAway | None = None
    answers: list[Answer] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    seconds: float = 0.0


_current: ContextVar[Observation | None] = ContextVar("observation", default=None)


def observe(observation: Observation) -> None:
    """From here on, in this task and the threads that it starts, what happens is noted in `observation`."""
    _current.set(observation)


def current() -> Observation | None:
    """The request that is being answered; None outside of the HTTP service."""
    return _current.get()


def key_name() -> str:
    """The name of the key that asks; empty without one."""
    observation = _current.get()
    return observation.key if observation else ""


def key_groups() -> tuple[str, ...]:
    """The groups of the key that asks."""
    observation = _current.get()
    return observation.groups if observation else ()


def note_key(name: str, groups: tuple[str, ...] = ()) -> None:
    """Note whose key it is, once that is known."""
    if observation := _current.get():
        observation.key, observation.groups = name, groups


def note_question(text: str) -> None:
    """Note what is asked."""
    if observation := _current.get():
        observation.question = text


def note_turned_away(reason: TurnedAway) -> None:
    """Note that it was told to come back; of a stream the status cannot tell."""
    if observation := _current.get():
        observation.turned_away = reason


def note_answer(answer: Answer) -> None:
    """Note an answer that was made, whole or cut off."""
    if observation := _current.get():
        observation.answers.append(answer)
