"""kill -9 at random moments of an index run: the old generation goes on answering, the next run completes."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import HashingEmbedder

from indexer.chunking import ChunkSize
from indexer.retrieval import Retriever
from indexer.store import Store
from indexer.sync import sync

SIZE = ChunkSize(40, 8)
CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from fakes import HashingEmbedder
from indexer.chunking import ChunkSize
from indexer.store import Store
from indexer.sync import sync
store = Store(Path({home!r}))
print("start", flush=True)
sync(store, [Path({corpus!r})], HashingEmbedder(), ChunkSize(40, 8))
print("done", flush=True)
"""


def write(corpus: Path, version: int, files: int = 30) -> None:
    corpus.mkdir(exist_ok=True)
    for number in range(files):
        (corpus / f"{number}.txt").write_text(f"File {number} is of version{version} and says word{number}.")


def versions(home: Path) -> set[str]:
    """The versions that a fresh reader sees, over all its chunks; searches must agree with the rows."""
    store = Store(home)
    with store.read() as snapshot:
        rows = snapshot.chunk_rows()
        texts = [chunk.text for chunk, *_ in snapshot.passages(rows.tolist()).values()]
        assert len(texts) == snapshot.generation.chunks == len(snapshot.vectors(rows))
    passages = Retriever(store, HashingEmbedder()).retrieve("version word1", 100).passages
    assert len(passages) == len(texts)
    store.close()
    return {text.split()[4] for text in texts}


@pytest.mark.slow
def test_kill_at_random_moments(tmp_path: Path) -> None:
    home, corpus = tmp_path / "home", tmp_path / "corpus"
    write(corpus, 0)
    store = Store(home)
    sync(store, [corpus], HashingEmbedder(), SIZE)
    store.close()
    script = CHILD.format(tests=str(Path(__file__).parent), home=str(home), corpus=str(corpus))
    current, finished, killed = 0, 0, 0
    chance = random.Random(7)
    for trial in range(1, 26):
        write(corpus, trial)
        child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "start\n"
        time.sleep(chance.uniform(0, 0.6))
        child.send_signal(signal.SIGKILL)
        done = "done" in child.stdout.read()
        child.wait()
        child.stdout.close()
        finished, killed = finished + done, killed + (not done)
        seen = versions(home)
        assert len(seen) == 1, f"a mixed generation after trial {trial}: {seen}"
        (version,) = seen
        assert version in {f"version{current}", f"version{trial}"}
        assert not done or version == f"version{trial}"
        current = int(version.removeprefix("version"))
    assert killed >= 5, "the kills must fall into the run for this test to mean something"
    store = Store(home)
    write(corpus, 99)
    assert sync(store, [corpus], HashingEmbedder(), SIZE).changed == 30
    assert versions(home) == {"version99"}
