"""Searches while another process syncs the same home over and over: errors, empty results, mixed generations, latency.

python tests/benchmarks/search_while_syncing.py [--answers] [--requests 10000] [--files 300] [--out result.json]
Every sync replaces every file by its next version, so two versions in one result would be a mixed generation. A result
must also be of the generation it says it is of. With --answers whole answers are asked for, whose generator quotes the
version in its prompt. The hashing embedder of the tests stands in for the model, so the
times are those of the retrieval. Idle latency is measured before and after, on the same index.
"""

import argparse
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from crash import PlainLoader
from fakes import FixedAdapters, HashingEmbedder, ScriptedGenerator

import indexer.sync
from indexer.chunking import ChunkSize
from indexer.records import Passage
from indexer.retrieval import Retriever
from indexer.store import Store
from indexer.sync import sync
from service.answering import Answerer, Question
from service.settings import Settings
from tuner.prompt import Prompt

SIZE = ChunkSize(40, 8)
Find = Callable[[str], tuple[int | None, tuple[Passage, ...], str]]


def write(corpus: Path, version: int, files: int) -> None:
    corpus.mkdir(exist_ok=True)
    for number in range(files):
        text = f"File {number} is of version{version} and says word{number % 97} and word{number % 89}."
        (corpus / f"{number}.txt").write_text(text)


def sync_for_ever(home: Path, corpus: Path, files: int) -> None:
    indexer.sync.Loader = PlainLoader
    version = 1
    store = Store(home)
    while True:
        version += 1
        write(corpus, version, files)
        sync(store, [corpus], HashingEmbedder(), SIZE)
        # A person's folder does not change without a pause either.
        time.sleep(0.2)


def search(retriever: Retriever, question: str) -> tuple[int | None, tuple[Passage, ...], str]:
    """The generation, the passages, and the text to look through."""
    found = retriever.retrieve(question, 10)
    return found.generation, found.passages, ""


def answer(answerer: Answerer, question: str) -> tuple[int | None, tuple[Passage, ...], str]:
    """As search, by the answering path, with the text of the answer; a refusal counts as empty."""
    found = answerer.answer(Question(question, mode="rag"))
    return found.index_generation, () if found.refused else found.passages, found.answer


def quote(prompt: Prompt) -> str:
    """What a model would copy: the version that the first passage of the prompt names."""
    versions = re.findall(r"version\d+", prompt.messages[-1]["content"])
    return f"The file is of {versions[0]} [1]." if versions else "There is none."


def ask(find: Find, chance: random.Random, count: int) -> tuple[list[float], dict[str, int], set[int | None]]:
    """Milliseconds of each request, what went wrong, the generations seen."""
    wrong = {"errors": 0, "empty": 0, "mixed": 0}
    times: list[float] = []
    generations: set[int | None] = set()
    of_generation: dict[int | None, str] = {}
    for _ in range(count):
        question = f"which file says word{chance.randrange(97)}"
        started = time.perf_counter()
        try:
            generation, passages, said = find(question)
        except Exception as error:
            print(repr(error), file=sys.stderr)
            wrong["errors"] += 1
            continue
        times.append(1000 * (time.perf_counter() - started))
        versions = {passage.chunk.text.split()[4] for passage in passages} | set(re.findall(r"version\d+", said))
        wrong["empty"] += not versions
        generations.add(generation)
        first = of_generation.setdefault(generation, min(versions, default=""))
        wrong["mixed"] += len(versions) > 1 or versions != {first}
    return times, wrong, generations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--answers", action="store_true")
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    chance = random.Random(5)
    with tempfile.TemporaryDirectory() as name:
        home, corpus = Path(name, "home"), Path(name, "corpus")
        write(corpus, 1, given.files)
        store = Store(home)
        sync(store, [corpus], HashingEmbedder(), SIZE)
        store.close()
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            sync_for_ever(home, corpus, given.files)
        store = Store(home)
        retriever = Retriever(store, HashingEmbedder())
        find: Find = partial(search, retriever)
        if given.answers:
            settings = Settings(home=home, corpora=(corpus,), chunk_tokens=40, chunk_overlap=8, min_relevance=0)
            find = partial(answer, Answerer(retriever, ScriptedGenerator(quote), settings, FixedAdapters()))
        idle = ask(find, chance, given.requests // 10)[0]
        os.kill(child, signal.SIGCONT)
        busy, wrong, generations = ask(find, chance, given.requests)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        idle += ask(find, chance, given.requests // 10)[0]
    figures = {
        "requests": given.requests,
        "generations": len(generations),
        **wrong,
        "idle_p50_ms": float(np.percentile(idle, 50)),
        "idle_p95_ms": float(np.percentile(idle, 95)),
        "busy_p50_ms": float(np.percentile(busy, 50)),
        "busy_p95_ms": float(np.percentile(busy, 95)),
    }
    print("| requests | generations seen | errors | empty | mixed | p50 idle / syncing ms | p95 idle / syncing ms |")
    print("|---|---|---|---|---|---|---|")
    print(
        f"| {given.requests} | {len(generations)} | {wrong['errors']} | {wrong['empty']} | {wrong['mixed']} |"
        f" {figures['idle_p50_ms']:.2f} / {figures['busy_p50_ms']:.2f} |"
        f" {figures['idle_p95_ms']:.2f} / {figures['busy_p95_ms']:.2f} |"
    )
    print(json.dumps(figures))
    if given.out:
        given.out.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
