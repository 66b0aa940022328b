"""kill -9 at many moments of a sync, each in a fresh process, and again a fresh process that looks at what is left.

python tests/benchmarks/crash.py [--kills 1000] [--seed 7] [--out result.json]
Half of the kills fall at the n-th SQL statement of the child (n drawn anew each time, most of them from its publish
window: from the last vector stored to the end of the pruning), half at a random moment of wall time. A FAISS file is
written for every generation. After each kill a new process checks: SQLite's and FTS5's own integrity checks, one
version in all rows, every vector equal to the one its text has, word and vector search over every chunk, and that the
generation is the one committed before or the new one, and the new one if the child had said that it was done.
Documents are parsed in the child itself: the separate parser process has nothing to do with the index.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from fakes import HashingEmbedder

import indexer.store
import indexer.sync
from indexer.chunking import ChunkSize
from indexer.database import open_database
from indexer.loaders import Parsed
from indexer.outcome import Progress
from indexer.publish import VECTOR_FOLDER
from indexer.retrieval import Retriever
from indexer.store import Store
from indexer.sync import sync

SIZE = ChunkSize(40, 8)
FILES = 12
HELD = FILES + 1


class PlainLoader:
    """What indexer.loaders.Loader does for these files, in this process."""

    def __enter__(self) -> "PlainLoader":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def parse(self, path: Path) -> list[Parsed]:
        return [Parsed(path.stem, "text", path.read_text())]


def write(corpus: Path, version: int) -> None:
    """Every file in a new version; one is renamed and one has a new name, so that all kinds of change occur."""
    corpus.mkdir(exist_ok=True)
    for path in corpus.iterdir():
        path.unlink()
    for number in range(FILES):
        (corpus / f"{number}.txt").write_text(f"File {number} is of version{version} and says word{number}.")
    (corpus / f"only{version}.txt").write_text(f"File only is of version{version} and was added.")


def in_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Fork; the child gets the writing end of a pipe. Returns its process id and the reading end."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        try:
            work(send)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    os.close(send)
    return child, receive


def said(receive: int) -> bytes:
    parts = []
    while part := os.read(receive, 4096):
        parts.append(part)
    os.close(receive)
    return b"".join(parts)


def run_sync(home: Path, corpus: Path, die_at: int | None) -> Callable[[int], None]:
    def work(send: int) -> None:
        count = 0

        def traced(statement: str) -> None:
            nonlocal count
            count += 1
            if count == die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        def opened(folder: Path):
            connection = open_database(folder)
            connection.set_trace_callback(traced)
            return connection

        def report(progress: Progress) -> None:
            if progress.stage == "publish":
                os.write(send, f"publish {count}\n".encode())

        indexer.store.open_database = opened
        indexer.sync.Loader = PlainLoader
        indexer.sync.needs_file = lambda drift, rows: True
        store = Store(home)
        sync(store, [corpus], HashingEmbedder(), SIZE, report=report)
        os.write(send, f"done {count}\n".encode())

    return work


def check(home: Path) -> Callable[[int], None]:
    def work(send: int) -> None:
        store = Store(home)
        embedder = HashingEmbedder()
        with store.connection() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            connection.execute("INSERT INTO chunk_words (chunk_words, rank) VALUES ('integrity-check', 1)")
        with store.read() as snapshot:
            rows = snapshot.chunk_rows()
            chunks = [found[0] for found in snapshot.passages(rows.tolist()).values()]
            assert len(chunks) == len(rows) == snapshot.generation.chunks == HELD, (len(chunks), snapshot.generation)
            assert len(snapshot.list_documents()) == snapshot.generation.documents == HELD
            by_row = snapshot.passages(rows.tolist())
            expected = embedder.embed_documents([by_row[int(row)][0].embedded_text for row in rows])
            assert np.array_equal(expected, snapshot.vectors(rows))
            assert len(snapshot.search_words("version* OR file", 1000)) == HELD
            assert (home / VECTOR_FOLDER / str(snapshot.generation.vector_file)).is_file()
        versions = {chunk.text.split()[4] for chunk in chunks}
        assert len(versions) == 1, versions
        assert len(Retriever(store, embedder).retrieve("file version word1", 100).passages) == HELD
        os.write(send, versions.pop().removeprefix("version").encode())

    return work


def trial(
    chance: random.Random, home: Path, corpus: Path, window: tuple[int, int], seconds: float
) -> tuple[bytes, str]:
    """Run a sync and kill it; what it said and how it was to be killed."""
    kind = chance.choice(["statement", "time"])
    if kind == "statement":
        first = 1 if chance.random() < 0.3 else window[0]
        child, receive = in_child(run_sync(home, corpus, chance.randint(first, window[1])))
    else:
        child, receive = in_child(run_sync(home, corpus, None))
        time.sleep(chance.uniform(0, seconds))
        os.kill(child, signal.SIGKILL)
    words = said(receive)
    os.waitpid(child, 0)
    return words, kind


def measure_window(home: Path, corpus: Path) -> tuple[tuple[int, int], float]:
    """Statement numbers between which a whole sync publishes, and the seconds it takes."""
    started = time.perf_counter()
    child, receive = in_child(run_sync(home, corpus, None))
    words = dict(line.split() for line in said(receive).decode().splitlines())
    os.waitpid(child, 0)
    return (int(words["publish"]), int(words["done"])), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="kills inside the publish window")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3600, help="stop after so many seconds at the latest")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    counts = {"killed": 0, "in_publish_window": 0, "by_statement": 0, "finished": 0, "new_generation_kept": 0}
    failures: list[str] = []
    deadline = time.monotonic() + given.seconds
    with tempfile.TemporaryDirectory() as name:
        home, corpus = Path(name, "home"), Path(name, "corpus")
        write(corpus, 0)
        measure_window(home, corpus)
        write(corpus, 1)
        window, seconds = measure_window(home, corpus)
        current, version = 1, 1
        while counts["in_publish_window"] < given.kills and time.monotonic() < deadline:
            version += 1
            write(corpus, version)
            words, kind = trial(chance, home, corpus, window, seconds)
            done = b"done" in words
            counts["finished" if done else "killed"] += 1
            if not done:
                counts["in_publish_window"] += b"publish" in words
                counts["by_statement"] += kind == "statement"
            child, receive = in_child(check(home))
            answer = said(receive).decode()
            os.waitpid(child, 0)
            good = answer in {str(current), str(version)} and (not done or answer == str(version))
            if not good:
                failures.append(f"version {version}, {kind}, said {words!r}: found {answer!r}, had {current}")
            counts["new_generation_kept"] += not done and answer == str(version)
            current = int(answer) if answer else current
            if version % 50 == 0:
                result = {**counts, "inconsistencies": failures, "statements": window, "seconds_a_sync": seconds}
                print(json.dumps(result), flush=True)
                if given.out:
                    given.out.write_text(json.dumps(result))
    result = {**counts, "inconsistencies": failures, "statements": window, "seconds_a_sync": seconds}
    if given.out:
        given.out.write_text(json.dumps(result))
    print("| kills | in the publish window | at a statement | runs that ended first | inconsistencies |")
    print("|---|---|---|---|---|")
    print(
        f"| {counts['killed']} | {counts['in_publish_window']} | {counts['by_statement']} | {counts['finished']} |"
        f" {len(failures)} |"
    )
    raise SystemExit(bool(failures))


if __name__ == "__main__":
    main()
