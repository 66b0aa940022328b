"""What it takes to answer with another adapter than the request before: the bundled model, two adapters, one service.

    python tests/benchmarks/adapter_swap.py --weights WEIGHTS_FOLDER [--requests 40]

Two random LoRA adapters of rank 16 on every linear layer are attached to the int8 model of a running service. Requests
over HTTP name the one, the other or none in turn; timed is every switch inside of the service that changes something.
"""

import argparse
import http.client
import json
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import uvicorn

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from conftest import write_library  # noqa: E402
from fakes import HashingEmbedder, wait_until  # noqa: E402
from small_models import save_adapter  # noqa: E402

from indexer.chunking import ChunkSize  # noqa: E402
from indexer.store import Store  # noqa: E402
from indexer.sync import sync  # noqa: E402
from service.api.app import create_app  # noqa: E402
from service.assembly import load_answerer  # noqa: E402
from service.running import Service  # noqa: E402
from service.settings import Settings  # noqa: E402
from tuner.attach import AttachedAdapters  # noqa: E402

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ORDER = ("one", "two", None, "two", "one", None)


class Timed:
    """In place of AttachedAdapters.switch: the time of each call that switches to another adapter, or to none."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = {"to the other": [], "on": [], "off": []}
        self.processor: list[float] = []

    def install(self) -> None:
        switch = AttachedAdapters.switch

        def timed(attached: AttachedAdapters, key: str | None) -> None:
            before = attached._on
            started, used = time.perf_counter(), time.thread_time()
            switch(attached, key)
            if key != before:
                kind = "off" if key is None else "on" if before is None else "to the other"
                self.wall[kind].append((time.perf_counter() - started) * 1000)
                self.processor.append((time.thread_time() - used) * 1000)

        AttachedAdapters.switch = timed  # type: ignore[method-assign]


def make_service(folder: Path, weights: Path) -> Service:
    settings = Settings(home=folder / "home", weights=weights, max_tokens=2, answer_cache=0, min_relevance=-1)
    store = Store(settings.home)
    sync(store, [write_library(folder / "corpus")], HashingEmbedder(), ChunkSize(40, 8))
    answerer = load_answerer(settings, store, embedder=HashingEmbedder())
    for seed, name in enumerate(("one", "two")):
        path = settings.home / "adapters" / name
        save_adapter(path, answerer.generator.base, seed=seed, rank=16, targets=LINEAR)  # type: ignore[attr-defined]
    return Service(settings, store, answerer)


def ask(port: int, adapter: str | None) -> float:
    """Milliseconds of a closed-book answer of two tokens."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    body = {"question": "What is iron?", "mode": "tuned" if adapter else "base"} | (
        {"adapter": adapter} if adapter else {}
    )
    started = time.perf_counter()
    connection.request("POST", "/ask", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    data = response.read()
    if response.status != 200:
        raise SystemExit(data.decode())
    connection.close()
    return (time.perf_counter() - started) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="the folder that holds the bundled weights")
    parser.add_argument("--requests", type=int, default=40)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        service = make_service(Path(name), options.weights.resolve())
        server = uvicorn.Server(uvicorn.Config(create_app(service), port=0, log_level="error", ws="none"))
        thread = threading.Thread(target=server.run)
        thread.start()
        wait_until(lambda: server.started, 30)
        port = server.servers[0].sockets[0].getsockname()[1]
        attaching = {adapter: ask(port, adapter) for adapter in ("one", "two", None)}
        timed = Timed()
        timed.install()
        for number in range(options.requests):
            ask(port, ORDER[number % len(ORDER)])
        server.should_exit = True
        thread.join()
    print("| switch | times | p50 ms | largest ms |\n|---|---|---|---|")
    for kind, found in timed.wall.items():
        if found:
            print(f"| {kind} | {len(found)} | {statistics.median(found):.2f} | {max(found):.2f} |")
    if timed.processor:
        print(f"\nprocessor time of a switch, median: {statistics.median(timed.processor):.2f} ms")
    print(f"first answers, with attaching: {attaching['one']:.0f} and {attaching['two']:.0f} ms")


if __name__ == "__main__":
    main()
