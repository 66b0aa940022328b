"""Indexing throughput against LangChain's splitter, embeddings class and FAISS store: same files, model and machine.

python tests/benchmarks/indexing.py --documents docs.jsonl.gz --weights MODEL_FOLDER --count 200 [--out result.json]
Needs langchain-huggingface, langchain-community and langchain-classic beside the project. Both sides read the files,
split, embed and write a searchable index to disk; the models are loaded before the clock starts. They take turns.
"""

import argparse
import gzip
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

from indexer.chunking import ChunkSize
from indexer.embedding import SentenceTransformerEmbedder
from indexer.store import Store
from indexer.sync import sync
from indexer.weights import embedder_weights


def write_documents(source: Path, folder: Path, count: int, step: int) -> int:
    """`count` documents, every `step`-th of the source, as text files; returns their characters."""
    folder.mkdir()
    characters = written = 0
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        for place, line in enumerate(lines):
            if place % step == 0 and written < count:
                text = json.loads(line)["text"]
                (folder / f"{written:05}.txt").write_text(text, encoding="utf-8")
                characters, written = characters + len(text), written + 1
    return characters


def cpu_seconds() -> float:
    """Processor time of this process and of its children that have ended."""
    mine, theirs = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime


def tandem(folder: Path, home: Path, embedder: SentenceTransformerEmbedder, size: ChunkSize) -> tuple[float, int]:
    started = time.perf_counter()
    store = Store(home)
    outcome = sync(store, [folder], embedder, size)
    store.close()
    return time.perf_counter() - started, outcome.chunks


def langchain(folder: Path, home: Path, embeddings: object, tokenizer: object, size: ChunkSize) -> tuple[float, int]:
    from langchain_community.vectorstores import FAISS
    from langchain_core.documents import Document
    from langchain_text_splitters import RecursiveCharacterTextSplitter

    started = time.perf_counter()
    documents = [
        Document(path.read_text(encoding="utf-8"), metadata={"source": str(path)}) for path in sorted(folder.iterdir())
    ]
    splitter = RecursiveCharacterTextSplitter.from_huggingface_tokenizer(
        tokenizer, chunk_size=size.tokens, chunk_overlap=size.overlap
    )
    chunks = splitter.split_documents(documents)
    FAISS.from_documents(chunks, embeddings).save_local(str(home))
    return time.perf_counter() - started, len(chunks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=Path, required=True)
    parser.add_argument("--weights", required=True, help="a folder of a sentence-transformers model")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--step", type=int, default=100)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()

    from langchain_huggingface import HuggingFaceEmbeddings
    from transformers import AutoTokenizer

    size = ChunkSize()
    times: dict[str, list[float]] = {"tandem": [], "langchain": []}
    # On a machine that does other work too, processor time is the steadier figure.
    cpu: dict[str, list[float]] = {"tandem": [], "langchain": []}
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        characters = write_documents(given.documents, work / "documents", given.count, given.step)
        embedder = SentenceTransformerEmbedder(embedder_weights(given.weights, work))
        embeddings = HuggingFaceEmbeddings(model_name=given.weights, encode_kwargs={"normalize_embeddings": True})
        tokenizer = AutoTokenizer.from_pretrained(given.weights)
        embedder.embed_question("warm")
        embeddings.embed_query("warm")
        for run in range(given.runs):
            before = cpu_seconds()
            seconds, counts["tandem"] = tandem(work / "documents", work / f"t{run}", embedder, size)
            times["tandem"].append(seconds)
            between = cpu_seconds()
            seconds, counts["langchain"] = langchain(work / "documents", work / f"l{run}", embeddings, tokenizer, size)
            times["langchain"].append(seconds)
            cpu["tandem"].append(between - before)
            cpu["langchain"].append(cpu_seconds() - between)
            print(json.dumps({"seconds": times, "cpu_seconds": cpu}), flush=True)
    print(
        f"\n{given.count} documents, {characters:,} characters, {size.tokens} tokens a chunk, {size.overlap} overlap\n"
    )
    print("| | chunks | seconds (median) | processor seconds (median) | characters/s |\n|---|---|---|---|---|")
    for side, values in times.items():
        middle, work_done = statistics.median(values), statistics.median(cpu[side])
        print(f"| {side} | {counts[side]} | {middle:.1f} | {work_done:.1f} | {characters / middle:,.0f} |")
    ratio = statistics.median(slow / fast for slow, fast in zip(times["langchain"], times["tandem"], strict=True))
    print(f"\nTandem is {ratio:.2f} times as fast (median of {given.runs} pairs).")
    if given.out:
        given.out.write_text(
            json.dumps({"times": times, "cpu": cpu, "chunks": counts, "characters": characters, "ratio": ratio})
        )


if __name__ == "__main__":
    main()
