"""More clients than can be served: all that are answered are answered rightly, all others are told to come back."""

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from crowd import crowd
from fakes import wait_until

from indexer.store import Store
from service.keys import create_key

SERVER = Path(__file__).with_name("scripted_server.py")
SECONDS = 12.0


@pytest.fixture
def start(home: Path) -> Iterator[Callable[..., str]]:
    """start(**options): the address of a scripted server in a process of its own."""
    processes: list[subprocess.Popen[str]] = []

    def run(**options: object) -> str:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
        process = subprocess.Popen(
            [sys.executable, str(SERVER), str(home), json.dumps({"log_level": "error", **options})],
            env=environment | {"PYTHONPATH": str(SERVER.parent.parent)},
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout
        return f"http://127.0.0.1:{process.stdout.readline().strip()}"

    yield run
    for process in processes:
        process.terminate()
        process.wait(20)
        assert process.stdout
        process.stdout.close()


def samples(url: str, key: str) -> dict[str, float]:
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


@pytest.mark.slow
def test_sixty_four_clients_get_right_answers_or_honest_refusals(start: Callable[..., str], home: Path) -> None:
    store = Store(home)
    admin = create_key(store, "ops", "admin")
    keys = [create_key(store, f"user{number}", "user") for number in range(4)]
    store.close()
    url = start(delay=0.002)
    tally = crowd(url, 64, SECONDS, keys)
    assert tally.wrong == {}
    assert tally.counts["right"] > 50 and tally.counts["busy"] > 50 and tally.counts["left"] > 5, tally.counts
    # What was left half-way has freed its place.
    wait_until(lambda: samples(url, admin)["tandem_queue"] == 0 and samples(url, admin)["tandem_in_flight"] == 1)
    found = samples(url, admin)
    answered = sum(count for name, count in found.items() if name.startswith("tandem_answers_total"))
    assert answered >= tally.counts["right"]
    assert not any('status="5xx"' in name and "/ask" not in name for name in found)


@pytest.mark.slow
def test_one_greedy_key_does_not_starve_another(start: Callable[..., str], home: Path) -> None:
    store = Store(home)
    greedy, modest = create_key(store, "greedy", "user"), create_key(store, "modest", "user")
    store.close()
    url = start(delay=0.004, queue=8)
    background = threading.Thread(target=crowd, args=(url, 32, SECONDS, [greedy]))
    background.start()
    time.sleep(1)
    tally = crowd(url, 1, SECONDS - 3, [modest])
    background.join()
    assert tally.wrong == {}
    assert tally.counts["busy"] == 0, "its one question always finds a place"
    assert tally.counts["right"] >= 5
    # Its turn comes after the one that is being answered: two answers of some 20 tokens, not nine.
    assert sorted(tally.seconds)[len(tally.seconds) // 2] < 1
