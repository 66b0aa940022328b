"""What HTTP adds to an answer and to a search: the same questions asked in the process and over a kept connection.

    python tests/benchmarks/http_overhead.py [--requests 500]

The model is scripted and the embedder hashes words (tests/scripted_server.py), so an answer takes a few milliseconds
and what is around it can be seen. Beside the time on the clock stands the processor time of the process that answers,
which other work on the machine hardly changes.
"""

import argparse
import http.client
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "benchmarks"), str(TESTS.parent)]

from fakes import FixedAdapters, HashingEmbedder, ScriptedGenerator  # noqa: E402
from load import start  # noqa: E402
from scripted_server import ANSWERS, reply  # noqa: E402

from indexer.retrieval import Retriever  # noqa: E402
from indexer.store import Store  # noqa: E402
from service.answering import Answerer  # noqa: E402
from service.question import Question  # noqa: E402
from service.settings import Settings  # noqa: E402

BATCH = 50


def answerer(home: Path) -> Answerer:
    """As tests/scripted_server.py has it."""
    settings = Settings(home=home, chunk_tokens=40, chunk_overlap=8, max_tokens=4000)
    retriever = Retriever(Store(home), HashingEmbedder())
    return Answerer(retriever, ScriptedGenerator(reply, window=9000), settings, FixedAdapters())


def request(connection: http.client.HTTPConnection, method: str, path: str, body: str | None = None) -> object:
    connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
    response = connection.getresponse()
    data = response.read()
    if response.status != 200:
        raise SystemExit(f"{response.status}: {data[:300]!r}")
    return data


def processor_ms(pid: int) -> float:
    """Processor time of a process with all its threads, ended ones too: the clock of clock_getcpuclockid(3)."""
    return time.clock_gettime(((~pid) << 3) | 2) * 1000


def measure(calls: dict[str, tuple[int, Callable[[str], object]]], count: int) -> dict[str, tuple[float, float, float]]:
    """p50 and p95 on the clock and the mean processor time of each call, in milliseconds; in turns of 50."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    for turn in range(-1, count // BATCH):
        for name, (pid, call) in calls.items():
            before = processor_ms(pid)
            found = []
            for number in range(BATCH):
                text = list(ANSWERS)[number % len(ANSWERS)]
                started = time.perf_counter()
                call(text)
                found.append((time.perf_counter() - started) * 1000)
            if turn >= 0:  # the first turn is to warm up
                times[name] += found
                spent[name] += processor_ms(pid) - before
    result = {}
    for name, found in times.items():
        cuts = statistics.quantiles(found, n=20, method="inclusive")
        result[name] = (cuts[9], cuts[18], spent[name] / len(found))
    return result


def run(home: Path, url: str, pid: int, count: int) -> dict[str, tuple[float, float, float]]:
    inside, address = answerer(home), urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)

    def ask(text: str) -> object:
        return request(connection, "POST", "/ask", json.dumps({"question": text, "mode": "rag"}))

    calls: dict[str, tuple[int, Callable[[str], object]]] = {
        "Answerer.answer": (os.getpid(), lambda text: inside.answer(Question(text, "rag"))),
        "POST /ask": (pid, ask),
        "Retriever.retrieve": (os.getpid(), lambda text: inside.retriever.retrieve(text, 4)),
        "GET /search": (pid, lambda text: request(connection, "GET", f"/search?question={quote(text)}")),
        "GET /healthz": (pid, lambda text: request(connection, "GET", "/healthz")),
    }
    return measure(calls, count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        process, url = start(Path(name))
        try:
            found = run(Path(name) / "home", url, process.pid, options.requests)
        finally:
            process.terminate()
            process.wait()
    print("| | p50 ms | p95 ms | processor ms |\n|---|---|---|---|")
    for name, values in found.items():
        print(f"| {name} | {' | '.join(f'{value:.2f}' for value in values)} |")
    for inside, outside in (("Answerer.answer", "POST /ask"), ("Retriever.retrieve", "GET /search")):
        added = (after - before for before, after in zip(found[inside], found[outside], strict=True))
        print(f"| {outside} adds | {' | '.join(f'{value:.2f}' for value in added)} |")


if __name__ == "__main__":
    main()
