import functools
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes import HashingEmbedder
from mutations import mutated

import indexer.publish
from indexer.chunking import ChunkSize
from indexer.derived import VECTOR_FOLDER, IndexCache, build
from indexer.publish import rollback
from indexer.rewrite import describe, write_file
from indexer.store import Store
from indexer.sync import forget
from indexer.texts import Text, put_texts, remove_texts
from indexer.vectors.layered import LayeredIndex

SIZE = ChunkSize(40, 8)
EMBEDDER = HashingEmbedder(dimension=32)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def approximate_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is approximate from 1,000 rows instead of APPROXIMATE_ROWS, so that a test has few texts."""
    monkeypatch.setattr(indexer.publish, "write_file", functools.partial(write_file, threshold=1000))


def put(store: Store, first: int, count: int) -> None:
    texts = [Text(str(n), f"text{n} of topic{n % 40} and shade{n % 7}") for n in range(first, first + count)]
    put_texts(store, "texts", texts, EMBEDDER, SIZE)


def agrees(store: Store, cache: IndexCache, at_least: float = 1.0) -> LayeredIndex:
    """The cached index holds the visible rows and finds what NumPy finds in the database."""
    with store.read() as snapshot:
        index = cache.get(snapshot)
        rows = snapshot.chunk_rows()
        vectors = snapshot.vectors(rows)
    assert isinstance(index, LayeredIndex)
    assert sorted(index.rows()) == rows.tolist()
    shares = []
    for n in range(0, 400, 23):
        similarity = vectors @ EMBEDDER.embed_question(f"text{n} of topic{n % 40}")
        scores = [score for _, score in index.search(EMBEDDER.embed_question(f"text{n} of topic{n % 40}"), 10)]
        tenth = np.sort(similarity)[-10:][0]
        assert len(scores) == 10
        shares.append(np.mean(np.asarray(scores) >= tenth - 0.01))
    assert np.mean(shares) >= at_least
    return index


def test_a_generation_shares_the_base_of_its_parent(store: Store) -> None:
    cache = IndexCache(store.home)
    put(store, 0, 1100)
    first = agrees(store, cache)
    assert len(first.base) == 1100
    put(store, 1100, 20)
    remove_texts(store, "texts", ["3", "4"], EMBEDDER, SIZE)
    put(store, 5, 1)
    skipped = agrees(store, cache)
    put(store, 2000, 3)
    second = agrees(store, cache)
    assert second.base is skipped.base
    assert len(second.base) == 1100
    assert len(first) == 1100, "who holds the first one still searches it"


def test_rollback_and_forget_are_followed(store: Store) -> None:
    cache = IndexCache(store.home)
    put(store, 0, 1100)
    agrees(store, cache)
    put(store, 1100, 10)
    agrees(store, cache)
    rollback(store)
    assert len(agrees(store, cache)) == 1100
    put(store, 1200, 5)
    assert len(agrees(store, cache)) == 1105
    put_texts(store, "other", [Text("x", "something else")], EMBEDDER, SIZE)
    forget(store, "other")
    assert len(agrees(store, cache)) == 1105


@pytest.mark.usefixtures("approximate_early")
def test_files_become_approximate_are_compacted_and_trained_anew(store: Store) -> None:
    cache = IndexCache(store.home)
    put(store, 0, 990)
    put(store, 990, 800)
    with store.read() as snapshot:
        first = snapshot.generation
    assert first.vector_trained == 1790
    assert first.vector_recall is not None and first.vector_recall >= 0.9
    assert "recall@10" in describe(first)
    assert not agrees(store, cache, 0.9).base.is_exact
    remove_texts(store, "texts", [str(n) for n in range(300)], EMBEDDER, SIZE)
    agrees(store, cache, 0.9)
    put(store, 3000, 720)
    with store.read() as snapshot:
        second = snapshot.generation
    assert (second.vector_trained, second.vector_drift) == (1790, 0), "compacted, not trained"
    assert second.vector_file != first.vector_file
    assert len(agrees(store, cache, 0.9)) == 2210
    put(store, 5000, 1100)
    with store.read() as snapshot:
        assert snapshot.generation.vector_trained == 3310
    agrees(store, cache, 0.9)


@pytest.mark.usefixtures("approximate_early")
def test_a_damaged_file_is_rebuilt_from_the_rows(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    put(store, 0, 1100)
    with store.read() as snapshot:
        path = store.home / VECTOR_FOLDER / str(snapshot.generation.vector_file)
    data = path.read_bytes()
    for seed in range(6):
        path.unlink()
        path.write_bytes(mutated(data, seed))
        with caplog.at_level(logging.WARNING):
            index = agrees(store, IndexCache(store.home))
        assert "damaged" in caplog.text
        assert index.base.is_exact
    # The next sync that needs a file does not trust the old one either.
    put(store, 2000, 1200)
    agrees(store, IndexCache(store.home), 0.9)


def test_what_a_small_change_costs_does_not_grow_with_the_index(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, 0, 1500)
    cache = IndexCache(store.home)
    agrees(store, cache)
    put(store, 5000, 1)
    read: list[int] = []
    with store.read() as snapshot:
        original: Callable[[np.ndarray], np.ndarray] = snapshot.vectors

        def counting(rows: np.ndarray) -> np.ndarray:
            read.append(len(rows))
            return original(rows)

        monkeypatch.setattr(snapshot, "vectors", counting)
        monkeypatch.setattr(snapshot, "chunk_rows", lambda: pytest.fail("all rows were listed"))
        assert len(cache.get(snapshot)) == 1501
    assert read == [1]


def test_a_file_of_another_generation_is_corrected(store: Store) -> None:
    put(store, 0, 1100)
    put(store, 1100, 50)
    remove_texts(store, "texts", ["7"], EMBEDDER, SIZE)
    with store.read() as snapshot:
        index = build(snapshot, store.home)
        assert sorted(index.rows()) == snapshot.chunk_rows().tolist()
        assert len(index.base) == 1100
