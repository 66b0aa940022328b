import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import wait_until

from indexer.errors import TandemError
from indexer.outcome import Cancelled, Outcome, Progress
from indexer.store import Store
from service.jobs import FINAL, HISTORY, STOPPED, Jobs

Report = Callable[[Progress], None]


class Work:
    """Work that goes on until it is told how to end; it reports what it is given."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.end = threading.Event()
        self.runs = 0
        self.error: Exception | None = None
        self.outcome = Outcome(
            7, added=1, changed=2, renamed=3, deleted=4, unchanged=5, failed=[{"document": "a", "reason": "b"}]
        )
        self.progress: list[Progress] = []

    def __call__(self, report: Report, cancel: threading.Event) -> Outcome:
        self.runs += 1
        for progress in self.progress:
            report(progress)
        self.started.set()
        while not self.end.wait(0.005):
            if cancel.is_set():
                raise Cancelled
        if self.error:
            raise self.error
        return self.outcome


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def jobs(store: Store) -> Iterator[Jobs]:
    made = Jobs(store)
    yield made
    made.close()


@pytest.fixture
def work() -> Iterator[Work]:
    made = Work()
    yield made
    made.end.set()


def ended(jobs: Jobs, job_id: str) -> dict[str, Any]:
    wait_until(lambda: jobs.get(job_id)["state"] in FINAL)
    return jobs.get(job_id)


def test_a_job_from_start_to_end(jobs: Jobs, work: Work) -> None:
    work.progress = [Progress("read", 1, 4, "a.md")]
    job, is_new = jobs.start("reindex", work)
    assert is_new
    work.started.wait(5)
    running = jobs.get(job.id)
    assert (running["state"], running["stage"], running["done"], running["total"]) == ("running", "read", 1, 4)
    assert (running["current"], running["finished"], running["generation"]) == ("a.md", None, None)
    assert running["eta_seconds"] is not None and running["eta_seconds"] >= 0
    work.end.set()
    body = ended(jobs, job.id)
    assert body["state"] == "done"
    assert body["counts"] == {"added": 1, "changed": 2, "renamed": 3, "deleted": 4, "unchanged": 5, "failed": 1}
    assert body["failures"] == [{"document": "a", "reason": "b"}]
    assert (body["generation"], body["error"], body["current"], body["eta_seconds"]) == (7, None, "", None)
    assert body["started"] <= body["finished"]
    json.dumps(body)


def test_only_one_of_a_kind_runs_even_when_many_start_at_once(jobs: Jobs, work: Work) -> None:
    barrier, made = threading.Barrier(8), list[tuple[str, bool]]()

    def start() -> None:
        barrier.wait()
        job, is_new = jobs.start("reindex", work)
        made.append((job.id, is_new))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({job_id for job_id, _ in made}) == 1
    assert sorted(is_new for _, is_new in made) == [False] * 7 + [True]
    other, is_new = jobs.start("tune", work)
    assert is_new and other.id != made[0][0]
    work.end.set()
    ended(jobs, made[0][0])
    ended(jobs, other.id)
    assert work.runs == 2


def test_whoever_sees_the_end_of_a_job_can_start_the_next(jobs: Jobs, store: Store) -> None:
    work = Work()
    work.end.set()
    last = ""
    for _ in range(20):
        job, is_new = jobs.start("reindex", work)
        assert is_new and job.id != last
        body = jobs.get(job.id)
        while body["state"] not in FINAL:
            body = jobs.wait(job.id, body, 1.0)
        last = job.id


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TandemError("The corpus is gone.", do="Bring it back."), "The corpus is gone. Bring it back."),
        (RuntimeError("secret detail"), "An internal error; the service's log has the details."),
    ],
)
def test_a_job_that_fails_says_why(jobs: Jobs, work: Work, error: Exception, told: str) -> None:
    work.error = error
    work.end.set()
    body = ended(jobs, jobs.start("reindex", work)[0].id)
    assert (body["state"], body["error"]) == ("failed", told)
    assert body["finished"] is not None


def test_cancel(jobs: Jobs, work: Work) -> None:
    job, _ = jobs.start("reindex", work)
    work.started.wait(5)
    jobs.cancel(job.id)
    body = ended(jobs, job.id)
    assert (body["state"], body["generation"]) == ("cancelled", None)
    assert jobs.cancel(job.id) == body, "one that has ended stays as it is"


def test_what_does_not_exist(jobs: Jobs) -> None:
    for call in (jobs.get, jobs.cancel):
        with pytest.raises(TandemError, match="no such job") as caught:
            call("nope'; DROP TABLE jobs; --\x00")
        assert caught.value.code == "not_found"
    assert jobs.list() == []


def test_history_is_newest_first_bounded_and_survives_a_restart(jobs: Jobs, store: Store) -> None:
    work = Work()
    work.end.set()
    made = []
    for _ in range(5):
        made.append(jobs.start("reindex", work)[0].id)
        ended(jobs, made[-1])
    with store.connection() as connection:
        for number in range(HISTORY):
            body = json.dumps({"id": f"old{number}", "state": "done"})
            connection.execute("INSERT INTO jobs VALUES (?, 'reindex', '1999-01-01', ?)", (f"old{number}", body))
    made.append(jobs.start("reindex", work)[0].id)
    before = ended(jobs, made[-1])
    jobs.close()
    again = Jobs(store)
    assert [body["id"] for body in again.list()][:6] == made[::-1]
    assert again.get(made[-1]) == before
    with store.connection() as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone()[0] == HISTORY


def test_a_job_that_a_stopped_service_left_behind_has_failed(store: Store) -> None:
    # What a start after kill -9 finds: a job that runs, and no process that holds its lock.
    left = json.dumps({"id": "left", "kind": "reindex", "state": "running", "finished": None})
    with store.connection() as connection:
        connection.execute("INSERT INTO jobs VALUES ('left', 'reindex', '2026-01-01', ?)", (left,))
    (store.home / "job-left.lock").touch()
    body = Jobs(store).get("left")
    assert (body["state"], body["error"]) == ("failed", "The service stopped while the job ran.")
    assert body["finished"] is not None
    assert not list(store.home.glob("job-*.lock"))


def test_a_second_service_leaves_the_jobs_of_the_first_alone(jobs: Jobs, store: Store, work: Work) -> None:
    job, _ = jobs.start("reindex", work)
    work.started.wait(5)
    second = Jobs(store)
    assert second.get(job.id)["state"] == "running"
    jobs.cancel(job.id)
    wait_until(lambda: second.get(job.id)["state"] == "cancelled")
    wait_until(lambda: not list(store.home.glob("job-*.lock")))


@pytest.mark.parametrize("by_request", [False, True])
def test_closing_stops_and_waits_and_the_work_is_left_to_the_next_service(
    store: Store, work: Work, by_request: bool
) -> None:
    jobs = Jobs(store)
    job, _ = jobs.start("reindex", work)
    work.started.wait(5)
    if by_request:
        # What someone cancelled was not cut off, whatever happens then.
        jobs.cancel(job.id)
    jobs.close()
    body = jobs.get(job.id)
    assert (body["state"], body["error"]) == (("cancelled", None) if by_request else ("failed", STOPPED))
    assert Jobs(store).interrupted is not by_request
    done, _ = jobs.start("reindex", lambda report, cancel: Outcome())
    wait_until(lambda: jobs.get(done.id)["state"] == "done")
    assert not Jobs(store).interrupted, "the later job has done it"
    wait_until(lambda: not list(store.home.glob("job-*.lock")))
    assert not [thread for thread in threading.enumerate() if thread.name == "job-reindex"]


def test_wait_returns_on_a_change_and_not_before(jobs: Jobs, work: Work) -> None:
    job, _ = jobs.start("reindex", work)
    work.started.wait(5)
    seen = jobs.get(job.id)
    started = time.monotonic()
    assert jobs.wait(job.id, seen, 0.1) == seen
    assert time.monotonic() - started >= 0.1
    threading.Timer(0.05, work.end.set).start()
    started = time.monotonic()
    assert jobs.wait(job.id, seen, 5.0) != seen
    assert time.monotonic() - started < 2


def test_a_job_that_cannot_be_recorded_is_not_started(jobs: Jobs, store: Store, work: Work) -> None:
    with store.connection() as connection:
        connection.execute("ALTER TABLE jobs RENAME TO away")
    with pytest.raises(sqlite3.OperationalError):
        jobs.start("reindex", work)
    assert work.runs == 0
    with store.connection() as connection:
        connection.execute("ALTER TABLE away RENAME TO jobs")
    job, is_new = jobs.start("reindex", work)
    assert is_new, "the one that failed does not hold the place"
    with store.connection() as connection:
        connection.execute("ALTER TABLE jobs RENAME TO away")
    work.end.set()
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "job-reindex"])
    with store.connection() as connection:
        connection.execute("ALTER TABLE away RENAME TO jobs")
    assert jobs.start("reindex", work)[1], "nor does one whose end could not be recorded"
