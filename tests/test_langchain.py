import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes import HashingEmbedder
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding, Embeddings
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import VectorStoreIntegrationTests

from indexer.chunking import ChunkSize
from indexer.errors import TandemError
from indexer.langchain import LangChainEmbedder, TandemRetriever, TandemVectorStore
from indexer.publish import rollback
from indexer.retrieval import Retriever
from indexer.store import Store
from indexer.sync import forget, known_corpora, sync

SIZE = ChunkSize(40, 8)


class TestConformance(VectorStoreIntegrationTests):
    """LangChain's own suite, sync and async, over its fake embeddings."""

    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:
        store = Store(tmp_path / "home")
        yield TandemVectorStore(store, self.get_embeddings())
        store.close()


class TestConformanceOverAnEmbedder(VectorStoreIntegrationTests):
    """The same over an Embedder of Tandem's, in an index that holds a folder too."""

    @pytest.fixture
    def vectorstore(self, tmp_path: Path, store: Store) -> Iterator[VectorStore]:
        (tmp_path / "corpus").mkdir()
        (tmp_path / "corpus" / "foo.txt").write_text("foo bar baz")
        sync(store, [tmp_path / "corpus"], HashingEmbedder(), SIZE)
        yield TandemVectorStore(store, HashingEmbedder(), size=SIZE)
        store.close()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def texts(store: Store) -> TandemVectorStore:
    return TandemVectorStore(store, HashingEmbedder(), size=SIZE)


def found(store: Store, question: str, k: int = 5) -> list[str]:
    return [passage.path for passage in Retriever(store, HashingEmbedder()).retrieve(question, k).passages]


def test_texts_are_seen_by_every_search_and_gone_when_deleted(store: Store, texts: TandemVectorStore) -> None:
    texts.add_texts(["The moon raises tides.", "Yeast makes bread rise."], [{"a": 1}, {}], ids=["moon", "yeast"])
    assert found(store, "moon tides")[0] == "moon"
    with store.read() as snapshot:
        assert {(row["corpus"], row["document"]) for row in snapshot.list_documents()} == {
            ("langchain", "moon"), ("langchain", "yeast")
        }  # fmt: skip
    texts.delete(["moon", "never there"])
    assert found(store, "moon tides") == ["yeast"]
    assert texts.get_by_ids(["moon"]) == []
    with store.connection() as connection:
        texts.delete()
        texts.add_texts(["Something else."])
        left = [row[0] for row in connection.execute("SELECT text FROM documents UNION ALL SELECT text FROM chunks")]
    assert not any("moon" in text for text in left)


def test_texts_and_folders_live_side_by_side(store: Store, texts: TandemVectorStore, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "moon.txt").write_text("The moon raises the tides of the ocean.")
    texts.add_texts(["The moon is made of cheese."], ids=["cheese"])
    sync(store, [corpus], HashingEmbedder(), SIZE)
    texts.add_texts(["The moon has no air."], ids=["air"])
    assert set(found(store, "moon")) == {"moon.txt", "cheese", "air"}
    assert {document.id for document in texts.similarity_search("moon tides", k=10)} == {"cheese", "air"}
    # The folder's text is the closest of all, and takes no place of theirs.
    assert len(texts.similarity_search("The moon raises the tides of the ocean.", k=1)) == 1
    other = TandemVectorStore(store, HashingEmbedder(), corpus="other", size=SIZE)
    other.add_texts(["The moon is far away."], ids=["cheese"])
    assert texts.get_by_ids(["cheese"])[0].page_content == "The moon is made of cheese."
    assert [document.page_content for document in other.similarity_search("moon")] == ["The moon is far away."]
    assert known_corpora(store) == [corpus]
    sync(store, [corpus], HashingEmbedder(), SIZE)
    assert len(texts.similarity_search("moon", k=10)) == 2
    forget(store, "langchain")
    assert texts.similarity_search("moon", k=10) == []
    assert found(store, "moon tides")[0] == "moon.txt"


def test_another_embedder_is_refused_and_a_rebuild_keeps_the_texts(
    store: Store, texts: TandemVectorStore, tmp_path: Path
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("Iron melts.")
    texts.add_texts(["The moon raises tides."], ids=["moon"])
    newer = HashingEmbedder(name="newer", dimension=64)
    other = TandemVectorStore(store, newer, size=SIZE)
    for use in (
        lambda: other.add_texts(["x"]),
        lambda: other.similarity_search("moon"),
        lambda: other.delete(["moon"]),
    ):
        with pytest.raises(TandemError, match="made with"):
            use()
    assert len(texts.similarity_search("moon")) == 1
    sync(store, [tmp_path / "corpus"], newer, SIZE)
    assert [document.id for document in other.similarity_search("moon tides")] == ["moon"]


def test_a_long_text_is_embedded_in_parts_and_found_whole(store: Store, texts: TandemVectorStore) -> None:
    long = " ".join(f"Sentence {number} speaks of word{number}." for number in range(200))
    texts.add_texts([long, "Short and about word7."], ids=["long", "short"])
    with store.read() as snapshot:
        assert snapshot.generation.chunks > 10
    hits = texts.similarity_search_with_score("word150 sentence speaks", k=2)
    assert [document.id for document, _ in hits] == ["long", "short"]
    assert hits[0][0].page_content == long
    assert hits[0][1] > hits[1][1]


def test_scores_filters_vectors_and_diversity(texts: TandemVectorStore) -> None:
    texts.add_texts(
        ["moon tides ocean", "moon tides ocean sea", "moon rocket"],
        [{"lang": "en", "n": 1}, {"lang": "de", "tags": ["a"]}, {"lang": "en"}],
        ids=["1", "2", "3"],
    )
    embedder = HashingEmbedder()
    question = embedder.embed_question("moon tides")
    expected = float(embedder.embed_documents(["moon tides ocean"])[0] @ question)
    (best, score), *_ = texts.similarity_search_with_score("moon tides", k=3)
    assert (best.id, score) == ("1", pytest.approx(expected, abs=1e-5))
    assert best.metadata == {"lang": "en", "n": 1}
    assert [document.id for document in texts.similarity_search("moon tides", filter={"lang": "de"})] == ["2"]
    assert [document.id for document in texts.similarity_search("moon", k=9, filter={"lang": "fr"})] == []
    assert texts.similarity_search_by_vector((2 * question).tolist(), k=1)[0].id == "1"
    assert all(0 <= score <= 1 for _, score in texts.similarity_search_with_relevance_scores("moon tides", k=3))
    diverse = texts.max_marginal_relevance_search("moon tides", k=2, fetch_k=3, lambda_mult=0.2)
    assert [document.id for document in diverse] == ["1", "3"]
    assert texts.as_retriever(search_type="mmr", search_kwargs={"k": 2}).invoke("moon tides")[0].id == "1"


def test_a_call_that_fails_changes_nothing(store: Store, texts: TandemVectorStore) -> None:
    texts.add_texts(["one"], ids=["1"])
    with store.read() as snapshot:
        before = snapshot.generation
    for bad in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises(TandemError, match="cannot be stored"):
            texts.add_texts(["two", "three"], [{}, bad], ids=["1", "2"])
    with pytest.raises(TandemError, match="cannot be stored"):
        texts.add_texts(["\ud800"])
    with pytest.raises(ValueError, match="ids"):
        texts.add_documents([Document(page_content="x")], ids=["1", "2"])

    class Breaks(HashingEmbedder):
        def embed_documents(self, texts):
            raise RuntimeError("the model broke")

    with pytest.raises(RuntimeError, match="broke"):
        TandemVectorStore(store, Breaks(), size=SIZE).add_texts(["new"], ids=["1"])
    with store.read() as snapshot:
        assert snapshot.generation == before
    assert texts.get_by_ids(["1"])[0].page_content == "one"
    texts.add_texts(["two", "two again", ""], ids=["2", "2", "empty"])
    assert [document.page_content for document in texts.get_by_ids(["2", "empty", "1"])] == ["two again", "", "one"]


def test_one_call_is_one_generation_and_can_be_rolled_back(store: Store, texts: TandemVectorStore) -> None:
    texts.add_texts(["one", "two"], ids=["1", "2"])
    texts.add_texts(["three", "changed"], ids=["3", "1"])
    rollback(store)
    assert [document.page_content for document in texts.get_by_ids(["1", "2", "3"])] == ["one", "two"]
    assert {document.id for document in texts.similarity_search("three changed", k=9)} == {"1", "2"}


def test_two_writers_and_a_reader_at_once(store: Store) -> None:
    failures: list[BaseException] = []

    def write(name: str) -> None:
        try:
            mine = TandemVectorStore(store, HashingEmbedder(), size=SIZE)
            for number in range(8):
                mine.add_texts(
                    [f"{name} text {number}", f"{name} twin {number}"], ids=[f"{name}{number}", f"{name}t{number}"]
                )
                assert len(mine.similarity_search("text", k=100)) % 2 == 0
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(name,)) for name in ("left", "right")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    texts = TandemVectorStore(store, HashingEmbedder(), size=SIZE)
    assert len(texts.similarity_search("text", k=100)) == 32


def test_from_texts_and_a_second_process(tmp_path: Path) -> None:
    embeddings = DeterministicFakeEmbedding(size=12)
    made = TandemVectorStore.from_texts(["foo", "bar"], embeddings, ids=["f", "b"], home=tmp_path / "home")
    assert made.embeddings is embeddings
    assert made.similarity_search("bar", k=1)[0].id == "b"
    script = f"""
from langchain_core.embeddings import DeterministicFakeEmbedding
from indexer.langchain import TandemVectorStore
from indexer.store import Store
from pathlib import Path
texts = TandemVectorStore(Store(Path({str(tmp_path / "home")!r})), DeterministicFakeEmbedding(size=12))
print(texts.similarity_search("foo", k=1)[0].page_content)
"""
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True)
    assert result.stdout.strip() == "foo"
    with pytest.raises(TandemError, match="no home"):
        TandemVectorStore.from_texts(["foo"], embeddings)


def test_two_models_of_one_size_are_told_apart() -> None:
    class Other(Embeddings):
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return [[1.0, 0.0]] * len(texts)

        def embed_query(self, text: str) -> list[float]:
            return [float(len(text)), 1.0]

    first, second = LangChainEmbedder(Other()), LangChainEmbedder(DeterministicFakeEmbedding(size=2))
    assert first.identity != second.identity
    assert second.identity == LangChainEmbedder(DeterministicFakeEmbedding(size=2)).identity


def test_a_name_with_a_slash_is_a_folder_and_refused(store: Store) -> None:
    with pytest.raises(TandemError, match="no name"):
        TandemVectorStore(store, HashingEmbedder(), corpus="/a/b", size=SIZE).add_texts(["x"])


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_retriever_works_in_a_chain(store: Store, tmp_path: Path, asynchronous: bool) -> None:
    import asyncio

    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "moon.md").write_text("# Moon\n\nThe moon raises the tides of the ocean.\n")
    (corpus / "iron.txt").write_text("Iron melts at 1538 degrees.")
    sync(store, [corpus], HashingEmbedder(), SIZE)
    retriever = TandemRetriever(retriever=Retriever(store, HashingEmbedder()), k=1)
    chain = {
        "context": retriever | RunnableLambda(lambda documents: "; ".join(d.page_content for d in documents)),
        "question": RunnablePassthrough(),
    } | RunnableLambda(lambda filled: f"{filled['context']} <- {filled['question']}")
    answer = asyncio.run(chain.ainvoke("moon tides")) if asynchronous else chain.invoke("moon tides")
    assert answer.endswith("<- moon tides")
    assert "raises the tides" in answer
    (document,) = retriever.invoke("moon tides")
    assert document.metadata["document"] == "moon.md"
    assert document.metadata["title"] == "Moon"
    text = (corpus / "moon.md").read_text()
    assert document.page_content in text or "tides" in document.page_content
