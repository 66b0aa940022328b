"""Approximate search: inverted lists over 8-bit codes, built in a stream, tuned and measured against exact search.

Jegou, Douze & Schmid 2011 (inverted lists), FAISS IndexIVFScalarQuantizer with QT_8bit: d bytes a vector instead of
4 d. HNSW answers faster and builds about as fast (tests/benchmarks/vectors.py). Lists were chosen because a filter
loses no neighbours in them, because what is gone can be left out and what is new put in without another build, and
because they are read from a mapped file as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from indexer.vectors import Matrix, Rows, Source
from indexer.vectors.faiss import FaissIndex

K = 10
TARGET_RECALL = 0.95
# Tuning aims higher than the promise, because the vectors it is tuned on are a sample.
TUNED_RECALL = 0.96
TIE = 1e-3
HELD_OUT = 1000
# Questions are not chunks: they lie farther from every chunk, and their neighbours are spread over more lists. So half
# of the held-out vectors are blurred with noise of this length, which leaves a cosine of 0.5 to the chunk itself.
BLUR = math.sqrt(3)
# Real questions are farther still, and need more than made ones can show (tests/benchmarks/vectors.py): however well
# few lists do in tuning, so many that about this many vectors are compared are probed. That takes a millisecond.
MIN_COMPARED = 20_000
TRAIN_PER_LIST = 40
TRAIN_ROUNDS = 10
READ_ROWS = 50_000
SEED = 20_260


@dataclass(frozen=True, slots=True)
class Measured:
    """An approximate index and its recall@10 against exact search over `questions` stored vectors not trained on.

    `recall` is the lower one of that for the vectors as they are and of that for blurred ones.
    """

    index: FaissIndex
    recall: float
    lists: int
    probes: int
    questions: int


def build(rows: Rows, source: Source, dimension: int, *, compared: int = MIN_COMPARED) -> Measured:
    """Train and fill the lists for increasing row numbers (n of them, n >= 1,000), and set how many to probe.

    Peak memory: the training sample (TRAIN_PER_LIST x lists vectors of 4 d bytes), n d bytes of codes and one batch.
    """
    import faiss

    random = np.random.default_rng(SEED)
    # 4 sqrt(n) lists balance the cost of choosing lists and of reading them (FAISS's own guideline: 4 to 16 sqrt(n)).
    lists = max(1, round(4 * math.sqrt(len(rows))))
    order = random.permutation(len(rows))
    held = min(HELD_OUT, len(rows) // 10)
    held_out, sample = np.sort(order[:held]), np.sort(order[held : held + TRAIN_PER_LIST * lists])
    quantizer = faiss.IndexFlatIP(dimension)
    inner = faiss.IndexIVFScalarQuantizer(
        quantizer, dimension, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
    )
    inner.cp.niter, inner.cp.seed, inner.cp.spherical = TRAIN_ROUNDS, SEED, True
    inner.cp.min_points_per_centroid = 1
    inner.train(source(rows[sample]))
    index = faiss.IndexIDMap(inner)
    truth = _Truth(rows, source, _half_blurred(source(rows[held_out]), random), held_out)
    for start, batch in _batches(rows, source):
        index.add_with_ids(batch, rows[start : start + len(batch)])
        truth.see(start, batch)
    return _tune(FaissIndex(index, keep=(inner, quantizer)), truth, fewest_probes(len(rows), lists, compared))


def compact(old: FaissIndex, alive: Rows, rows: Rows, vectors: Matrix) -> FaissIndex:
    """The lists of `old` with only the positions `alive` (increasing), and (m, d) vectors under greater row numbers.

    Nothing is trained and no stored vector is read, so the cost is that of copying the codes.
    """
    import faiss

    source = old.inner
    inner = faiss.IndexIVFScalarQuantizer(
        source.quantizer, old.dimension, source.nlist, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
    )
    inner.sq, inner.is_trained, inner.nprobe = source.sq, True, source.nprobe
    index = faiss.IndexIDMap(inner)
    moved = np.full(len(old), -1, np.int64)
    moved[alive] = np.arange(len(alive))
    for number in range(source.nlist):
        _copy_list(source.invlists, inner.invlists, number, moved)
    inner.ntotal = len(alive)
    if len(rows):
        inner.add(np.ascontiguousarray(vectors, np.float32))
    faiss.copy_array_to_vector(np.concatenate([old.rows[alive], rows]), index.id_map)
    index.ntotal = inner.ntotal
    return FaissIndex(index, keep=(inner, old))


def _copy_list(source: Any, target: Any, number: int, moved: Rows) -> None:
    import faiss

    size = source.list_size(number)
    if not size:
        return
    ids = moved[faiss.rev_swig_ptr(source.get_ids(number), size)]
    codes = faiss.rev_swig_ptr(source.get_codes(number), size * source.code_size).reshape(size, -1)
    kept = ids >= 0
    ids, codes = np.ascontiguousarray(ids[kept]), np.ascontiguousarray(codes[kept])
    if len(ids):
        target.add_entries(number, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(codes))


class _Truth:
    """Similarities of the exact K nearest neighbours of held-out vectors, themselves left out; found in a stream."""

    def __init__(self, rows: Rows, source: Source, questions: Matrix, positions: Rows) -> None:
        self._rows = rows
        self._source = source
        self.questions = questions
        self.positions = positions
        self._scores = np.full((len(questions), K), -np.inf, np.float32)

    def see(self, start: int, vectors: Matrix) -> None:
        """Take in (m, d) vectors at positions start, start + 1, ..."""
        scores = self.questions @ vectors.T
        own = (self.positions >= start) & (self.positions < start + len(vectors))
        scores[own, self.positions[own] - start] = -np.inf
        best = np.argpartition(-scores, min(K, scores.shape[1]) - 1, axis=1)[:, :K]
        all_scores = np.concatenate([self._scores, np.take_along_axis(scores, best, 1)], axis=1)
        self._scores = -np.sort(-all_scores, axis=1)[:, :K]

    def recall(self, inner: Any, probes: int, part: slice) -> float:
        """Mean recall@K of the approximate search over a part of the questions, themselves left out.

        A vector as similar as the K-th nearest, within TIE, is found as well as that one: texts that repeat have equal
        vectors, and which of them comes up says nothing (so does ann-benchmarks, Aumueller et al. 2020).
        """
        import faiss

        parameters = faiss.SearchParametersIVF(nprobe=probes)
        questions, own = np.ascontiguousarray(self.questions[part]), self.positions[part]
        _, found = inner.search(questions, K + 1, params=parameters)
        held, places = np.unique(found[found >= 0], return_inverse=True)
        scores = np.full(found.shape, -np.inf, np.float32)
        vectors = self._source(self._rows[held])[places]
        scores[found >= 0] = np.einsum("nd,nd->n", questions[np.nonzero(found >= 0)[0]], vectors)
        scores[found == own[:, None]] = -np.inf
        enough = np.sort(scores, axis=1)[:, ::-1][:, :K] >= self._scores[part, -1:] - TIE
        return float(np.mean(enough))


def _half_blurred(vectors: Matrix, random: np.random.Generator) -> Matrix:
    """The vectors, those at odd places blurred, so that the two kinds alternate."""
    noise = random.standard_normal(vectors[1::2].shape, np.float32)
    questions: Matrix = vectors.copy()
    questions[1::2] += BLUR * noise / np.linalg.norm(noise, axis=1, keepdims=True)
    questions /= np.linalg.norm(questions, axis=1, keepdims=True)
    return questions


def _tune(index: FaissIndex, truth: _Truth, fewest: int) -> Measured:
    """Set the smallest number of probes that reaches the target on one half; measure on the other half."""
    inner, lists = index.inner, int(index.inner.nlist)

    def recall(probes: int, first: int) -> float:
        # Places 0 and 1 modulo 4 are tuned on (plain, blurred), 2 and 3 are measured.
        return min(truth.recall(inner, probes, slice(first + kind, None, 4)) for kind in (0, 1))

    counts = sorted({fewest, *(count for count in _ladder(lists) if count > fewest)})
    probes = next((count for count in counts if recall(count, 0) >= TUNED_RECALL), lists)
    inner.nprobe = probes
    return Measured(index, recall(probes, 2), lists, probes, len(truth.questions) // 2)


def fewest_probes(rows: int, lists: int, compared: int = MIN_COMPARED) -> int:
    """Lists of average length that hold `compared` vectors together."""
    return min(lists, math.ceil(compared * lists / rows))


def _ladder(lists: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, 16, ... up to the number of lists."""
    step = 1
    while step < lists:
        yield step
        if step > 1 and step * 3 // 2 < lists:
            yield step * 3 // 2
        step *= 2
    yield lists


def _batches(rows: Rows, source: Source) -> Iterator[tuple[int, Matrix]]:
    for start in range(0, len(rows), READ_ROWS):
        yield start, np.ascontiguousarray(source(rows[start : start + READ_ROWS]), np.float32)
