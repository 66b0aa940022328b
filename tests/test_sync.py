import os
import threading
from pathlib import Path

import numpy as np
import pytest
from fakes import HashingEmbedder

from indexer.chunking import ChunkSize
from indexer.errors import TandemError
from indexer.outcome import Cancelled, Outcome, Progress
from indexer.publish import rollback
from indexer.retrieval import Retriever
from indexer.store import Store
from indexer.sync import forget, known_corpora, plan_sync, sync

SIZE = ChunkSize(40, 8)


class CountingEmbedder(HashingEmbedder):
    """Counts what it embeds, to see that nothing is embedded twice."""

    def __init__(self, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.texts = 0

    def embed_documents(self, texts):  # type: ignore[no-untyped-def]
        self.texts += len(texts)
        return super().embed_documents(texts)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "tides.md").write_text("# Tides\n\nThe moon raises the tides of the ocean twice a day.\n")
    (folder / "bread.md").write_text("# Bread\n\nBread rises because yeast makes carbon dioxide.\n")
    (folder / "iron.txt").write_text("Iron melts at 1538 degrees Celsius.\n")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


def run(store: Store, corpus: Path, embedder: HashingEmbedder | None = None, **options: object) -> Outcome:
    return sync(store, [corpus], embedder or HashingEmbedder(), SIZE, **options)  # type: ignore[arg-type]


def found(store: Store, question: str, k: int = 3) -> list[str]:
    return [passage.path for passage in Retriever(store, HashingEmbedder()).retrieve(question, k).passages]


def counts(outcome: Outcome) -> tuple[int, ...]:
    return outcome.added, outcome.changed, outcome.renamed, outcome.deleted, outcome.unchanged, len(outcome.failed)


def test_add_change_rename_delete(store: Store, corpus: Path) -> None:
    embedder = CountingEmbedder()
    first = run(store, corpus, embedder)
    assert counts(first) == (3, 0, 0, 0, 0, 0)
    assert first.embedded == embedder.texts == first.chunks == 3
    assert counts(run(store, corpus, embedder)) == (0, 0, 0, 0, 3, 0)
    assert embedder.texts == 3

    (corpus / "bread.md").write_text("# Bread\n\nSourdough rises without bought yeast.\n")
    (corpus / "tides.md").rename(corpus / "moon.md")
    (corpus / "iron.txt").unlink()
    (corpus / "salt.txt").write_text("Salt dissolves in water.")
    second = run(store, corpus, embedder)
    assert counts(second) == (1, 1, 1, 1, 0, 0)
    assert second.generation == first.generation + 1
    assert embedder.texts == 5, "a rename embeds nothing"
    assert found(store, "moon tides")[0] == "moon.md"
    assert "iron.txt" not in found(store, "iron melts at 1538 degrees Celsius", 10)
    assert "yeast makes carbon" not in str(Retriever(store, HashingEmbedder()).retrieve("yeast carbon dioxide", 10))


def test_touching_a_file_changes_nothing(store: Store, corpus: Path) -> None:
    generation = run(store, corpus).generation
    os.utime(corpus / "iron.txt", ns=(1, 1))
    outcome = run(store, corpus)
    assert (counts(outcome), outcome.generation) == ((0, 0, 0, 0, 3, 0), generation)


def test_rollback_goes_one_step_back_and_no_further(store: Store, corpus: Path) -> None:
    run(store, corpus)
    (corpus / "iron.txt").write_text("Iron rusts.")
    (corpus / "tides.md").unlink()
    newest = run(store, corpus)
    assert "tides.md" not in found(store, "tides of the ocean", 10)
    assert rollback(store).number == newest.generation - 1
    assert found(store, "tides of the ocean")[0] == "tides.md"
    assert "1538" in Retriever(store, HashingEmbedder()).retrieve("iron melts", 1).passages[0].chunk.text
    with pytest.raises(TandemError, match="no previous generation"):
        rollback(store)
    again = run(store, corpus)
    assert counts(again) == (0, 1, 0, 1, 1, 0)
    assert again.generation > newest.generation, "a number is never used twice"
    assert "tides.md" not in found(store, "tides of the ocean", 10)


def test_a_reader_keeps_its_generation(store: Store, corpus: Path) -> None:
    run(store, corpus)
    with store.read() as snapshot:
        (corpus / "tides.md").unlink()
        run(store, corpus)
        (corpus / "bread.md").unlink()
        run(store, corpus)
        assert len(snapshot.list_documents()) == 3
        assert snapshot.search_words('"tides"', 5)
    with store.read() as snapshot:
        assert [row["document"] for row in snapshot.list_documents()] == ["iron.txt"]


def test_what_is_gone_is_gone_from_the_database(store: Store, corpus: Path) -> None:
    run(store, corpus)
    (corpus / "tides.md").unlink()
    run(store, corpus)
    (corpus / "bread.md").write_text("Bread.")
    run(store, corpus)
    with store.connection() as connection:
        texts = [row[0] for row in connection.execute("SELECT text FROM documents UNION ALL SELECT text FROM chunks")]
        assert not any("moon" in text for text in texts)
        vectors = connection.execute("SELECT count(*) FROM vectors").fetchone()[0]
        keys = connection.execute("SELECT count(DISTINCT vector) FROM chunks").fetchone()[0]
        assert vectors == keys


def test_bad_files_cost_themselves_only(store: Store, corpus: Path) -> None:
    run(store, corpus)
    (corpus / "empty.txt").write_bytes(b"")
    (corpus / "binary.txt").write_bytes(bytes(range(256)) * 20)
    (corpus / "broken.pdf").write_bytes(b"%PDF-1.7 this is not one")
    (corpus / "latin.txt").write_bytes("Der Käse reift im Keller für sechs Wochen über Äste gehängt.".encode("latin-1"))
    (corpus / "iron.txt").write_bytes(b"")
    outcome = run(store, corpus)
    assert counts(outcome)[:5] == (1, 0, 0, 0, 2)
    assert {failure["document"] for failure in outcome.failed} == {"empty.txt", "binary.txt", "broken.pdf", "iron.txt"}
    assert all(failure["reason"] for failure in outcome.failed)
    assert found(store, "Käse reift im Keller")[0] == "latin.txt"
    # The file that can no longer be read keeps its last good version.
    assert found(store, "iron melts at 1538 degrees")[0] == "iron.txt"


def test_an_empty_or_missing_folder_deletes_nothing(store: Store, corpus: Path) -> None:
    run(store, corpus)
    for path in corpus.iterdir():
        path.unlink()
    with pytest.raises(TandemError, match="holds no document"):
        run(store, corpus)
    corpus.rmdir()
    with pytest.raises(TandemError, match="does not exist"):
        run(store, corpus)
    assert found(store, "tides")
    corpus.mkdir()
    assert run(store, corpus, allow_empty=True).deleted == 3


def test_the_first_index_with_nothing_readable_is_an_error(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    (folder / "empty.txt").write_bytes(b"")
    with pytest.raises(TandemError, match="empty.txt"):
        run(store, folder)
    with pytest.raises(TandemError, match="Nothing is indexed"), store.read():
        pass


def test_another_embedder_rebuilds_every_corpus_and_is_never_mixed(store: Store, corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "wind.txt").write_text("Wind turns the mill.")
    run(store, corpus)
    run(store, other)
    # The same dimension, other weights.
    changed = CountingEmbedder(name="another")
    with pytest.raises(TandemError, match="was made with"):
        Retriever(store, changed).retrieve("wind", 1)
    outcome = run(store, other, changed)
    assert changed.texts == 4
    assert (outcome.changed, outcome.chunks) == (4, 4)
    assert Retriever(store, changed).retrieve("wind mill", 1).passages[0].path == "wind.txt"


def test_two_corpora_do_not_disturb_each_other(store: Store, corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "wind.txt").write_text("Wind turns the mill.")
    run(store, corpus)
    outcome = run(store, other)
    assert counts(outcome) == (1, 0, 0, 0, 0, 0)
    assert outcome.chunks == 4
    assert set(found(store, "wind moon bread iron", 10)) == {"wind.txt", "tides.md", "bread.md", "iron.txt"}


def test_the_plan_is_told_and_nothing_written(store: Store, corpus: Path) -> None:
    generation = run(store, corpus).generation
    (corpus / "tides.md").rename(corpus / "moon.md")
    (corpus / "bread.md").unlink()
    plan = plan_sync(store, [corpus], HashingEmbedder().identity, SIZE)
    assert [(change.replaces and change.replaces.path, change.file.path) for change in plan.renamed] == [
        ("tides.md", "moon.md")
    ]
    assert [old.path for old in plan.deleted] == ["bread.md"]
    with store.read() as snapshot:
        assert snapshot.generation.number == generation


def test_cancel_publishes_nothing_and_keeps_what_was_embedded(store: Store, corpus: Path) -> None:
    cancel = threading.Event()
    embedder = CountingEmbedder()

    def stop_before_publishing(progress: Progress) -> None:
        if progress.stage == "embed" and progress.done == progress.total:
            cancel.set()

    with pytest.raises(Cancelled):
        run(store, corpus, embedder, report=stop_before_publishing, cancel=cancel)
    with pytest.raises(TandemError, match="Nothing is indexed"), store.read():
        pass
    assert counts(run(store, corpus, embedder)) == (3, 0, 0, 0, 0, 0)
    assert embedder.texts == 3


def test_a_second_writer_is_told(store: Store, corpus: Path) -> None:
    seen: list[str] = []

    def meanwhile(progress: Progress) -> None:
        if progress.stage == "embed" and not seen:
            with pytest.raises(TandemError, match="Another process is indexing"):
                run(store, corpus)
            seen.append("refused")

    run(store, corpus, report=meanwhile)
    assert seen


def test_a_file_that_changes_or_vanishes_while_it_is_read(store: Store, corpus: Path) -> None:
    def meddle(progress: Progress) -> None:
        if progress.current == "bread.md":
            (corpus / "bread.md").write_text("Rewritten while it was read.")
        if progress.current == "iron.txt":
            (corpus / "iron.txt").unlink()

    outcome = run(store, corpus, report=meddle)
    assert outcome.added == 1
    assert {failure["document"] for failure in outcome.failed} == {"bread.md", "iron.txt"}
    assert run(store, corpus).added == 1


def test_the_vector_file_is_derived_and_never_trusted(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(1100):
        (folder / f"{number}.txt").write_text(f"Document number {number} is about subject{number}.")
    generation = run(store, folder).generation
    path = store.home / "vectors" / f"{generation}.faiss"
    assert path.is_file()
    question = "subject417"
    expected = Retriever(store, HashingEmbedder()).retrieve(question, 5)
    assert expected.passages[0].path == "417.txt"
    data = bytearray(path.read_bytes())
    for damaged in (data[:-1], bytes(len(data)), np.random.default_rng(0).bytes(len(data)), b""):
        path.write_bytes(damaged)
        assert Retriever(store, HashingEmbedder()).retrieve(question, 5) == expected
    path.unlink()
    assert Retriever(store, HashingEmbedder()).retrieve(question, 5) == expected
    # A small change keeps the file and is added to what it holds.
    path.write_bytes(data)
    (folder / "417.txt").unlink()
    (folder / "new.txt").write_text("The newcomer is about subject9999.")
    run(store, folder)
    assert path.is_file()
    retriever = Retriever(store, HashingEmbedder())
    assert "417.txt" not in [passage.path for passage in retriever.retrieve(question, 100).passages]
    assert retriever.retrieve("subject9999", 1).passages[0].path == "new.txt"


def test_a_home_on_a_read_only_or_foreign_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(TandemError, match="home folder"):
        Store(tmp_path / "file" / "home")
    home = tmp_path / "home"
    home.mkdir()
    (home / "tandem.sqlite").write_bytes(b"this is no database, but it is long enough to be looked at as one" * 50)
    with pytest.raises(TandemError, match="not a readable"):
        Store(home)


def test_a_newer_layout_is_refused(store: Store) -> None:
    with store.connection() as connection:
        connection.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(TandemError, match="newer Tandem"):
        Store(store.home)


class Unloadable(HashingEmbedder):
    """Knows its identity; anything that would need the model fails."""

    def __getattribute__(self, name: str) -> object:
        if name in {"embed_documents", "embed_question", "count_tokens", "token_starts", "dimension", "window"}:
            raise AssertionError(f"the model was needed for {name}")
        return super().__getattribute__(name)


def test_nothing_changed_needs_no_model(store: Store, corpus: Path) -> None:
    embedder = HashingEmbedder()
    run(store, corpus, embedder)
    idle = Unloadable.__new__(Unloadable)
    idle.identity = embedder.identity
    assert counts(run(store, corpus, idle)) == (0, 0, 0, 0, 3, 0)


def test_a_rename_embeds_nothing_even_where_the_name_is_the_title(store: Store, corpus: Path) -> None:
    (corpus / "numbers.csv").write_text("metal,melts\niron,1538\ncopper,1085\n")
    (corpus / "records.jsonl").write_text('{"id": "r1", "text": "Record one."}\n{"id": "r2", "text": "Record two."}\n')
    embedder = CountingEmbedder()
    run(store, corpus, embedder)
    before = embedder.texts
    (corpus / "sub").mkdir()
    for old, new in (("iron.txt", "metal.txt"), ("numbers.csv", "sub/table.csv"), ("records.jsonl", "log.jsonl")):
        (corpus / old).rename(corpus / new)
    assert counts(run(store, corpus, embedder)) == (0, 0, 3, 0, 2, 0)
    assert embedder.texts == before
    with store.read() as snapshot:
        titles = {row["document"]: row["title"] for row in snapshot.list_documents()}
    assert titles["metal.txt"] == "metal"
    assert {"log.jsonl#r1", "log.jsonl#r2", "sub/table.csv"} <= set(titles)
    assert found(store, "iron melts at 1538 degrees Celsius")[0] == "metal.txt"


def test_a_chain_of_renames_embeds_nothing(store: Store, corpus: Path) -> None:
    embedder = CountingEmbedder()
    run(store, corpus, embedder)
    (corpus / "bread.md").rename(corpus / "new.md")
    (corpus / "tides.md").rename(corpus / "bread.md")
    outcome = run(store, corpus, embedder)
    assert (outcome.failed, outcome.chunks, embedder.texts) == ([], 3, 3)
    assert found(store, "moon raises the tides")[0] == "bread.md"
    assert found(store, "yeast makes carbon dioxide")[0] == "new.md"


def test_a_rename_with_a_change_is_a_delete_and_an_add(store: Store, corpus: Path) -> None:
    run(store, corpus)
    (corpus / "tides.md").unlink()
    (corpus / "moon.md").write_text("# Tides\n\nThe sun raises them too.\n")
    assert counts(run(store, corpus)) == (1, 0, 0, 1, 2, 0)


def test_a_file_becomes_a_folder_and_back(store: Store, corpus: Path) -> None:
    run(store, corpus)
    (corpus / "tides.md").unlink()
    (corpus / "tides.md").mkdir()
    (corpus / "tides.md" / "spring.md").write_text("# Spring\n\nSpring tides come at full moon.\n")
    assert counts(run(store, corpus)) == (1, 0, 0, 1, 2, 0)
    (corpus / "tides.md" / "spring.md").unlink()
    (corpus / "tides.md").rmdir()
    (corpus / "tides.md").write_text("# Tides\n\nOne file again.\n")
    assert counts(run(store, corpus)) == (1, 0, 0, 1, 2, 0)


def test_a_change_within_the_same_second_and_size_is_seen(store: Store, corpus: Path) -> None:
    run(store, corpus)
    status = (corpus / "iron.txt").stat()
    (corpus / "iron.txt").write_text("Iron melts at 1999 degrees Celsius.\n")
    os.utime(corpus / "iron.txt", ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert run(store, corpus).changed == 1


def test_every_file_fails_and_the_index_stays(store: Store, corpus: Path) -> None:
    generation = run(store, corpus).generation
    for path in corpus.iterdir():
        path.write_bytes(b"")
    outcome = run(store, corpus)
    assert (outcome.generation, len(outcome.failed), outcome.chunks) == (generation, 3, 3)
    assert found(store, "moon tides")[0] == "tides.md"


def test_a_rebuild_takes_along_what_cannot_be_read_now(store: Store, corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "wind.txt").write_text("Wind turns the mill.")
    sync(store, [corpus, other], HashingEmbedder(), SIZE)
    (corpus / "iron.txt").write_bytes(b"")
    (other / "wind.txt").unlink()
    other.rmdir()
    # Vectors of another dimension: one that stayed behind could not even be compared.
    larger = HashingEmbedder(dimension=512, name="larger")
    outcome = run(store, corpus, larger)
    assert [failure["document"] for failure in outcome.failed] == ["iron.txt"]
    passages = Retriever(store, larger).retrieve("iron wind tides bread", 10).passages
    assert {passage.path for passage in passages} == {"iron.txt", "wind.txt", "tides.md", "bread.md"}
    with store.read() as snapshot:
        assert snapshot.vectors(snapshot.chunk_rows()).shape == (4, 512)


def test_a_folder_inside_a_corpus_is_a_part_of_it(store: Store, corpus: Path) -> None:
    (corpus / "sub").mkdir()
    (corpus / "sub" / "wind.txt").write_text("Wind turns the mill.")
    embedder = CountingEmbedder()
    assert run(store, corpus / "sub", embedder).added == 1
    # The outer one takes the inner one in, without embedding it again.
    outcome = run(store, corpus, embedder)
    assert counts(outcome) == (3, 0, 1, 0, 0, 0)
    assert (outcome.chunks, embedder.texts) == (4, 4)
    assert known_corpora(store) == [corpus]
    (corpus / "sub" / "sun.txt").write_text("The sun shines.")
    assert counts(run(store, corpus / "sub", embedder)) == (1, 0, 0, 0, 4, 0)
    assert known_corpora(store) == [corpus]
    assert found(store, "wind turns the mill")[0] == "sub/wind.txt"


def test_a_corpus_is_forgotten_though_its_folder_is_gone(store: Store, corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "wind.txt").write_text("Wind turns the mill.")
    sync(store, [corpus, other], HashingEmbedder(), SIZE)
    (other / "wind.txt").unlink()
    other.rmdir()
    outcome = forget(store, other)
    assert (outcome.deleted, outcome.unchanged, outcome.chunks) == (1, 3, 3)
    assert "wind.txt" not in found(store, "wind turns the mill", 10)
    assert known_corpora(store) == [corpus]
    with pytest.raises(TandemError, match="No corpus"):
        forget(store, other)
    rollback(store)
    assert found(store, "wind turns the mill")[0] == "wind.txt"
    forget(store, other)
    forget(store, corpus)
    assert known_corpora(store) == []
    assert found(store, "wind") == []
    assert counts(run(store, corpus)) == (3, 0, 0, 0, 0, 0)


def test_a_rollback_leaves_no_vectors_behind(store: Store, corpus: Path) -> None:
    run(store, corpus)
    (corpus / "secret.txt").write_text("The secret is out.")
    run(store, corpus)
    rollback(store)
    (corpus / "secret.txt").unlink()
    (corpus / "iron.txt").write_text("Iron rusts.")
    run(store, corpus)
    with store.connection() as connection:
        orphans = "SELECT count(*) FROM vectors WHERE key NOT IN (SELECT vector FROM chunks)"
        assert connection.execute(orphans).fetchone()[0] == 0


def test_an_interrupted_sync_leaves_nothing_in_the_way(store: Store, corpus: Path) -> None:
    run(store, corpus)
    (corpus / "salt.txt").write_text("Salt dissolves in water.")
    cancel = threading.Event()
    with pytest.raises(Cancelled):
        run(store, corpus, report=lambda progress: progress.stage == "embed" and cancel.set() or None, cancel=cancel)
    (corpus / "salt.txt").unlink()
    outcome = run(store, corpus)
    assert counts(outcome) == (0, 0, 0, 0, 3, 0)
    with store.connection() as connection:
        assert connection.execute("SELECT count(*) FROM chunks").fetchone()[0] == 3
        connection.execute("INSERT INTO chunk_words (chunk_words, rank) VALUES ('integrity-check', 1)")


def test_an_impossible_chunk_size_is_told_once(store: Store, corpus: Path) -> None:
    generation = run(store, corpus).generation
    with pytest.raises(TandemError, match="chunk_tokens is 1000"):
        sync(store, [corpus], HashingEmbedder(), ChunkSize(1000, 0))
    with store.read() as snapshot:
        assert snapshot.generation.number == generation
