"""Kept vectors of questions: the same as computed ones, of the right embedder, and no more of them than allowed."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from conftest import MakeService
from fakes import HashingEmbedder
from starlette.testclient import TestClient

from indexer.embedding import Vectors
from indexer.questions import QuestionCache, RememberingEmbedder
from service.api.app import create_app


class CountingEmbedder(HashingEmbedder):
    """Notes which questions it had to compute."""

    def __init__(self, dimension: int = 64) -> None:
        super().__init__(dimension)
        self.asked: list[str] = []

    def embed_question(self, text: str) -> Vectors:
        self.asked.append(text)
        return super().embed_question(text)


def test_a_question_is_computed_once_and_its_vector_is_the_computed_one() -> None:
    embedder, cache = CountingEmbedder(), QuestionCache()
    remembering = RememberingEmbedder(embedder, cache)
    first, second = remembering.embed_question("tides"), remembering.embed_question("tides")
    assert np.array_equal(first, HashingEmbedder(64).embed_question("tides")) and np.array_equal(first, second)
    assert embedder.asked == ["tides"]
    assert (cache.hits, cache.misses) == (1, 1)
    # Nearly the same text is another question.
    remembering.embed_question("tides ")
    assert embedder.asked == ["tides", "tides "]


def test_what_a_caller_does_to_a_vector_does_not_reach_the_kept_one() -> None:
    remembering = RememberingEmbedder(CountingEmbedder(), QuestionCache())
    expected = remembering.embed_question("tides").copy()
    for _ in range(2):
        given = remembering.embed_question("tides")
        assert np.array_equal(given, expected)
        given *= 7


def test_two_embedders_of_one_dimension_share_no_vector() -> None:
    cache = QuestionCache()
    one, two = CountingEmbedder(), CountingEmbedder()
    two.identity = "another:64"
    for embedder in (one, two, one, two):
        RememberingEmbedder(embedder, cache).embed_question("tides")
    assert (one.asked, two.asked) == (["tides"], ["tides"])


def test_the_questions_asked_longest_ago_are_dropped() -> None:
    embedder = CountingEmbedder()
    remembering = RememberingEmbedder(embedder, QuestionCache(most=2))
    for text in ("a", "b", "a", "c", "a", "b"):
        remembering.embed_question(text)
    assert embedder.asked == ["a", "b", "c", "b"]


def test_the_cache_holds_under_many_threads() -> None:
    cache = QuestionCache(most=5)
    remembering = RememberingEmbedder(HashingEmbedder(64), cache)
    texts = [f"question {number}" for number in range(9)]
    expected = [HashingEmbedder(64).embed_question(text) for text in texts]
    wrong: list[str] = []

    def ask() -> None:
        for _ in range(20):
            wrong.extend(
                text
                for text, row in zip(texts, expected, strict=True)
                if not np.array_equal(remembering.embed_question(text), row)
            )

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert cache.hits + cache.misses == 4 * 20 * 9 and len(cache._kept) == 5


def test_all_else_is_the_embedder_s() -> None:
    embedder = HashingEmbedder(64, window=99)
    remembering = RememberingEmbedder(embedder, QuestionCache())
    assert (remembering.identity, remembering.dimension, remembering.window) == (embedder.identity, 64, 99)
    assert np.array_equal(remembering.embed_documents(["a b"]), embedder.embed_documents(["a b"]))
    assert remembering.count_tokens(["a b"]) == embedder.count_tokens(["a b"])
    assert np.array_equal(remembering.token_starts("a b"), embedder.token_starts("a b"))


def test_a_service_counts_kept_vectors(make_service: MakeService) -> None:
    service = make_service("The moon raises the tides twice a day [1].")
    retriever = service.answerer.retriever
    retriever.embedder = RememberingEmbedder(retriever.embedder, QuestionCache())  # type: ignore[misc]
    with TestClient(create_app(service), base_url="http://127.0.0.1") as client:
        answers = [client.post("/ask", json={"question": "What raises the tides?"}).json() for _ in range(3)]
        text = client.get("/metrics").text
    assert len({answer["answer"] for answer in answers}) == 1
    assert "tandem_question_cache_hits 2.0" in text and "tandem_question_cache_misses 1.0" in text


@pytest.mark.parametrize("keep", [True, False])
def test_only_what_serves_keeps_questions(
    keep: bool, monkeypatch: pytest.MonkeyPatch, make_service: MakeService
) -> None:
    """What is measured is computed."""
    from service import assembly

    service = make_service("Yes.")
    generator = service.answerer.generator
    generator.see = lambda generation: None  # type: ignore[attr-defined]
    monkeypatch.setattr(assembly, "load_generator", lambda *arguments, **options: generator)
    embedder = CountingEmbedder(256)
    embedder.identity = service.answerer.retriever.embedder.identity
    made = assembly.load_answerer(service.settings, service.store, embedder=embedder, keep_answers=keep)
    for _ in range(3):
        made.retriever.retrieve("What raises the tides?", 2)
    assert len(embedder.asked) == (1 if keep else 3)
