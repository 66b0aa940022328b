"""tandem eval retrieval: how well the channels rank a judged set.

Documents go through the real pipeline and questions through Retriever.rank, which ranks for the service too; only the
selection of passages to show (duplicates, passages of one source) is left out, because documents are judged here.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from indexer.chunking import ChunkSize
from indexer.embedding import Embedder
from indexer.errors import TandemError
from indexer.evaluation import TESTED, JudgedSet, compare, interval, measure, read_judged_set
from indexer.loaders.encoding import clean
from indexer.loaders.parsed import one_line
from indexer.outcome import Progress
from indexer.rerank import Reranker
from indexer.retrieval import CHANNELS, RERANK_DEPTH, Ranked, Retriever
from indexer.store import Snapshot, Store
from indexer.sync import sync
from service.assembly import chunk_size, load_embedder, load_reranker
from service.commands.console import note, out, out_json, sync_progress
from service.settings import Settings

# Chunks ranked for a question: enough for recall@100 where documents have several.
DEPTH = 300

Rankings = dict[str, dict[str, dict[str, float]]]
Report = Callable[[Progress], None]


def run_eval_retrieval(settings: Settings, folder: Path, *, as_json: bool) -> None:
    """Index the set in a temporary home, ask every question in every channel, show the measures. Raises TandemError."""
    judged = read_judged_set(folder)
    embedder = load_embedder(settings, note)
    reranker = load_reranker(settings, note)
    with tempfile.TemporaryDirectory(prefix="tandem-eval-") as temporary, sync_progress() as report:
        body = evaluate(judged, embedder, chunk_size(settings), Path(temporary), reranker, report)
    if as_json:
        out_json(body)
    else:
        _show(body)


def evaluate(
    judged: JudgedSet,
    embedder: Embedder,
    size: ChunkSize,
    folder: Path,
    reranker: Reranker | None = None,
    report: Report = lambda progress: None,
) -> dict[str, Any]:
    """The body of `tandem eval retrieval --json`, with the index of the set made in `folder`. Raises TandemError."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(judged.corpus, corpus / judged.corpus.name)
    store = Store(folder / "home")
    started = time.monotonic()
    outcome = sync(store, [corpus], embedder, size, report=report)
    indexed = time.monotonic() - started
    if outcome.failed:
        raise TandemError(f"The set {judged.name} cannot be indexed: {outcome.failed[0]['reason']}")
    retriever = Retriever(store, embedder)
    started = time.monotonic()
    rankings = rank_all(retriever, judged, reranker, report)
    asked = time.monotonic() - started
    store.close()
    scores = {name: measure(judged, run) for name, run in rankings.items()}
    return {
        "set": judged.name,
        "questions": len(judged.questions),
        "chunks": outcome.chunks,
        "embedder": embedder.identity,
        "chunking": {"tokens": size.tokens, "overlap": size.overlap},
        "seconds": {"index": round(indexed, 1), "rank": round(asked, 1)},
        "channels": {
            name: {measure: _rounded(asdict(interval(values))) for measure, values in measures.items()}
            for name, measures in scores.items()
        },
        "tests": [
            {"measure": TESTED, **_rounded(asdict(comparison))}
            for comparison in compare({name: measures[TESTED] for name, measures in scores.items()})
        ],
    }


def rank_all(retriever: Retriever, judged: JudgedSet, reranker: Reranker | None, report: Report) -> Rankings:
    """Channel -> question -> document -> the score of its best chunk."""
    names = [*CHANNELS, *(["hybrid+rerank"] if reranker else [])]
    rankings: Rankings = {name: {} for name in names}
    ids = {_record_name(name): name for grades in judged.judgements.values() for name in grades}
    with retriever.store.read() as snapshot:
        documents = snapshot.document_paths()
        for done, (question, text) in enumerate(judged.questions.items()):
            report(Progress("ask", done, len(judged.questions), ""))
            vector = retriever.embedder.embed_question(text)
            for channel in CHANNELS:
                ranked = retriever.rank(snapshot, text, vector, DEPTH, channel)
                rankings[channel][question] = _document_scores(ranked, documents, ids)
            if reranker:
                # The last channel was the hybrid one.
                again = _reranked(reranker, snapshot, text, ranked)
                rankings["hybrid+rerank"][question] = _document_scores(again, documents, ids)
    return rankings


def _record_name(name: str) -> str:
    # As the loader of JSON Lines names a record.
    return one_line(clean(name))


def _document_scores(ranked: Sequence[Ranked], documents: dict[int, str], ids: dict[str, str]) -> dict[str, float]:
    """Ranks as scores, so that equal ranks and float rounding cannot reorder what was ranked."""
    scores: dict[str, float] = {}
    for place, item in enumerate(ranked):
        record = documents[item.row].partition("#")[2]
        scores.setdefault(ids.get(record, record), float(len(ranked) - place))
    return scores


def _reranked(reranker: Reranker, snapshot: Snapshot, question: str, ranked: Sequence[Ranked]) -> list[Ranked]:
    """The first RERANK_DEPTH anew by the reranker, the rest after them as it was."""
    head = list(ranked[:RERANK_DEPTH])
    found = snapshot.passages([item.row for item in head])
    scores = reranker.score(question, [found[item.row][0].embedded_text for item in head])
    order = sorted(range(len(head)), key=lambda place: -float(scores[place]))
    return [*(head[place] for place in order), *ranked[RERANK_DEPTH:]]


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 5) if isinstance(value, float) else value for name, value in values.items()}


def _show(body: dict[str, Any]) -> None:
    out(f"{body['set']}: {body['questions']} questions, {body['chunks']} chunks, {body['embedder']}")
    measures = list(next(iter(body["channels"].values())))
    out("channel       " + "".join(f"{name:>24}" for name in measures))
    for channel, values in body["channels"].items():
        cells = [f"{cell['value']:.3f} [{cell['low']:.3f}, {cell['high']:.3f}]" for cell in values.values()]
        out(f"{channel:14}" + "".join(f"{cell:>24}" for cell in cells))
    out()
    for test in body["tests"]:
        out(
            f"{test['first']} - {test['second']}: {test['difference']:+.3f} [{test['low']:+.3f}, {test['high']:+.3f}]"
            f" {test['measure']}, p = {test['p_holm']:.4f} (randomisation test, Holm)"
        )
