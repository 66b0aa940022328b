"""Opinions that came in over HTTP become pairs and preferences, and what a person must look at is listed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeService
from fakes import HashingEmbedder, ScriptedGenerator
from scripted_server import ANSWERS, reply
from starlette.testclient import TestClient
from test_gate import BASE
from typer.testing import CliRunner

from indexer.retrieval import Retriever
from indexer.store import Store
from service.api.app import create_app
from service.cli import app
from service.commands.feedback import plain
from service.keys import create_key
from service.opinions import CLOSED, NO_EVIDENCE, NOT_ALL, NOWHERE, REPEATED
from service.settings import load_settings
from tuner.pairs import read_pairs
from tuner.preference import read_preferences
from tuner.prompt import REFUSAL

MOON, BREAD, IRON = ANSWERS
UNKNOWN = "Who invented the violin concerto of the marmots?"


@pytest.fixture
def client(make_service: MakeService, monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[TestClient]:
    monkeypatch.setenv("TANDEM_HOME", str(home))
    monkeypatch.setattr(
        "service.commands.feedback.load_retriever", lambda settings, store, report: Retriever(store, HashingEmbedder())
    )
    with TestClient(create_app(make_service(ScriptedGenerator(reply), min_relevance=0)), base_url=BASE) as made:
        yield made


def ask(client: TestClient, question: str, key: str = "") -> dict[str, Any]:
    body: dict[str, Any] = client.post("/ask", json={"question": question, "mode": "rag"}, headers=bearer(key)).json()
    return body


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}


def vote(client: TestClient, question: str, vote: str, key: str = "", **more: Any) -> dict[str, Any]:
    """Ask, then send the opinion of what was answered, as a page would; returns the answer."""
    given = ask(client, question, key)
    said = {name: given[name] for name in ("mode", "answer", "adapter", "citations")}
    documents = [item["document"] for item in given["citations"]]
    opinion = {"question": question, "vote": vote, "documents": documents, **said, **more}
    assert client.post("/feedback", json=opinion, headers=bearer(key)).status_code == 201
    return given


def learned(folder: Path, *options: str) -> tuple[dict[str, Any], list[dict[str, Any]], list[Any]]:
    """The command's JSON, the lines of the pairs file, the preferences."""
    pairs, preferences = folder / "pairs.jsonl", folder / "preferences.jsonl"
    command = ["pairs", "from-feedback", "--out", str(pairs), "--preferences", str(preferences), "--json", *options]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in pairs.read_text("utf-8").splitlines()]
    read_pairs(pairs)
    return json.loads(result.stdout), lines, read_preferences(preferences)


def test_an_answer_that_was_liked_is_a_pair(client: TestClient, tmp_path: Path) -> None:
    given = vote(client, MOON, "up")
    assert given["citations"]
    body, pairs, preferences = learned(tmp_path)
    assert pairs == [
        {
            "id": "feedback-1",
            "question": MOON,
            "answers": ["The moon raises the tides twice a day."],
            "document": "tides.md",
            "kind": "answerable",
            "tag": "approved",
            "written_by": "tandem rag",
        }
    ]
    assert (body["opinions"], body["pairs"], preferences) == (1, 1, [])


def test_a_correction_is_a_pair_and_a_preference(client: TestClient, tmp_path: Path, home: Path) -> None:
    given = vote(client, BREAD, "down", corrected_answer="Yeast makes carbon dioxide")
    _, (pair,), (preference,) = learned(tmp_path)
    assert (pair["answers"], pair["document"], pair["tag"]) == (["Yeast makes carbon dioxide"], "bread.md", "corrected")
    assert "written_by" not in pair
    store = Store(home)
    found = Retriever(store, HashingEmbedder()).retrieve(BREAD, load_settings().k).passages
    store.close()
    assert [item.text for item in preference.passages] == [item.chunk.text for item in found]
    n = next(place for place, item in enumerate(found, start=1) if "yeast" in item.chunk.text)
    assert preference.chosen == f"Yeast makes carbon dioxide [{n}]."
    assert preference.rejected == given["answer"] == f"Bread rises because yeast makes carbon dioxide [{n}]."


def test_a_refusal_that_was_wrong_is_answered_by_its_correction(client: TestClient, tmp_path: Path) -> None:
    question = "Which degrees does the oven have?"
    assert vote(client, question, "down")["refused"]
    body, pairs, _ = learned(tmp_path)
    assert pairs == [] and [item["question"] for item in body["candidates"]] == [question]
    assert body["candidates"][0]["document"] == "bread.md"
    vote(client, question, "down", corrected_answer="230 degrees")
    (tmp_path / "later").mkdir()
    body, (pair,), (preference,) = learned(tmp_path / "later")
    assert body["candidates"] == [] and body["left_out"] == {REPEATED: 1}
    assert (pair["id"], pair["answers"], preference.rejected) == ("feedback-2", ["230 degrees"], REFUSAL)


def test_refusals_that_were_right(client: TestClient, tmp_path: Path) -> None:
    vote(client, UNKNOWN, "up")
    vote(client, MOON, "down", corrected_answer=REFUSAL)
    _, (absent, misleading), (preference,) = learned(tmp_path)
    assert (absent["kind"], absent["answers"], absent["document"]) == ("absent", [], None)
    assert (misleading["kind"], misleading["answers"], misleading["document"]) == ("misleading", [], "tides.md")
    assert preference.chosen == REFUSAL and "twice a day" in preference.rejected


def test_what_needs_a_person_is_listed(client: TestClient, tmp_path: Path) -> None:
    vote(client, MOON, "down", comment="Too short.")
    vote(client, BREAD, "down", corrected_answer="Because of the full grandmother of the baker")
    body, pairs, preferences = learned(tmp_path)
    assert (pairs, preferences) == ([], [])
    assert [(item["id"], item["reason"]) for item in body["review"]] == [
        (1, "voted down without a correction"),
        (2, NOWHERE),
    ]
    shown = CliRunner().invoke(app, ["pairs", "from-feedback"])
    assert shown.exit_code == 0
    assert MOON in shown.stdout and "comment: Too short." in shown.stdout and "grandmother" in shown.stdout
    assert "--out FILE would" in shown.stdout


def test_the_latest_opinion_of_a_question_counts(client: TestClient, tmp_path: Path) -> None:
    vote(client, MOON, "down")
    vote(client, BREAD, "up")
    vote(client, f"  {MOON.upper()}", "up")
    vote(client, MOON, "up")
    vote(client, BREAD, "down")
    body, pairs, _ = learned(tmp_path)
    assert [pair["id"] for pair in pairs] == ["feedback-4"]
    assert [item["id"] for item in body["review"]] == [5] and body["left_out"] == {REPEATED: 3}


def test_a_correction_that_stands_elsewhere_gives_no_preference(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.post(
        "/feedback",
        json={
            "question": MOON,
            "mode": "rag",
            "vote": "down",
            "answer": "Never.",
            "corrected_answer": "Marmots whistle",
        }
        | {"documents": ["notes/<b>marmot.txt"]},
    )
    monkeypatch.setenv("TANDEM_K", "1")
    body, (pair,), preferences = learned(tmp_path)
    assert pair["document"] == "notes/<b>marmot.txt" and preferences == [] and body["left_out"] == {NO_EVIDENCE: 1}


def test_closed_book_answers_are_corrected_without_passages(client: TestClient, tmp_path: Path) -> None:
    opinion = {"question": IRON, "mode": "base", "vote": "down", "answer": "At 7 degrees."}
    client.post("/feedback", json=opinion | {"corrected_answer": "1538 degrees Celsius"})
    _, (pair,), (preference,) = learned(tmp_path)
    assert pair["document"] == "iron.txt"
    assert (preference.passages, preference.chosen, preference.rejected) == (
        (),
        "1538 degrees Celsius.",
        "At 7 degrees.",
    )


def test_documents_of_a_group_stay_with_it(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_service: MakeService
) -> None:
    rules = {"iron.txt": ["smiths"]}
    monkeypatch.setenv("TANDEM_GROUPS", json.dumps(rules))
    service = make_service(ScriptedGenerator(reply), min_relevance=0, groups=rules)
    smith = create_key(service.store, "smith", "user", ["smiths"])
    anna = create_key(service.store, "anna", "user")
    chief = create_key(service.store, "chief", "admin")
    with TestClient(create_app(service), base_url=BASE) as closed:
        assert vote(closed, IRON, "up", smith)["citations"]
        # She may not read the document, whatever she says that it holds.
        named = {"corrected_answer": "1538 degrees", "documents": ["iron.txt"]}
        assert vote(closed, IRON, "down", anna, **named)["refused"]
        vote(closed, UNKNOWN, "up", anna)
        vote(closed, BREAD, "up", anna)
        vote(closed, "What is not in here at all?", "up", chief)
    body, pairs, preferences = learned(tmp_path)
    assert [(pair["id"], pair["kind"]) for pair in pairs] == [("feedback-4", "answerable"), ("feedback-5", "absent")]
    assert preferences == [] and body["left_out"] == {CLOSED: 2, NOT_ALL: 1}
    (tmp_path / "all").mkdir()
    body, pairs, preferences = learned(tmp_path / "all", "--closed")
    assert [pair["id"] for pair in pairs] == ["feedback-1", "feedback-4", "feedback-5"]
    assert [item["reason"] for item in body["review"]] == [NOWHERE] and preferences == []


def test_files_that_are_there_and_feedback_that_is_not(client: TestClient, tmp_path: Path) -> None:
    runner = CliRunner()
    none = runner.invoke(app, ["pairs", "from-feedback", "--json"])
    assert none.exit_code == 2 and json.loads(none.stdout)["error"]["code"] == "not_found"
    vote(client, MOON, "up")
    learned(tmp_path)
    again = runner.invoke(app, ["pairs", "from-feedback", "--out", str(tmp_path / "pairs.jsonl"), "--json"])
    assert again.exit_code == 2 and json.loads(again.stdout)["error"]["code"] == "conflict"
    same = ["--out", str(tmp_path / "x"), "--preferences", str(tmp_path / "x")]
    assert runner.invoke(app, ["pairs", "from-feedback", *same]).exit_code == 2
    lost = ["--preferences", str(tmp_path / "no" / "folder" / "x")]
    assert runner.invoke(app, ["pairs", "from-feedback", *lost]).exit_code == 2


def test_what_people_typed_cannot_steer_a_terminal() -> None:
    assert plain("a\x1b[31mred\n\u202eb") == "a\ufffd[31mred \ufffdb"
    assert len(plain("x" * 1000)) == 160
