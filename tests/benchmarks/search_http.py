"""GET /search over HTTP on a large index: latency with 1, 4 and 16 clients, each of which asks again when answered.

    python tests/benchmarks/search_http.py --documents docs.jsonl.gz --questions queries.jsonl --weights WEIGHTS \
        --home FOLDER [--embed] [--files 6200] [--clients 1 4 16] [--requests 300]

The texts are real, so the word search has real words; the questions are embedded by the real model, in the service. So
are the chunks with --embed, which takes half an hour. Without it their vectors are made from a seed: what is found by
meaning is chance, and more lists of vectors are searched than real ones need. FOLDER is built once and used again.
Beside the time on the clock stands the processor time that the service took for a search, which other work on the
machine changes less. With --sync the index is then brought in step with its files: unchanged, and with one of them
changed.
"""

import argparse
import gzip
import http.client
import json
import statistics
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Sequence
from os import environ, utime
from pathlib import Path
from urllib.parse import quote

import numpy as np

from indexer.chunking import ChunkSize
from indexer.embedding import SentenceTransformerEmbedder, Vectors
from indexer.store import Store
from indexer.sync import sync
from indexer.weights import embedder_weights

sys.path.insert(0, str(Path(__file__).parent))
from http_overhead import processor_ms
from serving import wait_until_ready

Process = subprocess.Popen[bytes]


class MadeVectors(SentenceTransformerEmbedder):
    """The identity and the tokens of the real embedder, and vectors of chance for documents."""

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        rows = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(self.dimension) for text in texts]
        matrix = np.asarray(rows, np.float32).reshape(len(texts), self.dimension)
        return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def write_corpus(documents: Path, corpus: Path, files: int) -> None:
    """Every second text of the source, until there are so many files."""
    corpus.mkdir(parents=True)
    with gzip.open(documents, "rt", encoding="utf-8") as lines:
        for place, line in enumerate(lines):
            if place % 2 == 0 and place // 2 < files:
                path = corpus / f"{place:06}.md"
                path.write_text(json.loads(line)["text"], encoding="utf-8")
                utime(path, (1e9, 1e9))


def build(home: Path, corpus: Path, weights: Path, embed: bool) -> None:
    started = time.perf_counter()
    store = Store(home)
    kind = SentenceTransformerEmbedder if embed else MadeVectors
    outcome = sync(store, [corpus], kind(embedder_weights("bundled", weights)), ChunkSize(160, 24))
    store.close()
    print(f"{outcome.chunks} chunks of {outcome.added} files in {time.perf_counter() - started:.0f} s", flush=True)


def ask(port: int, questions: Sequence[str], times: list[float], filter: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for question in questions:
        started = time.perf_counter()
        connection.request("GET", f"/search?question={quote(question)}{filter}")
        response = connection.getresponse()
        body = response.read()
        times.append((time.perf_counter() - started) * 1000)
        if response.status != 200 or not json.loads(body):
            raise SystemExit(f"{response.status}: {body[:300]!r}")
    connection.close()


def measure(process: Process, port: int, questions: list[str], clients: int, requests: int, filter: str = "") -> str:
    """One row of the table: every client asks different questions, one after the other."""
    asked = (questions * (requests // len(questions) + 1))[:requests]
    times: list[float] = []
    threads = [threading.Thread(target=ask, args=(port, asked[n::clients], times, filter)) for n in range(clients)]
    started, used = time.perf_counter(), processor_ms(process.pid)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = time.perf_counter() - started
    mean = (processor_ms(process.pid) - used) / len(times)
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    return f"{len(times)} | {cuts[49]:.1f} | {cuts[94]:.1f} | {cuts[98]:.1f} | {mean:.1f} | {len(times) / whole:.0f}"


def time_syncs(home: Path, corpus: Path, weights: Path) -> None:
    """Seconds on the clock and of processor time of this process: nothing changed, then one file changed."""
    store, embedder = Store(home), MadeVectors(embedder_weights("bundled", weights))
    first = sorted(corpus.iterdir())[0]
    text = first.read_text(encoding="utf-8")
    print("| | clock s | processor s | publishing s | chunks embedded |\n|---|---|---|---|---|")
    for turn in range(-1, 8):
        changed = turn > 2
        first.write_text(f"{text}\n\nTurn {turn} of {time.time()}.\n" if changed else text, encoding="utf-8")
        marks: list[float] = []
        started, used = time.perf_counter(), time.process_time()
        outcome = sync(
            store,
            [corpus],
            embedder,
            ChunkSize(160, 24),
            report=lambda progress, marks=marks: (
                marks.append(time.perf_counter()) if progress.stage == "publish" else None
            ),
        )
        ended = time.perf_counter()
        values = (ended - started, time.process_time() - used, ended - marks[-1] if marks else 0.0)
        shown = " | ".join(f"{value:.3f}" for value in values)
        print(f"| {'one changed' if changed else 'no change'} | {shown} | {outcome.embedded} |", flush=True)
    first.write_text(text, encoding="utf-8")
    store.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=Path, required=True, help="JSON lines with `text`, gzipped")
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines with `text`, as in BEIR")
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--files", type=int, default=6200)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--port", type=int, default=8766)
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--embed", action="store_true")
    parser.add_argument("--sync", action="store_true")
    options = parser.parse_args()
    home, corpus, weights = (path.resolve() for path in (options.home, options.home / "corpus", options.weights))
    if not (home / "built").exists():
        write_corpus(options.documents, corpus, options.files)
        build(home / "home", corpus, weights, options.embed)
        (home / "built").touch()
    if options.build_only:
        return
    questions = [json.loads(line)["text"] for line in options.questions.read_text().splitlines()]
    settings = {"HOME": str(home / "home"), "WEIGHTS": str(weights), "CORPORA": str(corpus), "LOG_LEVEL": "error"}
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", "--port", str(options.port)],
        env=environ | {f"TANDEM_{name}": value for name, value in settings.items()},
        cwd=home,
    )
    try:
        wait_until_ready(f"http://127.0.0.1:{options.port}", process)
        measure(process, options.port, questions, 1, 20)
        print("| clients | filter | searches | p50 ms | p95 ms | p99 ms | processor ms | a second |")
        print("|---" * 8 + "|")
        for clients in options.clients:
            print(
                f"| {clients} | no | {measure(process, options.port, questions, clients, options.requests)} |",
                flush=True,
            )
        row = measure(process, options.port, questions, 1, options.requests, "&filter=path=*2.md")
        print(f"| 1 | a fifth of the files | {row} |")
    finally:
        process.terminate()
        process.wait()
    if options.sync:
        time_syncs(home / "home", corpus, weights)


if __name__ == "__main__":
    main()
