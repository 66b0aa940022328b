from pathlib import Path

import numpy as np
import pytest

from indexer.vectors.faiss import FaissIndex


def unit_rows(n: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, 24)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_search_is_exact_against_numpy_after_adds_and_removes() -> None:
    vectors = unit_rows(500)
    rows = np.arange(1000, 1500)
    index = FaissIndex(24)
    index.add(rows[:300], vectors[:300])
    index.add(rows[300:], vectors[300:])
    gone = rows[::7]
    index.remove(gone)
    index.remove(np.array([1, 2, 3]))
    kept = np.setdiff1d(np.arange(500), np.arange(500)[::7])
    assert sorted(index.rows()) == sorted(rows[kept])
    for question in unit_rows(20, seed=1):
        similarity = vectors[kept] @ question
        expected = rows[kept][np.argsort(-similarity)[:10]]
        found = index.search(question, 10)
        assert [row for row, _ in found] == expected.tolist()
        assert np.allclose([score for _, score in found], np.sort(similarity)[::-1][:10], atol=1e-6)


def test_small_and_empty_indexes() -> None:
    index = FaissIndex(24)
    question = unit_rows(1)[0]
    assert index.search(question, 5) == []
    index.add(np.array([7]), unit_rows(1))
    assert [row for row, _ in index.search(question, 5)] == [7]
    index.add(np.array([], np.int64), np.zeros((0, 24), np.float32))
    assert len(index) == 1


def test_a_copy_is_independent() -> None:
    index = FaissIndex(24)
    index.add(np.arange(5), unit_rows(5))
    other = index.copy()
    other.remove(np.arange(3))
    assert (len(index), len(other)) == (5, 2)


def test_a_saved_index_loads_and_answers_the_same(tmp_path: Path) -> None:
    index = FaissIndex(24)
    index.add(np.arange(50), unit_rows(50))
    index.remove(np.arange(10))
    sha256 = index.save(tmp_path / "1.faiss")
    loaded = FaissIndex.load(tmp_path / "1.faiss", sha256, 24)
    assert loaded is not None
    question = unit_rows(1, seed=3)[0]
    assert loaded.search(question, 10) == index.search(question, 10)
    loaded.add(np.array([99]), unit_rows(1, seed=9))
    assert len(loaded) == 41


@pytest.mark.parametrize("seed", range(20))
def test_a_changed_file_is_never_loaded(tmp_path: Path, seed: int) -> None:
    index = FaissIndex(24)
    index.add(np.arange(50), unit_rows(50))
    path = tmp_path / "1.faiss"
    sha256 = index.save(path)
    data = bytearray(path.read_bytes())
    random = np.random.default_rng(seed)
    match seed % 4:
        case 0:
            data[random.integers(len(data))] ^= 1 << int(random.integers(8))
        case 1:
            del data[int(random.integers(len(data))) :]
        case 2:
            place = int(random.integers(len(data) - 64))
            data[place : place + 64] = random.bytes(64)
        case 3:
            data += b"\0"
    path.write_bytes(data)
    assert FaissIndex.load(path, sha256, 24) is None
    path.unlink()
    assert FaissIndex.load(path, sha256, 24) is None
