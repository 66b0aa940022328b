"""Which documents a reader may see: rules, uploads' groups and metadata, the same in every channel and listing."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import HashingEmbedder

from indexer.chunking import ChunkSize
from indexer.errors import TandemError
from indexer.filters import Filter, parse_filter
from indexer.readers import Reader
from indexer.retrieval import CHANNELS, Retriever
from indexer.store import EVERYTHING, Store
from indexer.sync import sync

FILES = {
    "open.txt": "The staff is told the hours.",
    "hr/pay.txt": "The staff is told the pay.",
    "hr/deep/plan.txt": "The staff is told the plan.",
    "hr.txt": "The staff is told about hr.",
    "Hr/other.txt": "The staff is told more.",
    "odd/[a]*.txt": "The staff is told the odd.",
    "records.jsonl": "\n".join(
        json.dumps({"id": name, "text": f"The staff is told of {name}.", **more})
        for name, more in {
            "one": {"group": "hr, board"},
            "two": {"group": "sales"},
            "none": {},
            "empty": {"group": ""},
            "near": {"group": "hr-trainees"},
        }.items()
    ),
}
ALL = {
    *(name for name in FILES if name != "records.jsonl"),
    *(f"records.jsonl#{name}" for name in ("one", "two", "none", "empty", "near")),
}
IN_GROUPS = {"records.jsonl#one", "records.jsonl#two", "records.jsonl#near"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("groups")
    for name, text in FILES.items():
        path = folder / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    store = Store(folder / "home")
    sync(store, [folder / "corpus"], HashingEmbedder(), ChunkSize(40, 8))
    store.close()
    return folder


@pytest.fixture
def store(folder: Path) -> Store:
    return Store(folder / "home")


def seen(store: Store, reader: Reader | None, where: Filter = EVERYTHING) -> set[str]:
    """The documents a reader sees; every way of seeing must agree."""
    where = replace(where, reader=reader)
    with store.read() as snapshot:
        listed = {str(item["document"]) for item in snapshot.list_documents(where)}
        every = snapshot.passages(snapshot.chunk_rows().tolist())
        opened = set()
        for chunk, path, *_ in every.values():
            try:
                snapshot.chunk(chunk.id, where)
                opened.add(path)
            except TandemError as error:
                assert error.code == "not_found"
    assert opened == listed
    for channel in CHANNELS:
        retriever = Retriever(store, HashingEmbedder(), channel=channel)
        found = {passage.path for passage in retriever.retrieve("What is the staff told?", 100, where).passages}
        assert found == listed, channel
    return listed


def rule(pattern: str, *groups: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return ((pattern, groups),)


def test_who_has_no_reader_sees_all(store: Store) -> None:
    assert seen(store, None) == ALL


@pytest.mark.parametrize(
    ("pattern", "closed"),
    [
        ("hr/*", {"hr/pay.txt", "hr/deep/plan.txt"}),
        ("hr/", {"hr/pay.txt", "hr/deep/plan.txt"}),
        ("hr", {"hr/pay.txt", "hr/deep/plan.txt"}),
        ("hr/deep", {"hr/deep/plan.txt"}),
        ("corpus/hr/*", {"hr/pay.txt", "hr/deep/plan.txt"}),
        ("*/pay.txt", {"hr/pay.txt"}),
        ("hr.txt", {"hr.txt"}),
        ("[hH]r/*", {"hr/pay.txt", "hr/deep/plan.txt", "Hr/other.txt"}),
        ("records.jsonl", {name for name in ALL if name.startswith("records")}),
        ("records.jsonl#none", {"records.jsonl#none"}),
        ("*", ALL),
        ("corpus", ALL),
        ("orpus", set()),
        ("pay.txt", set()),
        ("nothing", set()),
        ("' OR 1 --", set()),
        ("odd/[[]a][*].txt", {"odd/[a]*.txt"}),
    ],
)
def test_a_rule_closes_what_it_names_and_opens_it_to_its_group(store: Store, pattern: str, closed: set[str]) -> None:
    rules = rule(pattern, "staff", "board2")
    assert seen(store, Reader((), rules)) == ALL - closed - IN_GROUPS
    assert seen(store, Reader(("other",), rules)) == ALL - closed - IN_GROUPS
    assert seen(store, Reader(("other", "board2"), rules)) == ALL - IN_GROUPS


def test_a_rule_with_a_full_path(store: Store, folder: Path) -> None:
    closed = {"hr/pay.txt", "hr/deep/plan.txt"}
    assert seen(store, Reader((), rule(f"{folder}/corpus/hr", "x"))) == ALL - closed - IN_GROUPS
    assert seen(store, Reader((), rule("/elsewhere/hr", "x"))) == ALL - IN_GROUPS


def test_one_more_rule_never_opens_anything(store: Store) -> None:
    rules = (*rule("*", "staff"), *rule("hr/*", "hr"))
    assert seen(store, Reader(("staff",), rules)) == ALL - {"hr/pay.txt", "hr/deep/plan.txt"} - IN_GROUPS
    assert seen(store, Reader(("hr",), rules)) == set()
    assert seen(store, Reader(("staff", "hr"), rules)) == (ALL - IN_GROUPS) | {"records.jsonl#one"}
    assert seen(store, Reader(("staff", "hr"), rule("hr/*"))) & {"hr/pay.txt", "hr/deep/plan.txt"} == set()


def test_the_group_of_a_record(store: Store) -> None:
    for groups, opened in {
        (): set(),
        ("hr",): {"records.jsonl#one"},
        ("board",): {"records.jsonl#one"},
        ("sales", "board"): {"records.jsonl#one", "records.jsonl#two"},
        ("r, boa",): set(),
        ("hr-trainee",): set(),
        ("h%", "_"): set(),
    }.items():
        assert seen(store, Reader(groups)) == (ALL - IN_GROUPS) | opened, groups


def test_a_filter_narrows_what_a_reader_sees_and_widens_nothing(store: Store) -> None:
    reader = Reader(("hr",), rule("hr/*", "x"))
    assert seen(store, reader, parse_filter(["path=hr*"])) == {"hr.txt"}
    assert seen(store, reader, parse_filter(["group=sales"])) == set()
    assert seen(store, reader, parse_filter(["group=hr"])) == {"records.jsonl#one"}


def test_the_groups_of_a_file_are_those_of_its_content(store: Store, folder: Path) -> None:
    with store.connection() as connection:
        (sha256,) = connection.execute("SELECT sha256 FROM files WHERE path = 'open.txt'").fetchone()
        connection.execute("INSERT INTO file_groups VALUES ('open.txt', ?, ?)", (sha256, '["hr", "it\'s"]'))
        connection.execute("INSERT INTO file_groups VALUES ('hr.txt', 'another', '[\"hr\"]')")
    try:
        assert seen(store, Reader()) == ALL - IN_GROUPS - {"open.txt"}
        assert "open.txt" in seen(store, Reader(("it's",)))
        assert seen(store, None) == ALL
    finally:
        with store.connection() as connection:
            connection.execute("DELETE FROM file_groups")


def test_without_groups_anywhere_nothing_is_filtered(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.txt").write_text("Anything.")
    store = Store(tmp_path / "home")
    sync(store, [tmp_path / "corpus"], HashingEmbedder(), ChunkSize(40, 8))
    with store.read() as snapshot:
        assert not snapshot.narrowed(Filter(reader=Reader()))
        assert snapshot.narrowed(Filter(reader=Reader((), rule("a", "x"))))
        assert not snapshot.narrowed(Filter(reader=Reader(("x",), rule("a", "x"))))
        where = parse_filter(["path=a"])
        assert snapshot.narrowed(replace(where, reader=Reader())) == where


def test_what_each_document_asks_for(store: Store) -> None:
    with store.read() as snapshot:
        names = {item["id"]: item["document"] for item in snapshot.list_documents()}
        asked = {names[key]: groups for key, groups in snapshot.required_groups((*rule("*.jsonl", "staff"),)).items()}
    assert asked == {
        "records.jsonl#one": [["staff"], ["hr", "board"]],
        "records.jsonl#two": [["staff"], ["sales"]],
        "records.jsonl#near": [["staff"], ["hr-trainees"]],
        "records.jsonl#none": [["staff"]],
        "records.jsonl#empty": [["staff"]],
    }
