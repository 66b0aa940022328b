import asyncio
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import MakeService
from fastapi import FastAPI
from starlette.routing import compile_path
from starlette.testclient import TestClient
from starlette.types import Message

from service.api.app import create_app
from service.api.gate import HEADERS
from service.keys import create_key
from service.running import Service

BASE = "http://127.0.0.1:8000"
# Every route of the service. A new one must be added here, and so be thought of by the tests below.
ROUTES = {
    ("GET", "/"),
    ("GET", "/static/{name}"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/openapi.json"),
    ("GET", "/access"),
    ("GET", "/modes"),
    ("POST", "/ask"),
    ("GET", "/search"),
    ("GET", "/sources/{chunk}"),
    ("GET", "/documents"),
    ("POST", "/documents"),
    ("DELETE", "/documents/{document}"),
    ("POST", "/reindex"),
    ("GET", "/jobs"),
    ("GET", "/jobs/{job}"),
    ("GET", "/jobs/{job}/events"),
    ("DELETE", "/jobs/{job}"),
    ("GET", "/adapters"),
    ("POST", "/adapters/deactivate"),
    ("POST", "/adapters/{name}/activate"),
    ("POST", "/feedback"),
    ("GET", "/feedback"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{model}"),
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/embeddings"),
}
OPEN = {("GET", "/"), ("GET", "/static/{name}"), ("GET", "/healthz"), ("GET", "/readyz")}
ADMIN = {
    ("POST", "/documents"),
    ("DELETE", "/documents/{document}"),
    ("GET", "/jobs"),
    ("GET", "/jobs/{job}"),
    ("GET", "/jobs/{job}/events"),
    ("POST", "/reindex"),
    ("DELETE", "/jobs/{job}"),
    ("POST", "/adapters/deactivate"),
    ("POST", "/adapters/{name}/activate"),
    ("GET", "/feedback"),
    ("GET", "/metrics"),
}


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service("Cheese.")


@pytest.fixture
def app(service: Service) -> FastAPI:
    return create_app(service)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url=BASE) as made:
        yield made


def routes_of(routes: Any) -> Iterator[tuple[str, str]]:
    """(method, path) of every route, those of included routers too."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from routes_of(route.original_router.routes)
        else:
            yield from ((method, route.path) for method in route.methods - {"HEAD"})


def error(response: Any) -> dict[str, str]:
    """The error of a response, in the one shape."""
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"code", "message", "expected", "do", "request_id"}
    assert body["error"]["request_id"] == response.headers["x-request-id"]
    assert response.headers["content-type"] == "application/json"
    found: dict[str, str] = body["error"]
    return found


def raw(app: FastAPI, method: str, path: str, headers: dict[str, str], *, may_read: bool = True) -> list[Message]:
    """What the application sends to a request whose body is, unless `may_read`, not to be touched."""
    sent: list[Message] = []

    async def receive() -> Message:
        assert may_read, "the body was read"
        return {"type": "http.request", "body": b"{", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path}
    scope |= {"raw_path": path.encode(), "query_string": b"", "headers": pairs, "scheme": "http", "root_path": ""}
    asyncio.run(app(scope | {"server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 9)}, receive, send))
    return sent


def status(messages: list[Message]) -> int:
    return int(messages[0]["status"])


def test_the_table_of_routes_is_complete(app: FastAPI) -> None:
    assert set(routes_of(app.routes)) == ROUTES


@pytest.mark.parametrize(("method", "path"), sorted(ROUTES - OPEN))
def test_without_a_key_nothing_is_answered_and_no_body_read(
    app: FastAPI, service: Service, method: str, path: str
) -> None:
    key = create_key(service.store, "someone", "admin")
    wrong = (None, "", "Bearer", "Bearer ", "Bearer wrong", f"Basic {key}", key, f"Bearer {key}x", "Bearer \xff\xfe")
    for authorization in wrong:
        headers = {"Host": "tandem.example"} | ({} if authorization is None else {"Authorization": authorization})
        messages = raw(
            app, method, path.format(chunk="x", job="x", name="x", model="x", document="x"), headers, may_read=False
        )
        assert status(messages) == 401, authorization
        code = "invalid_api_key" if path.startswith("/v1/") else "unauthorized"
        assert json.loads(messages[1]["body"])["error"]["code"] == code
        assert dict(messages[0]["headers"])[b"www-authenticate"] == b"Bearer"


def test_the_page_and_the_health_routes_need_no_key(client: TestClient, service: Service) -> None:
    create_key(service.store, "someone", "admin")
    for path in ("/", "/static/app.js", "/healthz", "/readyz"):
        assert client.get(path).status_code == 200
    seen = client.get("/healthz").text + client.get("/readyz").text
    assert "tides" not in seen and "someone" not in seen


@pytest.mark.parametrize(
    "path",
    ["/static/../documents", "/static/..%2fdocuments", "/static/%2e%2e/documents", "//documents", "/healthz/..%2fjobs"],
)
def test_an_open_prefix_leads_to_no_closed_route(client: TestClient, service: Service, path: str) -> None:
    create_key(service.store, "someone", "admin")
    response = client.get(BASE + path)
    assert response.status_code in (401, 404)
    assert "tides" not in response.text


@pytest.mark.parametrize(("method", "path"), sorted(ROUTES - OPEN))
def test_a_user_may_do_what_is_not_an_administrators(
    client: TestClient, service: Service, method: str, path: str
) -> None:
    headers = {"Authorization": f"Bearer {create_key(service.store, 'anna', 'user')}"}
    response = client.request(
        method, path.format(chunk="x", job="x", name="x", model="x", document="x"), headers=headers
    )
    if (method, path) in ADMIN:
        assert response.status_code == 403 and error(response)["code"] == "forbidden"
    else:
        assert response.status_code not in (401, 403)
    admin = {"authorization": f"bEARER  {create_key(service.store, 'ops', 'admin')}"}
    path = path.format(chunk="x", job="x", name="x", model="x", document="x")
    assert client.request(method, path, headers=admin).status_code not in (401, 403)


@pytest.mark.parametrize("path", ["/reindex", "/reindex/", "//reindex", "/%72eindex", "/./reindex"])
def test_no_spelling_of_an_administrators_route_is_open_to_users(
    client: TestClient, service: Service, path: str
) -> None:
    headers = {"Authorization": f"Bearer {create_key(service.store, 'anna', 'user')}"}
    response = client.post(BASE + path, headers=headers)
    assert response.status_code in (403, 404)
    assert service.jobs.list() == []


def test_a_revoked_last_key_does_not_open_the_service(client: TestClient, service: Service) -> None:
    key = create_key(service.store, "only", "admin")
    assert client.get("/documents", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    with service.store.connection() as connection:
        connection.execute("DELETE FROM keys")
    assert client.get("/documents", headers={"Authorization": f"Bearer {key}"}).status_code == 401
    assert client.get("/documents").status_code == 401


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:8000", True),
        ("localhost", True),
        ("LOCALHOST:80", True),
        ("[::1]:8000", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("localhost.evil.example:8000", False),
        ("evil.example#127.0.0.1", False),
        ("testserver", False),
        ("0.0.0.0:8000", False),
        ("", False),
        ("[::1", False),
        ("[", False),
    ],
)
def test_without_keys_only_names_of_this_machine_are_served(app: FastAPI, host: str, allowed: bool) -> None:
    for path in ("/documents", "/", "/healthz"):
        assert status(raw(app, "GET", path, {"Host": host})) == (200 if allowed else 403), path


def test_with_keys_any_name_is_served(app: FastAPI, service: Service) -> None:
    key = create_key(service.store, "anna", "user")
    headers = {"Host": "tandem.example", "Authorization": f"Bearer {key}"}
    assert status(raw(app, "GET", "/documents", headers)) == 200


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (BASE, True),
        ("http://evil.example", False),
        ("http://127.0.0.1:9000", False),
        ("http://127.0.0.1", False),
        ("null", False),
        ("", False),
        ("http://[", False),
        ("http://evil.example@127.0.0.1:8000", False),
    ],
)
def test_pages_of_other_sites_are_refused(app: FastAPI, origin: str, allowed: bool) -> None:
    for method, path in (("GET", "/documents"), ("POST", "/ask")):
        messages = raw(app, method, path, {"Host": "127.0.0.1:8000", "Origin": origin}, may_read=allowed)
        assert (status(messages) == 403) is not allowed, path


def test_a_form_of_another_site_cannot_ask(client: TestClient) -> None:
    # What a browser can send across sites without asking first: no JSON content type.
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"):
        response = client.post("/ask", content=b'{"question": "Hm?"}', headers={"Content-Type": kind})
        assert response.status_code == 422, kind


def test_bodies_over_the_limit(client: TestClient, service: Service) -> None:
    most = service.settings.body_bytes
    fits = b'{"question": "' + b"x" * 100 + b'"' + b" " * (most - 116) + b"}"
    assert len(fits) == most
    assert client.post("/ask", content=fits, headers={"Content-Type": "application/json"}).status_code == 200
    response = client.post("/ask", content=fits + b" ", headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert error(response)["code"] == "too_large" and f"{most:,}" in error(response)["expected"]


def test_a_body_that_hides_its_length_is_limited_too(client: TestClient, service: Service) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'{"question": "'
        for _ in range(100):
            yield b"x" * 10_000

    response = client.post("/ask", content=chunks(), headers={"Content-Type": "application/json"})
    assert response.status_code == 413
    assert error(response)["code"] == "too_large" and f"{service.settings.body_bytes:,}" in error(response)["expected"]


@pytest.mark.parametrize("length", ["²", "9" * 5000, "99999999999999999999"])
def test_a_strange_length_is_no_bug(app: FastAPI, length: str) -> None:
    assert status(raw(app, "POST", "/ask", {"Host": "localhost", "Content-Length": length})) in (413, 422)


@pytest.mark.parametrize("path", ["/", "/documents", "/nowhere", "/static/app.js", "/search", "/sources/x"])
def test_every_response_has_the_headers_that_keep_a_browser_safe(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert {name: response.headers[name] for name in HEADERS} == HEADERS
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert re.fullmatch(r"[0-9a-f]{16}", response.headers["x-request-id"])
    assert response.headers["cache-control"] in ("no-store", "no-cache")
    assert "access-control-allow-origin" not in response.headers


def test_refused_requests_have_them_too(client: TestClient) -> None:
    response = client.get("/documents", headers={"Host": "evil.example"})
    assert error(response)["code"] == "forbidden"
    assert {name: response.headers[name] for name in HEADERS} == HEADERS


def test_requests_are_logged_without_what_was_asked(
    client: TestClient, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    key = create_key(service.store, "anna", "user")
    caplog.set_level(logging.INFO)
    headers = {"Authorization": f"Bearer {key}"}
    client.get("/search?question=secretword", headers=headers)
    client.post("/ask", json={"question": "secretword"}, headers=headers)
    client.get("/no%0Awhere%1b[31m", headers=headers)
    lines = [record.getMessage() for record in caplog.records if record.name == "service.api.observing"]
    assert len(lines) == 3 and "GET /search 200" in lines[0]
    ours = "".join(record.getMessage() for record in caplog.records if record.name.startswith(("service", "indexer")))
    assert "secretword" not in ours and key not in ours
    assert "\n" not in lines[2] and "\x1b" not in lines[2]


def test_every_closed_path_is_one_that_a_request_can_reach() -> None:
    # The table above is written with parameters; the requests fill them in.
    for _, path in ROUTES:
        assert compile_path(path)[0].match(path.format(chunk="x", job="x", name="app.js", model="x", document="x"))
