"""The parent's side of parsing: one long-lived child process, replaced when a file makes it crash, hang or swell."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from indexer.errors import ErrorCode, TandemError
from indexer.loaders.formats import SUPPORTED, format_of
from indexer.loaders.limits import Limits
from indexer.loaders.parsed import Parsed, oversized
from indexer.records import Heading, Page

_READ_BYTES = 1 << 20
_KEPT_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "TMPDIR")
_PACKAGES = Path(__file__).resolve().parents[2]


class _ChildEnded(Exception):
    """The child stopped before its answer was complete."""


class _OutOfTime(Exception):
    """The wall-clock limit passed."""


class _OutOfMemory(Exception):
    """The child met its memory limit."""


class Loader:
    """Parses files one at a time in a limited child process; a context manager, safe to share between threads.

    The child starts on the first file and stays for the next ones (its imports cost half a second, a small file one
    millisecond). It sees no keys: only a handful of environment variables are passed on.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._answered = 0  # files this child has parsed

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child; a later parse starts another."""
        with self._lock:
            self._stop()

    def parse(self, path: str | os.PathLike[str]) -> list[Parsed]:
        """The documents of one file: one, or one for each record of a .jsonl or .mbox file.

        Raises TandemError when the file cannot be read, has no text or passes a limit; the loader stays usable.
        """
        path = Path(path)
        self._check(path)
        with self._lock:
            try:
                return self._parse(path)
            except TandemError:  # a complete answer: the child is ready for the next file
                raise
            except _ChildEnded:
                raise self._ended(path) from None
            except BaseException as error:
                self._stop()  # it may still be busy with this file
                raise self._explained(path, error) from None

    def _check(self, path: Path) -> None:
        """Refuse, before reading, what the child could not or should not open."""
        if format_of(path) is None:
            raise TandemError(
                f"{path.name} is in no format that can be read.",
                expected=f"One of {' '.join(sorted(SUPPORTED))}.",
                do="Convert it, or leave it out.",
            )
        try:
            status = path.stat()
        except OSError as error:
            raise TandemError(f"{path} cannot be opened: {error.strerror}.", code="not_found") from error
        if not stat.S_ISREG(status.st_mode):
            raise TandemError(f"{path} is not a file.", expected="A regular file, not a folder, pipe or device.")
        if not os.access(path, os.R_OK):
            raise TandemError(
                f"{path} may not be read.", do="Give the user that runs this command the right to read it."
            )
        if status.st_size > self.limits.input_bytes:
            raise oversized(path.name, f"{status.st_size:,} bytes, {self.limits.input_bytes:,} allowed")

    def _parse(self, path: Path) -> list[Parsed]:
        """Ask the child; again in a fresh one when a used one, which keeps what it has loaded, ran out of memory."""
        fresh = self._ensure()
        try:
            return self._ask(path)
        except _OutOfMemory:
            if fresh:
                raise
            self._stop()
            self._ensure()
            return self._ask(path)

    def _ask(self, path: Path) -> list[Parsed]:
        assert self._child is not None and self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps({"path": os.fspath(path.absolute())}).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise _ChildEnded from None
        found: list[Parsed] = []
        for message in self._replies(self._child, time.monotonic() + self.limits.wall_seconds):
            if "document" in message:
                found.append(from_json(message["document"]))
            elif "memory" in message:
                raise _OutOfMemory
            else:
                self._answered += 1
                if "error" in message:
                    parts = message["error"]
                    raise TandemError(parts["happened"], expected=parts["expected"], do=parts["do"], code=parts["code"])
                break
        return found

    def _replies(self, child: subprocess.Popen[bytes], deadline: float) -> Iterator[dict[str, Any]]:
        """The child's messages until `deadline` (a time.monotonic value)."""
        assert child.stdout is not None
        descriptor = child.stdout.fileno()
        pending = bytearray()
        while True:
            while (end := pending.find(b"\n")) < 0:
                left = deadline - time.monotonic()
                if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                    raise _OutOfTime
                piece = os.read(descriptor, _READ_BYTES)
                if not piece:
                    raise _ChildEnded
                pending += piece
            line = bytes(pending[:end])
            del pending[: end + 1]
            yield json.loads(line)

    def _ensure(self) -> bool:
        """Have a living child; whether it is one that has parsed nothing yet."""
        if self._child is not None and self._child.poll() is not None:
            self._stop()
        if self._child is None:
            kept = {key: os.environ[key] for key in _KEPT_ENVIRONMENT if key in os.environ}
            search = os.pathsep.join(filter(None, (os.fspath(_PACKAGES), os.environ.get("PYTHONPATH"))))
            self._child = subprocess.Popen(
                # -P: a folder of documents that holds a lxml.py must not become a library.
                [sys.executable, "-P", "-B", "-m", "indexer.loaders.child", json.dumps(asdict(self.limits))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**kept, "PYTHONPATH": search, "PYTHONUTF8": "1"},
            )
            self._answered = 0
        return self._answered == 0

    def _stop(self) -> int:
        """End the child, if there is one; its return code."""
        child, self._child = self._child, None
        if child is None:
            return 0
        child.kill()
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):  # what it had not read of the last request
                    pipe.close()
        return code

    def _ended(self, path: Path) -> TandemError:
        """Why the child ended while it parsed `path`."""
        assert self._child is not None
        code = self._child.wait()
        self._stop()
        if code == -signal.SIGXCPU:
            return self._stopped(path, f"used more than {self.limits.cpu_seconds} seconds of processor time", "timeout")
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return self._stopped(path, f"made its parser crash ({how})", "invalid_request")

    def _explained(self, path: Path, error: BaseException) -> BaseException:
        """A passed limit as a TandemError; any other error, such as a keyboard interrupt, as it is."""
        if isinstance(error, _OutOfTime):
            return self._stopped(path, f"took longer than {self.limits.wall_seconds:g} seconds", "timeout")
        if isinstance(error, _OutOfMemory):
            needed = f"{self.limits.memory_bytes / 2**30:.3g} GiB"
            return self._stopped(path, f"needed more than {needed} of memory", "too_large")
        return error

    def _stopped(self, path: Path, what: str, code: ErrorCode) -> TandemError:
        return TandemError(
            f"{path.name} {what}; its parsing was stopped.",
            expected="A file that can be read within the limits.",
            do="Split the file, save it again from the program that made it, or leave it out.",
            code=code,
        )


def from_json(value: dict[str, Any]) -> Parsed:
    """The inverse of child.as_json."""
    return Parsed(
        title=value["title"],
        format=value["format"],
        text=value["text"],
        pages=tuple(Page(*page) for page in value["pages"]),
        headings=tuple(Heading(*heading) for heading in value["headings"]),
        metadata=value["metadata"],
        record=value["record"],
    )
