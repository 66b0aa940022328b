"""What `tandem tune --recipe embedder` gains on unseen documents of a set, and what it costs on other sets.

    python tests/benchmarks/embedder_tuning.py SET --work DIR [--others SET...] [--documents N] [--group REGEX]

SET is a folder in BEIR's layout. Its judged documents and a sample of the others are indexed; half of the judged
documents, chosen by group (what REGEX finds in an id, so that parts of one article stay together), give the pairs to
tune on, and the questions of the other half are asked before and after. The others are ranked before and after, too.
"""

import argparse
import gzip
import json
import random
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from indexer.chunking import ChunkSize
from indexer.embedding import Embedder
from indexer.evaluation import JudgedSet, Scores, compare, interval, measure, read_judged_set
from indexer.retrieval import Retriever
from indexer.store import Store
from indexer.sync import sync
from service.assembly import base_embedder, chunk_size, load_embedder
from service.commands.evaluate import rank_all
from service.commands.tune_embedder import Tuning, run_tune
from service.settings import Settings
from tuner.embedder import EmbedderRecipe

CHANNELS = ("dense", "hybrid")
MEASURES = ("ndcg@10", "recall@10")


def read_lines(path: Path) -> list[dict[str, Any]]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def sampled(judged: JudgedSet, questions: int, seed: int) -> JudgedSet:
    """The set with a sample of its questions; 0 takes all."""
    if not questions:
        return judged
    names = random.Random(seed).sample(sorted(judged.questions), questions)
    asked = {name: judged.questions[name] for name in names}
    return JudgedSet(judged.name, judged.corpus, asked, {name: judged.judgements[name] for name in names})


def prepare(judged: JudgedSet, work: Path, documents: int, group: str, seed: int) -> tuple[Path, JudgedSet]:
    """Write the corpus and the pairs of one half; return the pairs file and the other half's questions."""
    chooser = random.Random(seed)
    lines = {str(line["_id"]): line for line in read_lines(judged.corpus)}
    relevant = {
        name: next(key for key, grade in grades.items() if grade > 0) for name, grades in judged.judgements.items()
    }
    group_of = {name: re.match(group, relevant[name]).group() for name in relevant}  # type: ignore[union-attr]
    groups = sorted(set(group_of.values()))
    chooser.shuffle(groups)
    tuned = set(groups[: len(groups) // 2])
    wanted = {key for grades in judged.judgements.values() for key in grades}
    others = sorted(set(lines) - wanted)
    wanted |= set(chooser.sample(others, min(len(others), max(0, documents - len(wanted)))))
    corpus = work / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    with (corpus / "corpus.jsonl").open("w") as out:
        out.writelines(json.dumps(lines[key], ensure_ascii=False) + "\n" for key in sorted(wanted & set(lines)))
    pairs = work / "pairs.jsonl"
    with pairs.open("w") as out:
        for name, question in judged.questions.items():
            if group_of[name] in tuned:
                document = f"corpus.jsonl#{relevant[name]}"
                pair = {"id": name, "question": question, "answers": [], "document": document, "kind": "answerable"}
                out.write(json.dumps(pair, ensure_ascii=False) + "\n")
    rest = {name: text for name, text in judged.questions.items() if group_of[name] not in tuned}
    return pairs, JudgedSet(judged.name, judged.corpus, rest, {name: judged.judgements[name] for name in rest})


def scores(store: Store, embedder: Embedder, judged: JudgedSet) -> dict[str, dict[str, Scores]]:
    rankings = rank_all(Retriever(store, embedder), judged, None, lambda progress: None)
    return {channel: measure(judged, rankings[channel]) for channel in CHANNELS}


def indexed(judged: JudgedSet, embedder: Embedder, size: ChunkSize, folder: Path) -> Store:
    corpus = folder.parent / f"{judged.name}-corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    target = corpus / judged.corpus.name
    if not target.exists():
        target.write_bytes(judged.corpus.read_bytes())
    store = Store(folder)
    sync(store, [corpus], embedder, size)
    return store


def table(name: str, before: dict[str, dict[str, Scores]], after: dict[str, dict[str, Scores]]) -> list[dict[str, Any]]:
    rows = []
    for channel in CHANNELS:
        for key in MEASURES:
            first, second = after[channel][key], before[channel][key]
            found = asdict(compare({"after": first, "before": second})[0])
            rows.append(
                {
                    "set": name, "channel": channel, "measure": key, "questions": len(first),
                    "before": asdict(interval(second)), "after": asdict(interval(first)),
                    "difference": found["difference"], "low": found["low"], "high": found["high"], "p": found["p"],
                }
            )  # fmt: skip
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    print("| set | questions | channel | measure | before | after | difference [95 %] | p |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['set']} | {row['questions']} | {row['channel']} | {row['measure']} | {row['before']['value']:.3f}"
            f" | {row['after']['value']:.3f} | {row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
            f" | {row['p']:.4f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder, or one to take up again")
    parser.add_argument("--others", type=Path, nargs="*", default=[])
    parser.add_argument("--documents", type=int, default=2500)
    parser.add_argument("--questions", type=int, default=0, help="a sample of so many; 0 takes all")
    parser.add_argument("--group", default=".+")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--epochs", type=int, default=EmbedderRecipe().epochs)
    parser.add_argument("--learning-rate", type=float, default=EmbedderRecipe().learning_rate)
    parser.add_argument("--batch-size", type=int, default=EmbedderRecipe().batch_size)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where the figures go")
    options = parser.parse_args()

    settings = Settings(home=options.work / "home", weights=options.weights, corpora=(options.work / "corpus",))
    judged = sampled(read_judged_set(options.set), options.questions, options.seed)
    pairs, rest = prepare(judged, options.work, options.documents, options.group, options.seed)
    store, size, base = Store(settings.home), chunk_size(settings), base_embedder(settings)
    started = time.monotonic()
    chunks = sync(store, [options.work / "corpus"], base, size).chunks
    times = {"index": time.monotonic() - started}
    before = scores(store, base, rest)
    started = time.monotonic()
    recipe = EmbedderRecipe(options.epochs, options.learning_rate, options.batch_size, options.seed)
    body = run_tune(settings, Tuning(pairs, recipe, force=True), as_json=False)
    times["tune and rebuild"] = time.monotonic() - started
    tuned = load_embedder(settings)
    rows = table(f"{rest.name}, unseen documents", before, scores(store, tuned, rest))
    show(rows)
    for folder in options.others:
        judged = read_judged_set(folder)
        stores = [
            indexed(judged, embedder, size, options.work / f"{judged.name}-{place}-{embedder.identity.split(':')[1]}")
            for place, embedder in enumerate((base, tuned))
        ]
        rows += table(judged.name, scores(stores[0], base, judged), scores(stores[1], tuned, judged))
        show(rows[-len(CHANNELS) * len(MEASURES) :])
    result = {"chunks": chunks, "seconds": times, "tune": body, "rows": rows}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
