import json
from pathlib import Path

import numpy as np
import pytest
from conftest import MakeService
from fakes import HashingEmbedder
from starlette.testclient import TestClient

from indexer.chunking import ChunkSize
from indexer.errors import TandemError
from indexer.filters import Filter, parse_filter, read_filter
from indexer.retrieval import CHANNELS, Retriever
from indexer.store import Store
from indexer.sync import sync
from service.api.app import create_app

RECORDS = [
    {"_id": "1", "title": "One", "text": "Salaries of the staff.", "group": "hr, board", "lang": "en"},
    {"_id": "2", "title": "Two", "text": "Salaries of the staff in short.", "group": "hr", "lang": "de"},
    {"_id": "3", "title": "Three", "text": "Salaries are paid monthly.", "group": "hr-trainees", "lang": "en"},
    {"_id": "4", "title": "Four", "text": "Staff meets on Mondays.", "lang": "en"},
]


@pytest.fixture
def retriever(tmp_path: Path) -> Retriever:
    manual, notes = tmp_path / "manual", tmp_path / "notes"
    (manual / "deep").mkdir(parents=True)
    notes.mkdir()
    (manual / "staff.txt").write_text("The staff of the manual.")
    (manual / "deep" / "staff.txt").write_text("The staff below the manual.")
    (notes / "staff.txt").write_text("Staff in the notes.")
    (notes / "people.jsonl").write_text("\n".join(json.dumps(record) for record in RECORDS))
    store = Store(tmp_path / "home")
    sync(store, [manual, notes], HashingEmbedder(), ChunkSize(40, 8))
    return Retriever(store, HashingEmbedder())


def found(retriever: Retriever, *conditions: str, k: int = 20) -> set[str]:
    passages = retriever.retrieve("What about the salaries of the staff?", k, parse_filter(conditions)).passages
    return {f"{Path(passage.path).parent.name}/{Path(passage.path).name}".lstrip("/") for passage in passages}


ALL = {"staff.txt", "deep/staff.txt", *(f"people.jsonl#{n}" for n in (1, 2, 3, 4))}


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ([], ALL),
        (["path=people.jsonl#*"], {f"people.jsonl#{n}" for n in (1, 2, 3, 4)}),
        (["path=*staff.txt"], {"staff.txt", "deep/staff.txt"}),
        (["path=deep/*"], {"deep/staff.txt"}),
        (["path=staff.tx?"], {"staff.txt"}),
        (["path=people.jsonl#[12]"], {"people.jsonl#1", "people.jsonl#2"}),
        (["path=STAFF.txt"], set()),
        (["corpus=manual"], {"staff.txt", "deep/staff.txt"}),
        (["corpus=anual"], set()),
        (["lang=en"], {"people.jsonl#1", "people.jsonl#3", "people.jsonl#4"}),
        (["lang=en", "lang=de"], {f"people.jsonl#{n}" for n in (1, 2, 3, 4)}),
        (["lang=en", "path=*#1"], {"people.jsonl#1"}),
        (["group=hr"], {"people.jsonl#1", "people.jsonl#2"}),
        (["group=board"], {"people.jsonl#1"}),
        (["group=board", "group=hr-trainees"], {"people.jsonl#1", "people.jsonl#3"}),
        (["group=hr,board"], set()),
        (["group="], set()),
        (["nothing=such"], set()),
        (["lang') OR 1=1 --=x"], set()),
        (["lang=en' OR '1'='1"], set()),
    ],
)
def test_only_documents_that_pass_are_found(retriever: Retriever, conditions: list[str], expected: set[str]) -> None:
    assert found(retriever, *conditions) == expected


def test_a_corpus_by_its_whole_path(retriever: Retriever, tmp_path: Path) -> None:
    assert found(retriever, f"corpus={tmp_path}/manual/") == {"staff.txt", "deep/staff.txt"}


def test_an_empty_list_of_values_lets_nothing_pass(retriever: Retriever) -> None:
    assert retriever.retrieve("staff", 5, read_filter({"group": []})).passages == ()


@pytest.mark.parametrize("channel", CHANNELS)
def test_filters_come_before_ranking_in_every_channel(tmp_path: Path, channel: str) -> None:
    # 300 documents that answer better stand before the only one that is allowed, more than any channel hands over.
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    records = [{"_id": str(n), "text": "moon tides moon tides", "lang": "en"} for n in range(300)]
    records.append({"_id": "x", "text": "Bread and the moon, and other things, none of them about that.", "lang": "de"})
    (corpus / "all.jsonl").write_text("\n".join(json.dumps(record) for record in records))
    store = Store(tmp_path / "home")
    sync(store, [corpus], HashingEmbedder(), ChunkSize(40, 8))
    retriever = Retriever(store, HashingEmbedder(), channel=channel)  # type: ignore[arg-type]
    passages = retriever.retrieve("moon tides", 3, read_filter({"lang": "de"})).passages
    assert [passage.path for passage in passages] == ["all.jsonl#x"]


def test_allowed_rows_are_those_of_the_passing_documents(retriever: Retriever) -> None:
    with retriever.store.read() as snapshot:
        everything = snapshot.allowed_rows(Filter())
        assert np.array_equal(everything, snapshot.chunk_rows())
        paths = snapshot.document_paths()
        german = snapshot.allowed_rows(read_filter({"lang": "de"}))
        assert [paths[row] for row in german.tolist()] == ["people.jsonl#2"]


def test_a_deleted_document_passes_no_filter(retriever: Retriever, tmp_path: Path) -> None:
    (tmp_path / "notes" / "people.jsonl").write_text(json.dumps(RECORDS[0]))
    sync(retriever.store, [tmp_path / "manual", tmp_path / "notes"], HashingEmbedder(), ChunkSize(40, 8))
    assert found(retriever, "group=hr") == {"people.jsonl#1"}


@pytest.mark.parametrize(
    "conditions",
    [{"": "x"}, {" ": "x"}, {"a": "x" * 2000}, {"a": ["x"] * 200}, {f"f{n}": "x" for n in range(40)}],
)
def test_unusable_filters_are_refused(conditions: dict[str, str]) -> None:
    with pytest.raises(TandemError, match="cannot be used"):
        read_filter(conditions)


def test_texts_without_an_equals_sign_are_refused() -> None:
    with pytest.raises(TandemError, match="cannot be used"):
        parse_filter(["manual"])
    assert parse_filter(["a=b=c", "a=d"]) == Filter((("a", ("b=c", "d")),))


@pytest.fixture
def client(make_service: MakeService):  # type: ignore[no-untyped-def]
    service = make_service("Marmots whistle [1]. Iron melts at 1538 degrees [1].", min_relevance=0)
    with TestClient(create_app(service), base_url="http://127.0.0.1:8000") as made:
        yield made


def test_search_takes_filters(client: TestClient) -> None:
    def search(*filters: str) -> set[str]:
        answer = client.get("/search", params={"question": "iron", "k": 9, "filter": list(filters)})
        assert answer.status_code == 200
        return {passage["document"] for passage in answer.json()}

    assert len(search()) == 4
    assert search("path=*.md") == {"tides.md", "bread.md"}
    assert search("path=*.md", "path=iron*") == {"tides.md", "bread.md", "iron.txt"}
    refused = client.get("/search", params={"question": "iron", "filter": "md"})
    assert (refused.status_code, refused.json()["error"]["message"]) == (422, "The filter 'md' cannot be used.")


def test_an_answer_comes_from_the_documents_that_pass(client: TestClient) -> None:
    body = {"question": "At how many degrees does iron melt?", "filter": {"path": "notes/*"}}
    answer = client.post("/ask", json=body).json()
    assert {passage["document"] for passage in answer["passages"]} == {"notes/<b>marmot.txt"}
    assert "1538" not in answer["answer"]
    assert "1538" in client.post("/ask", json={"question": body["question"]}).json()["answer"]
    none = client.post("/ask", json={**body, "filter": {"group": ["staff"]}}).json()
    assert (none["refused"], none["refusal_reason"], none["passages"]) == (True, "nothing_relevant", [])


def test_a_mode_without_documents_takes_no_filter(client: TestClient) -> None:
    body = {"question": "Is iron hard?", "mode": "base", "filter": {"path": "*"}}
    answer = client.post("/ask", json=body)
    assert (answer.status_code, "filter" in answer.json()["error"]["message"]) == (422, True)


@pytest.mark.parametrize("given", ["path=*", ["path"], {"path": 3}, {"path": [["x"]]}, {"": "x"}])
def test_a_filter_of_another_shape_is_refused(client: TestClient, given: object) -> None:
    assert client.post("/ask", json={"question": "iron", "filter": given}).status_code == 422
