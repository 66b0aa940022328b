"""uvicorn with bounds: a deadline for receiving requests, and an end in which what was asked is still answered.

At the first signal the service is no longer ready and takes nothing new, while it goes on listening, so that a load
balancer sees why. What is being answered has `drain_seconds`; what is left then is cancelled. A second signal ends
the process at once: nothing that was committed is lost by that (indexer/database.py).
"""

from __future__ import annotations

import asyncio
import resource
import signal
import time
from types import FrameType

import uvicorn

from service.api.app import create_app
from service.api.receipt import receipt_protocol
from service.running import Service

# For the answers to requests that were cancelled to be sent, and their connections closed.
LAST_SECONDS = 1
LOOK_SECONDS = 0.05
FILES = 65_536


class Server(uvicorn.Server):
    """Serves one service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        settings = service.settings
        config = uvicorn.Config(
            create_app(service),
            http=receipt_protocol(settings.receipt_seconds),
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=LAST_SECONDS,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; at the second signal, end."""
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        super().handle_exit(sig, frame)

    async def main_loop(self) -> None:
        """Serve until the first signal, then until nothing is being answered or the time is up."""
        await super().main_loop()
        self._service.drain()
        deadline = time.monotonic() + self._service.settings.drain_seconds
        while self._service.in_flight and time.monotonic() < deadline:
            await asyncio.sleep(LOOK_SECONDS)


def allow_connections() -> None:
    """Raise the soft limit of open files as far as allowed: a connection is a file, and 1,024 are soon used up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
