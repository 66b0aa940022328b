import gzip
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from fakes import HashingEmbedder

from indexer.chunking import ChunkSize
from indexer.errors import TandemError
from indexer.evaluation import JudgedSet, compare, holm, interval, measure, read_judged_set
from service.commands.evaluate import evaluate

TOPICS = ["moon tides ocean", "bread yeast oven", "iron furnace melts", "wind mill flour", "salt water sea"]


def write_set(folder: Path, *, packed: bool = False) -> Path:
    """Five subjects of four documents; a question a subject, all four relevant, one of them twice as much."""
    (folder / "qrels").mkdir(parents=True)
    records, judgements = [], ["query-id\tcorpus-id\tscore"]
    for topic, words in enumerate(TOPICS):
        for n in range(4):
            name = f"https://x.org/{topic}  {n}"
            records.append({"_id": name, "title": f"About {words.split()[0]}", "text": f"{words} and item{topic}{n}. "})
            judgements.append(f"q{topic}\t{name}\t{2 if n == 0 else 1}")
    judgements.append("unasked\thttps://x.org/0  0\t1")
    judgements.append("q-none\thttps://x.org/0  0\t0")
    data = "\n".join(json.dumps(record) for record in records).encode()
    (folder / ("corpus.jsonl.gz" if packed else "corpus.jsonl")).write_bytes(gzip.compress(data) if packed else data)
    questions = [{"_id": f"q{topic}", "text": f"What of {words}?"} for topic, words in enumerate(TOPICS)]
    questions.append({"_id": "q-none", "text": "moon"})
    (folder / "queries.jsonl").write_text("\n".join(json.dumps(question) for question in questions))
    (folder / "qrels" / "test.tsv").write_text("\n".join(judgements) + "\n")
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_a_set_is_read(tmp_path: Path, packed: bool) -> None:
    judged = read_judged_set(write_set(tmp_path / "set", packed=packed))
    assert judged.name == "set"
    assert list(judged.questions) == [f"q{n}" for n in range(5)], "unasked questions and those without answer are out"
    assert judged.judgements["q3"]["https://x.org/3  0"] == 2


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_a_set_without_one_of_its_files_is_refused(tmp_path: Path, missing: str) -> None:
    folder = write_set(tmp_path / "set")
    (folder / missing).unlink()
    with pytest.raises(TandemError, match="set"):
        read_judged_set(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("queries.jsonl", "no json"),
        ("queries.jsonl", '{"text": "no id"}'),
        ("queries.jsonl", ""),
        ("qrels/test.tsv", "a\tb\tc\nq0\td\tnot a number"),
        ("qrels/test.tsv", "a\tb\tc\nq0\td"),
        ("qrels/test.tsv", ""),
    ],
)
def test_a_set_in_another_layout_is_refused(tmp_path: Path, name: str, content: str) -> None:
    folder = write_set(tmp_path / "set")
    (folder / name).write_text(content)
    with pytest.raises(TandemError, match="set"):
        read_judged_set(folder)


def test_measures_by_hand() -> None:
    judged = JudgedSet("s", Path(), {"a": "", "b": "", "c": ""}, {"a": {"x": 2, "y": 1}, "b": {"x": 1}, "c": {"z": 1}})
    run = {"a": {"no": 9.0, "y": 8.0, "x": 7.0}, "b": {f"n{n}": 100.0 - n for n in range(10)} | {"x": 1.0}}
    scores = measure(judged, run)
    gain = 1 / math.log2(3) + 2 / math.log2(4)
    assert scores["ndcg@10"] == pytest.approx([gain / (2 + 1 / math.log2(3)), 0, 0])
    assert scores["mrr@10"] == pytest.approx([0.5, 0, 0])
    assert scores["recall@10"] == pytest.approx([1, 0, 0])
    assert scores["recall@100"] == pytest.approx([1, 1, 0])


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        scores = (random.random(60) < 0.7).astype(float)
        found = interval(scores)
        assert found.low <= found.value <= found.high
        covered += found.low <= 0.7 <= found.high
    assert 0.89 <= covered / 200 <= 0.99


def test_the_paired_test_agrees_with_all_relabellings() -> None:
    first, second = (
        np.array([0.9, 0.4, 0.8, 0.7, 0.6, 1.0, 0.3, 0.9]),
        np.array([0.5, 0.5, 0.3, 0.6, 0.2, 0.8, 0.3, 0.7]),
    )
    difference = first - second
    means = [abs(np.mean(difference * signs)) for signs in itertools.product((-1, 1), repeat=8)]
    exact = np.mean(np.array(means) >= abs(difference.mean()) - 1e-12)
    found = compare({"first": first, "second": second})
    assert len(found) == 1
    assert found[0].p == pytest.approx(exact, abs=0.01)
    assert found[0].difference == pytest.approx(difference.mean())
    assert found[0].low < found[0].difference < found[0].high
    assert compare({"a": first, "b": first})[0].p == 1.0


def test_holm_by_hand() -> None:
    # Holm (1979): the smallest times 3, the next times 2, the last times 1, never falling, never over 1.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


class NoIron:
    """A reranker that puts whatever speaks of iron last, asked for it or not."""

    def score(self, question: str, texts):  # type: ignore[no-untyped-def]
        return np.asarray([-float("iron" in text) for text in texts], np.float32)


def test_the_pipeline_is_measured_whole(tmp_path: Path) -> None:
    judged = read_judged_set(write_set(tmp_path / "set"))
    body = evaluate(judged, HashingEmbedder(), ChunkSize(40, 8), tmp_path / "work", NoIron())
    assert body["set"] == "set"
    assert body["questions"] == 5
    assert list(body["channels"]) == ["dense", "bm25", "hybrid", "hybrid+rerank"]
    for channel in ("dense", "bm25", "hybrid"):
        assert body["channels"][channel]["recall@10"] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert body["channels"][channel]["mrr@10"]["value"] == 1.0
        assert 0.8 < body["channels"][channel]["ndcg@10"]["value"] <= 1.0
    assert body["channels"]["hybrid+rerank"]["mrr@10"]["value"] < 1.0, "what the reranker does must show"
    assert {(test["first"], test["second"]) for test in body["tests"]} == set(
        itertools.combinations(body["channels"], 2)
    )
    json.dumps(body)


def test_a_document_counts_by_its_best_chunk(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "qrels").mkdir(parents=True)
    filler = " ".join(f"Flour{n} is milled at the mill number{n} with wind." for n in range(12))
    records = [{"_id": "long", "title": "", "text": f"Moon tides. {filler}"}]
    records += [{"_id": f"short{n}", "title": "", "text": f"Moon and bread{n} in wind"} for n in range(9)]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, records)))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "moon tides and flour3"}))
    (folder / "qrels" / "test.tsv").write_text("a\tb\tc\nq\tlong\t1\n")
    body = evaluate(read_judged_set(folder), HashingEmbedder(), ChunkSize(16, 0), tmp_path / "work")
    assert body["chunks"] > 15
    assert body["channels"]["bm25"]["mrr@10"]["value"] == body["channels"]["hybrid"]["mrr@10"]["value"] == 1.0


def test_a_broken_corpus_is_told(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set")
    (folder / "corpus.jsonl").write_text("no json")
    with pytest.raises(TandemError):
        evaluate(read_judged_set(folder), HashingEmbedder(), ChunkSize(40, 8), tmp_path / "work")
