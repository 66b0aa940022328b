"""How well a retriever ranks: public measures over a judged set, with intervals and tests.

A set is a folder in BEIR's layout (Thakur et al. 2021, arXiv 2104.08663): corpus.jsonl or .jsonl.gz, queries.jsonl,
qrels/test.tsv. Documents are judged, chunks are retrieved: a document scores what its best chunk scores. Measures come
from ir_measures (MacAvaney, Macdonald & Ounis 2022) and so from trec_eval. n questions.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from indexer.errors import TandemError

# Name here -> name in ir_measures.
MEASURES = {"ndcg@10": "nDCG@10", "mrr@10": "RR@10", "recall@10": "R@10", "recall@100": "R@100"}
TESTED = "ndcg@10"
RESAMPLES = 10_000
SEED = 0

Scores = npt.NDArray[np.float64]
Run = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """Questions by id, and for each the grade of every judged document by id; grades over 0 are relevant."""

    name: str
    corpus: Path
    questions: Mapping[str, str]
    judgements: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and its 95 % percentile bootstrap interval over questions."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Mean of `first` minus `second` over the same questions; `p` two-sided, `p_holm` corrected for all comparisons."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float


def read_judged_set(folder: Path) -> JudgedSet:
    """The set in a folder. Only questions with a relevant document count. Raises TandemError naming what is wrong."""
    corpus = next((path for name in ("corpus.jsonl", "corpus.jsonl.gz") if (path := folder / name).is_file()), None)
    if corpus is None:
        raise _unreadable(folder, "has no corpus.jsonl or corpus.jsonl.gz")
    try:
        with (folder / "queries.jsonl").open(encoding="utf-8") as lines:
            texts = {str(row["_id"]): str(row["text"]) for row in map(json.loads, filter(str.strip, lines))}
        judgements = _judgements(folder / "qrels" / "test.tsv")
    except OSError as error:
        raise _unreadable(folder, f"cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise _unreadable(folder, f"is not in BEIR's layout: {error}") from error
    asked = {name: texts[name] for name in judgements if name in texts}
    if not asked:
        raise _unreadable(folder, "has no question with a relevant document")
    return JudgedSet(folder.resolve().name, corpus, asked, {name: judgements[name] for name in asked})


def _judgements(path: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    with path.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        next(rows, None)
        for question, document, grade in (row[:3] for row in rows if row):
            found.setdefault(question, {})[document] = int(float(grade))
    return {question: grades for question, grades in found.items() if max(grades.values()) > 0}


def measure(judged: JudgedSet, run: Run) -> dict[str, Scores]:
    """(n,) scores by measure, in the order of the questions; a question without results scores 0."""
    import ir_measures

    wanted = {ir_measures.parse_measure(theirs): ours for ours, theirs in MEASURES.items()}
    places = {name: place for place, name in enumerate(judged.questions)}
    scores = {name: np.zeros(len(places)) for name in MEASURES}
    judgements = {question: dict(grades) for question, grades in judged.judgements.items()}
    results = {question: dict(documents) for question, documents in run.items()}
    for value in ir_measures.iter_calc(list(wanted), judgements, results):
        scores[wanted[value.measure]][places[value.query_id]] = value.value
    return scores


def interval(scores: Scores, seed: int = SEED) -> Interval:
    """The mean of (n,) scores and its interval (percentile bootstrap, Efron & Tibshirani 1993)."""
    low, high = _percentiles(scores, seed)
    return Interval(float(scores.mean()), low, high)


def _percentiles(scores: Scores, seed: int) -> tuple[float, float]:
    random = np.random.default_rng(seed)
    # A few resamples at a time: 10,000 of 10,000 questions would take 800 MB.
    step = max(1, 2_000_000 // len(scores))
    means = [
        scores[random.integers(len(scores), size=(min(step, RESAMPLES - start), len(scores)))].mean(axis=1)
        for start in range(0, RESAMPLES, step)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def compare(scores: Mapping[str, Scores], seed: int = SEED) -> list[Comparison]:
    """Every pair of rankings: paired randomisation test on their means (Smucker, Allan & Carterette, CIKM 2007)."""
    names = list(scores)
    pairs = [(first, second) for place, first in enumerate(names) for second in names[place + 1 :]]
    p_values = [_randomisation_p(scores[first] - scores[second], seed) for first, second in pairs]
    corrected = holm(p_values)
    comparisons = []
    for (first, second), p, p_holm in zip(pairs, p_values, corrected, strict=True):
        difference = scores[first] - scores[second]
        low, high = _percentiles(difference, seed)
        comparisons.append(Comparison(first, second, float(difference.mean()), low, high, p, p_holm))
    return comparisons


def _randomisation_p(difference: Scores, seed: int) -> float:
    random = np.random.default_rng(seed)
    observed = abs(difference.mean())
    step = max(1, 2_000_000 // len(difference))
    as_large = 0
    for start in range(0, RESAMPLES, step):
        signs = random.choice((-1.0, 1.0), size=(min(step, RESAMPLES - start), len(difference)))
        # Sums in another order differ in the last bits.
        as_large += int((np.abs((signs * difference).mean(axis=1)) >= observed - 1e-12).sum())
    # The observed labelling is one of the possible ones, so p is never 0.
    return (as_large + 1) / (RESAMPLES + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979) for testing all of these at once, in their order."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, p_values[place] * (len(p_values) - rank)))
        corrected[place] = largest
    return corrected


def _unreadable(folder: Path, problem: str) -> TandemError:
    return TandemError(
        f"The set {folder} {problem}.",
        expected="corpus.jsonl (or .gz) with _id, title, text; queries.jsonl with _id, text; qrels/test.tsv with a "
        "header and question, document, grade.",
        do="Name a folder in BEIR's layout.",
    )
