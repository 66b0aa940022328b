"""Long work in the background: one job of a kind at a time, with counts, an estimate, cancel and a history on disk."""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from indexer.database import exclusive, transaction
from indexer.errors import TandemError
from indexer.outcome import Cancelled, Outcome, Progress
from indexer.store import Store

log = logging.getLogger(__name__)

State = Literal["queued", "running", "done", "failed", "cancelled"]
FINAL: frozenset[State] = frozenset({"done", "failed", "cancelled"})
HISTORY = 100
# What ends a job that its service did not live to finish; the next service on this home folder does its work again.
STOPPED = "The service stopped while the job ran."
COUNTS = ("added", "changed", "renamed", "deleted", "unchanged", "failed")

Work = Callable[[Callable[[Progress], None], threading.Event], Outcome]


@dataclass(slots=True)
class Job:
    """What /jobs/{id} answers. `done` of `total` are files while `stage` is read, chunks while it is embed."""

    id: str
    kind: str
    state: State = "queued"
    stage: str = ""
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))
    done: int = 0
    total: int = 0
    current: str = ""
    eta_seconds: float | None = None
    failures: list[dict[str, str]] = field(default_factory=list)
    started: str = ""
    finished: str | None = None
    error: str | None = None
    generation: int | None = None


class Jobs:
    """Runs jobs in threads and keeps them in the store. `version` of a running job grows with each change."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._running: dict[str, tuple[Job, threading.Event, threading.Thread]] = {}
        self._stopped: set[str] = set()
        self.interrupted = self._close_interrupted()

    def start(self, kind: str, work: Work, *, fresh: bool = False) -> tuple[Job, bool]:
        """Start a job, or return the one of this kind that is running; the flag tells whether it is new.

        One that is running may have looked at the files already: with `fresh` the job is one that begins after now,
        queued behind the one that runs. At most one is queued.
        """
        with self._changed:
            # One that has ended is still here while its end is written to disk; it must not hold up the next.
            alive = [entry for entry in self._running.values() if entry[0].kind == kind and entry[0].state not in FINAL]
            for job, _, _ in alive:
                if not fresh or job.state == "queued":
                    return job, False
            job = Job(id=secrets.token_hex(8), kind=kind, state="queued" if alive else "running", started=_now())
            cancel, before = threading.Event(), alive[0][2] if alive else None
            with ExitStack() as stack:
                stack.enter_context(_owned(self._store, job.id))
                self._save(job)
                arguments = (job, work, cancel, before, stack.pop_all())
            thread = threading.Thread(target=self._run, args=arguments, name=f"job-{kind}", daemon=True)
            self._running[job.id] = (job, cancel, thread)
            thread.start()
        return job, True

    def get(self, job_id: str) -> dict[str, Any]:
        """The job as JSON. Raises TandemError not_found."""
        with self._changed:
            if job_id in self._running:
                return asdict(self._running[job_id][0])
        with self._store.connection() as connection:
            row = connection.execute("SELECT body FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise TandemError("There is no such job.", do="`GET /jobs` lists the last ones.", code="not_found")
        return dict(json.loads(row[0]))

    def list(self) -> list[dict[str, Any]]:
        """The last jobs, newest first."""
        with self._store.connection() as connection:
            rows = connection.execute(
                "SELECT id FROM jobs ORDER BY created DESC, rowid DESC LIMIT ?", (HISTORY,)
            ).fetchall()
        return [self.get(row[0]) for row in rows]

    def cancel(self, job_id: str) -> dict[str, Any]:
        """Ask a job to stop; one that has ended stays as it is. Raises TandemError not_found."""
        with self._changed:
            if job_id in self._running:
                self._running[job_id][1].set()
        return self.get(job_id)

    def wait(self, job_id: str, seen: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        """The job once it differs from `seen`, or after so many seconds as it is then."""
        deadline = time.monotonic() + seconds
        while True:
            body = self.get(job_id)
            left = deadline - time.monotonic()
            if body != seen or left <= 0:
                return body
            with self._changed:
                self._changed.wait(min(left, 0.5))

    def close(self) -> None:
        """Stop what runs and wait for it; as after a kill, the next service does its work again."""
        with self._changed:
            running = list(self._running.values())
            self._stopped = {job.id for job, cancel, _ in running if not cancel.is_set()}
        for _, cancel, _ in running:
            cancel.set()
        for _, _, thread in running:
            thread.join()

    def _run(
        self, job: Job, work: Work, cancel: threading.Event, before: threading.Thread | None, owned: ExitStack
    ) -> None:
        meter = _Meter()

        def report(progress: Progress) -> None:
            self._update(job, stage=progress.stage, done=progress.done, total=progress.total, current=progress.current)
            self._update(job, eta_seconds=meter.eta(progress))

        ended: dict[str, Any]
        try:
            self._await(job, cancel, before)
            outcome = work(report, cancel)
        except Cancelled:
            stopped = job.id in self._stopped
            ended = {"state": "failed", "error": STOPPED} if stopped else {"state": "cancelled"}
        except TandemError as error:
            ended = {"state": "failed", "error": str(error)}
        except Exception:
            log.exception("job %s failed", job.id)
            ended = {"state": "failed", "error": "An internal error; the service's log has the details."}
        else:
            counts = {name: getattr(outcome, name) for name in COUNTS if name != "failed"}
            ended = {
                "state": "done",
                "counts": {**counts, "failed": len(outcome.failed)},
                "failures": outcome.failed,
                "generation": outcome.generation,
            }
        self._update(job, **ended, finished=_now(), current="", eta_seconds=None)
        try:
            self._save(job)
        except sqlite3.Error:
            log.exception("job %s has ended, and that could not be recorded", job.id)
        owned.close()
        with self._changed:
            del self._running[job.id]
            self._changed.notify_all()

    def _await(self, job: Job, cancel: threading.Event, before: threading.Thread | None) -> None:
        """Wait for the job before this one. Raises Cancelled."""
        while before is not None and before.is_alive():
            before.join(0.1)
            if cancel.is_set():
                raise Cancelled
        self._update(job, state="running")

    def _update(self, job: Job, **values: Any) -> None:
        with self._changed:
            for name, value in values.items():
                setattr(job, name, value)
            self._changed.notify_all()

    def _save(self, job: Job) -> None:
        with self._store.connection() as connection, transaction(connection):
            connection.execute(
                "INSERT INTO jobs VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET body = excluded.body",
                (job.id, job.kind, job.started, json.dumps(asdict(job))),
            )
            connection.execute(
                "DELETE FROM jobs WHERE id NOT IN (SELECT id FROM jobs ORDER BY created DESC, rowid DESC LIMIT ?)",
                (HISTORY,),
            )

    def _close_interrupted(self) -> bool:
        """Jobs that a killed service left running have failed; whether the last job of all ended so, to be done again.

        Those that another process on this home folder still runs are left alone. A job that was started after the
        one that was stopped has seen everything that this one was for.
        """
        with self._store.connection() as connection, transaction(connection):
            for row in connection.execute("SELECT id, body FROM jobs").fetchall():
                body = json.loads(row["body"])
                if body["state"] not in FINAL and not _is_owned(self._store, row["id"]):
                    body.update(state="failed", error=STOPPED, finished=_now())
                    connection.execute("UPDATE jobs SET body = ? WHERE id = ?", (json.dumps(body), row["id"]))
            last = connection.execute("SELECT body FROM jobs ORDER BY created DESC, rowid DESC LIMIT 1").fetchone()
        return last is not None and json.loads(last[0]).get("error") == STOPPED


class _Meter:
    """Seconds left, from the rate since the stage began."""

    def __init__(self) -> None:
        self._stage = ""
        self._start = 0.0

    def eta(self, progress: Progress) -> float | None:
        now = time.monotonic()
        if progress.stage != self._stage:
            self._stage, self._start = progress.stage, now
        if progress.done == 0:
            return None
        return round((now - self._start) / progress.done * (progress.total - progress.done), 1)


@contextmanager
def _owned(store: Store, job_id: str) -> Iterator[None]:
    """Hold a lock that the kernel drops when this process ends, so that others see whether the job still runs."""
    busy = TandemError("Another process runs this job.", code="conflict")
    with exclusive(store.home, f"job-{job_id}", busy):
        try:
            yield
        finally:
            (store.home / f"job-{job_id}.lock").unlink(missing_ok=True)


def _is_owned(store: Store, job_id: str) -> bool:
    try:
        with _owned(store, job_id):
            return False
    except TandemError:
        return True


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
