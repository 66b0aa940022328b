"""Ranking quality on judged sets: `tandem eval retrieval` for many folders, as one table.

    python tests/benchmarks/retrieval.py SET... [--whole] [--bfloat16] [--json FILE] [--cache FILE] [--reranker MODEL]

SET is a folder in BEIR's layout. With --whole a document is one chunk, as in published tables: the embedder then cuts
it at its window, the word search sees all of it. --cache keeps vectors in a SQLite file between runs. --bfloat16 embeds
documents in that precision, several times faster on processors that know it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from indexer.chunking import ChunkSize
from indexer.embedding import Embedder, Vectors
from indexer.evaluation import read_judged_set
from service.assembly import chunk_size, load_embedder, load_reranker
from service.commands.evaluate import evaluate
from service.settings import load_settings

WHOLE = 1_000_000


class StoredVectors:
    """An embedder that looks up what it embedded before; with `window` it takes texts of any length, uncounted."""

    def __init__(self, embedder: Embedder, path: str, window: int | None = None, bfloat16: bool = False) -> None:
        self._embedder = embedder
        self._bfloat16 = bfloat16
        self._whole = window is not None
        self.window = window or embedder.window
        self.dimension = embedder.dimension
        self.identity = embedder.identity + (":whole" if window else "")
        self._vectors = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._vectors.execute("CREATE TABLE IF NOT EXISTS vectors (key TEXT PRIMARY KEY, vector BLOB)")

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        keys = [hashlib.sha256(f"{self._embedder.identity}\0{text}".encode()).hexdigest() for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if self._read(key) is None}
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bfloat16):
            made = self._embedder.embed_documents(list(missing.values()))
        rows = [(key, vector.tobytes()) for key, vector in zip(missing, made, strict=True)]
        self._vectors.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
        return np.stack([np.frombuffer(self._read(key) or b"", np.float32) for key in keys])

    def _read(self, key: str) -> bytes | None:
        row = self._vectors.execute("SELECT vector FROM vectors WHERE key = ?", (key,)).fetchone()
        return row and row[0]

    def embed_question(self, text: str) -> Vectors:
        return self._embedder.embed_question(text)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [1] * len(texts) if self._whole else self._embedder.count_tokens(texts)

    def token_starts(self, text: str) -> npt.NDArray[np.int64]:
        return np.zeros(1, np.int64) if self._whole else self._embedder.token_starts(text)


def table(bodies: list[dict]) -> str:  # type: ignore[type-arg]
    channels = list(bodies[0]["channels"])
    lines = [
        f"| set | questions | chunks | {' | '.join(f'{name} nDCG@10' for name in channels)} | R@100 | hybrid - best |"
    ]
    lines.append("|---" * (len(channels) + 5) + "|")
    gains = []
    for body in bodies:
        values = {name: body["channels"][name]["ndcg@10"] for name in channels}
        gains.append(values["hybrid"]["value"] - max(values["dense"]["value"], values["bm25"]["value"]))
        cells = [f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]" for cell in values.values()]
        recall = body["channels"]["hybrid"]["recall@100"]["value"]
        head = f"| {body['set']} | {body['questions']} | {body['chunks']}"
        lines.append(f"{head} | {' | '.join(cells)} | {recall:.3f} | {gains[-1]:+.3f} |")
    means = [np.mean([body["channels"][name]["ndcg@10"]["value"] for body in bodies]) for name in channels]
    lines.append(f"| mean | | | {' | '.join(f'{mean:.3f}' for mean in means)} | | {np.mean(gains):+.3f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cache", default=":memory:")
    parser.add_argument("--reranker", default="")
    options = parser.parse_args()
    settings = load_settings(reranker=options.reranker)
    window = WHOLE if options.whole else None
    embedder = StoredVectors(load_embedder(settings, print), options.cache, window, options.bfloat16)
    size = ChunkSize(WHOLE // 2, 0) if options.whole else chunk_size(settings)
    reranker = load_reranker(settings)
    bodies = []
    for folder in options.sets:
        with tempfile.TemporaryDirectory() as temporary:
            bodies.append(evaluate(read_judged_set(folder), embedder, size, Path(temporary), reranker))
        print(json.dumps(bodies[-1]["channels"]), flush=True)
        if options.json:
            options.json.write_text(json.dumps(bodies, indent=2))
    print(table(bodies))


if __name__ == "__main__":
    main()
