"""How well relevance tells answerable from absent questions, on judged sets of real questions.

    python tests/benchmarks/refusal_roc.py SET... [--questions N] [--cache FILE] [--bfloat16] [--json FILE] [--fit]

SET is a folder in BEIR's layout. In each set the documents that answer half of the questions are left out of the index:
those questions are the near absent ones (others of the set are about the same things); the questions of the other sets
are the far absent ones; the rest is answerable. A second split by document, made by hash, separates the validation
part, on which --fit fits the constants of service/refusal.py and on which the threshold for 5 % over-refusal is read,
from the part that is reported.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from retrieval import StoredVectors

from indexer.evaluation import JudgedSet, read_judged_set
from indexer.retrieval import Retriever
from indexer.store import Store
from indexer.sync import sync
from service.assembly import chunk_size, load_embedder
from service.refusal import evidence, relevance
from service.settings import load_settings

OVER_REFUSAL = 0.05
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Asked:
    set: str
    kind: str  # answerable, near or far
    validation: bool
    evidence: tuple[float, float]
    relevance: float


def side(text: str, salt: str) -> bool:
    return hashlib.sha256(f"{salt}{text}".encode()).digest()[0] % 2 == 0


def evidence_document(judged: JudgedSet, question: str) -> str:
    return min(name for name, grade in judged.judgements[question].items() if grade > 0)


def leave_out(judged: JudgedSet, corpus: Path) -> set[str]:
    """Write the set's corpus without what answers half of the questions; the ids of the questions left absent."""
    absent = {name for name in judged.questions if side(evidence_document(judged, name), "absent")}
    gone = {name for asked in absent for name, grade in judged.judgements[asked].items() if grade > 0}
    opened = gzip.open if judged.corpus.suffix == ".gz" else open
    with opened(judged.corpus, "rt", encoding="utf-8") as lines, (corpus / "corpus.jsonl").open("w") as file:
        file.writelines(line for line in lines if str(json.loads(line)["_id"]) not in gone)
    # A question of the other half that lost its only document is absent as well.
    return {
        name
        for name, grades in judged.judgements.items()
        if all(document in gone for document, grade in grades.items() if grade > 0)
    }


def ask_set(judged: JudgedSet, others: list[JudgedSet], embedder: StoredVectors, most: int) -> list[Asked]:
    settings, shuffled = load_settings(), random.Random(0)
    with tempfile.TemporaryDirectory() as temporary:
        corpus = Path(temporary) / "corpus"
        corpus.mkdir()
        absent = leave_out(judged, corpus)
        store = Store(Path(temporary) / "home")
        sync(store, [corpus], embedder, chunk_size(settings))
        retriever = Retriever(store, embedder)

        def ask(kind: str, text: str, validation: bool) -> Asked:
            passages = retriever.retrieve(text, settings.k).passages
            return Asked(judged.name, kind, validation, evidence(text, passages), relevance(text, passages))

        own = [(name, text) for name, text in judged.questions.items() if name not in absent]
        near = [(name, text) for name, text in judged.questions.items() if name in absent]
        asked = [
            ask(kind, text, side(evidence_document(judged, name), "validation"))
            for kind, group in (("answerable", own), ("near", near))
            for name, text in shuffled.sample(group, min(most, len(group)))
        ]
        foreign = [
            (text, evidence_document(other, name)) for other in others for name, text in sorted(other.questions.items())
        ]
        for text, document in shuffled.sample(foreign, min(most, len(foreign))):
            asked.append(ask("far", text, side(document, "validation")))
        store.close()
    return asked


def area(answerable: Vector, absent: Vector) -> float:
    """ROC AUC: how often an answerable question is more relevant than an absent one, ties counting half."""
    return float((answerable[:, None] > absent).mean() + (answerable[:, None] == absent).mean() / 2)


def scores(asked: list[Asked], kind: str, validation: bool) -> Vector:
    return np.array([item.relevance for item in asked if item.kind == kind and item.validation == validation])


def weights(asked: list[Asked]) -> Vector:
    """Every set counts the same, and so do its answerable and its absent questions."""
    groups = [(item.set, item.kind) for item in asked]
    return np.array([1 / groups.count(group) for group in groups])


def fit(asked: list[Asked]) -> Vector:
    """Logistic regression by Newton's method: weights of similarity and words, intercept. Near ones are left out."""
    used = [item for item in asked if item.validation and item.kind != "near"]
    x = np.array([[*item.evidence, 1.0] for item in used])
    y = np.array([item.kind == "answerable" for item in used], float)
    weight, found = weights(used), np.zeros(3)
    for _ in range(100):
        p = 1 / (1 + np.exp(-x @ found))
        curvature = (x * (weight * p * (1 - p))[:, None]).T @ x + 1e-3 * np.eye(3)
        found += np.linalg.solve(curvature, x.T @ (weight * (y - p)) - 1e-3 * found)
    return found


def report(asked: list[Asked], threshold: float) -> dict[str, float]:
    answerable, near, far = (scores(asked, kind, False) for kind in ("answerable", "near", "far"))
    return {
        "answerable": len(answerable),
        "near": len(near),
        "far": len(far),
        "auc_far": round(area(answerable, far), 4),
        "auc_near": round(area(answerable, near), 4),
        "over_refusal": round(float((answerable < threshold).mean()), 4),
        "refused_far": round(float((far < threshold).mean()), 4),
        "refused_near": round(float((near < threshold).mean()), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--questions", type=int, default=150, help="the most of each kind a set")
    parser.add_argument("--cache", default=":memory:")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--fit", action="store_true")
    options = parser.parse_args()
    embedder = StoredVectors(load_embedder(load_settings()), options.cache, bfloat16=options.bfloat16)
    sets = [read_judged_set(folder) for folder in options.sets]
    asked: list[Asked] = []
    for judged in sets:
        asked += ask_set(judged, [other for other in sets if other is not judged], embedder, options.questions)
        print(f"{judged.name}: asked", flush=True)
    if options.fit:
        print("similarity, words, intercept:", fit(asked).round(2).tolist())
    print(
        "threshold for 5 % over-refusal:", round(float(np.quantile(scores(asked, "answerable", True), OVER_REFUSAL)), 3)
    )
    threshold = load_settings().min_relevance
    rows = {"all": report(asked, threshold)}
    rows |= {judged.name: report([item for item in asked if item.set == judged.name], threshold) for judged in sets}
    print("| set | " + " | ".join(rows["all"]) + " |\n" + "|---" * (len(rows["all"]) + 1) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(str(value) for value in row.values()) + " |")
    if options.json:
        points = [[item.set, item.kind, item.validation, *item.evidence, item.relevance] for item in asked]
        options.json.write_text(json.dumps({"threshold": threshold, "rows": rows, "asked": points}))


if __name__ == "__main__":
    main()
