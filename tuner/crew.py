"""Threads that do one piece of work together, each its share: one for each core the model may use.

PyTorch's own threads share every single operation, and meet after each; over small ones that costs as much as they
take. Here the work is cut once: a thread has its rows through a whole layer, and PyTorch in it uses no others.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from queue import SimpleQueue

import numpy as np

from indexer.cores import set_for_new_threads, work_alone

Work = Callable[[int], None]


class Crew:
    """`size` threads that wait for work. `counters` (1 + size,) int64 are for them to wait for each other by."""

    def __init__(self, size: int) -> None:
        import torch

        self.size = size
        self.counters = np.zeros(1 + size, np.int64)
        self._lock = threading.Lock()
        self._inboxes = [SimpleQueue[Work]() for _ in range(size)]
        self._done = SimpleQueue[BaseException | None]()
        usual = torch.get_num_threads()
        for number, inbox in enumerate(self._inboxes):
            arguments = (number, inbox, self._done)
            threading.Thread(target=_serve, args=arguments, name=f"tandem-crew-{number}", daemon=True).start()
            self._done.get()
        set_for_new_threads(usual)

    def do(self, work: Work) -> None:
        """Call work(number) in every thread, wait for all of them, and raise the error of one that failed."""
        with self._lock:
            for inbox in self._inboxes:
                inbox.put(work)
            errors: list[BaseException | None] = []
            interrupt: KeyboardInterrupt | None = None
            while len(errors) < self.size:
                try:
                    errors.append(self._done.get())
                except KeyboardInterrupt as raised:
                    # The others go on for the length of a pass; what they report must not be taken for the next one's.
                    interrupt = raised
        if interrupt is not None:
            raise interrupt
        for error in errors:
            if error is not None:
                raise error


@cache
def crew_of(size: int) -> Crew:
    """The crew of this size in this process."""
    return Crew(size)


def _serve(number: int, inbox: SimpleQueue[Work], done: SimpleQueue[BaseException | None]) -> None:
    import torch

    work_alone()
    done.put(None)
    while True:
        work = inbox.get()
        error: BaseException | None = None
        try:
            with torch.inference_mode():
                work(number)
        except BaseException as raised:  # it is raised where the work was asked for
            error = raised
        # What the work holds on to is not kept until the next piece comes.
        del work
        done.put(error)
