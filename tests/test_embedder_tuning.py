"""Tuning the embedder: pairs to rows, a real training, the swap of the index, and the service that follows it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes import FixedAdapters, HashingEmbedder, ScriptedGenerator
from starlette.testclient import TestClient
from typer.testing import CliRunner

from indexer.chunking import ChunkSize
from indexer.embedding import Embedder, SentenceTransformerEmbedder, Vectors
from indexer.errors import TandemError
from indexer.publish import rollback
from indexer.retrieval import Retriever
from indexer.store import Store
from indexer.sync import sync
from indexer.weights import embedder_weights, named_weights
from service.answering import Answerer
from service.api.app import create_app
from service.assembly import current_embedder, following, load_embedder, load_retriever, published_embedder
from service.cli import app
from service.commands import doctor
from service.commands.tune_embedder import Tuning, run_tune
from service.following import FollowingRetriever
from service.running import Service
from service.settings import Settings
from tuner.embedder import EmbedderRecipe, batches
from tuner.embedder_rows import Library, Row, answer_span, holds, make_rows
from tuner.embedder_validation import Validation
from tuner.pairs import Pair, read_pairs, split_by_document
from tuner.tuned_embedders import embedder_folder, embedder_that_made, new_embedder_folder, read_card, save_embedder

ANIMALS = {
    "otter": "The otter sleeps on its back and holds a stone.",
    "heron": "The heron stands still in the water and waits for fish.",
    "mole": "The mole digs tunnels and hardly sees.",
    "swift": "The swift sleeps in flight and hardly ever lands.",
    "adder": "The adder suns itself on a stone in spring.",
    "bat": "The bat hears the echo of its own calls.",
    "toad": "The toad walks to the pond in spring, at night.",
    "crane": "The crane dances in the meadow.",
}
QUESTIONS = {
    "otter": ("Which animal holds a stone while it sleeps?", "holds a stone"),
    "heron": ("Who waits for fish without moving?", "waits for fish"),
    "mole": ("Who digs tunnels?", "digs tunnels"),
    "swift": ("Which bird sleeps while it flies?", "sleeps in flight"),
    "adder": ("Which snake lies in the sun?", "suns itself"),
    "bat": ("Who finds its way by echo?", "the echo"),
    "toad": ("Who goes to the pond at night?", "to the pond"),
    "crane": ("Who dances?", "dances in the meadow"),
}
TWO_STEPS = EmbedderRecipe(epochs=1, learning_rate=1e-3, batch_size=4)


def write_animals(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in ANIMALS.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def write_pairs(path: Path) -> Path:
    lines = [
        {"id": name, "question": question, "answers": [answer], "document": f"{name}.txt", "kind": "answerable"}
        for name, (question, answer) in QUESTIONS.items()
    ]
    lines += [
        {"id": "nowhere", "question": "Who flies to the moon?", "answers": [], "document": None, "kind": "absent"},
        {"id": "gone", "question": "What does the lynx do?", "answers": ["x"], "document": "lynx.txt"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl")


# --- pairs -----------------------------------------------------------------------------------------------------------


def test_pairs_are_read_with_their_kinds(pairs: Path) -> None:
    read = read_pairs(pairs)
    assert len(read) == 10
    assert read[0] == Pair(
        "otter", "Which animal holds a stone while it sleeps?", ("holds a stone",), "otter.txt", "answerable"
    )
    assert (read[8].kind, read[8].document) == ("absent", None)
    assert read[9].kind == "answerable"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not an object"),
        ('{"question": " "}', "has no question"),
        ('{"question": "Why?", "answers": "because"}', "answers that are not a list"),
        ('{"question": "Why?", "document": 3}', "not a path or an id"),
        ('{"question": "Why?", "kind": "hard"}', "the kind 'hard'"),
        ('{"question": "Why?"}', "neither answers nor a kind"),
        ('{"question": "Why?", "answers": [" "], "document": "otter.txt"}', "neither answers nor a kind"),
        ('{"question": "Why?", "answer": "because"}', 'field "answer" must be called "answers" and be a list'),
        ('{"id": "otter", "question": "Why?", "kind": "absent"}', "a second time"),
    ],
)
def test_a_wrong_line_is_named(pairs: Path, line: str, problem: str) -> None:
    pairs.write_text(pairs.read_text() + "\n" + line + "\n")
    with pytest.raises(TandemError, match=problem) as caught:
        read_pairs(pairs)
    assert "Line 12 " in caught.value.happened


def test_pairs_that_are_not_text_are_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path / "p", tmp_path / "missing"):
        with pytest.raises(TandemError, match="cannot be read"):
            read_pairs(path)


def test_the_split_never_divides_a_document() -> None:
    pairs = [Pair(str(number), "?", (), f"d{number % 10}", "answerable") for number in range(60)]
    for seed in range(5):
        train, held_out = split_by_document(pairs, 0.2, seed)
        assert len(held_out) == 12 and len(train) == 48
        assert not {pair.document for pair in train} & {pair.document for pair in held_out}
        assert split_by_document(pairs, 0.2, seed) == (train, held_out)
    assert split_by_document(pairs, 0.2, 0) != split_by_document(pairs, 0.2, 1)
    with pytest.raises(TandemError, match="1 of the indexed documents"):
        split_by_document(pairs[:1], 0.2, 0)


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def animals(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "animals-home")
    corpus = write_animals(tmp_path / "animals")
    hunt = "It hunts voles in winter, under the deep snow of the field. "
    (corpus / "weasel.txt").write_text(
        "The weasel is small in winter. " * 12 + "\n\n" + hunt * 3 + "\n\n" + "A brown coat. " * 12
    )
    (corpus / "copy.txt").write_text("Stoats are small and white in winter. It hunts voles, says the field guide.")
    sync(store, [corpus], HashingEmbedder(), ChunkSize(40, 8))
    yield store
    store.close()


def rows_of(store: Store, *pairs: Pair) -> list[Row]:
    retriever = Retriever(store, HashingEmbedder())
    with store.read() as snapshot:
        library = Library(snapshot)
        return make_rows(library, retriever, library.place(pairs), lambda done, of: None)


def test_the_positive_holds_the_answer_and_no_negative_does(animals: Store) -> None:
    pair = Pair(
        "1",
        "What does it hunt in winter, under the deep snow of the field?",
        ("it hunts  VOLES",),
        "weasel.txt",
        "answerable",
    )
    (row,) = rows_of(animals, pair)
    assert "hunts voles" in row.positive and "weasel" in row.positive and "deep snow" in row.positive
    assert row.negatives
    assert all("hunts voles" not in text and not text.startswith("weasel") for text in row.negatives)


def test_without_an_answer_in_the_text_the_best_chunk_of_the_document_is_the_positive(animals: Store) -> None:
    pair = Pair("1", "What colour is its brown coat?", ("hazel",), "weasel.txt", "answerable")
    (row,) = rows_of(animals, pair)
    assert "brown coat" in row.positive


def test_pairs_match_documents_by_path_or_id_and_others_are_left_out(animals: Store) -> None:
    with animals.read() as snapshot:
        library = Library(snapshot)
        mole = next(item for item in snapshot.list_documents() if item["document"] == "mole.txt")
        given = [
            Pair("path", "?", (), "mole.txt", "answerable"),
            Pair("id", "?", (), str(mole["id"]), "answerable"),
            Pair("gone", "?", (), "lynx.txt", "answerable"),
            Pair("none", "?", (), None, "answerable"),
            Pair("absent", "?", (), "mole.txt", "absent"),
        ]
        assert [(pair.id, pair.document) for pair in library.place(given)] == [("path", "mole.txt"), ("id", "mole.txt")]


def test_answers_are_found_as_whole_words() -> None:
    assert holds("It has\nTWO  legs.", ["two legs"])
    assert not holds("It has seven legs", ["even"])
    assert not holds("anything", ["", " "])
    assert holds("costs (C++)", ["C++"])


def test_where_an_answer_stands() -> None:
    text = "Two legged, it has\nTWO  legs (C++)."
    for answers, found in ((["", "seven", "two legs"], "TWO  legs"), (["C++"], "C++")):
        span = answer_span(text, answers)
        assert span is not None and text[slice(*span)] == found
    assert answer_span(text, ["leg", " "]) is None


def test_a_batch_never_holds_what_answers_another_question_as_its_negative() -> None:
    chooser = random.Random(1)
    rows = [
        Row(f"d{number % 7}", "?", f"t{number % 30}", tuple(f"t{chooser.randrange(30)}" for _ in range(2)))
        for number in range(60)
    ]
    taken = list(batches(rows, 8, random.Random(0)))
    assert sorted(row.positive for batch in taken for row in batch) == sorted(row.positive for row in rows)
    for batch in taken:
        assert 1 <= len(batch) <= 8
        assert len({row.document for row in batch}) == len({row.positive for row in batch}) == len(batch)
        for row in batch:
            assert not {other.positive for other in batch if other is not row} & set(row.negatives)


def test_validation_ranks_documents_by_their_best_chunk(animals: Store) -> None:
    with animals.read() as snapshot:
        library = Library(snapshot)
        pairs = [Pair("a", "?", (), "mole.txt", "answerable"), Pair("b", "?", (), "weasel.txt", "answerable")]
        validation = Validation(library, pairs, hybrid=False, seed=0)
        documents = [library.paths[row] for row in validation.rows]
    assert len(validation.rows) == validation.of == len(documents)
    axes = np.eye(len(documents), dtype=np.float32)
    # Its first chunk: the best of a document, not the last, must count.
    weasel = documents.index("weasel.txt")
    assert documents.count("weasel.txt") > 1
    # The first question is next to an otter and then the mole, the second next to one chunk of the weasel.
    questions = np.stack([axes[documents.index("otter.txt")] * 2 + axes[documents.index("mole.txt")], axes[weasel]])
    measured = validation.measure(questions, axes)
    assert measured.dense["ndcg@10"] == pytest.approx([1 / np.log2(3), 1.0])
    assert measured.value() == pytest.approx((1 / np.log2(3) + 1) / 2)


# --- the home's embedders --------------------------------------------------------------------------------------------


def test_names_cannot_leave_the_home_and_are_not_given_twice(tmp_path: Path) -> None:
    for name in ("../x", "", "a/b", ".hidden"):
        with pytest.raises(TandemError, match="cannot name"):
            embedder_folder(tmp_path, name)
    assert new_embedder_folder(tmp_path, None).name == "tuned-1"
    (tmp_path / "embedders" / "tuned-1").mkdir(parents=True)
    assert new_embedder_folder(tmp_path, None).name == "tuned-2"
    with pytest.raises(TandemError, match="already"):
        new_embedder_folder(tmp_path, "tuned-1")


@pytest.mark.parametrize(
    ("values", "named"),
    [({"epochs": 0}, "--epochs"), ({"learning_rate": 1.0}, "--learning-rate"), ({"batch_size": 1}, "--batch-size")],
)
def test_hyper_parameters_that_cannot_work_are_refused(values: dict[str, int], named: str) -> None:
    with pytest.raises(TandemError, match=f"{named} is"):
        EmbedderRecipe(**values)


def test_only_recipes_that_exist_are_accepted(pairs: Path) -> None:
    result = CliRunner().invoke(app, ["tune", "--recipe", "quora", "--pairs", str(pairs)])
    assert result.exit_code == 2
    assert "no recipe 'quora'" in result.output and "embedder" in result.output


def test_an_explicit_embedder_setting_would_win_so_activation_is_refused_before_any_work(
    tmp_path: Path, pairs: Path
) -> None:
    with pytest.raises(TandemError, match="would not be used"):
        run_tune(Settings(home=tmp_path / "home", embedder="bundled"), Tuning(pairs, TWO_STEPS), as_json=True)
    assert not (tmp_path / "home").exists()


# --- following -------------------------------------------------------------------------------------------------------


class Rolled(HashingEmbedder):
    """Its vectors say nothing to those of another embedder, though they are as long."""

    def _rows(self, texts: Sequence[str]) -> Vectors:
        return np.roll(super()._rows(texts), 7, axis=1)


def renamed(name: str) -> HashingEmbedder:
    return HashingEmbedder() if name == "hashing" else Rolled(name=name)


@pytest.fixture
def followed(animals: Store, tmp_path: Path) -> FollowingRetriever:
    def load(identity: str) -> Retriever | None:
        name = identity.partition(":")[0]
        return Retriever(animals, renamed(name), channel="dense") if name in {"hashing", "tuned"} else None

    return FollowingRetriever(Retriever(animals, HashingEmbedder(), channel="dense"), load)


def test_a_retriever_follows_the_published_generation_there_and_back(
    followed: FollowingRetriever, animals: Store, tmp_path: Path
) -> None:
    assert followed.retrieve("Who digs tunnels?", 1).generation == 1
    sync(animals, [tmp_path / "animals"], renamed("tuned"), ChunkSize(40, 8))
    found = followed.retrieve("Who digs tunnels?", 1)
    assert (found.generation, found.passages[0].path) == (2, "mole.txt")
    assert followed.embedder.identity == "tuned:256"
    rollback(animals)
    assert followed.retrieve("Who digs tunnels?", 1).generation == 1
    assert followed.embedder.identity == "hashing:256"


def test_an_index_of_an_unknown_embedder_is_refused(
    followed: FollowingRetriever, animals: Store, tmp_path: Path
) -> None:
    sync(animals, [tmp_path / "animals"], renamed("foreign"), ChunkSize(40, 8))
    with pytest.raises(TandemError, match="was made with the embedder foreign"):
        followed.retrieve("Who digs tunnels?", 1)


class SwapsMeanwhile(HashingEmbedder):
    """Another generation is published while it embeds its first question."""

    def __init__(self, store: Store, corpus: Path) -> None:
        super().__init__()
        self.store, self.corpus, self.swapped = store, corpus, False

    def embed_question(self, text: str) -> Vectors:
        vector = super().embed_question(text)
        if not self.swapped:
            self.swapped = True
            sync(self.store, [self.corpus], renamed("tuned"), ChunkSize(40, 8))
        return vector


def test_a_swap_between_embedding_and_searching_is_answered_from_the_new_generation(
    animals: Store, tmp_path: Path
) -> None:
    own = Retriever(animals, SwapsMeanwhile(animals, tmp_path / "animals"))
    followed = FollowingRetriever(own, lambda identity: Retriever(animals, renamed(identity.partition(":")[0])))
    found = followed.retrieve("Who digs tunnels?", 1)
    assert (found.generation, found.passages[0].path) == (2, "mole.txt")


def test_questions_during_swaps_never_fail_and_never_mix(
    followed: FollowingRetriever, animals: Store, tmp_path: Path
) -> None:
    made_with: dict[int, str] = {1: "hashing:256"}
    seen: list[tuple[int, str]] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                found = followed.retrieve("Who digs tunnels?", 1)
                seen.append((found.generation, found.passages[0].path))
            except BaseException as error:
                failures.append(error)
                return

    askers = [threading.Thread(target=ask) for _ in range(3)]
    for asker in askers:
        asker.start()
    for turn in range(6):
        name = "tuned" if turn % 2 == 0 else "hashing"
        made_with[sync(animals, [tmp_path / "animals"], renamed(name), ChunkSize(40, 8)).generation] = name
    stop.set()
    for asker in askers:
        asker.join()
    assert not failures
    assert {path for _, path in seen} == {"mole.txt"}
    assert {number for number, _ in seen} <= set(made_with)


# --- the real thing --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned_home(tmp_path_factory: pytest.TempPathFactory, weights_cache: Path, embedder: Path) -> Path:
    """A home before and after: `before` is indexed with the bundled embedder, `after` was tuned for two steps."""
    folder = tmp_path_factory.mktemp("tuned")
    write_animals(folder / "corpus")
    write_pairs(folder / "pairs.jsonl")
    settings = make_settings(folder, "before", weights_cache)
    store = Store(settings.home)
    sync(store, settings.corpora, load_embedder(settings), ChunkSize(40, 8))
    store.close()
    shutil.copytree(folder / "before", folder / "after")
    run_tune(
        make_settings(folder, "after", weights_cache),
        Tuning(folder / "pairs.jsonl", TWO_STEPS, force=True),
        as_json=True,
    )
    return folder


def make_settings(folder: Path, home: str, weights: Path, **more: object) -> Settings:
    values = {"home": folder / home, "corpora": (folder / "corpus",), "weights": weights}
    return Settings(**values | {"chunk_tokens": 40, "chunk_overlap": 8} | more)  # type: ignore[arg-type]


@pytest.mark.slow
def test_tuning_makes_another_embedder_and_the_index_is_made_with_it(tuned_home: Path, weights_cache: Path) -> None:
    settings = make_settings(tuned_home, "after", weights_cache)
    bundled = SentenceTransformerEmbedder(embedder_weights("bundled", weights_cache))
    tuned = load_embedder(settings)
    assert tuned.identity.startswith("tuned-1:")
    assert tuned.identity.split(":")[1] != bundled.identity.split(":")[1]
    assert published_embedder(settings.home) == tuned.identity
    folder = settings.home / "embedders" / "tuned-1"
    assert not [path for path in folder.rglob("*") if path.suffix in {".bin", ".pt", ".py"}]
    card = read_card(folder)
    assert card.base == bundled.identity and card.recipe["epochs"] == 1
    assert card.pairs["used"] == 8 and card.pairs["given"] == 10
    assert len(card.documents) == card.pairs["tuned_on"] == 6
    store = Store(settings.home)
    with store.read() as snapshot:
        # The vectors are those of the new weights, and the retriever of the settings finds with them.
        rows = snapshot.chunk_rows()
        texts = [snapshot.passages([int(row)])[int(row)][0].embedded_text for row in rows]
        np.testing.assert_allclose(snapshot.vectors(rows), tuned.embed_documents(texts), atol=1e-5)
        assert not np.allclose(snapshot.vectors(rows), bundled.embed_documents(texts), atol=1e-2)
    assert all(finding.ok for finding in doctor._embedder(settings, store))
    found = load_retriever(settings, store).retrieve("Who digs tunnels?", 1)
    assert (found.generation, found.passages[0].path) == (2, "mole.txt")
    store.close()


@pytest.mark.slow
def test_a_setting_wins_and_a_rollback_goes_back(tuned_home: Path, weights_cache: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned_home / "after", tmp_path / "home")
    named = make_settings(tuned_home, str(tmp_path / "home"), weights_cache, embedder="bundled")
    bundled = SentenceTransformerEmbedder(embedder_weights("bundled", weights_cache)).identity
    assert load_embedder(named).identity == bundled
    settings = make_settings(tuned_home, str(tmp_path / "home"), weights_cache)
    held = load_embedder(settings)
    assert held.identity != bundled
    assert current_embedder(settings, held) is held
    store = Store(settings.home)
    rollback(store)
    store.close()
    assert load_embedder(settings).identity == bundled
    # What goes on for long, as a folder that is watched, must not bring the old embedder back.
    assert current_embedder(settings, held).identity == bundled


@pytest.mark.slow
def test_weights_that_were_changed_afterwards_are_not_taken_for_those_of_the_index(
    tuned_home: Path, weights_cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(tuned_home / "after", tmp_path / "home")
    identity = published_embedder(tmp_path / "home")
    assert identity is not None and embedder_that_made(tmp_path / "home", identity, weights_cache) is not None
    config = tmp_path / "home" / "embedders" / "tuned-1" / "1_Pooling" / "config.json"
    config.write_text(config.read_text() + " ")
    assert embedder_that_made(tmp_path / "home", identity, weights_cache) is None


@pytest.mark.slow
def test_equal_seeds_make_equal_weights_and_without_activation_the_index_stays(
    tuned_home: Path, weights_cache: Path, tmp_path: Path
) -> None:
    shutil.copytree(tuned_home / "before", tmp_path / "home")
    settings = make_settings(tuned_home, str(tmp_path / "home"), weights_cache)
    tuning = Tuning(tuned_home / "pairs.jsonl", TWO_STEPS, name="again", activate=False)
    body = run_tune(settings, tuning, as_json=True)
    assert not body["activated"] and body["generation"] is None
    assert load_embedder(settings).identity == published_embedder(settings.home)
    again = named_weights(str(settings.home / "embedders" / "again"), tmp_path)
    first = named_weights(str(tuned_home / "after" / "embedders" / "tuned-1"), tmp_path)
    assert again.sha256 == first.sha256
    other = replace(tuning, name="other", recipe=replace(TWO_STEPS, seed=1))
    run_tune(settings, other, as_json=True)
    assert named_weights(str(settings.home / "embedders" / "other"), tmp_path).sha256 != first.sha256


@pytest.mark.slow
def test_an_embedder_that_gained_nothing_is_not_put_to_use(
    tuned_home: Path, weights_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tuned_home / "before", tmp_path / "home")
    settings = make_settings(tuned_home, str(tmp_path / "home"), weights_cache)
    # Questions that the bundled embedder answers perfectly leave nothing to gain.
    body = run_tune(settings, Tuning(tuned_home / "pairs.jsonl", TWO_STEPS), as_json=True)
    assert body["validation"]["before"]["deployed"]["ndcg@10"] == 1.0
    assert not body["activated"] and "no better" in body["reason"]
    assert (settings.home / "embedders" / "tuned-1" / "card.json").is_file()
    assert load_embedder(settings).identity == body["base"] == published_embedder(settings.home)


@pytest.mark.slow
def test_a_running_service_adopts_the_tuned_embedder(tuned_home: Path, weights_cache: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned_home / "before", tmp_path / "home")
    settings = make_settings(tuned_home, str(tmp_path / "home"), weights_cache)
    store = Store(settings.home)
    retriever = following(settings, load_retriever(settings, store))
    answerer = Answerer(retriever, ScriptedGenerator("The mole digs tunnels [1]."), settings, FixedAdapters())
    question = {"question": "Who digs tunnels and hardly sees?", "mode": "rag"}
    with TestClient(create_app(Service(settings, store, answerer)), base_url="http://127.0.0.1") as client:
        first = client.post("/ask", json=question).json()
        assert first["index_generation"] == 1
        before = retriever.embedder.identity
        # What `tandem tune` of another process does, with an embedder that is tuned already.
        shutil.copytree(tuned_home / "after" / "embedders", settings.home / "embedders")
        weights = named_weights(str(settings.home / "embedders" / "tuned-1"), weights_cache)
        other = Store(settings.home)
        sync(other, settings.corpora, SentenceTransformerEmbedder(weights), ChunkSize(40, 8))
        second = client.post("/ask", json=question)
        assert second.status_code == 200
        assert second.json()["index_generation"] == 2
        assert second.json()["answer"] == first["answer"]
        assert retriever.embedder.identity == published_embedder(settings.home) != before
        assert client.get("/readyz").json() == {"status": "ready", "generation": 2}
        rollback(other)
        other.close()
        assert client.post("/ask", json=question).json()["index_generation"] == 1
        assert retriever.embedder.identity == before


KILLED = """
import os, signal, sys
from pathlib import Path
from indexer import sync
from service.commands import tune_embedder as tune
from service.settings import Settings
from tuner import tuned_embedders
from tuner.embedder import EmbedderRecipe

home, corpus, weights, pairs, moment = map(Path, sys.argv[1:])
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
if str(moment) == "before-rename":
    kept = tuned_embedders.publish_folder
    tuned_embedders.publish_folder = lambda target, build: kept(target, lambda fresh: (build(fresh), die()))
else:
    sync.publish = die
settings = Settings(home=home, corpora=(corpus,), weights=weights, chunk_tokens=40, chunk_overlap=8)
tuning = tune.Tuning(pairs, EmbedderRecipe(epochs=1, learning_rate=1e-3, batch_size=4), force=True)
tune.run_tune(settings, tuning, as_json=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["before-rename", "before-publishing"])
def test_a_kill_leaves_the_old_embedder_and_no_half_one(
    tuned_home: Path, weights_cache: Path, tmp_path: Path, moment: str
) -> None:
    home = Path(shutil.copytree(tuned_home / "before", tmp_path / "home"))
    arguments = [home, tuned_home / "corpus", weights_cache, tuned_home / "pairs.jsonl", moment]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, arguments)],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    whole = (home / "embedders" / "tuned-1").exists()
    assert whole == (moment == "before-publishing")
    settings = make_settings(tuned_home, str(home), weights_cache)
    bundled: Embedder = SentenceTransformerEmbedder(embedder_weights("bundled", weights_cache))
    assert load_embedder(settings).identity == bundled.identity == published_embedder(home)
    # The next one is not held up by what the killed one left, and clears it away.
    body = run_tune(settings, Tuning(tuned_home / "pairs.jsonl", TWO_STEPS, force=True), as_json=True)
    assert body["activated"] and str(published_embedder(home)).startswith(f"{body['name']}:")
    left = [path.name for path in (home / "embedders").iterdir()]
    assert sorted(left) == (["tuned-1", "tuned-2"] if whole else ["tuned-1"])


def test_a_failed_save_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        save_embedder(tmp_path / "embedders" / "x", None, fail)  # type: ignore[arg-type]
    assert list((tmp_path / "embedders").iterdir()) == []
