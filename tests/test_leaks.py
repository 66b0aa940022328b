"""Two groups, one index: nothing of one group's documents reaches the other's key, by any route, cache or error.

The table below must name every route of the application: a new one fails the test until it is thought of.
"""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import MakeService
from fakes import HashingEmbedder, ScriptedGenerator, wait_until
from starlette.testclient import TestClient
from test_gate import BASE, OPEN, routes_of

from indexer.chunking import ChunkSize
from indexer.errors import TandemError
from indexer.outcome import Outcome
from indexer.store import Store
from indexer.sync import sync
from service.api.access import access_of
from service.api.app import create_app
from service.api.reindex import follow_job
from service.jobs import FINAL
from service.keys import create_key, revoke_key
from service.running import Service

# Words that stand in the documents of one group only: in their names, titles and texts. No question holds one.
SECRETS = {
    "hr": ("zebrafinch", "ocelotplan", "wombatpay", "heronrecord", "lynxupload", "mothfailure"),
    "sales": ("pangolin", "tapirlist", "quollprice", "ibisrecord", "gnuupload"),
}
FILES = {
    "hours.md": "# Hours\n\nThe staff works until five. The pay of the staff is monthly.",
    "hr/zebrafinch.md": "# Ocelotplan\n\nThe pay of the staff is wombatpay in the year.",
    "sales/pangolin.md": "# Tapirlist\n\nThe pay of the staff is quollprice in the year.",
    "hr/mothfailure.pdf": "%PDF-1.7 broken",
    "people.jsonl": '{"id": "heronrecord", "text": "The pay of the heronrecord staff.", "group": "hr"}\n'
    '{"id": "ibisrecord", "text": "The pay of the ibisrecord staff.", "group": "sales"}\n'
    '{"id": "open", "text": "The pay of the open staff."}',
}
RULES = {"hr/*": ("hr",), "sales": ("sales",)}
QUESTION = "What is the pay of the staff in the year?"
# What a key without groups sees.
PUBLIC = {"hours.md", "people.jsonl#open"}
OF_GROUP = {
    "hr": {"hr/zebrafinch.md", "people.jsonl#heronrecord", "lynxupload.md"},
    "sales": {"sales/pangolin.md", "people.jsonl#ibisrecord", "gnuupload.md"},
}
KEYS = ("hr", "sales", "none")


@pytest.fixture
def generator() -> ScriptedGenerator:
    # It says all that it was shown: what is in the prompt would be in the answer.
    return ScriptedGenerator(lambda prompt: " ".join(message["content"] for message in prompt.messages))


@pytest.fixture
def service(make_service: MakeService, generator: ScriptedGenerator, tmp_path: Path) -> Service:
    corpus, home = tmp_path / "corpus", tmp_path / "own"
    for name, text in FILES.items():
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus / name).write_text(text)
    sync(Store(home), [corpus], HashingEmbedder(), ChunkSize(40, 8))
    return make_service(generator, home=home, corpora=(corpus,), groups=RULES, k=20, min_relevance=-1)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), base_url=BASE) as made:
        yield made


@pytest.fixture
def keys(service: Service, client: TestClient) -> dict[str, str]:
    """A key each, after each group has uploaded something and a job has failed on a document of one of them."""
    keys = {
        "admin": create_key(service.store, "admin", "admin"),
        "hr": create_key(service.store, "hanna", "user", ["hr"]),
        "sales": create_key(service.store, "sami", "user", ["sales"]),
        "none": create_key(service.store, "nils", "user"),
    }
    for group, name in (("hr", "lynxupload"), ("sales", "gnuupload")):
        response = client.post(
            "/documents",
            files={"file": (f"{name}.md", f"# The {name}\n\nThe pay of the {name} staff in the year.")},
            data={"groups": group},
            headers=bearer(keys["admin"]),
        )
        assert response.status_code == 202
        job = response.json()["job"]["id"]
        wait_until(lambda job=job: service.jobs.get(job)["state"] in FINAL)  # type: ignore[misc]
        assert "mothfailure" in json.dumps(service.jobs.get(job)), "there is something to leak"
    return keys


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def chunks_of(service: Service) -> dict[str, list[str]]:
    """The ids of all chunks, by the path of their document."""
    found: dict[str, list[str]] = {}
    with service.store.read() as snapshot:
        for chunk, path, *_ in snapshot.passages(snapshot.chunk_rows().tolist()).values():
            found.setdefault(path, []).append(chunk.id)
    return found


def ids_of(service: Service) -> dict[str, str]:
    with service.store.read() as snapshot:
        return {str(item["document"]): str(item["id"]) for item in snapshot.list_documents()}


Call = tuple[str, str, dict[str, Any]]


def calls(service: Service) -> dict[tuple[str, str], list[Call]]:
    """Requests to every route, as someone would send them who looks for what is hidden."""
    documents, jobs = ids_of(service), [job["id"] for job in service.jobs.list()]
    chunks = [chunk for found in chunks_of(service).values() for chunk in found]
    filters: list[dict[str, Any]] = [
        {},
        {"path": ["hr/*", "sales/*", "*upload*"]},
        {"path": "*"},
        {"group": ["hr", "sales"]},
        {"corpus": ["corpus", "uploads"]},
    ]
    asks = [
        {"question": QUESTION, "mode": mode, "filter": where, "stream": stream}
        for mode in ("rag", "base", "auto")
        for where in (filters if mode == "rag" else filters[:1])
        for stream in (False, True)
    ]
    wrong = {"question": QUESTION, "filter": {"path": 1}}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Hm."}]
    asks += [wrong, {"question": QUESTION, "response_format": form}, {"question": "And that?", "history": turns}]
    chats = [
        {"model": model, "messages": [*turns, {"role": "user", "content": QUESTION}], "stream": stream}
        for model in ("tandem", "tandem-rag", "tandem-base", "nothing")
        for stream in (False, True)
    ]
    feedback = {"question": QUESTION, "mode": "rag", "vote": "up", "documents": ["hours.md"]}
    plain = {"json": {}}
    found: dict[tuple[str, str], list[Call]] = {
        ("GET", "/"): [("GET", "/", {})],
        ("GET", "/static/{name}"): [("GET", "/static/app.js", {}), ("GET", "/static/nothing", {})],
        ("GET", "/healthz"): [("GET", "/healthz", {})],
        ("GET", "/readyz"): [("GET", "/readyz", {})],
        ("GET", "/openapi.json"): [("GET", "/openapi.json", {})],
        ("GET", "/access"): [("GET", "/access", {})],
        ("GET", "/modes"): [("GET", "/modes", {})],
        ("POST", "/ask"): [("POST", "/ask", {"json": body}) for body in asks],
        ("GET", "/search"): [
            ("GET", "/search", {"params": [("question", QUESTION), ("k", "100"), *conditions]})
            for conditions in (
                [],
                [("filter", "path=hr/*")],
                [("filter", "path=sales/*")],
                [("filter", "group=hr"), ("filter", "group=sales")],
                [("filter", "corpus=uploads")],
                [("filter", "broken")],
            )
        ],
        ("GET", "/sources/{chunk}"): [
            ("GET", f"/sources/{chunk}{query}", {"headers": {"Accept": kind}})
            for chunk in [*chunks, "nothing"]
            for query in ("", "?start=9&end=1")
            for kind in ("text/html", "application/json")
        ],
        ("GET", "/documents"): [("GET", "/documents", {})],
        ("POST", "/documents"): [("POST", "/documents", {"files": {"file": ("new.md", "Text.")}})],
        ("DELETE", "/documents/{document}"): [
            ("DELETE", f"/documents/{name}", {}) for name in (*documents.values(), "lynxupload.md", "nothing.md")
        ],
        ("POST", "/reindex"): [("POST", "/reindex", {})],
        ("GET", "/jobs"): [("GET", "/jobs", {})],
        ("GET", "/jobs/{job}"): [("GET", f"/jobs/{job}", {}) for job in jobs],
        ("GET", "/jobs/{job}/events"): [("GET", f"/jobs/{job}/events", {}) for job in jobs],
        ("DELETE", "/jobs/{job}"): [("DELETE", f"/jobs/{job}", {}) for job in jobs],
        ("GET", "/adapters"): [("GET", "/adapters", {})],
        ("POST", "/adapters/deactivate"): [("POST", "/adapters/deactivate", plain)],
        ("POST", "/adapters/{name}/activate"): [("POST", "/adapters/x/activate", plain)],
        ("POST", "/feedback"): [("POST", "/feedback", {"json": feedback}), ("POST", "/feedback", plain)],
        ("GET", "/feedback"): [("GET", "/feedback", {})],
        ("GET", "/metrics"): [("GET", "/metrics", {})],
        ("GET", "/v1/models"): [("GET", "/v1/models", {})],
        ("GET", "/v1/models/{model}"): [("GET", "/v1/models/tandem", {}), ("GET", "/v1/models/x", {})],
        ("POST", "/v1/chat/completions"): [("POST", "/v1/chat/completions", {"json": body}) for body in chats],
        ("POST", "/v1/embeddings"): [("POST", "/v1/embeddings", {"json": {"model": "tandem", "input": QUESTION}})],
    }
    return found


def said(client: TestClient, call: Call, key: str) -> str:
    """Everything that a client receives, headers too."""
    method, path, options = call
    options = {**options, "headers": {**options.get("headers", {}), **bearer(key)}}
    response = client.request(method, path, **options)
    return f"{response.status_code} {dict(response.headers)} {response.text}".lower()


def leaked(text: str, reader: str) -> set[str]:
    """The secrets in a text that this reader must not see."""
    return {word for group, words in SECRETS.items() if group != reader for word in words if word in text.lower()}


def test_the_table_names_every_route(service: Service) -> None:
    assert set(calls(service)) == set(routes_of(create_app(service).routes))


def test_no_route_tells_one_group_of_the_others(
    client: TestClient, service: Service, keys: dict[str, str], generator: ScriptedGenerator
) -> None:
    everything, seen = "", {reader: "" for reader in KEYS}
    # The administrator comes first and last, so that whatever is kept between requests holds all of it.
    for reader in ("admin", *KEYS, "admin", "none"):
        for route, requests in calls(service).items():
            if reader == "admin" and route[0] in ("DELETE", "POST") and "/documents" in route[1]:
                continue
            for call in requests:
                generator.prompts.clear()
                text = said(client, call, keys[reader])
                text += " ".join(str(prompt.messages) for prompt in generator.prompts).lower()
                if reader == "admin":
                    everything += text
                else:
                    assert not leaked(text, reader), (reader, call, text[:2000])
                    seen[reader] += text
    assert all(word in everything for words in SECRETS.values() for word in words), "the requests would find them"
    for group, words in SECRETS.items():
        own = {word for word in words if word != "mothfailure"}
        assert {word for word in own if word in seen[group]} == own, "a group sees its own"


def test_what_is_hidden_is_not_counted(client: TestClient, keys: dict[str, str]) -> None:
    for reader in KEYS:
        listed = client.get("/documents", headers=bearer(keys[reader])).json()
        expected = PUBLIC | OF_GROUP.get(reader, set())
        assert {item["document"] for item in listed["documents"]} == expected
        assert "groups" not in listed["documents"][0]
        found = client.get("/search", params={"question": QUESTION, "k": 100}, headers=bearer(keys[reader])).json()
        assert {item["document"] for item in found} == expected
        assert [item["rank"] for item in found] == list(range(1, len(found) + 1)), "no gaps where others stand"
        body = client.post("/ask", json={"question": QUESTION, "mode": "rag"}, headers=bearer(keys[reader])).json()
        assert {item["document"] for item in body["passages"]} == expected


def test_hidden_and_missing_are_told_in_the_same_words(
    client: TestClient, service: Service, keys: dict[str, str]
) -> None:
    sales = bearer(keys["sales"])

    def told(path: str) -> tuple[int, dict[str, Any]]:
        response = client.get(path, headers=sales)
        body = response.json()["error"]
        assert body.pop("request_id") == response.headers["x-request-id"]
        return response.status_code, body

    for path, chunks in chunks_of(service).items():
        for chunk in chunks:
            for query in ("", "?start=0&end=3", "?start=9&end=1", "?start=0"):
                if path in OF_GROUP["hr"]:
                    assert told(f"/sources/{chunk}{query}") == told(f"/sources/{'0' * 16}{query}")
    for where in ("path=hr/*", "group=hr", "path=*zebrafinch*"):
        hidden = client.get("/search", params={"question": QUESTION, "filter": where}, headers=sales)
        missing = client.get(
            "/search", params={"question": QUESTION, "filter": "path=x"}, headers=bearer(keys["sales"])
        )
        assert (hidden.status_code, hidden.json()) == (missing.status_code, missing.json()) == (200, [])


def test_nobody_reads_a_body_or_an_answer_without_a_key(client: TestClient, service: Service) -> None:
    create_key(service.store, "admin", "admin")
    for route, requests in calls(service).items():
        if route not in OPEN:
            for call in requests:
                assert said(client, call, "tandem-wrong").startswith("401"), call


def test_taking_a_group_from_a_key_takes_its_documents_at_once(
    client: TestClient, service: Service, keys: dict[str, str]
) -> None:
    def seen() -> set[str]:
        found = client.get("/search", params={"question": QUESTION, "k": 100}, headers=bearer(keys["hr"])).json()
        return {item["document"] for item in found}

    assert seen() == PUBLIC | OF_GROUP["hr"]
    with service.store.connection() as connection:
        connection.execute("UPDATE keys SET groups = '[]' WHERE name = 'hanna'")
    assert seen() == PUBLIC


def test_the_events_of_a_job_end_when_the_key_is_revoked(service: Service, keys: dict[str, str]) -> None:
    def work(report: Any, cancel: threading.Event) -> Outcome:
        cancel.wait(20)
        return Outcome()

    ring = service.keyring
    access = access_of(ring.check(keys["admin"]), service.settings, lambda: ring.check(keys["admin"]))
    job, _ = service.jobs.start("other", work)
    events = follow_job(service, job.id, access, threading.Event())
    assert next(events)[0] == "job"
    revoke_key(service.store, "admin")
    with pytest.raises(TandemError, match="needs an access key"):
        next(events)
    service.jobs.cancel(job.id)
