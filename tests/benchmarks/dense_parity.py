"""Dense ranking without Tandem: sentence-transformers as its documentation shows it, beside `retrieval.py --whole`.

    python tests/benchmarks/dense_parity.py SET... --weights MODEL

A document is its title, a space and its text, cut by the library at its window; the search is a product of all vectors.
"""

import argparse
from pathlib import Path

from encoder import METRIC, read_texts, values
from sentence_transformers import SentenceTransformer

from indexer.evaluation import JudgedSet, Scores, interval, read_judged_set


def scores(judged: JudgedSet, model: SentenceTransformer) -> Scores:
    names, texts = read_texts(judged)
    documents = model.encode(texts, normalize_embeddings=True, batch_size=32)
    questions = model.encode(list(judged.questions.values()), normalize_embeddings=True)
    return values(judged, names, documents, questions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--weights", required=True)
    options = parser.parse_args()
    model = SentenceTransformer(options.weights, device="cpu")
    print(f"| set | questions | {METRIC} |\n|---|---|---|")
    for folder in options.sets:
        judged = read_judged_set(folder)
        found = interval(scores(judged, model))
        told = f"{found.value:.4f} [{found.low:.3f}, {found.high:.3f}]"
        print(f"| {judged.name} | {len(judged.questions)} | {told} |", flush=True)


if __name__ == "__main__":
    main()
