"""Chunk size and overlap: recall, precision and IoU of retrieved text against exact answer spans.

python tests/benchmarks/chunk_sweep.py --questions chunking_eval.jsonl.gz --corpora FOLDER --weights MODEL_FOLDER
    [--only state_of_the_union wikitexts] [--sizes 64 96 128 160 200] [--overlaps 0 12 24 48] [--k 4 5] [--out x.json]
The measures are those of Smith & Troynikov, "Evaluating Chunking Strategies for Retrieval" (Chroma, 2024), counted in
characters: for the union R of the k retrieved chunks and the answer spans E of a question, recall |R & E| / |E|,
precision |R & E| / (characters retrieved, overlap counted each time), IoU |R & E| / (characters retrieved + |E| -
|R & E|). Chunks of all corpora together are searched exactly, as vectors only.
"""

import argparse
import gzip
import json
import statistics
import tempfile
from pathlib import Path

import numpy as np

from indexer.chunking import ChunkSize, split
from indexer.embedding import SentenceTransformerEmbedder
from indexer.records import Chunk, Document
from indexer.weights import embedder_weights

Span = tuple[int, int]


def covered(spans: list[Span], others: list[Span]) -> int:
    """Characters that lie in both unions."""
    mine, theirs = (set().union(*(range(*span) for span in part)) if part else set() for part in (spans, others))
    return len(mine & theirs)


def documents(folder: Path, only: list[str]) -> list[Document]:
    found = []
    for path in sorted(folder.glob("*.md.gz")):
        name = path.name.removesuffix(".md.gz")
        if not only or name in only:
            text = gzip.decompress(path.read_bytes()).decode("utf-8")
            found.append(Document(name, "/corpus", name, name.replace("_", " "), "text", text))
    return found


def measure(
    texts: list[Document],
    questions: list[dict],
    asked: np.ndarray,
    embedder: SentenceTransformerEmbedder,
    size: ChunkSize,
    ks: list[int],
) -> dict:
    chunks: list[Chunk] = [chunk for text in texts for chunk in split(text, embedder, size)]
    vectors = embedder.embed_documents([chunk.embedded_text for chunk in chunks])
    order = np.argsort(-(asked @ vectors.T), axis=1)[:, : max(ks)]
    result: dict = {"tokens": size.tokens, "overlap": size.overlap, "chunks": len(chunks)}
    result["mean_tokens"] = statistics.mean(chunk.tokens for chunk in chunks)
    for k in ks:
        rows = []
        for question, places in zip(questions, order[:, :k], strict=True):
            retrieved = [chunks[place] for place in places]
            inside = [(c.start, c.end) for c in retrieved if c.document == question["corpus"]]
            outside = sum(c.end - c.start for c in retrieved if c.document != question["corpus"])
            answers = [(part["start_index"], part["end_index"]) for part in question["references"]]
            both, wanted = covered(inside, answers), covered(answers, answers)
            shown = sum(end - start for start, end in inside) + outside
            rows.append((both / wanted, both / shown, both / (shown + wanted - both)))
        recall, precision, iou = (statistics.mean(column) for column in zip(*rows, strict=True))
        result[f"k{k}"] = {"recall": recall, "precision": precision, "iou": iou}
    # The same number of tokens shown to the model whatever the chunk size: what a prompt has room for.
    budget = 4 * 160
    rows_budget = []
    for question, places in zip(questions, np.argsort(-(asked @ vectors.T), axis=1), strict=True):
        used, inside = 0, []
        for place in places:
            used += chunks[place].tokens
            if used > budget:
                break
            if chunks[place].document == question["corpus"]:
                inside.append((chunks[place].start, chunks[place].end))
        answers = [(part["start_index"], part["end_index"]) for part in question["references"]]
        rows_budget.append(covered(inside, answers) / covered(answers, answers))
    result["recall_in_640_tokens"] = statistics.mean(rows_budget)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=Path, required=True)
    parser.add_argument("--corpora", type=Path, required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128, 160, 200])
    parser.add_argument("--overlaps", type=int, nargs="+", default=[0, 12, 24, 48])
    parser.add_argument("--k", type=int, nargs="+", default=[4, 5])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    embedder = SentenceTransformerEmbedder(embedder_weights(given.weights, Path(tempfile.gettempdir())))
    texts = documents(given.corpora, given.only)
    names = {text.id for text in texts}
    with gzip.open(given.questions, "rt", encoding="utf-8") as lines:
        questions = [row for row in map(json.loads, lines) if row["corpus"] in names]
    asked = embedder.embed_documents([row["question"] for row in questions])
    print(f"{len(questions)} questions, {sum(len(text.text) for text in texts):,} characters\n")
    k = given.k[-1]
    print(f"| tokens | overlap | chunks | recall@{k} | precision@{k} | IoU@{k} | recall in 640 tokens |")
    print("|---|---|---|---|---|---|---|")
    results = []
    for tokens in given.sizes:
        for overlap in given.overlaps:
            if overlap > tokens // 2:
                continue
            found = measure(texts, questions, asked, embedder, ChunkSize(tokens, overlap), given.k)
            results.append(found)
            at = found[f"k{k}"]
            print(
                f"| {tokens} | {overlap} | {found['chunks']} | {at['recall']:.3f} | {at['precision']:.3f} |"
                f" {at['iou']:.3f} | {found['recall_in_640_tokens']:.3f} |",
                flush=True,
            )
            if given.out:
                given.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
