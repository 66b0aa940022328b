"""Searches while another process syncs the same home over and over: errors, empty results, mixed generations, latency.

python tests/benchmarks/search_while_syncing.py [--requests 10000] [--files 300] [--out result.json]
Every sync replaces every file by its next version, so two versions in one result would be a mixed generation. A result
must also be of the generation it says it is of. The hashing embedder of the tests stands in for the model, so the
times are those of the retrieval. Idle latency is measured before and after, on the same index.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from crash import PlainLoader
from fakes import HashingEmbedder

import indexer.sync
from indexer.chunking import ChunkSize
from indexer.retrieval import Retriever
from indexer.store import Store
from indexer.sync import sync

SIZE = ChunkSize(40, 8)


def write(corpus: Path, version: int, files: int) -> None:
    corpus.mkdir(exist_ok=True)
    for number in range(files):
        text = f"File {number} is of version{version} and says word{number % 97} and word{number % 89}."
        (corpus / f"{number}.txt").write_text(text)


def sync_for_ever(home: Path, corpus: Path, files: int) -> None:
    indexer.sync.Loader = PlainLoader
    version = 1
    store = Store(home)
    while True:
        version += 1
        write(corpus, version, files)
        sync(store, [corpus], HashingEmbedder(), SIZE)
        # A person's folder does not change without a pause either.
        time.sleep(0.2)


def ask(retriever: Retriever, chance: random.Random, count: int) -> tuple[list[float], dict[str, int], set[int]]:
    """Milliseconds of each request, what went wrong, the generations seen."""
    wrong = {"errors": 0, "empty": 0, "mixed": 0}
    times: list[float] = []
    generations: set[int] = set()
    of_generation: dict[int, str] = {}
    for _ in range(count):
        question = f"which file says word{chance.randrange(97)}"
        started = time.perf_counter()
        try:
            found = retriever.retrieve(question, 10)
        except Exception as error:
            print(repr(error), file=sys.stderr)
            wrong["errors"] += 1
            continue
        times.append(1000 * (time.perf_counter() - started))
        versions = {passage.chunk.text.split()[4] for passage in found.passages}
        wrong["empty"] += not versions
        generations.add(found.generation)
        first = of_generation.setdefault(found.generation, min(versions, default=""))
        wrong["mixed"] += len(versions) > 1 or versions != {first}
    return times, wrong, generations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    chance = random.Random(5)
    with tempfile.TemporaryDirectory() as name:
        home, corpus = Path(name, "home"), Path(name, "corpus")
        write(corpus, 1, given.files)
        store = Store(home)
        sync(store, [corpus], HashingEmbedder(), SIZE)
        store.close()
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            sync_for_ever(home, corpus, given.files)
        store = Store(home)
        retriever = Retriever(store, HashingEmbedder())
        idle = ask(retriever, chance, given.requests // 10)[0]
        os.kill(child, signal.SIGCONT)
        busy, wrong, generations = ask(retriever, chance, given.requests)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        idle += ask(retriever, chance, given.requests // 10)[0]
    figures = {
        "requests": given.requests,
        "generations": len(generations),
        **wrong,
        "idle_p50_ms": float(np.percentile(idle, 50)),
        "idle_p95_ms": float(np.percentile(idle, 95)),
        "busy_p50_ms": float(np.percentile(busy, 50)),
        "busy_p95_ms": float(np.percentile(busy, 95)),
    }
    print("| requests | generations seen | errors | empty | mixed | p50 idle / syncing ms | p95 idle / syncing ms |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {given.requests} | {len(generations)} | {wrong['errors']} | {wrong['empty']} | {wrong['mixed']} |"
        f" {figures['idle_p50_ms']:.2f} / {figures['busy_p50_ms']:.2f} |"
        f" {figures['idle_p95_ms']:.2f} / {figures['busy_p95_ms']:.2f} |"
    )
    print(json.dumps(figures))
    if given.out:
        given.out.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
