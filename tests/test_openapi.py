"""/openapi.json is what the service does: schemathesis sends what it allows, and what not, and reads the answers."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from conftest import MakeService
from fakes import FixedAdapters, ScriptedGenerator, wait_until
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, seed, settings
from jsonschema import Draft202012Validator
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.generation.case import Case
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient
from test_gate import BASE, OPEN, ROUTES

from service.api.app import create_app
from service.api.described import WHEN
from service.jobs import FINAL
from service.running import Service
from tuner.adapters import AdapterCard, save_card

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
DESCRIBED = sorted(ROUTES - {("GET", "/"), ("GET", "/static/{name}"), ("GET", "/openapi.json")})
# Schemathesis can break these: a body, or parameters that are not any text. Other routes take whatever comes.
BROKEN = [
    ("POST", "/ask"),
    ("GET", "/search"),
    ("GET", "/sources/{chunk}"),
    ("POST", "/documents"),
    ("POST", "/adapters/{name}/activate"),
    ("POST", "/feedback"),
    ("GET", "/feedback"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/embeddings"),
]
CASES = [
    *((GenerationMode.POSITIVE, *route) for route in DESCRIBED),
    *((GenerationMode.NEGATIVE, *route) for route in BROKEN),
]
EXAMPLES = 12
TIMES = {
    "type": "json_schema",
    "json_schema": {
        "name": "times",
        "schema": {"type": "object", "properties": {"times": {"type": "string"}}, "required": ["times"]},
    },
}


@pytest.fixture
def service(make_service: MakeService) -> Iterator[Service]:
    generator = ScriptedGenerator()
    said = {False: "The moon raises the tides of the ocean twice a day.", True: '{"times": "twice a day"}'}
    generator.script = lambda prompt: said[generator.schemas[-1] is not None]
    made = make_service(generator, FixedAdapters(["sailor"], "sailor"))
    yield made
    wait_until(lambda: all(job["state"] in FINAL for job in made.jobs.list()), 30)


@pytest.fixture
def app(service: Service) -> FastAPI:
    return create_app(service)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url=BASE) as made:
        yield made


def operation_of(document: dict[str, Any], method: str, path: str) -> dict[str, Any]:
    found: dict[str, Any] = document["paths"][path][method.lower()]
    return found


def test_every_route_describes_its_answers_and_errors(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == set(DESCRIBED)
    for method, path in DESCRIBED:
        operation = operation_of(document, method, path)
        shape = "OpenAIErrorBody" if path.startswith("/v1/") else "ErrorBody"
        good = [code for code in operation["responses"] if code < "300"]
        assert good, path
        for code in good:
            assert all(
                media.get("schema") or media["itemSchema"] for media in operation["responses"][code]["content"].values()
            ), path
        for status in WHEN:
            if (path, status) != ("/readyz", 503):
                schema = operation["responses"][str(status)]["content"]["application/json"]["schema"]
                assert schema == {"$ref": f"#/components/schemas/{shape}"}, (path, status)
        assert ("security" in operation) is ((method, path) in OPEN), path
    assert "HTTPValidationError" not in json.dumps(document)
    assert document["security"] == [{}, {"key": []}]


def test_what_routes_answer_is_described(client: TestClient, service: Service) -> None:
    """Good requests with names that exist: every member of an answer is described and has its type."""
    document = client.get("/openapi.json").json()
    adapter = AdapterCard("sailor", "bundled", "0", "0", "0", {}, "2026-01-02T00:00:00+00:00", documents=({"id": "1"},))
    folder = service.settings.home / "adapters" / "sailor"
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    save_card(folder, adapter)

    def send(method: str, path: str, name: str = "", **options: Any) -> Any:
        response = client.request(method, re.sub(r"\{\w+\}", name, path), **options)
        kind = response.headers["content-type"].partition(";")[0]
        described = operation_of(document, method, path)["responses"][str(response.status_code)]["content"][kind]
        assert response.status_code < 300, response.text
        if kind != "application/json":
            return response.text
        Draft202012Validator({**described["schema"], "components": document["components"]}).validate(response.json())
        sent.add((method, path))
        return response.json()

    sent: set[tuple[str, str]] = set()
    asked = {"question": "How often does the moon raise the tides of the ocean?"}
    chat = {"model": "tandem-rag", "messages": [{"role": "user", "content": asked["question"]}]}
    for path in ("/healthz", "/readyz", "/access", "/modes", "/documents", "/adapters", "/v1/models"):
        send("GET", path)
    assert send("GET", "/metrics") and send("GET", "/search", params=asked)
    assert send("GET", "/v1/models/{model}", "tandem:sailor")["id"] == "tandem:sailor"
    for body in (asked, asked | {"mode": "base"}, {"question": "Who is the king of France?"}):
        answer = send("POST", "/ask", json=body)
        for citation in answer["citations"]:
            quote = {"start": citation["start"], "end": citation["end"]}
            assert send("GET", "/sources/{chunk}", citation["chunk"], params=quote)
    assert send("POST", "/ask", json=asked | {"response_format": TIMES})["citations"][0]["field"] == "/times"
    assert send("POST", "/v1/chat/completions", json=chat)["choices"][0]["message"]["annotations"]
    assert send("POST", "/v1/chat/completions", json=chat | {"response_format": TIMES})["tandem"]["json"]
    for encoding in ("float", "base64"):
        send("POST", "/v1/embeddings", json={"model": "tandem", "input": ["tides"], "encoding_format": encoding})
    opinion = {**asked, "mode": "rag", "vote": "up", "citations": [{"n": 1, "quote": "twice"}], "documents": ["a"]}
    send("POST", "/feedback", json=opinion)
    assert send("GET", "/feedback")["feedback"][0]["opinion"]["vote"] == "up"
    job = send("POST", "/documents", files={"file": ("new.txt", b"New."), "groups": (None, "staff")})["job"]["id"]
    send("DELETE", "/documents/{document}", "new.txt")
    send("POST", "/reindex")
    assert "event: job" in send("GET", "/jobs/{job}/events", job)
    for method in ("GET", "DELETE"):
        send(method, "/jobs/{job}", job)
    send("GET", "/jobs")
    send("POST", "/adapters/deactivate")
    # Texts of other kinds have no members, and activating needs a model that takes adapters.
    left = {("GET", "/metrics"), ("GET", "/jobs/{job}/events"), ("POST", "/adapters/{name}/activate")}
    assert set(DESCRIBED) - sent == left


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "method", "path"), CASES)
def test_what_schemathesis_sends(app: FastAPI, service: Service, mode: GenerationMode, method: str, path: str) -> None:
    """Valid requests and broken ones: no server error, and no answer that the description does not have."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app, headers={"Host": "localhost"})
    strategy = schema[path][method].as_strategy(generation_mode=mode)

    @seed(1)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def send(case: Case[Any]) -> None:
        case.call_and_validate(base_url=BASE, checks=CHECKS)

    send()
