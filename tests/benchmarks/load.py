"""64 clients for ten minutes: answers that were right, wrong or lost, and whether memory stays flat.

    python tests/benchmarks/load.py --seconds 600 --clients 64
    python tests/benchmarks/load.py --url http://127.0.0.1:8000 --pid 4711   # a service that runs already

The models are scripted (tests/scripted_server.py), so that what is measured is the service around them and every
client knows the answer that it must get. The slope of the memory is that of a straight line through the samples of
the second half, when caches and threads are there.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from conftest import write_library  # noqa: E402
from crowd import crowd  # noqa: E402
from fakes import HashingEmbedder  # noqa: E402

from indexer.chunking import ChunkSize  # noqa: E402
from indexer.store import Store  # noqa: E402
from indexer.sync import sync  # noqa: E402


def resident(pid: int) -> float:
    """MiB in memory now."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise SystemExit("no VmRSS in /proc: this needs Linux")


def slope(samples: list[tuple[float, float]]) -> float:
    """MiB a minute: the least-squares line through (seconds, MiB)."""
    half = samples[len(samples) // 2 :]
    mean_x = sum(x for x, _ in half) / len(half)
    mean_y = sum(y for _, y in half) / len(half)
    spread = sum((x - mean_x) ** 2 for x, _ in half)
    return 60 * sum((x - mean_x) * (y - mean_y) for x, y in half) / spread


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    store = Store(folder / "home")
    sync(store, [write_library(folder / "corpus")], HashingEmbedder(), ChunkSize(40, 8))
    store.close()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    process = subprocess.Popen(
        [sys.executable, str(TESTS / "scripted_server.py"), str(folder / "home"), json.dumps({"log_level": "error"})],
        env=environment | {"PYTHONPATH": str(TESTS.parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    return process, f"http://127.0.0.1:{process.stdout.readline().strip()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--url", help="of a scripted server that runs already")
    parser.add_argument("--pid", type=int, help="its process")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process = None
        if options.url:
            url, pid = options.url, options.pid
        else:
            process, url = start(Path(folder))
            pid = process.pid
        samples: list[tuple[float, float]] = []
        done = threading.Event()

        def sample() -> None:
            began = time.monotonic()
            while not done.wait(1):
                samples.append((time.monotonic() - began, resident(pid)))

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            tally = crowd(url, options.clients, options.seconds)
        finally:
            done.set()
            sampler.join()
            if process:
                process.terminate()
                process.wait()
    times = sorted(tally.seconds)
    print("| figure | value |\n|---|---|")
    print(f"| clients, seconds | {options.clients}, {options.seconds:g} |")
    for name in ("right", "busy", "left"):
        print(f"| {name} | {tally.counts[name]:,} |")
    print(f"| wrong, mixed or lost | {sum(tally.wrong.values())} {tally.wrong or ''} |")
    print(f"| answered in, median and p95 | {times[len(times) // 2]:.3f}, {times[len(times) * 95 // 100]:.3f} s |")
    print(f"| memory, first and last | {samples[0][1]:.1f}, {samples[-1][1]:.1f} MiB |")
    print(f"| memory slope in the second half | {slope(samples):+.3f} MiB a minute |")
    raise SystemExit(1 if tally.wrong else 0)


if __name__ == "__main__":
    main()
