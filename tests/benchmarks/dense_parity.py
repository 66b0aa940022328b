"""Dense ranking without Tandem: sentence-transformers as its documentation shows it, beside `retrieval.py --whole`.

    python tests/benchmarks/dense_parity.py SET... --weights MODEL

A document is its title, a space and its text, cut by the library at its window; the search is a product of all vectors.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from indexer.evaluation import JudgedSet, interval, measure, read_judged_set

METRIC = "ndcg@10"
DEPTH = 100


def rank(judged: JudgedSet, model: SentenceTransformer) -> dict[str, dict[str, float]]:
    """Question -> document -> cosine, of the best documents."""
    opened = gzip.open if judged.corpus.suffix == ".gz" else open
    with opened(judged.corpus, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    texts = [f"{row.get('title') or ''} {row['text']}".strip() for row in rows]
    documents = model.encode(texts, normalize_embeddings=True, batch_size=32)
    questions = model.encode(list(judged.questions.values()), normalize_embeddings=True)
    found = {}
    for name, scores in zip(judged.questions, questions @ documents.T, strict=True):
        best = np.argsort(-scores, kind="stable")[:DEPTH]
        found[name] = {str(rows[place]["_id"]): float(scores[place]) for place in best}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--weights", required=True)
    options = parser.parse_args()
    model = SentenceTransformer(options.weights, device="cpu")
    print(f"| set | questions | {METRIC} |\n|---|---|---|")
    for folder in options.sets:
        judged = read_judged_set(folder)
        found = interval(measure(judged, rank(judged, model))[METRIC])
        told = f"{found.value:.4f} [{found.low:.3f}, {found.high:.3f}]"
        print(f"| {judged.name} | {len(judged.questions)} | {told} |", flush=True)


if __name__ == "__main__":
    main()
