"""The embedder in int8 beside the same one in float32: how fast, how near its vectors, and whether it ranks as well.

    python tests/benchmarks/encoder.py SET... --weights MODEL_FOLDER

SET is a folder in BEIR's layout; a document is one text, cut at the embedder's window. Both embed the same ids on the
threads that PyTorch has. "mixed" is an index made in float32 and searched with questions in int8.
"""

import argparse
import gzip
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import gettempdir

import numpy as np

import indexer.embedding
from indexer.embedding import SentenceTransformerEmbedder, Vectors
from indexer.evaluation import JudgedSet, Scores, compare, interval, measure, read_judged_set
from indexer.weights import embedder_weights

METRIC = "ndcg@10"
DEPTH = 100


def read_texts(judged: JudgedSet) -> tuple[list[str], list[str]]:
    """Ids and texts of the documents."""
    opened = gzip.open if judged.corpus.suffix == ".gz" else open
    with opened(judged.corpus, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [str(row["_id"]) for row in rows], [f"{row.get('title') or ''} {row['text']}".strip() for row in rows]


def timed(embed: Callable[[Sequence[str]], Vectors], texts: Sequence[str]) -> tuple[Vectors, float]:
    started = time.perf_counter()
    return embed(texts), time.perf_counter() - started


def question_ms(embedder: SentenceTransformerEmbedder, questions: Sequence[str]) -> float:
    times = []
    for question in questions[:100]:
        started = time.perf_counter()
        embedder.embed_question(question)
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def values(judged: JudgedSet, names: Sequence[str], documents: Vectors, questions: Vectors) -> Scores:
    """nDCG@10 of every question, by the cosines of (n, d) documents and (q, d) questions."""
    found = {}
    for name, scores in zip(judged.questions, questions @ documents.T, strict=True):
        best = np.argsort(-scores, kind="stable")[:DEPTH]
        found[name] = {names[place]: float(scores[place]) for place in best}
    return measure(judged, found)[METRIC]


def loaded(weights: str, work: Path, *, int8: bool) -> SentenceTransformerEmbedder:
    """The embedder as this machine would run it, or in float32."""
    usual = indexer.embedding.can_be_int8
    indexer.embedding.can_be_int8 = usual if int8 else lambda folder: False
    try:
        embedder = SentenceTransformerEmbedder(embedder_weights(weights, work))
        embedder.embed_documents(["warm"] * 3)
        return embedder
    finally:
        indexer.embedding.can_be_int8 = usual


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", type=Path)
    parser.add_argument("--weights", required=True)
    options = parser.parse_args()
    plain = loaded(options.weights, Path(gettempdir()), int8=False)
    int8 = loaded(options.weights, Path(gettempdir()), int8=True)
    print("| set | questions | float32 | int8 | difference | mixed | cosine: mean, 1 % | documents/s | ms a question |")
    print("|---" * 9 + "|")
    for folder in options.sets:
        judged = read_judged_set(folder)
        names, texts = read_texts(judged)
        asked = list(judged.questions.values())
        (exact, slow), (rounded, fast) = timed(plain.embed_documents, texts), timed(int8.embed_documents, texts)
        of_exact = np.stack([plain.embed_question(text) for text in asked])
        of_rounded = np.stack([int8.embed_question(text) for text in asked])
        ranked = [
            values(judged, names, documents, questions)
            for documents, questions in ((exact, of_exact), (rounded, of_rounded), (exact, of_rounded))
        ]
        means = [interval(each).value for each in ranked]
        difference = compare({"int8": ranked[1], "float32": ranked[0]})[0]
        cosines = (exact * rounded).sum(axis=1)
        cells = [
            judged.name,
            str(len(asked)),
            *(f"{mean:.4f}" for mean in means[:2]),
            f"{difference.difference:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]",
            f"{means[2]:.4f}",
            f"{cosines.mean():.5f}, {np.quantile(cosines, 0.01):.4f}",
            f"{len(texts) / slow:.0f} -> {len(texts) / fast:.0f}",
            f"{question_ms(plain, asked):.1f} -> {question_ms(int8, asked):.1f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
