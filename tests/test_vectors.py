import hashlib
import resource
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from mutations import mutated

from indexer.derived import VECTOR_FOLDER
from indexer.rewrite import APPROXIMATE_ROWS, VectorFile, describe, needs_file, write_file
from indexer.store import Generation
from indexer.vectors import VectorIndex, inverted
from indexer.vectors.faiss import FaissIndex
from indexer.vectors.file import load, save
from indexer.vectors.layered import LayeredIndex

DIMENSION = 24
Make = Callable[[np.ndarray, np.ndarray], VectorIndex]


def unit_rows(n: int, seed: int = 0, clusters: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    rows = random.normal(size=(n, DIMENSION))
    if clusters:
        rows = (
            0.6 * rows + np.random.default_rng(99).normal(size=(clusters, DIMENSION))[random.integers(0, clusters, n)]
        )
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def source_of(rows: np.ndarray, vectors: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    return lambda wanted: vectors[np.searchsorted(rows, wanted)]


def numpy_search(rows: np.ndarray, vectors: np.ndarray, question: np.ndarray, k: int) -> list[int]:
    return rows[np.argsort(-(vectors @ question), kind="stable")[:k]].tolist()


def exact(rows: np.ndarray, vectors: np.ndarray) -> VectorIndex:
    return LayeredIndex(FaissIndex.exact(rows, vectors))


def only_changes(rows: np.ndarray, vectors: np.ndarray) -> VectorIndex:
    return LayeredIndex(FaissIndex.exact(rows[:0], vectors[:0])).changed(rows[:0], rows, vectors)


def half_and_half(rows: np.ndarray, vectors: np.ndarray) -> VectorIndex:
    half = len(rows) // 2
    return exact(rows[:half], vectors[:half]).changed(rows[:0], rows[half:], vectors[half:])


def from_file(tmp_path: Path, index: FaissIndex) -> VectorIndex:
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.faiss"
    loaded = load(path, save(index, path), DIMENSION)
    assert loaded is not None
    return LayeredIndex(loaded)


@pytest.fixture(params=["exact", "only changes", "half and half", "exact file", "approximate", "approximate file"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    def all_lists(rows: np.ndarray, vectors: np.ndarray) -> FaissIndex:
        # Every list is probed, so that what is left of the approximation is the rounding to 8 bits.
        index = inverted.build(rows, source_of(rows, vectors), DIMENSION).index
        index.inner.nprobe = index.inner.nlist
        return index

    makers: dict[str, Make] = {
        "exact": exact,
        "only changes": only_changes,
        "half and half": half_and_half,
        "exact file": lambda rows, vectors: from_file(tmp_path, FaissIndex.exact(rows, vectors)),
        "approximate": lambda rows, vectors: LayeredIndex(all_lists(rows, vectors)),
        "approximate file": lambda rows, vectors: from_file(tmp_path, all_lists(rows, vectors)),
    }
    return makers[request.param]


def agrees(index: VectorIndex, rows: np.ndarray, vectors: np.ndarray, allowed: np.ndarray | None = None) -> None:
    """The index finds what NumPy finds among these rows; where codes are rounded, up to swaps of near-equals."""
    approximate = isinstance(index, LayeredIndex) and not index.base.is_exact
    for question in unit_rows(20, seed=1):
        similarity = dict(zip(rows.tolist(), (vectors @ question).tolist(), strict=True))
        expected = numpy_search(rows, vectors, question, 10)
        found = index.search(question, 10, allowed)
        assert len(found) == len(expected)
        if not approximate:
            assert [row for row, _ in found] == expected
        tolerance = 0.02 if approximate else 1e-6
        for (row, score), right in zip(found, expected, strict=True):
            assert score == pytest.approx(similarity[row], abs=tolerance)
            assert similarity[row] == pytest.approx(similarity[right], abs=2 * tolerance)


def test_the_contract_of_a_vector_index(make: Make) -> None:
    vectors = unit_rows(1500)
    rows = np.arange(1500) * 3 + 1000
    index = make(rows, vectors)
    assert len(index) == 1500
    assert sorted(index.rows()) == rows.tolist()
    agrees(index, rows, vectors)

    gone = rows[::7]
    new_rows, new_vectors = np.arange(9000, 9200), unit_rows(200, seed=5)
    changed = index.changed(np.concatenate([gone, [1, 2, 5]]), new_rows, new_vectors)
    kept = np.setdiff1d(np.arange(1500), np.arange(1500)[::7])
    rows_now, vectors_now = np.concatenate([rows[kept], new_rows]), np.concatenate([vectors[kept], new_vectors])
    assert len(changed) == len(rows_now)
    assert sorted(changed.rows()) == sorted(rows_now.tolist())
    agrees(changed, rows_now, vectors_now)
    # What was handed out before is as it was.
    agrees(index, rows, vectors)

    # Two children of one parent do not see each other's rows, and what was added can go again.
    left = changed.changed(new_rows[:50], np.array([20_000]), unit_rows(1, seed=8))
    right = changed.changed(new_rows[:0], np.array([20_001]), unit_rows(1, seed=9))
    assert {20_000, 20_001} & set(left.rows().tolist()) == {20_000}
    assert {20_000, 20_001} & set(right.rows().tolist()) == {20_001}
    assert left.search(unit_rows(1, seed=8)[0], 1)[0][0] == 20_000
    assert right.search(unit_rows(1, seed=8)[0], 1)[0][0] != 20_000
    assert not set(new_rows[:50].tolist()) & {row for row, _ in left.search(new_vectors[7], len(left))}
    agrees(changed, rows_now, vectors_now)


def test_a_filter_comes_before_the_ranking(make: Make) -> None:
    vectors = unit_rows(1500)
    rows = np.arange(1500) * 3 + 1000
    index = make(rows, vectors).changed(rows[:30], np.arange(9000, 9030), vectors[:30])
    rows = np.concatenate([rows[30:], np.arange(9000, 9030)])
    vectors = np.concatenate([vectors[30:], vectors[:30]])
    for some in (np.arange(0, 1500, 2), np.arange(5, 1500, 90), np.arange(1465, 1475), np.array([1499])):
        agrees(index, rows[some], vectors[some], rows[some])
    mixed = np.random.default_rng(0).permutation(np.concatenate([rows[100:140], rows[100:140], [3, 1000, 10**9]]))
    agrees(index, rows[100:140], vectors[100:140], mixed)
    question = unit_rows(1, seed=4)[0]
    assert index.search(question, 10, np.array([], np.int64)) == []
    assert index.search(question, 10, np.array([1, 2, 4])) == []
    assert len(index.search(question, 1000, rows[:12])) == 12


def test_small_and_empty_indexes() -> None:
    index: VectorIndex = LayeredIndex(FaissIndex.exact(np.array([], np.int64), np.zeros((0, DIMENSION), np.float32)))
    question = unit_rows(1)[0]
    assert index.search(question, 5) == []
    index = index.changed(np.array([3]), np.array([7]), unit_rows(1))
    assert [row for row, _ in index.search(question, 5)] == [7]
    assert index.search(question, 0) == []
    index = index.changed(np.array([7]), np.array([], np.int64), np.zeros((0, DIMENSION), np.float32))
    assert (len(index), index.search(question, 5)) == (0, [])


def test_many_threads_change_and_search_one_index() -> None:
    vectors = unit_rows(600)
    index = exact(np.arange(500), vectors[:500])
    wrong: list[int] = []

    def work(number: int) -> None:
        mine = index
        for turn in range(50):
            row = 1000 * (number + 1) + turn
            mine = mine.changed(np.array([turn]), np.array([row]), vectors[500 + turn : 501 + turn])
            if mine.search(vectors[500 + turn], 1)[0][0] != row or len(mine) != 500:
                wrong.append(row)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    agrees(index, np.arange(500), vectors[:500])


def test_a_change_copies_neither_the_base_nor_what_was_added_before() -> None:
    index = exact(np.arange(1000), unit_rows(1000))
    first = index.changed(np.array([], np.int64), np.array([5000]), unit_rows(1, seed=3))
    second = first.changed(np.array([4]), np.array([5001]), unit_rows(1, seed=4))
    assert second.base is index.base
    assert np.shares_memory(first._tail.vectors, second._tail.vectors)


def test_recall_is_measured_and_reaches_its_target() -> None:
    vectors = unit_rows(6000, clusters=150)
    rows = np.arange(6000) * 2
    measured = inverted.build(rows, source_of(rows, vectors), DIMENSION, compared=1)
    assert measured.recall >= inverted.TARGET_RECALL
    assert 1 <= measured.probes < measured.lists
    # An oracle of its own: held-out questions of the same kind against NumPy.
    index = LayeredIndex(measured.index)
    hits = []
    for question in unit_rows(200, seed=7, clusters=150):
        expected = numpy_search(rows, vectors, question, 10)
        hits.append(len({row for row, _ in index.search(question, 10)} & set(expected)) / 10)
    assert np.mean(hits) >= 0.93
    assert np.mean(hits) == pytest.approx(measured.recall, abs=0.05)


def test_measured_recall_falls_when_the_index_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit_rows(3000, clusters=100)
    rows = np.arange(3000)
    monkeypatch.setattr(inverted, "_ladder", lambda lists: iter([1]))
    monkeypatch.setattr(inverted, "TUNED_RECALL", 0.0)
    assert inverted.build(rows, source_of(rows, vectors), DIMENSION, compared=1).recall < 0.9


def test_a_question_is_compared_with_enough_vectors() -> None:
    assert inverted.fewest_probes(1_000_000, 4000, 20_000) == 80
    assert inverted.fewest_probes(10_000, 400, 20_000) == 400
    vectors = unit_rows(3000, clusters=30)
    rows = np.arange(3000)
    measured = inverted.build(rows, source_of(rows, vectors), DIMENSION, compared=1500)
    assert measured.probes >= measured.lists / 2


def test_compaction_drops_what_is_gone_and_keeps_the_rest() -> None:
    vectors = unit_rows(3000, clusters=60)
    rows = np.arange(3000) * 2
    old = inverted.build(rows, source_of(rows, vectors), DIMENSION).index
    old.inner.nprobe = old.inner.nlist
    alive = np.flatnonzero(np.arange(3000) % 5 != 0)
    new_rows, new_vectors = np.arange(7000, 7100), unit_rows(100, seed=3)
    index = LayeredIndex(inverted.compact(old, alive, new_rows, new_vectors))
    assert index.rows().tolist() == [*rows[alive].tolist(), *new_rows.tolist()]
    agrees(index, np.concatenate([rows[alive], new_rows]), np.concatenate([vectors[alive], new_vectors]))
    agrees(LayeredIndex(old), rows, vectors)


def generation(number: int, **fields: object) -> Generation:
    start = Generation(
        number, None, "", "fake", "", DIMENSION, 0, 0, None, None, 0, 0, vector_kind="exact", vector_recall=None,
        vector_trained=0,
    )  # fmt: skip
    return replace(start, **fields)  # type: ignore[arg-type]


def described(number: int, file: VectorFile) -> Generation:
    return generation(number, **{name: getattr(file, name) for name in VectorFile.__slots__})


def test_the_kind_of_file_follows_the_size_and_lists_are_reused(tmp_path: Path) -> None:
    vectors, rows = unit_rows(4000, clusters=60), np.arange(4000)
    source = source_of(rows, vectors)
    small = write_file(tmp_path, generation(1), rows[:900], source, threshold=1000)
    assert (small.vector_kind, small.vector_recall, small.vector_trained) == ("exact", 1.0, 0)
    assert describe(described(1, small)) == "Vector search: exact."

    first = write_file(tmp_path, described(2, small), rows[:2500], source, threshold=1000)
    assert first.vector_trained == 2500
    assert first.vector_recall >= 0.9
    assert f"recall@10 {first.vector_recall:.3f}" in describe(described(2, first))

    read: list[int] = []

    def counting(wanted: np.ndarray) -> np.ndarray:
        read.append(len(wanted))
        return source(wanted)

    rows_then = np.concatenate([rows[100:2500], rows[2600:2900]])
    second = write_file(tmp_path, described(3, first), rows_then, counting, threshold=1000)
    assert (second.vector_trained, second.vector_recall) == (2500, first.vector_recall)
    assert sum(read) == 300, "only the new vectors are read"
    base = load(tmp_path / VECTOR_FOLDER / "3.faiss", second.vector_sha256, DIMENSION)
    assert base is not None
    assert base.rows.tolist() == rows_then.tolist()

    # Grown by more than half since the training, or with its old file damaged, the lists are trained anew.
    third = write_file(tmp_path, described(4, second), rows, source, threshold=1000)
    assert third.vector_trained == 4000
    path = tmp_path / VECTOR_FOLDER / "3.faiss"
    path.unlink()
    assert write_file(tmp_path, described(5, second), rows_then, source, threshold=1000).vector_trained == 2700


def test_a_rewrite_pays_for_itself() -> None:
    assert not needs_file(1000, 0)
    assert needs_file(1001, 0)
    assert not needs_file(5_000, 25_000)
    assert needs_file(5_001, 25_000)
    # Exactly searched changes stay few beside an approximate base.
    assert needs_file(10_001, 1_000_000)
    assert not needs_file(10_000, 1_000_000)
    assert APPROXIMATE_ROWS > 1000


def test_a_saved_index_lies_in_the_file_not_in_memory(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(20_000, 384)).astype(np.float32)
    path = tmp_path / "1.faiss"
    sha256 = save(FaissIndex.exact(np.arange(20_000), vectors), path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256
    assert path.stat().st_mode & 0o222 == 0

    def own() -> int:
        fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return int(fields["RssAnon"].split()[0]) * 1024

    before = own()
    index = load(path, sha256, 384)
    assert index is not None
    assert LayeredIndex(index).search(vectors[7], 1)[0][0] == 7
    assert own() - before < path.stat().st_size / 4
    assert resource.getpagesize() < path.stat().st_size


@pytest.mark.parametrize("kind", ["exact", "approximate"])
def test_a_changed_file_is_never_loaded(tmp_path: Path, kind: str) -> None:
    vectors, rows = unit_rows(1200), np.arange(1200)
    made = exact(rows, vectors) if kind == "exact" else None
    index = made.base if isinstance(made, LayeredIndex) else inverted.build(rows, source_of(rows, vectors), 24).index
    path = tmp_path / "1.faiss"
    sha256 = save(index, path)
    data = path.read_bytes()
    path.unlink()
    assert load(path, sha256, DIMENSION) is None
    for seed in range(100):
        path.write_bytes(mutated(data, seed))
        assert load(path, sha256, DIMENSION) is None, f"mutation {seed}"
    path.write_bytes(b"")
    assert load(path, sha256, DIMENSION) is None
    path.write_bytes(data)
    assert load(path, sha256, DIMENSION) is not None
    assert load(path, sha256, DIMENSION + 1) is None


def test_intact_bytes_that_are_no_index_are_not_loaded(tmp_path: Path) -> None:
    vectors = unit_rows(50)
    path = tmp_path / "1.faiss"
    save(FaissIndex.exact(np.arange(50), vectors), path)
    data = bytearray(path.read_bytes())
    huge = data[:]
    huge[60:68] = (1 << 60).to_bytes(8, "little")
    for bad in (b"nonsense" * 20, bytes(data[: len(data) // 2]), bytes(huge)):
        path.unlink()
        path.write_bytes(bad)
        # The digest is right, so only FAISS itself stands between the bytes and a search.
        loaded = load(path, hashlib.sha256(bad).hexdigest(), DIMENSION)
        assert loaded is None or len(loaded) == 50
