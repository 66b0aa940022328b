"""Several requests on one model: short reads share a pass, prompts are read in parts between them.

Every request runs in the thread of whoever consumes it and chooses its own tokens; only reading ids, the work of the
model, goes through here. There is no thread of the engine's own: of those that wait, one takes the turn, makes a pass
for everybody whose ids are in it, and hands out the logits (flat combining, Hendler et al. 2010, SPAA). So a request
that nobody consumes costs nothing but its memory, and one that ends or leaves is gone with the next pass.

Order: a part of a prompt and a step of the answers take turns, so that a long prompt slows running answers down and
never stops them; of prompts, the one that came first is read first, because two read by halves would both be late.
Requests share a pass only with those of the same adapter; the adapters take turns of a few steps each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from indexer.errors import TandemError
from tuner.basemodel import BaseModel
from tuner.decoding import Steps

# Seconds between two looks at `stop` while waiting for the model.
_WAIT = 0.05
# Seconds that a step is held back for requests that are about to ask for theirs. Choosing a token and making text of it
# takes a hundredth of that; whoever is not there then is waited for again only when it has come back.
_GATHER = 0.01
# A draft with the token before it is shorter; more ids than that are a part of a prompt.
_SHORT = 16
# Steps in a row with one adapter while others wait: switching takes as long as a step of one request.
_RUN = 4


class Left(Exception):
    """The request was cancelled while its ids waited to be read."""


@dataclass(eq=False, slots=True)
class Place:
    """A request that is inside: `number` counts them, `adapter` is the key it is read with."""

    number: int
    stop: threading.Event
    adapter: str | None = None
    # Whether a step was held back for it in vain, or it has not read yet.
    is_late: bool = True


@dataclass(eq=False, slots=True)
class _Read:
    """Ids that are to be read, then their logits or what went wrong."""

    place: Place
    steps: Steps
    ids: Sequence[int]
    last: int
    parts: Sequence[int]
    logits: Any = None
    error: BaseException | None = None
    is_done: bool = field(default=False)

    @property
    def is_short(self) -> bool:
        return len(self.ids) <= _SHORT and self.last == len(self.ids) and not self.parts


class SharedSteps(Steps):
    """Steps of a request that reads beside others. Raises Left when it is cancelled while it waits."""

    def __init__(self, base: BaseModel, room: int, batch: Batch, place: Place) -> None:
        super().__init__(base, room)
        self._batch, self._place = batch, place

    def read(self, ids: Sequence[int], last: int = 1, parts: Sequence[int] = ()) -> Any:
        """As Steps.read."""
        return self._batch.read(self._place, self, ids, last, parts)

    def beside(self, room: int) -> SharedSteps:
        """As Steps.beside."""
        return SharedSteps(self._base, room, self._batch, self._place)


class Batch:
    """The turns at one base model, for at most `size` requests at once. Thread-safe.

    `switch` makes the model one with an adapter, or with none.
    """

    def __init__(self, base: BaseModel, size: int, switch: Callable[[str | None], None]) -> None:
        self.size = size
        self._base = base
        self._switch = switch
        self._condition = threading.Condition()
        self._inside: set[Place] = set()
        self._count = 0
        self._waiting: list[_Read] = []
        self._is_busy = False
        self._alone = 0  # threads that wait to have the model to themselves
        self._was_step = False
        self._adapter: str | None = None  # of the last step
        self._run = 0  # steps in a row with it
        self._can_share: bool | None = None
        self._is_closed = False

    def enter(self, stop: threading.Event) -> Place | None:
        """A place, once one is free; None when `stop` was set before. Raises TandemError when closed."""
        with self._condition:
            while not stop.is_set():
                if self._is_closed:
                    raise TandemError(
                        "The model has been closed.", expected="A running service.", do="Try again.", code="unavailable"
                    )
                if len(self._inside) < self.size:
                    self._count += 1
                    place = Place(self._count, stop)
                    self._inside.add(place)
                    return place
                self._condition.wait(_WAIT)
        return None

    def leave(self, place: Place) -> None:
        """Give the place back."""
        with self._condition:
            self._inside.discard(place)
            self._condition.notify_all()
            # The last one leaves the model as it was. Where it is busy, whoever has it will switch as needed.
            is_last = not (self._inside or self._is_busy or self._alone)
            self._is_busy = self._is_busy or is_last
        if is_last:
            try:
                self._switch(None)
            finally:
                self._free()

    def close(self) -> None:
        """Let nobody in any more, and wait for those inside."""
        with self._condition:
            self._is_closed = True
            self._condition.notify_all()
            self._condition.wait_for(lambda: not self._inside)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The model to oneself, between two passes: for changing it."""
        with self._condition:
            self._alone += 1
            try:
                self._condition.wait_for(lambda: not self._is_busy)
                self._is_busy = True
            finally:
                self._alone -= 1
        try:
            yield
        finally:
            self._free()

    def read(self, place: Place, steps: Steps, ids: Sequence[int], last: int, parts: Sequence[int]) -> Any:
        """As Steps.read, in a pass that others may share. Raises Left once `place.stop` is set and it still waits."""
        read = _Read(place, steps, ids, last, parts)
        with self._condition:
            place.is_late = False
            self._waiting.append(read)
            self._condition.notify_all()
        try:
            while taken := self._turn(read):
                self._perform(taken)
        except BaseException:
            with self._condition:
                self._waiting = [other for other in self._waiting if other is not read]
            raise
        if read.error is not None:
            raise read.error
        return read.logits

    def _turn(self, read: _Read) -> list[_Read]:
        """Wait until `read` is done (nothing is returned), or it falls to this thread to do the reads returned."""
        with self._condition:
            while not read.is_done:
                if read.place.stop.is_set() and read in self._waiting:
                    raise Left
                if self._waiting and not self._is_busy and not self._alone:
                    self._is_busy = True
                    try:
                        return self._gather()
                    except BaseException:
                        self._is_busy = False
                        self._condition.notify_all()
                        raise
                self._condition.wait(_WAIT)
        return []

    def _gather(self) -> list[_Read]:
        """Take the reads of the next pass out of those that wait; the lock is held."""
        if not (self._was_step or any(read.is_short for read in self._waiting)):
            # A second part in a row, and others are only just choosing their token.
            self._await_missing()
        parts = [read for read in self._waiting if not read.is_short]
        self._was_step = len(parts) < len(self._waiting) and not (parts and self._was_step)
        taken = self._step(bool(parts)) if self._was_step else [min(parts, key=lambda read: read.place.number)]
        self._waiting = [read for read in self._waiting if read not in taken]
        return taken

    def _step(self, is_late: bool) -> list[_Read]:
        """The reads of all requests of one adapter; unless it `is_late` already, once they are all there."""
        if not is_late and (self._run < _RUN or not self._others()):
            self._await_missing()
        taken = [read for read in self._waiting if read.is_short and read.place.adapter == self._adapter]
        others = self._others()
        if others and (self._run >= _RUN or not taken):
            # They are in the order in which they came, so the first is of the adapter that waited longest.
            self._adapter, self._run = others[0].place.adapter, 0
            taken = [read for read in others if read.place.adapter == self._adapter]
        self._run += 1
        return taken

    def _others(self) -> list[_Read]:
        return [read for read in self._waiting if read.is_short and read.place.adapter != self._adapter]

    def _await_missing(self) -> None:
        deadline = time.monotonic() + _GATHER
        while missing := self._missing():
            left = deadline - time.monotonic()
            if left <= 0:
                for place in missing:
                    place.is_late = True
                return
            self._condition.wait(left)

    def _missing(self) -> list[Place]:
        here = {read.place for read in self._waiting}
        return [
            place
            for place in self._inside
            if place.adapter == self._adapter and not place.is_late and place not in here
        ]

    def _perform(self, taken: list[_Read]) -> None:
        try:
            self._switch(taken[0].place.adapter)
            for read, logits in zip(taken, self._logits(taken), strict=True):
                read.logits = logits
        except BaseException as error:
            # Their caches may hold half a pass now, so all of these requests end.
            for read in taken:
                read.error = error
            if not isinstance(error, Exception):
                raise
        finally:
            for read in taken:
                read.is_done = True
            self._free()

    def _logits(self, taken: list[_Read]) -> list[Any]:
        if len(taken) > 1 and self._shares():
            from tuner.together import Part, read_together

            return read_together(self._base, [Part(read.steps.cache, read.ids) for read in taken])
        return [Steps.read(read.steps, read.ids, read.last, read.parts) for read in taken]

    def _shares(self) -> bool:
        if self._can_share is None:
            from tuner.together import can_read_together

            self._can_share = can_read_together(self._base)
        return self._can_share

    def _free(self) -> None:
        with self._condition:
            self._is_busy = False
            self._condition.notify_all()
