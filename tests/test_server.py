"""A real process with real signals; the models are scripted, so that an answer takes as long as the test says."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import write_library
from typer.testing import CliRunner

from indexer.store import Store
from service.jobs import FINAL, STOPPED

TIDES = "How often does the moon raise the tides of the ocean?"
TESTS = Path(__file__).parent
SERVER = TESTS / "scripted_server.py"
Start = Callable[..., tuple[subprocess.Popen[str], str]]


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """start(words, delay, drain): a process that serves the library, and its address; killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(words: int = 0, delay: float = 0.0, drain: float = 5.0) -> tuple[subprocess.Popen[str], str]:
        options = {"words": words, "delay": delay, "drain_seconds": drain}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
        said = home.parent / f"server-{len(started)}.log"
        # Into a file: a pipe that nobody reads fills, and whoever logs then waits.
        with said.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, str(SERVER), str(home), json.dumps(options)],
                env=environment | {"PYTHONPATH": str(TESTS.parent)},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        started.append(process)
        assert process.stdout
        port = process.stdout.readline().strip()
        assert port, said.read_text()
        return process, f"http://127.0.0.1:{port}"

    yield run
    for process in started:
        process.kill()
        process.communicate()


def get(url: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"} | (headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def asking(url: str) -> socket.socket:
    """A streamed question that is being answered."""
    port = int(url.rpartition(":")[2])
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    body = json.dumps({"question": TIDES, "stream": True}).encode()
    head = f"POST /ask HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    connection.sendall(f"{head}\r\n\r\n".encode() + body)
    received = b""
    while b"event: token" not in received:
        part = connection.recv(65536)
        assert part, received
        received += part
    return connection


def rest(connection: socket.socket) -> bytes:
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionError:
        pass
    connection.close()
    return received


def test_the_first_signal_lets_answers_finish_and_takes_nothing_new(start: Start) -> None:
    process, url = start(words=25, delay=0.01)
    connection = asking(url)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    status, body = get(f"{url}/readyz")
    assert (status, body["status"]) == (503, "stopping")
    status, body = get(f"{url}/ask", {"question": TIDES})
    assert (status, body["error"]["code"]) == (503, "unavailable")
    assert b"event: done" in rest(connection), "what was asked before is answered"
    assert process.wait(5) == -signal.SIGTERM


def test_what_takes_longer_than_the_drain_is_cancelled(start: Start) -> None:
    process, url = start(words=500, delay=0.02, drain=0.5)
    connection = asking(url)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert b"event: done" not in rest(connection)
    assert process.wait(10) == -signal.SIGTERM
    assert 0.5 <= time.monotonic() - began < 6


def test_a_second_signal_ends_it_at_once(start: Start) -> None:
    process, url = start(words=500, delay=0.02, drain=60)
    connection = asking(url)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(5) == -signal.SIGTERM
    assert time.monotonic() - began < 1
    connection.close()


def test_nothing_to_wait_for_is_not_waited_for(start: Start) -> None:
    process, url = start(drain=60)
    assert get(f"{url}/readyz")[0] == 200
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.wait(10)
    assert time.monotonic() - began < 5


def test_lines_on_standard_error_are_json(start: Start, home: Path) -> None:
    process, url = start()
    get(f"{url}/ask", {"question": TIDES}, {"X-Request-ID": "line-1"})
    process.send_signal(signal.SIGTERM)
    process.wait(10)
    lines = [json.loads(line) for line in (home.parent / "server-0.log").read_text().splitlines()]
    (line,) = (line for line in lines if line.get("route") == "/ask")
    assert line["request_id"] == "line-1" and line["status"] == 200 and line["mode"] == "rag"


def test_two_processes_serve_one_home_while_one_indexes(start: Start, home: Path, library: Path) -> None:
    corpus = home.parent / "corpus"
    corpus.mkdir()
    (corpus / "storks.md").write_text("# Storks\n\nStorks fly to Africa in August.\n")
    (_, first), (_, second) = start(), start()
    generation = get(f"{first}/readyz")[1]["generation"]
    assert get(f"{second}/readyz")[1]["generation"] == generation
    job = get(f"{first}/reindex", {})[1]["job"]["id"]
    wrong = 0
    deadline = time.monotonic() + 30
    while get(f"{first}/jobs/{job}")[1]["state"] == "running" and time.monotonic() < deadline:
        for url in (first, second):
            status, body = get(f"{url}/ask", {"question": TIDES})
            wrong += status != 200 or "twice a day" not in body["answer"]
    assert wrong == 0
    assert get(f"{second}/jobs/{job}")[1]["state"] == "done", "one history for both"
    for url in (first, second):
        assert get(f"{url}/readyz")[1]["generation"] == generation + 1
        found = get(f"{url}/search?question=Where+do+storks+fly+to")[1]
        assert found[0]["document"].endswith("storks.md"), url
    third = start()[1]
    assert get(f"{third}/jobs/{job}")[1]["state"] == "done"


def upload(url: str, name: str, text: str) -> str:
    """Upload a file; the id of the job that was named with the acknowledgement."""
    part = f'Content-Disposition: form-data; name="file"; filename="{name}"'
    form = f"--edge\r\n{part}\r\n\r\n{text}\r\n--edge--\r\n".encode()
    request = urllib.request.Request(f"{url}/documents", form, {"Content-Type": "multipart/form-data; boundary=edge"})
    with urllib.request.urlopen(request, timeout=30) as response:
        assert response.status == 202
        return str(json.loads(response.read())["job"]["id"])


def all_jobs_end(url: str) -> list[dict[str, Any]]:
    """The jobs, newest first, as soon as none runs any more."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        jobs: list[dict[str, Any]] = get(f"{url}/jobs")[1]["jobs"]
        if all(job["state"] in FINAL for job in jobs):
            return jobs
        time.sleep(0.05)
    raise AssertionError(jobs)


def listed(url: str) -> set[str]:
    return {item["document"] for item in get(f"{url}/documents")[1]["documents"]}


@pytest.mark.slow
def test_a_restart_in_the_middle_of_a_reindex_and_a_stream_loses_nothing(start: Start, home: Path) -> None:
    corpus = home.parent / "corpus"
    corpus.mkdir()
    for number in range(4000):
        (corpus / f"{number}.txt").write_text(f"Number {number}. " * 50)
    process, url = start(words=5, delay=0.02)
    generation = get(f"{url}/readyz")[1]["generation"]
    job = upload(url, "kept.md", "The stork is kept in mind.")
    deadline = time.monotonic() + 20
    while (body := get(f"{url}/jobs/{job}")[1])["done"] < 5:
        assert body["state"] == "running" and time.monotonic() < deadline, body
        time.sleep(0.02)
    connection = asking(url)
    process.send_signal(signal.SIGTERM)
    assert b"event: done" in rest(connection), "what was asked before is answered"
    assert process.wait(20) == -signal.SIGTERM
    stopped = Store(home)
    with stopped.read() as snapshot:
        assert snapshot.generation.number == generation, "half of a reindex is not published"
    stopped.close()
    _, url = start()
    jobs = all_jobs_end(url)
    assert [job["state"] for job in jobs[:2]] == ["done", "failed"] and jobs[1]["error"] == STOPPED
    assert {"kept.md", "0.txt", "3999.txt"} <= listed(url), "what was acknowledged is indexed"
    assert get(f"{url}/readyz")[1]["generation"] > generation


def test_two_processes_take_uploads_at_the_same_time(start: Start, home: Path) -> None:
    write_library(home.parent / "corpus")
    urls = [start()[1], start()[1]]
    names: list[list[str]] = [[], []]

    def fill(place: int) -> None:
        for number in range(6):
            upload(urls[place], f"upload-{place}-{number}.md", f"The stork number {place} {number} is here.")
            names[place].append(f"upload-{place}-{number}.md")

    threads = [threading.Thread(target=fill, args=(place,)) for place in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for url in urls:
        assert {job["state"] for job in all_jobs_end(url)} == {"done"}
        assert {*names[0], *names[1]} <= listed(url) and len(names[0]) == len(names[1]) == 6


def test_doctor_looks_at_a_running_service(
    start: Start, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from service.cli import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TANDEM_HOME", str(home))
    process, url = start()
    result = CliRunner().invoke(app, ["doctor", "--url", url, "--json"])
    checks = {check["check"]: check for check in json.loads(result.stdout)["checks"]}
    assert result.exit_code == 0 and checks.keys() == {"alive", "version", "ready", "generation", "modes"}
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "elsewhere"))
    assert "no index here" in CliRunner().invoke(app, ["doctor", "--url", f"{url}/"]).stdout
    process.kill()
    process.wait()
    result = CliRunner().invoke(app, ["doctor", "--url", url])
    assert result.exit_code == 2 and result.stdout.startswith("BAD alive")
    result = CliRunner().invoke(app, ["doctor", "--url", "file:///etc/passwd"])
    assert result.exit_code == 2 and "no address" in result.output
