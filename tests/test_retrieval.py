import json
import math
from pathlib import Path

import numpy as np
import pytest
from fakes import HashingEmbedder

from indexer import retrieval
from indexer.chunking import ChunkSize
from indexer.errors import TandemError
from indexer.retrieval import CHANNELS, Retriever, fuse, word_search
from indexer.store import Store
from indexer.sync import sync
from indexer.words import rarest, word_expression

SUBJECTS = ["tides moon ocean", "bread yeast oven", "iron melts furnace", "wind mill flour", "salt water sea"]


@pytest.fixture
def retriever(tmp_path: Path) -> Retriever:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, subject in enumerate(SUBJECTS * 4):
        (corpus / f"{number:02}.txt").write_text(f"Text {number} tells of {subject} and variant{number}.")
    store = Store(tmp_path / "home")
    sync(store, [corpus], HashingEmbedder(), ChunkSize(40, 8))
    return Retriever(store, HashingEmbedder())


def test_fusion_by_hand() -> None:
    # The cosine, and BM25 b as b / (b + 10) with a weight of 1.25, over 2.25; what has no word counts 0 for BM25.
    scores = fuse({1: 0.8, 2: 0.4, 3: 0.2, 4: -0.5}, {1: 2.5, 2: 10.0, 4: 30.0})
    assert scores == pytest.approx(
        {1: (0.8 + 0.25) / 2.25, 2: (0.4 + 0.625) / 2.25, 3: 0.2 / 2.25, 4: (-0.5 + 0.9375) / 2.25}
    )
    assert fuse({5: 0.3}, {}) == pytest.approx({5: 0.3 / 2.25})
    assert fuse({}, {}) == {}
    # A score of one passage does not depend on which others were found.
    assert fuse({1: 0.8}, {1: 2.5})[1] == scores[1]


def test_similarity_is_the_cosine_and_the_best_passage_is_the_best_of_numpy(retriever: Retriever) -> None:
    question = "what does variant7 tell of"
    with retriever.store.read() as snapshot:
        rows = snapshot.chunk_rows()
        vectors = snapshot.vectors(rows)
        texts = {row: chunk.text for row, (chunk, *_) in snapshot.passages(rows.tolist()).items()}
    cosines = vectors @ HashingEmbedder().embed_question(question)
    best = texts[int(rows[int(np.argmax(cosines))])]
    passages = retriever.retrieve(question, 5).passages
    assert passages[0].chunk.text == best
    assert "variant7" in best
    assert passages[0].similarity == pytest.approx(float(cosines.max()), abs=1e-5)
    assert [passage.rank for passage in passages] == [1, 2, 3, 4, 5]
    assert [passage.score for passage in passages] == sorted((passage.score for passage in passages), reverse=True)


def test_k_larger_than_the_corpus_and_out_of_range(retriever: Retriever) -> None:
    assert len(retriever.retrieve("tides", 100).passages) == 20
    for k in (0, -1, 101):
        with pytest.raises(TandemError, match="k is"):
            retriever.retrieve("tides", k)


@pytest.mark.parametrize(
    "question",
    ['"', "'; DROP TABLE chunks; --", "NEAR(a b)", "* ^ : ( )", "AND OR NOT", "emoji 🙂", "日本語", "a" * 5000],
)
def test_no_question_breaks_the_word_search(retriever: Retriever, question: str) -> None:
    assert retriever.retrieve(question, 3).passages


def test_words_are_matched_beyond_their_endings(retriever: Retriever) -> None:
    assert "iron" in retriever.retrieve("melting", 1).passages[0].chunk.text


def test_word_expression_drops_small_words_unless_there_are_no_others() -> None:
    assert word_expression("What is the tide of the sea?") == '"tide" OR "sea"'
    assert word_expression("who are you") == '"who" OR "are" OR "you"'
    assert word_expression("?!") == ""


def bm25_by_hand(texts: dict[int, list[str]], asked: list[str]) -> dict[int, float]:
    """Robertson's BM25 with k1 = 1.2 and b = 0.75 over words that need no stemming."""
    mean = sum(map(len, texts.values())) / len(texts)
    scores: dict[int, float] = {}
    for word in asked:
        holding = [row for row, words in texts.items() if word in words]
        weight = max(math.log((len(texts) - len(holding) + 0.5) / (len(holding) + 0.5)), 1e-6)
        for row in holding:
            count, length = texts[row].count(word), len(texts[row])
            part = weight * count * 2.2 / (count + 1.2 * (1 - 0.75 + 0.75 * length / mean))
            scores[row] = scores.get(row, 0.0) + part
    return scores


def test_the_word_channel_is_bm25(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    words = "iron salt moon flour wind oven iron iron salt".split()
    random = np.random.default_rng(3)
    for number in range(30):
        (corpus / f"{number:02}.txt").write_text(" ".join(random.choice(words, 5 + number)))
    store = Store(tmp_path / "home")
    sync(store, [corpus], HashingEmbedder(), ChunkSize(60, 0))
    retriever = Retriever(store, HashingEmbedder(), channel="bm25")
    with store.read() as snapshot:
        rows = snapshot.chunk_rows().tolist()
        texts = {row: chunk.embedded_text.split() for row, (chunk, *_) in snapshot.passages(rows).items()}
        ranked = retriever.rank(snapshot, "the moon and flour", HashingEmbedder().embed_question("moon"), 99, "bm25")
        some = snapshot.word_scores('"moon" OR "flour"', rows[:7])
    expected = bm25_by_hand(texts, ["moon", "flour"])
    assert {item.row: item.score for item in ranked} == pytest.approx(expected)
    assert [item.score for item in ranked] == pytest.approx(sorted(expected.values(), reverse=True))
    assert some == pytest.approx({row: expected[row] for row in rows[:7] if row in expected})


def test_the_rarest_words_are_kept_until_they_match_enough() -> None:
    counts = {"the": 90, "queen": 3, "hive": 5, "bee": 20}
    assert rarest(counts, 8) == ["queen", "hive"]
    assert rarest(counts, 27) == ["queen", "hive"]
    assert rarest(counts, 28) == ["queen", "hive", "bee"]
    assert rarest(counts, 1) == ["queen"]
    assert rarest({}, 5) == []


def test_in_a_large_index_candidates_have_a_rare_word_and_are_scored_by_all(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "variant7 of tides and text"
    with retriever.store.read() as snapshot:
        assert snapshot.word_count("tides") == 4
        everything = word_search(snapshot, question, 20)
        monkeypatch.setattr(retrieval, "MOST_MATCHES", 6)
        pruned = word_search(snapshot, question, 20)
    # "text" is in all 20 chunks and looked for in none; the one with "variant7" and the four with "tides" are found.
    assert len(everything) == 20
    assert len(pruned) == 5
    assert pruned == pytest.approx({row: everything[row] for row in pruned})
    assert list(pruned) == list(everything)[:5]


def test_channels_rank_as_they_say(retriever: Retriever) -> None:
    question = "moon oven variant3"
    vector = HashingEmbedder().embed_question(question)
    with retriever.store.read() as snapshot:
        rows = snapshot.chunk_rows()
        cosines = dict(zip(rows.tolist(), (snapshot.vectors(rows) @ vector).tolist(), strict=True))
        ranked = {name: retriever.rank(snapshot, question, vector, 20, name) for name in CHANNELS}
    words = {item.row: item.score for item in ranked["bm25"]}
    assert 0 < len(words) < 20
    assert {item.row: item.score for item in ranked["dense"]} == pytest.approx(cosines, abs=1e-5)
    assert {item.row: item.score for item in ranked["hybrid"]} == pytest.approx(fuse(cosines, words), abs=1e-5)
    for name in CHANNELS:
        scores = [item.score for item in ranked[name]]
        assert scores == sorted(scores, reverse=True)
        assert [item.similarity for item in ranked[name]] == pytest.approx(
            [cosines[item.row] for item in ranked[name]], abs=1e-5
        )


def test_a_candidate_of_one_channel_gets_its_score_in_the_other(retriever: Retriever) -> None:
    # Found by one channel only, because each hands over a single candidate; both scores count all the same.
    question = "moon oven variant3"
    vector = HashingEmbedder().embed_question(question)
    with retriever.store.read() as snapshot:
        one = {item.row: item.score for item in retriever.rank(snapshot, question, vector, 1, "hybrid")}
        dense = retriever.rank(snapshot, question, vector, 1, "dense")[0].row
        words = {item.row: item.score for item in retriever.rank(snapshot, question, vector, 20, "bm25")}
        best = max(words, key=lambda row: (words[row], -row))
        rows = sorted({dense, best})
        cosines = dict(zip(rows, (snapshot.vectors(np.asarray(rows)) @ vector).tolist(), strict=True))
    assert one == pytest.approx(fuse(cosines, {row: words[row] for row in rows if row in words}), abs=1e-5)


def write(folder: Path, **texts: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


LONG = "The tidal range at the harbour is largest two days after the new moon and after the full moon of each month "


def test_a_copy_of_a_passage_is_shown_once_and_another_number_is_no_copy(tmp_path: Path) -> None:
    corpus = write(
        tmp_path / "c", a=f"{LONG} 4 metres.", b=f"{LONG} 4 metres.", c=f"{LONG} 5 metres.", d="Bread is baked. " * 9
    )
    store = Store(tmp_path / "home")
    sync(store, [corpus], HashingEmbedder(), ChunkSize(60, 0))
    retriever = Retriever(store, HashingEmbedder())
    shown = retriever.retrieve("How large is the tidal range at the harbour?", 4).passages
    assert sorted(passage.path for passage in shown) in (["a.txt", "c.txt", "d.txt"], ["b.txt", "c.txt", "d.txt"])
    assert [passage.rank for passage in shown] == [1, 2, 3]


def test_short_passages_are_told_apart_by_their_titles(tmp_path: Path) -> None:
    corpus = tmp_path / "c"
    corpus.mkdir()
    records = [
        {"_id": name, "title": f"The colour of the {name}", "text": "It is green."} for name in ("apple", "pear")
    ]
    (corpus / "all.jsonl").write_text("\n".join(map(json.dumps, records)))
    store = Store(tmp_path / "home")
    sync(store, [corpus], HashingEmbedder(), ChunkSize(60, 0))
    passages = Retriever(store, HashingEmbedder()).retrieve("Which is green?", 4).passages
    assert [passage.chunk.text for passage in passages] == ["It is green."] * 2


def test_one_source_does_not_fill_all_places_unless_there_is_no_other(tmp_path: Path) -> None:
    places = enumerate("sea bay gulf cove".split())
    about = [f"Tides number{n} follow the moon in the {place} twice a day." for n, place in places]
    corpus = write(tmp_path / "c", many="\n\n".join(about), one="Tides follow the moon.", other="Bread needs an oven.")
    store = Store(tmp_path / "home")
    sync(store, [corpus], HashingEmbedder(), ChunkSize(16, 0))

    def sources(per_source: int, k: int) -> list[str]:
        retriever = Retriever(store, HashingEmbedder(), per_source=per_source)
        return [passage.path for passage in retriever.retrieve("tides and the moon", k).passages]

    assert sources(0, 4).count("many.txt") == 3
    assert sorted(sources(1, 3)) == ["many.txt", "one.txt", "other.txt"]
    assert sources(1, 6).count("many.txt") == 4, "nothing is held back for want of other sources"
    scores = [
        passage.score for passage in Retriever(store, HashingEmbedder(), per_source=1).retrieve("moon", 6).passages
    ]
    assert scores == sorted(scores, reverse=True)
