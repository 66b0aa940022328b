import json
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeService
from starlette.testclient import TestClient
from test_gate import BASE, error

from indexer.database import exclusive
from indexer.errors import TandemError
from service import feedback
from service.api.app import create_app
from service.feedback import Opinion, add_feedback, read_feedback
from service.keys import create_key
from service.running import Service

MINIMAL: dict[str, Any] = {"question": "Hm?", "mode": "rag", "vote": "up"}
WHOLE: dict[str, Any] = {
    "question": "How often do tides rise? \N{OCTOPUS}",
    "mode": "rag+tuned",
    "vote": "down",
    "answer": "Once [1].",
    "adapter": "sailor",
    "corrected_answer": "Twice a day.",
    "comment": "'; DROP TABLE feedback; --",
    "documents": ["tides.md"],
    "citations": [{"n": 1, "document": "tides.md", "chunk": "c", "quote": "twice a day"}],
    "request_id": "r-1",
}


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service("Cheese.")


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), base_url=BASE) as made:
        yield made


def test_what_is_given_is_what_is_read(client: TestClient, service: Service) -> None:
    assert client.post("/feedback", json=WHOLE).status_code == 201
    assert client.post("/feedback", json=MINIMAL).json() == {"id": 2}
    first, second = read_feedback(service.settings.home)
    assert (first.id, first.opinion.question, first.opinion.documents) == (1, WHOLE["question"], ("tides.md",))
    body = client.get("/feedback").json()
    assert body["next"] is None
    assert {name: body["feedback"][0]["opinion"][name] for name in WHOLE} == WHOLE
    assert second.opinion == Opinion("Hm?", "rag", "up")


def test_pages_follow_each_other_without_gaps(client: TestClient, service: Service) -> None:
    for number in range(7):
        add_feedback(service.settings.home, Opinion(f"q{number}", "rag", "up"))
    seen, after = [], 0
    while after is not None:
        body = client.get("/feedback", params={"after": after, "limit": 3}).json()
        seen += [item["opinion"]["question"] for item in body["feedback"]]
        after = body["next"]
    assert seen == [f"q{number}" for number in range(7)]


def test_before_any_was_given_there_is_none_and_no_file(client: TestClient, service: Service) -> None:
    assert client.get("/feedback").json() == {"feedback": [], "next": None}
    assert not (service.settings.home / feedback.FILE).exists()


def test_users_give_and_administrators_read(client: TestClient, service: Service) -> None:
    user = {"Authorization": f"Bearer {create_key(service.store, 'anna', 'user')}"}
    admin = {"Authorization": f"Bearer {create_key(service.store, 'ops', 'admin')}"}
    assert client.post("/feedback", json=MINIMAL, headers=user).status_code == 201
    assert client.get("/feedback", headers=user).status_code == 403
    assert client.get("/feedback", headers=admin).json()["feedback"][0]["key"] == "anna"


@pytest.mark.parametrize(
    "change",
    [
        {"vote": "sideways"},
        {"mode": "oracle"},
        {"question": ""},
        {"question": "  "},
        {"question": "x" * 4001},
        {"answer": "x" * 20_001},
        {"comment": "x" * 4001},
        {"documents": ["x"] * 101},
        {"documents": ["x" * 1001]},
        {"citations": [{"n": 0}]},
        {"citations": [{"document": "x"}]},
        {"request_id": "x" * 65},
        {"key": "ops"},
        {"answer": 7},
        {"answer": "\ud800"},
    ],
)
def test_what_is_no_feedback_is_refused_and_not_kept(
    client: TestClient, service: Service, change: dict[str, Any]
) -> None:
    response = client.post(
        "/feedback",
        content=json.dumps({**MINIMAL, **change}),
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 422 and error(response)["code"] == "invalid_request"
    assert list(read_feedback(service.settings.home)) == []


def test_it_waits_for_no_index_run(client: TestClient, service: Service) -> None:
    busy = TandemError("busy")
    with exclusive(service.settings.home, "index", busy), service.store.connection() as connection:
        connection.execute("BEGIN IMMEDIATE")
        assert client.post("/feedback", json=MINIMAL).status_code == 201


def test_many_at_once_are_all_kept(tmp_path: Path) -> None:
    def give(number: int) -> None:
        for turn in range(5):
            add_feedback(tmp_path, Opinion(f"{number}-{turn}", "rag", "up"))

    threads = [threading.Thread(target=give, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({item.opinion.question for item in read_feedback(tmp_path)}) == 30


def test_a_full_file_and_a_broken_one_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "MOST_ENTRIES", 1)
    add_feedback(tmp_path, Opinion("a", "rag", "up"))
    with pytest.raises(TandemError, match="opinions already") as caught:
        add_feedback(tmp_path, Opinion("b", "rag", "up"))
    assert caught.value.code == "unavailable"
    (tmp_path / feedback.FILE).write_bytes(b"not a database, whatever its name says" * 100)
    with pytest.raises(TandemError, match="cannot be used"):
        add_feedback(tmp_path, Opinion("c", "rag", "up"))


def test_the_file_is_only_added_to(client: TestClient, service: Service) -> None:
    client.post("/feedback", json=MINIMAL)
    for method in ("DELETE", "PUT", "PATCH"):
        assert client.request(method, "/feedback").status_code == 405
    with sqlite3.connect(service.settings.home / feedback.FILE) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    connection.close()
