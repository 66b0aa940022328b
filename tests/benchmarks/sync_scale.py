"""What a sync costs as the corpus grows: nothing changed, one document changed, and the publishing alone.

python tests/benchmarks/sync_scale.py --weights WEIGHTS_FOLDER [--chunks 1000 10000 100000] [--out result.json]
Random vectors stand in for the model's, stamped with the identity of the bundled one, so that a whole `tandem index`
process can be timed on the same home folder.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from fakes import HashingEmbedder

from indexer.chunking import ChunkSize
from indexer.embedding import SentenceTransformerEmbedder
from indexer.outcome import Progress
from indexer.store import Store
from indexer.sync import sync
from indexer.weights import embedder_weights

SIZE = ChunkSize(160, 24)
WORDS = [f"word{number}" for number in range(5000)]
CHUNKS_PER_FILE = 10


class AnyVectors(HashingEmbedder):
    """The tokens of the hashing embedder, and a random vector drawn from each text: the vectors must cost nothing."""

    def _rows(self, texts: Sequence[str]) -> np.ndarray:
        rows = [np.random.default_rng(zlib.crc32(text.encode())).standard_normal(self.dimension) for text in texts]
        matrix = np.asarray(rows, np.float32).reshape(len(texts), self.dimension)
        return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


def write(path: Path, seed: int) -> None:
    chance = random.Random(seed)
    sections = (
        f"## Section {n} of {seed}\n\n{' '.join(chance.choices(WORDS, k=100))}.\n" for n in range(CHUNKS_PER_FILE)
    )
    path.write_text(f"# Document {seed}\n\n" + "\n".join(sections))


def timed_sync(store: Store, folder: Path, embedder: HashingEmbedder) -> tuple[float, float, int]:
    """Seconds of the whole sync, seconds from the beginning of publishing, chunks of the index."""
    marks: dict[str, float] = {}

    def report(progress: Progress) -> None:
        marks[progress.stage] = time.perf_counter()

    started = time.perf_counter()
    outcome = sync(store, [folder], embedder, SIZE, report=report)
    ended = time.perf_counter()
    return ended - started, ended - marks.get("publish", ended), outcome.chunks


def measure(chunks: int, work: Path, weights: Path, identity: str) -> dict[str, float]:
    files = chunks // CHUNKS_PER_FILE
    folder, home = work / f"corpus{chunks}", work / f"home{chunks}"
    folder.mkdir()
    for number in range(files):
        write(folder / f"{number:06}.md", number)
        os.utime(folder / f"{number:06}.md", (1e9, 1e9))
    embedder = AnyVectors(384)
    embedder.identity = identity
    store = Store(home)
    first, _, count = timed_sync(store, folder, embedder)
    nothing = statistics.median(timed_sync(store, folder, embedder)[0] for _ in range(3))
    whole, publishing = [], []
    for turn in range(7):
        write(folder / "000000.md", 10_000_000 + turn)
        total, tail, _ = timed_sync(store, folder, embedder)
        whole.append(total)
        publishing.append(tail)
    store.close()
    environment = os.environ | {"TANDEM_HOME": str(home), "TANDEM_WEIGHTS": str(weights)}
    os.utime(folder / "000000.md", (1e9, 1e9))
    command = [sys.executable, "-m", "service.cli", "index", str(folder), "--json"]
    processes = []
    for _ in range(4):
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=work)
        processes.append(time.perf_counter() - started)
        assert json.loads(done.stdout)["unchanged"] == files, done.stdout
    return {
        "chunks": count,
        "files": files,
        "first_s": first,
        "no_change_s": nothing,
        "no_change_process_s": statistics.median(processes[1:]),
        "one_changed_s": statistics.median(whole),
        "publish_s": statistics.median(publishing),
        "publish_max_s": max(publishing),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="the folder that holds the bundled weights")
    parser.add_argument("--chunks", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    identity = SentenceTransformerEmbedder(embedder_weights("bundled", given.weights)).identity
    results = []
    print(
        "| chunks | files | first index s | no change s | no change, whole process s | one changed s | publishing s |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        for chunks in given.chunks:
            found = measure(chunks, Path(name), given.weights.resolve(), identity)
            results.append(found)
            print(
                f"| {found['chunks']} | {found['files']} | {found['first_s']:.1f} | {found['no_change_s']:.3f} |"
                f" {found['no_change_process_s']:.2f} | {found['one_changed_s']:.3f} | {found['publish_s']:.3f} |",
                flush=True,
            )
            if given.out:
                given.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
