"""FAISS files damaged in many ways: what Tandem serves from them, and what FAISS alone would.

    python tests/benchmarks/mutations.py --count 1000 --json mutations.json

An index of made-up texts (hashed bags of words) is written once exactly and once approximately. Each mutation replaces
the file; a fresh cache then answers 5 questions from the store, and each answer is compared with NumPy's over the
stored vectors. For every fifth a child process has FAISS read the same bytes without a checksum.
"""

import argparse
import json
import logging
import multiprocessing
import sys
import tempfile
from collections import Counter
from functools import partial
from pathlib import Path

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes import HashingEmbedder
from mutations import mutated

import indexer.publish
from indexer.chunking import ChunkSize
from indexer.derived import VECTOR_FOLDER, IndexCache
from indexer.rewrite import write_file
from indexer.store import Store
from indexer.texts import Text, put_texts

EMBEDDER, ROWS, K = HashingEmbedder(dimension=32), 1200, 10
QUESTIONS = [EMBEDDER.embed_question(f"text{n} of topic{n % 40} and shade{n % 7}") for n in (3, 99, 500, 777, 1100)]


def alone(data: bytes, answer: "multiprocessing.connection.Connection") -> None:
    """What FAISS makes of the bytes; a crash of this process is an answer too."""
    try:
        index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
        answer.send([index.search(question[None, :], K)[1][0].tolist() for question in QUESTIONS])
    except Exception:
        answer.send(None)


def without_checksum(data: bytes, right: list[list[int]]) -> str:
    """How FAISS alone ends: error, crash, right or wrong neighbours."""
    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.Process(target=alone, args=(data, send))
    child.start()
    send.close()
    try:
        rows = receive.recv() if receive.poll(5) else "hang"
    except EOFError:
        rows = "crash"
    child.kill()
    child.join()
    if rows is None or isinstance(rows, str):
        return rows or "error"
    return "right" if rows == right else "wrong"


def run(kind: str, count: int, folder: Path) -> dict[str, object]:
    indexer.publish.write_file = partial(write_file, threshold=1000 if kind == "approximate" else 10**9)
    store = Store(folder / kind)
    texts = [Text(str(n), f"text{n} of topic{n % 40} and shade{n % 7}") for n in range(ROWS)]
    put_texts(store, "texts", texts, EMBEDDER, ChunkSize(40, 8))

    def serve() -> list[list[tuple[int, float]]]:
        with store.read() as snapshot:
            index = IndexCache(store.home).get(snapshot)
            return [index.search(question, K) for question in QUESTIONS]

    with store.read() as snapshot:
        path = store.home / VECTOR_FOLDER / str(snapshot.generation.vector_file)
        rows = snapshot.chunk_rows()
        vectors = snapshot.vectors(rows)
    data = path.read_bytes()
    raw = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    right = [raw.search(question[None, :], K)[1][0].tolist() for question in QUESTIONS]
    cosines = [dict(zip(rows.tolist(), (vectors @ question).tolist(), strict=True)) for question in QUESTIONS]
    best = [np.sort(list(scores.values()))[::-1][:K] for scores in cosines]
    served, faiss_alone = Counter(), Counter()
    for seed in range(count):
        damaged = mutated(data, seed)
        path.unlink()
        path.write_bytes(damaged)
        # A damaged file is not used: the exact neighbours come from the database.
        fine = all(
            np.allclose([scores[row] for row, _ in found], top, atol=1e-5)
            and np.allclose([score for _, score in found], top, atol=1e-5)
            for found, scores, top in zip(serve(), cosines, best, strict=True)
        )
        served["right" if fine else "wrong"] += 1
        if seed % 5 == 0:
            faiss_alone[without_checksum(damaged, right)] += 1
    store.close()
    return {"kind": kind, "mutations": count, "tandem": dict(served), "faiss alone": dict(faiss_alone)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="mutations in all, half of them of each kind of file")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    # A forked child would wait forever for the threads of its parent.
    faiss.omp_set_num_threads(1)
    multiprocessing.set_start_method("fork")
    with tempfile.TemporaryDirectory() as folder:
        results = [run(kind, args.count // 2, Path(folder)) for kind in ("exact", "approximate")]
    args.json.write_text(json.dumps(results, indent=1) + "\n")
    print("| file | mutations | Tandem served | FAISS alone |\n|---|---|---|---|")
    for result in results:
        print("| " + " | ".join(str(value) for value in result.values()) + " |")


if __name__ == "__main__":
    main()
