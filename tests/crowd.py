"""Many clients at once against a running service, each of which knows what it must be answered."""

import http.client
import json
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from scripted_server import ANSWERS


@dataclass
class Tally:
    """How requests ended: `right`, `busy` (429 or 503 with Retry-After), `left` (by us half-way), or what was wrong."""

    counts: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, outcome: str, seconds: float) -> None:
        with self.lock:
            self.counts[outcome] += 1
            if outcome == "right":
                self.seconds.append(seconds)

    @property
    def wrong(self) -> dict[str, int]:
        return {name: count for name, count in self.counts.items() if name not in ("right", "busy", "left")}


def crowd(url: str, clients: int, seconds: float, keys: list[str] | None = None) -> Tally:
    """So many clients ask, one question after the other, for so long."""
    tally, deadline = Tally(), time.monotonic() + seconds

    def client(number: int) -> None:
        chance = random.Random(number)
        headers = {"Content-Type": "application/json"}
        if keys:
            headers["Authorization"] = f"Bearer {keys[number % len(keys)]}"
        while time.monotonic() < deadline:
            started = time.monotonic()
            try:
                outcome = ask(url, chance, headers)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                outcome = f"broken: {error!r:.100}"
            tally.add(outcome, time.monotonic() - started)
            if outcome == "busy":
                time.sleep(chance.uniform(0.02, 0.2))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 60)
        assert not thread.is_alive(), "a client was never answered"
    return tally


def ask(url: str, chance: random.Random, headers: dict[str, str]) -> str:
    """One question, streamed or not, from documents or not, sometimes left half-way; how it ended."""
    stream, leaves = chance.random() < 0.5, chance.random() < 0.1
    if chance.random() < 0.5:
        question, expected = chance.choice(list(ANSWERS.items()))
        body = {"question": question, "mode": "rag"}
    else:
        code = f"code{chance.randrange(10**12)}x"
        expected = f"The word is {code}, and it is {code} again."
        body = {"question": f"Say the word {code} twice.", "mode": "base"}
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    try:
        connection.request("POST", "/ask", json.dumps({**body, "stream": stream}), headers)
        if leaves:
            time.sleep(chance.uniform(0, 0.05))
            return "left"
        response = connection.getresponse()
        data = response.read()
        if response.status in (429, 503):
            return "busy" if int(response.headers.get("Retry-After") or 0) > 0 else "busy without Retry-After"
        if response.status != 200:
            return f"status {response.status}"
        return verdict(data, expected, stream)
    finally:
        connection.close()


def verdict(data: bytes, expected: str, stream: bool) -> str:
    if not stream:
        answer = json.loads(data)["answer"]
        return "right" if answer == expected else f"wrong answer: {answer[:80]!r}"
    blocks = [block for block in data.decode().split("\n\n") if block and not block.startswith(":")]
    events = [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]
    said = "".join(json.loads(event["data"])["text"] for event in events if event["event"] == "token")
    last = events[-1]
    if last["event"] == "error":
        # A stream has its status already when the queue turns out to be full.
        code = json.loads(last["data"])["error"]["code"]
        return "busy" if code == "unavailable" else f"error event: {code}"
    if last["event"] != "done":
        return "lost: no last event"
    answer = json.loads(last["data"])["answer"]
    return "right" if answer == said == expected else f"wrong stream: {said[:80]!r}"
