"""Requests that are hostile or merely unlucky, on every route: the documented error in its one shape and nothing else.

What hostile files do to the index is in test_bad_input.py, and what schemathesis thinks of in test_openapi.py.
"""

import contextlib
import json
import logging
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from conftest import MakeService
from fakes import FixedAdapters, ScriptedGenerator, wait_until
from fastapi import FastAPI
from starlette.testclient import TestClient
from test_gate import BASE, OPEN, ROUTES, error, raw, status

from service.api.app import create_app
from service.api.described import WHEN
from service.api.receipt import receipt_protocol
from service.keys import create_key, revoke_key
from service.running import Service

CANARY = "tandem-canary0123456789canary0123456789canary0"
GOOD: dict[str, dict[str, Any]] = {
    "/ask": {"question": "How often do tides rise?"},
    "/feedback": {"question": "Hm?", "mode": "rag", "vote": "up"},
    "/adapters/sailor/activate": {"force": False},
    "/v1/chat/completions": {"model": "tandem-rag", "messages": [{"role": "user", "content": "Tides?"}]},
    "/v1/embeddings": {"model": "tandem-embedder", "input": "tides"},
}


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(
        ScriptedGenerator("The moon raises the tides twice a day."), FixedAdapters(["sailor"], "sailor")
    )


@pytest.fixture
def app(service: Service) -> FastAPI:
    return create_app(service)


@pytest.fixture
def client(app: FastAPI, caplog: pytest.LogCaptureFixture) -> Iterator[TestClient]:
    """No test here may make the service log a bug."""
    caplog.set_level(logging.WARNING)
    with TestClient(app, base_url=BASE, raise_server_exceptions=False) as made:
        yield made
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert CANARY not in caplog.text


def refused(response: Any, *statuses: int, what: object = "") -> None:
    """One of these statuses, or any documented error that is not a bug, in the shape of its address."""
    assert response.status_code in (statuses or WHEN.keys() - {500}), (what, response.status_code, response.text)
    if response.url.path == "/v1" or response.url.path.startswith("/v1/"):
        assert response.json()["error"].keys() == {"message", "type", "param", "code"}
        assert response.headers["content-type"] == "application/json"
    else:
        error(response)
    clean(response)


def clean(response: Any) -> None:
    seen = response.text + str(response.headers)
    for secret in ("Traceback", 'File "', ".py", CANARY, "pydantic", "sqlite"):
        assert secret not in seen, secret


def handled(response: Any) -> None:
    """An answer or an error."""
    if response.status_code >= 400:
        refused(response)
    clean(response)


BODIES = {
    "nothing": b"",
    "half": b'{"question": "Hm?"',
    "two": b"{}{}",
    "nul": b'{"question": "Hm\x00?"}',
    "binary": bytes(range(256)),
    "not utf-8": b'{"question": "\xff\xfe"}',
    "deep list": b"[" * 60_000,
    "deep list, closed": b"[" * 30_000 + b"]" * 30_000,
    "deep object": b'{"a":' * 9_000 + b"1" + b"}" * 9_000,
    "deep field": b'{"question": ' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "deep filter": b'{"question": "Hm?", "filter": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}",
    "many digits": b'{"question": ' + b"9" * 60_000 + b"}",
    "out of range": b'{"question": 1e999999}',
    "no number": b'{"question": NaN}',
    "null": b"null",
    "list": b"[]",
    "text": b'"Hm?"',
    "number": b"1",
    "key in a field": json.dumps({CANARY: CANARY}).encode(),
    "xml": b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
}


@pytest.mark.parametrize("path", GOOD)
def test_bodies_that_are_no_request(client: TestClient, path: str) -> None:
    for name, body in BODIES.items():
        response = client.post(path, content=body, headers={"Content-Type": "application/json"})
        if path.startswith("/adapters/") and name in ("nothing", "null"):
            refused(response, 409, what=name)  # its body may be left out
        elif path.startswith("/v1/"):
            refused(response, 400, what=name)
        else:
            refused(response, 400, 422, what=name)


NUMBERS = [True, -1, 10**400, 1.5]
TEXTS = ["", "\x00", "x" * 60_000, "\ud800"]
WRONG: list[Any] = [None, *NUMBERS, *TEXTS, [], [None], {}, {"a": []}, [[["deep"]]]]


OPTIONS = {
    "/ask": ["mode", "k", "adapter", "max_tokens", "filter", "history", "response_format", "stream"],
    "/v1/chat/completions": ["stream", "stream_options", "max_tokens", "response_format", "n", "tools", "temperature"],
    "/v1/embeddings": ["encoding_format", "dimensions", "input_type", "user"],
    "/feedback": ["answer", "adapter", "documents", "citations", "corrected_answer", "comment", "request_id"],
}


@pytest.mark.parametrize("path", GOOD)
def test_fields_of_other_types(client: TestClient, path: str) -> None:
    for field in (*GOOD[path], *OPTIONS.get(path, ())):
        for wrong in WRONG:
            sent = json.dumps({**GOOD[path], field: wrong})
            handled(client.post(path, content=sent.encode(), headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize("path", ["/ask", "/feedback"])
def test_an_unknown_field_is_refused_and_not_named(client: TestClient, path: str) -> None:
    response = client.post(path, json={**GOOD[path], CANARY: 1})
    refused(response, 422)


MODELS = ["tandem-", "tandem:", "tandem:../../etc", "tandem:\x00", "gpt-4", "x" * 128, "\ud800"]


@pytest.mark.parametrize("name", MODELS)
def test_unknown_models(client: TestClient, name: str) -> None:
    for path in ("/v1/chat/completions", "/v1/embeddings"):
        sent = json.dumps({**GOOD[path], "model": name}).encode()
        response = client.post(path, content=sent, headers={"Content-Type": "application/json"})
        refused(response, 400 if name == "\ud800" else 404)


@pytest.mark.parametrize("k", [-1, 0, 101, 10**30])
def test_a_number_of_passages_that_cannot_be(client: TestClient, k: int) -> None:
    refused(client.post("/ask", json={**GOOD["/ask"], "k": k}), 422)
    refused(client.get("/search", params={"question": "tides", "k": k}), 422)


def test_more_passages_than_there_are(client: TestClient, service: Service) -> None:
    with service.store.read() as snapshot:
        count = sum(int(str(item["chunks"])) for item in snapshot.list_documents())
    found = client.get("/search", params={"question": "tides", "k": 100}).json()
    assert 0 < len(found) <= count
    asked = client.post("/ask", json={**GOOD["/ask"], "k": 100})
    assert asked.status_code == 200 and 0 < len(asked.json()["passages"]) <= count


QUERIES = [
    "/search",
    "/search?question=",
    "/search?question=%00",
    "/search?question=tides&k=-1",
    "/search?question=tides&k=x",
    "/search?question=tides&k=" + "9" * 5000,
    "/search?question=tides&filter=" + "&filter=".join(["a=b"] * 101),
    "/search?question=tides&filter=novalue",
    "/search?question=" + "x" * 20_000,
    "/feedback?after=-1",
    "/feedback?after=" + "9" * 30,
    "/feedback?limit=0",
    "/feedback?limit=1001",
    "/sources/x?start=-1&end=2",
    "/sources/x?start=" + "9" * 5000,
]


@pytest.mark.parametrize("address", QUERIES, ids=[query[:40] for query in QUERIES])
def test_parameters_that_cannot_be(client: TestClient, address: str) -> None:
    refused(client.get(BASE + address), 404 if address == "/sources/x" else 422)


@pytest.mark.parametrize("text", ["%ff%fe", "%ed%a0%80", "%00tides", "%F0%9F", "%", "a%0d%0aSet-Cookie:%20a=b"])
def test_parameters_that_are_no_text(client: TestClient, text: str) -> None:
    for address in (f"/search?question={text}", f"/search?question=tides&filter=path={text}", f"/sources/{text}"):
        response = client.get(BASE + address)
        handled(response)
        assert "set-cookie" not in response.headers


NAMES = [
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..%5cetc%5cpasswd",
    "%252e%252e%252fetc%252fpasswd",
    "....//....//etc/passwd",
    "%2fetc%2fpasswd",
    "%c0%ae%c0%ae%c0%afetc",
    "a%00.md",
    "a%0ab",
    "%ed%a0%80",
    "%f0%9f%a6%ab",
    "CON",
    "~root",
    "index.sqlite",
    "x" * 5000,
    "'%20OR%201=1--",
    "%25s%25n",
    "{chunk}",
    "$(id)",
]
NAMED = [
    ("GET", "/sources/{}"),
    ("GET", "/static/{}"),
    ("DELETE", "/documents/{}"),
    ("GET", "/jobs/{}"),
    ("GET", "/jobs/{}/events"),
    ("DELETE", "/jobs/{}"),
    ("POST", "/adapters/{}/activate"),
    ("GET", "/v1/models/{}"),
]


@pytest.mark.parametrize(("method", "path"), NAMED)
def test_names_that_lead_elsewhere(client: TestClient, service: Service, method: str, path: str) -> None:
    before = sorted(item.name for item in service.settings.home.iterdir())
    for name in NAMES:
        response = client.request(method, BASE + path.format(name))
        refused(response, 404, 405, 409, 422, what=name)
        assert "root:" not in response.text, name
    assert sorted(item.name for item in service.settings.home.iterdir()) == before


@pytest.mark.parametrize(("method", "path"), NAMED)
def test_names_as_they_arrive(app: FastAPI, method: str, path: str) -> None:
    """Clients put such addresses in order before they send them; an attacker does not."""
    for name in ("..", "../index.sqlite", "../../etc/passwd", "..\\..\\x", "\ufffd", "\x00"):
        found = raw(app, method, path.format(name), {"Host": "127.0.0.1:8000"})
        assert status(found) in (404, 405, 409, 422), name


def filled(path: str) -> str:
    return path.format(chunk="x", job="x", name="app.js", model="tandem", document="x")


@pytest.mark.parametrize(("method", "path"), sorted(ROUTES - OPEN))
def test_keys_that_are_not_good_any_more(client: TestClient, service: Service, method: str, path: str) -> None:
    expired = create_key(service.store, "expired", "admin", days=1e-9)
    revoked = create_key(service.store, "revoked", "admin")
    revoke_key(service.store, "revoked")
    create_key(service.store, "good", "admin")
    for key in (expired, revoked, CANARY, "", "\x7f", "x" * 20_000, "Bearer", "null", "é"):
        headers = [(b"authorization", b"Bearer " + key.encode())]
        response = client.request(method, filled(path), headers=headers)
        refused(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
        assert len(key) < 10 or key not in response.text


@pytest.mark.parametrize(("method", "path"), sorted(ROUTES))
def test_methods_that_a_route_does_not_take(client: TestClient, method: str, path: str) -> None:
    taken = {known for known, other in ROUTES if filled(other) == filled(path)}
    if path == "/openapi.json":
        taken.add("HEAD")  # the framework's own route
    for other in ("HEAD", "OPTIONS", "GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "QUERY", "\x7fX"[1:]):
        if other in taken:
            continue
        response = client.request(other, filled(path), headers={"Origin": BASE})
        assert response.status_code == 405, other
        if other != "HEAD":
            refused(response, 405)
        assert {allowed.strip() for allowed in response.headers["allow"].split(",")} == taken
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("path", [path for method, path in sorted(ROUTES) if method == "GET" and "job" not in path])
def test_a_range_is_not_taken(client: TestClient, path: str) -> None:
    whole = client.get(filled(path))
    for span in ("bytes=0-0", "bytes=-5", "bytes=5-1", "bytes=0-0,2-3", "lines=1-2", "bytes=" + "0-0," * 1000, "x"):
        response = client.get(filled(path), headers={"Range": span})
        assert response.status_code == whole.status_code
        assert "content-range" not in response.headers
        if path != "/metrics" and whole.status_code == 200:
            assert response.content == whole.content


@pytest.mark.parametrize("path", [path for path in GOOD if "adapters" not in path])
@pytest.mark.parametrize(
    "kind", [None, "", "text/plain", "application/xml", "multipart/form-data", "application/json; charset=x", "a\tb"]
)
def test_other_content_types(client: TestClient, path: str, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    response = client.post(path, content=json.dumps(GOOD[path]).encode(), headers=headers)
    if kind == "application/json; charset=x":
        handled(response)  # JSON is UTF-8, whatever is said of it (RFC 8259, section 8.1)
    else:
        refused(response, 400 if path.startswith("/v1/") else 422)


@pytest.mark.parametrize("kind", ["", "application/json", "multipart/form-data", "multipart/form-data; boundary="])
def test_an_upload_that_is_no_form(client: TestClient, service: Service, kind: str) -> None:
    for body in (b"", b"{}", b"--x\r\n", bytes(range(256))):
        refused(client.post("/documents", content=body, headers={"Content-Type": kind}), 400, 422)
    assert service.jobs.list() == []


@pytest.fixture
def address(app: FastAPI) -> Iterator[tuple[str, int]]:
    """A real server on the loopback address."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=receipt_protocol(5), log_config=None, ws="none", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    wait_until(lambda: server.started)
    yield listener.getsockname()
    server.should_exit = True
    thread.join()
    listener.close()


HEAD = b"GET /documents HTTP/1.1\r\nHost: 127.0.0.1\r\n"
REQUESTS = {
    "1 MB in one header": HEAD + b"X-Long: " + b"x" * 1_000_000 + b"\r\n\r\n",
    "1 MB in many headers": HEAD + b"X-Many: 1234567890\r\n" * 50_000 + b"\r\n",
    "1 MB of an address": b"GET /" + b"x" * 1_000_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "1 MB of a key": HEAD + b"Authorization: Bearer " + b"x" * 1_000_000 + b"\r\n\r\n",
    "a NUL in a header": HEAD + b"X-Nul: a\x00b\r\n\r\n",
    "a NUL in the address": b"GET /doc\x00uments HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "a folded header": HEAD + b"X-Fold: a\r\n b: c\r\n : d\r\n\r\n",
    "two lengths": HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nx",
    "a negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "no host": b"GET /documents HTTP/1.1\r\n\r\n",
    "two hosts": HEAD + b"Host: evil.example\r\n\r\n",
    "a chunk of no size": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
}


@pytest.mark.parametrize("sent", REQUESTS.values(), ids=REQUESTS.keys())
def test_requests_that_are_hardly_http(address: tuple[str, int], service: Service, sent: bytes) -> None:
    with socket.create_connection(address, timeout=10) as connection:
        received = exchange(connection, sent)
    head, _, body = received.partition(b"\r\n\r\n")
    code = int(head.split()[1])
    assert code in WHEN and code != 500 or sent.startswith(HEAD + b"X-Fold"), received[:500]
    if code != 200:
        assert json.loads(body)["error"].keys() == {"code", "message", "expected", "do", "request_id"}
        assert b"Traceback" not in body and b"xxxx" not in body
    with socket.create_connection(address, timeout=10) as connection:
        after = exchange(connection, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    assert after.startswith(b"HTTP/1.1 200")


def exchange(connection: socket.socket, sent: bytes) -> bytes:
    """What came back until the server closed the connection, or said all that it had to say."""
    received = b""
    with contextlib.suppress(OSError):  # it may be closed in the middle
        connection.sendall(sent)
    with contextlib.suppress(ConnectionResetError):
        while b"\r\n\r\n" not in received or len(received.partition(b"\r\n\r\n")[2]) < length_of(received):
            part = connection.recv(65536)
            if not part:
                break
            received += part
    return received


def length_of(received: bytes) -> int:
    return int(received.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
