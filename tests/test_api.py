import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from conftest import LIBRARY, MakeService, write_library
from fakes import FixedAdapters, HashingEmbedder, ScriptedGenerator, wait_until
from fastapi import FastAPI, Request
from starlette.testclient import TestClient
from test_gate import BASE, error, raw, status

from indexer.chunking import ChunkSize
from indexer.errors import TandemError
from indexer.outcome import Outcome
from indexer.store import Store
from indexer.sync import sync
from service.api import streaming
from service.api.app import create_app
from service.jobs import FINAL, Jobs
from service.running import Service
from tuner.prompt import REFUSAL

TIDES = "How often does the moon raise the tides of the ocean?"
TWICE = "The moon raises the tides twice a day [1]."
SPRING = "Spring tides come at full moon [1]."
ENDLESS = f"{TWICE} " + " ".join(f"The moon raises the tides and day number{n} passes." for n in range(2000))


@pytest.fixture
def generator() -> ScriptedGenerator:
    return ScriptedGenerator(f"{TWICE} The moon is made of cheese. Spring tides come at full moon.")


@pytest.fixture
def service(make_service: MakeService, generator: ScriptedGenerator) -> Service:
    return make_service(generator, FixedAdapters(["sailor"]), question_chars=5000)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), base_url=BASE) as made:
        yield made


Serve = Callable[[Service], int]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """serve(service): the port of a real server on the loopback address, stopped at the end."""
    stops: list[Callable[[], None]] = []

    def start(service: Service) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        config = uvicorn.Config(create_app(service), log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: server.started)

        def stop() -> None:
            server.should_exit = True
            thread.join()
            listener.close()

        stops.append(stop)
        return int(listener.getsockname()[1])

    yield start
    for stop in stops:
        stop()


def events_of(text: str) -> list[tuple[str, Any]]:
    """Server-sent events as (name, data), as a browser reads them; comments are left out."""
    found = []
    for block in re.split(r"\n\n", text):
        lines = [line.partition(": ")[::2] for line in block.split("\n") if line and not line.startswith(":")]
        if lines:
            fields = dict(lines)
            found.append((fields["event"], json.loads(fields["data"])))
    return found


def streamed(client: TestClient, body: dict[str, Any]) -> list[tuple[str, Any]]:
    response = client.post("/ask", json={**body, "stream": True})
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    return events_of(response.text)


def connect(port: int, method: str, path: str, body: dict[str, Any] | None = None) -> socket.socket:
    """A request on a connection of its own, answered or not."""
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
    return connection


def read_until(connection: socket.socket, mark: bytes) -> bytes:
    received = b""
    while mark not in received:
        part = connection.recv(65536)
        assert part, f"the server closed the connection: {received!r}"
        received += part
    return received


# /ask


def test_the_body_of_an_answer(client: TestClient) -> None:
    response = client.post("/ask", json={"question": TIDES})
    assert response.status_code == 200
    body = response.json()
    assert body.keys() == {
        *("answer", "refused", "refusal_reason", "mode", "adapter", "citations", "passages", "relevance", "usage"),
        *("timings_ms", "index_generation", "finish_reason", "searched_for", "json"),
    }
    assert (body["searched_for"], body["json"]) == (TIDES, None)
    assert body["answer"] == f"{TWICE} {SPRING}"
    assert (body["refused"], body["refusal_reason"], body["mode"], body["adapter"]) == (False, None, "rag", None)
    assert (body["index_generation"], body["finish_reason"]) == (1, "stop")
    assert body["usage"].keys() == {"prompt_tokens", "completion_tokens"}
    assert body["timings_ms"].keys() == {"retrieve", "first_token", "total"}
    for citation in body["citations"]:
        assert citation.keys() == {
            *("n", "document", "chunk", "title", "page", "start", "end", "quote", "score", "url")
        }
        assert citation["quote"] == LIBRARY["tides.md"][citation["start"] : citation["end"]]
    assert [passage["rank"] for passage in body["passages"]] == [1, 2, 3, 4]
    assert "text" not in body["passages"][0]


def test_the_link_of_a_citation_leads_to_its_quote(client: TestClient) -> None:
    for citation in client.post("/ask", json={"question": TIDES}).json()["citations"]:
        body = client.get(citation["url"], headers={"Accept": "application/json"}).json()
        assert body["text"][body["quote_start"] : body["quote_end"]] == citation["quote"]
        page = client.get(citation["url"], headers={"Accept": "text/html"}).text
        assert f'<mark id="quote">{citation["quote"]}</mark>' in page


def test_a_stream_says_the_same_as_the_plain_answer(client: TestClient) -> None:
    for question in (TIDES, "Qubits entangle photons?"):
        plain = client.post("/ask", json={"question": question}).json()
        events = streamed(client, {"question": question})
        names = [name for name, _ in events]
        assert names == ["token"] * (len(events) - 2) + ["citations", "done"]
        assert "".join(data["text"] for name, data in events if name == "token") == plain["answer"]
        assert events[-2][1] == {"citations": plain["citations"]}
        last = events[-1][1]
        assert last | {"timings_ms": None} == plain | {"timings_ms": None}
    assert plain["answer"] == REFUSAL and plain["refused"]


def test_markers_of_a_stream_are_never_cut_or_out_of_range(client: TestClient, generator: ScriptedGenerator) -> None:
    generator.script = ["The moon raises the tides.", " [", "1", "2] ", "[1]", "[1", "]", " Spring tides", " come [9]."]
    texts = [data["text"] for name, data in streamed(client, {"question": TIDES}) if name == "token"]
    assert texts == ["The moon raises the tides [1].", " Spring tides come [1]."]


def test_unicode_survives_both_forms(client: TestClient, generator: ScriptedGenerator) -> None:
    generator.script = "Zwölf Böxkämpfer 🥊 sagen 日本語\u2028 zu Sylt."
    plain = client.post("/ask", json={"question": "Was?", "mode": "base"}).json()["answer"]
    assert plain == "Zwölf Böxkämpfer 🥊 sagen 日本語\u2028 zu Sylt."
    events = streamed(client, {"question": "Was?", "mode": "base"})
    assert "".join(data["text"] for name, data in events if name == "token") == plain


def test_options_reach_the_model(client: TestClient, generator: ScriptedGenerator) -> None:
    body = client.post("/ask", json={"question": TIDES, "adapter": "sailor", "k": 2, "max_tokens": 9}).json()
    assert (body["mode"], body["adapter"], len(body["passages"])) == ("rag+tuned", "sailor", 2)
    assert body["usage"]["completion_tokens"] == 9 and body["finish_reason"] == "length"
    assert generator.adapters == ["sailor"]


JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"nonsense", 422),
        (b"null", 422),
        (b"[]", 422),
        (b'"text"', 422),
        (b"{}", 422),
        (b'{"question": null}', 422),
        (b'{"question": 5}', 422),
        (b'{"question": ""}', 422),
        (b'{"question": "   "}', 422),
        (b'{"question": "\\u0000"}', 422),
        (b'{"question": "\\ud800"}', 422),
        (b'{"question": "a\\udfffb", "stream": true}', 422),
        (b'{"question": "\xff\xfe"}', 400),
        (b'{"question": "Hm?", "qestion": "x"}', 422),
        (b'{"question": "Hm?", "secretfield": 1}', 422),
        (b'{"question": "Hm?", "k": 0}', 422),
        (b'{"question": "Hm?", "k": 101}', 422),
        (b'{"question": "Hm?", "k": 1' + b"0" * 5000 + b"}", 400),
        (b'{"question": "Hm?", "k": 1e400}', 422),
        (b'{"question": "Hm?", "k": NaN}', 422),
        (b'{"question": "Hm?", "k": 2.5}', 422),
        (b'{"question": "Hm?", "max_tokens": 0}', 422),
        (b'{"question": "Hm?", "max_tokens": 4097}', 422),
        (b'{"question": "Hm?", "mode": "oracle"}', 422),
        (b'{"question": "Hm?", "mode": ["rag"]}', 422),
        (b'{"question": "Hm?", "mode": "tuned"}', 409),
        (b'{"question": "Hm?", "adapter": "nope"}', 404),
        (b'{"question": "Hm?", "adapter": "../../etc"}', 404),
        (b'{"question": "Hm?", "adapter": "' + b"a" * 65 + b'"}', 422),
        (b'{"question": "' + b"x" * 5001 + b'"}', 413),
        (b"[" * 50_000, 400),
        (b'{"a":' * 10_000, 400),
    ],
)
def test_what_cannot_be_asked_is_told_in_the_one_shape(
    client: TestClient, generator: ScriptedGenerator, content: bytes, status: int
) -> None:
    response = client.post("/ask", content=content, headers=JSON)
    told = error(response)
    assert response.status_code == status
    assert told["message"] and told["code"] == {404: "not_found", 409: "conflict", 413: "too_large"}.get(
        status, "invalid_request"
    )
    for sent in ("secretfield", "qestion", "x" * 20):
        assert sent not in response.text, "what a client sent is not echoed"
    assert generator.prompts == []


def test_json_that_is_cut_off_is_called_so(client: TestClient) -> None:
    assert error(client.post("/ask", content=b'{"question": "Hm', headers=JSON))["message"] == (
        "The request body is not JSON."
    )


def test_a_field_is_named_when_it_is_wrong(client: TestClient) -> None:
    assert "'k'" in error(client.post("/ask", json={"question": "Hm?", "k": 0}))["message"]


def test_a_mistake_in_a_streamed_question_is_an_error_event(client: TestClient) -> None:
    events = streamed(client, {"question": "Hm?", "mode": "tuned"})
    assert [name for name, _ in events] == ["error"]
    assert events[0][1]["error"]["code"] == "conflict"


@pytest.mark.parametrize("words", [13, 1])
def test_a_model_that_breaks(make_service: MakeService, words: int) -> None:
    script = "The moon raises the tides twice a day. Spring tides come at full moon. And so on."
    service = make_service(ScriptedGenerator(script, fail_after=words))
    with TestClient(create_app(service), base_url=BASE) as client:
        response = client.post("/ask", json={"question": TIDES})
        assert response.status_code == 500 and error(response)["code"] == "internal"
        assert "content-security-policy" in response.headers
        response = client.post("/ask", json={"question": TIDES, "stream": True})
        *tokens, (name, body) = events_of(response.text)
        assert name == "error" and body["error"]["code"] == "internal"
        assert body["error"]["request_id"] == response.headers["x-request-id"]
        assert [data["text"] for _, data in tokens] == ([TWICE] if words == 13 else [])
        assert "secret" not in response.text, "a bug's details are for the log"
        assert len(service.answerer.admission) == 0


def test_a_full_queue_says_when_to_come_back(make_service: MakeService) -> None:
    service = make_service(ScriptedGenerator(ENDLESS, delay=0.01), queue=1)
    stop = threading.Event()
    with TestClient(create_app(service), base_url=BASE) as client:
        streams = [service.answerer.stream(_question(), stop) for _ in range(2)]
        next(streams[0])
        waiter = threading.Thread(target=lambda: list(streams[1]))
        waiter.start()
        wait_until(lambda: len(service.answerer.admission) == 2)
        response = client.post("/ask", json={"question": TIDES})
        assert response.status_code == 503 and error(response)["code"] == "unavailable"
        assert int(response.headers["retry-after"]) > 0
        stop.set()
        list(streams[0])
        waiter.join()


def _question() -> Any:
    from service.question import Question

    return Question(TIDES)


# /modes, /healthz, /readyz


def test_modes(client: TestClient) -> None:
    body = client.get("/modes").json()
    assert body["default"] == "auto"
    modes = {mode["name"]: mode for mode in body["modes"]}
    assert list(modes) == ["auto", "base", "tuned", "rag", "rag+tuned"]
    assert [mode["available"] for mode in modes.values()] == [True, True, False, True, False]
    assert modes["rag"]["reason"] == "" and "needs an adapter" in modes["tuned"]["reason"]


def test_health(client: TestClient) -> None:
    assert client.get("/healthz").json().keys() == {"status", "version"}
    assert client.get("/readyz").json() == {"status": "ready", "generation": 1}


def test_while_the_models_are_loaded_nothing_is_answered_but_the_reason(home: Path, make_service: MakeService) -> None:
    settings = make_service().settings
    service = Service(settings, Store(home))
    with TestClient(create_app(service), base_url=BASE) as client:
        assert client.get("/healthz").status_code == 200
        response = client.get("/readyz")
        assert response.status_code == 503 and int(response.headers["retry-after"]) > 0
        assert response.json() == {
            "status": "loading",
            "reason": "The models are being loaded. Try again in a few seconds.",
        }
        for method, path in (("POST", "/ask"), ("GET", "/search?question=x"), ("POST", "/reindex")):
            response = client.request(method, path, json={"question": TIDES} if path == "/ask" else None)
            assert response.status_code == 503 and error(response)["code"] == "unavailable", path
        assert not any(mode["available"] for mode in client.get("/modes").json()["modes"])
        assert client.get("/documents").status_code == 200


def test_without_an_index(make_service: MakeService, tmp_path: Path) -> None:
    service = make_service(TWICE, home=tmp_path / "empty")
    with TestClient(create_app(service), base_url=BASE) as client:
        for path in ("/documents", "/search?question=x", "/sources/x"):
            assert error(client.get(path))["code"] == "unavailable"
        assert error(client.post("/ask", json={"question": TIDES}))["code"] == "unavailable"
        assert client.get("/readyz").status_code == 503
        assert client.post("/ask", json={"question": TIDES, "mode": "base"}).status_code == 200


# /documents, /search, /sources


def test_documents(client: TestClient, library: Path) -> None:
    body = client.get("/documents").json()
    assert body["generation"] == 1
    assert [document["document"] for document in body["documents"]] == sorted(LIBRARY)
    for document in body["documents"]:
        assert document["characters"] == len(LIBRARY[document["document"]])
        assert document["corpus"] == str(library / "corpus")


def test_search(client: TestClient, generator: ScriptedGenerator) -> None:
    found = client.get("/search", params={"question": "At how many degrees does iron melt?", "k": 2}).json()
    assert [passage["rank"] for passage in found] == [1, 2]
    assert found[0]["document"] == "iron.txt"
    assert found[0]["text"] == LIBRARY["iron.txt"][found[0]["start"] : found[0]["end"]]
    assert generator.prompts == []


@pytest.mark.parametrize(
    "query",
    [
        "",
        "question=",
        "question=%20",
        "question=%00",
        "question=x&k=0",
        "question=x&k=101",
        "question=x&k=1" + "0" * 5000,
        "question=x&k=many",
        "question=" + "x" * 5001,
        "k=4",
    ],
)
def test_what_cannot_be_searched(client: TestClient, query: str) -> None:
    response = client.get(f"/search?{query}")
    assert response.status_code == 422
    assert error(response)["code"] == "invalid_request"


@pytest.mark.parametrize(
    "question",
    [
        '"',
        "'; DROP TABLE chunks; --",
        "NEAR(a b)",
        "*",
        "a\x00b",
        "%ED%A0%80",
        "🙂",
        "\u202e",
        " ".join("abcdefgh" * 300),
    ],
)
def test_no_question_breaks_the_search(client: TestClient, question: str) -> None:
    raw = f"/search?question={question}" if question.startswith("%") else "/search"
    response = client.get(raw, params=None if question.startswith("%") else {"question": question})
    assert response.status_code == 200 and len(response.json()) == 4


def chunk_of(client: TestClient, document: str, question: str) -> dict[str, Any]:
    found = client.get("/search", params={"question": question}).json()
    return next(passage for passage in found if passage["document"] == document)


def test_a_source_in_its_document(client: TestClient) -> None:
    passage = chunk_of(client, "tides.md", TIDES)
    text = LIBRARY["tides.md"]
    body = client.get(f"/sources/{passage['chunk']}").json()
    assert body["before"] + body["text"] + body["after"] == text
    assert body["text"] == text[body["start"] : body["end"]]
    assert (body["document"], body["title"], body["page"]) == ("tides.md", "Tides", None)
    assert "quote_start" not in body


@pytest.mark.parametrize(
    ("start", "end", "allowed"),
    [(0, 1, True), (0, 0, True), (5, 5, False), (6, 5, False), (0, 10**30, False), (None, 5, False), (5, None, False)]
    + [(-1, 5, False), ("x", 5, False)],
)
def test_which_quotes_lie_in_a_passage(client: TestClient, start: Any, end: Any, allowed: bool) -> None:
    passage = chunk_of(client, "iron.txt", "iron")
    if allowed:
        start, end = passage["start"] + start, passage["end"] - end
    params = {name: value for name, value in (("start", start), ("end", end)) if value is not None}
    response = client.get(f"/sources/{passage['chunk']}", params=params)
    assert response.status_code == (200 if allowed else 422)
    assert allowed or error(response)["code"] == "invalid_request"


@pytest.mark.parametrize(
    "chunk", ["nope", "%00", "..%2f..%2fetc%2fpasswd", "%ED%A0%80", "a" * 5000, "' OR 1=1 --", "%"]
)
def test_sources_and_jobs_that_do_not_exist(client: TestClient, chunk: str) -> None:
    for path in (f"/sources/{chunk}", f"/jobs/{chunk}", f"/jobs/{chunk}/events"):
        response = client.get(path)
        assert response.status_code == 404 and error(response)["code"] == "not_found"
    assert client.delete(f"/jobs/{chunk}").status_code == 404


def test_a_document_is_shown_as_text_and_never_as_markup(client: TestClient) -> None:
    passage = chunk_of(client, "notes/<b>marmot.txt", "Where do marmots hide?")
    start = LIBRARY[passage["document"]].index("<script>")
    url = f"/sources/{passage['chunk']}?start={start}&end={start + 8}"
    response = client.get(url, headers={"Accept": "text/html,*/*;q=0.8"})
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert '<mark id="quote">&lt;script&gt;</mark>alert(1)&lt;/script&gt; &amp; hide' in response.text
    assert "<script" not in response.text and "<b>" not in response.text
    shown = re.sub(r"<[^>]+>", "", response.text.partition("<pre")[2].partition(">")[2].partition("</pre>")[0])
    shown = shown.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    assert shown == LIBRARY[passage["document"]], "the whole document, with nothing added"


# The page, and addresses that do not exist


def test_the_page(client: TestClient) -> None:
    response = client.get("/")
    assert response.status_code == 200 and response.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"<script(?![^>]*\bsrc=)|\bon\w+=|style=|https?://(?!www\.w3\.org)", response.text)
    for name in re.findall(r'(?:src|href)="/static/([^"]+)"', response.text):
        part = client.get(f"/static/{name}")
        assert part.status_code == 200
        again = client.get(f"/static/{name}", headers={"If-None-Match": part.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(
    "name",
    [
        "nope.js",
        "../keys.py",
        "..",
        ".",
        "/etc/passwd",
        "..\\keys.py",
        "app.js\x00",
        "APP.JS",
        "__init__.py",
        "a/../app.js",
    ],
)
def test_only_the_pages_own_files_are_served(service: Service, name: str) -> None:
    # Straight into the application: a client would shorten the path before it sends it.
    messages = raw(create_app(service), "GET", f"/static/{name}", {"Host": "localhost"})
    assert status(messages) == 404
    assert json.loads(messages[1]["body"])["error"]["code"] == "not_found"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        *((method, "/ask", "POST") for method in ("GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE")),
        ("POST", "/search", "GET"),
        ("OPTIONS", "/documents", "GET"),
        ("HEAD", "/documents", "GET"),
        ("GET", "/reindex", "POST"),
        ("POST", "/", "GET"),
    ],
)
def test_methods_that_are_not_served(client: TestClient, method: str, path: str, allowed: str) -> None:
    response = client.request(method, path)
    assert response.status_code == 405
    assert allowed in response.headers["allow"]
    if method != "HEAD":
        assert error(response)["code"] == "invalid_request"


@pytest.mark.parametrize("path", ["/nowhere", "/docs", "/redoc", "/ask/x", "/.env", "/v2/models"])
def test_addresses_that_do_not_exist(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404 and error(response)["code"] == "not_found"


# Leaving


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_generation(make_service: MakeService, serve: Serve, stream: bool) -> None:
    generator = ScriptedGenerator(ENDLESS, delay=0.01)
    service = make_service(generator, max_tokens=4000, prompt_tokens=500, min_relevance=-1)
    generator.window = 10_000
    connection = connect(serve(service), "POST", "/ask", {"question": TIDES, "stream": stream})
    if stream:
        read_until(connection, b"event: token")
    wait_until(lambda: generator.spoken > 3)
    connection.close()
    left = time.monotonic()
    wait_until(lambda: bool(generator.ends), seconds=3)
    assert time.monotonic() - left < 1.5
    assert generator.ends[0] in ("cancelled", "closed")
    wait_until(lambda: len(service.answerer.admission) == 0)


def test_a_client_that_leaves_before_the_first_token_or_while_it_waits(make_service: MakeService, serve: Serve) -> None:
    # Nothing that this model says is supported, so no event is ever due.
    generator = ScriptedGenerator("Cheese " * 3000, delay=0.01)
    service = make_service(generator, max_tokens=3000)
    port = serve(service)
    first = connect(port, "POST", "/ask", {"question": TIDES, "stream": True})
    wait_until(lambda: generator.busy == 1)
    second = connect(port, "POST", "/ask", {"question": TIDES, "stream": False})
    wait_until(lambda: len(service.answerer.admission) == 2)
    second.close()
    wait_until(lambda: len(service.answerer.admission) == 1)
    assert generator.ends in ([], ["cancelled"]), "the first one is still being answered"
    first.close()
    wait_until(lambda: len(service.answerer.admission) == 0, seconds=3)
    assert generator.busy == 0


def test_a_stream_without_news_is_kept_alive() -> None:
    app = FastAPI()

    def slowly(cancel: threading.Event) -> Iterator[streaming.Event]:
        yield "token", {"text": "a\n\nb"}
        time.sleep(0.2)
        yield "done", {}

    @app.get("/")
    def route(request: Request) -> Any:
        request.state.request_id = "r"
        return streaming.event_stream(request, slowly, heartbeat=0.05)

    text = TestClient(app).get("/").text
    first, *middle, last = text.removesuffix("\n\n").split("\n\n")
    assert middle and set(middle) == {": ping"}
    assert events_of(text) == [("token", {"text": "a\n\nb"}), ("done", {})]
    assert "token" in first and "done" in last


@pytest.mark.parametrize("error, code", [(TandemError("No.", code="conflict"), "conflict"), (ValueError(), "internal")])
def test_a_stream_that_fails_before_it_begins_ends(error: Exception, code: str) -> None:
    app = FastAPI()

    def events(cancel: threading.Event) -> Iterator[streaming.Event]:
        raise error  # not a generator: this happens where the iterator would be made

    @app.get("/")
    def route(request: Request) -> Any:
        request.state.request_id = "r"
        return streaming.event_stream(request, events, heartbeat=0.05)

    done: list[str] = []
    thread = threading.Thread(target=lambda: done.append(TestClient(app).get("/").text), daemon=True)
    thread.start()
    thread.join(5)
    assert done, "the stream did not end"
    [(name, body)] = events_of(done[0])
    assert (name, body["error"]["code"]) == ("error", code)


def test_many_open_streams_leave_the_service_answering(make_service: MakeService, serve: Serve) -> None:
    service = make_service(TWICE)
    held = threading.Event()

    def work(report: Any, cancel: threading.Event) -> Outcome:
        held.wait(20)
        return Outcome()

    job, _ = service.jobs.start("reindex", work)
    port = serve(service)
    watchers = [connect(port, "GET", f"/jobs/{job.id}/events") for _ in range(45)]
    try:
        for watcher in watchers:
            watcher.settimeout(3)
            read_until(watcher, b"event: job")
        for method, path in (("POST", "/ask"), ("GET", "/documents"), ("GET", "/readyz"), ("GET", "/healthz")):
            watchers.append(connect(port, method, path, {"question": TIDES} if path == "/ask" else None))
            watchers[-1].settimeout(3)
            assert b"200 OK" in read_until(watchers[-1], b"}")
    finally:
        held.set()
        for watcher in watchers:
            watcher.close()


# /reindex and its jobs


class SlowEmbedder(HashingEmbedder):
    """Waits before it embeds documents, so that a job can be looked at while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.reached = threading.Event()
        self.go_on = threading.Event()

    def embed_documents(self, texts):  # type: ignore[no-untyped-def]
        self.reached.set()
        assert self.go_on.wait(20)
        return super().embed_documents(texts)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_library(tmp_path / "corpus")


@pytest.fixture
def own(make_service: MakeService, tmp_path: Path, corpus: Path) -> Service:
    """A service over a corpus that the test may change, with a slow embedder."""
    service = make_service(f"{TWICE} Storks fly to Africa.", home=tmp_path / "own", corpora=(corpus,))
    sync(service.store, [corpus], HashingEmbedder(), ChunkSize(40, 8))
    service.answerer.retriever.embedder = SlowEmbedder()
    return service


@pytest.fixture
def own_client(own: Service) -> Iterator[TestClient]:
    with TestClient(create_app(own), base_url=BASE) as made:
        yield made
        slow(own).go_on.set()


def slow(service: Service) -> SlowEmbedder:
    embedder = service.answerer.retriever.embedder
    assert isinstance(embedder, SlowEmbedder)
    return embedder


def final(client: TestClient, job: str) -> dict[str, Any]:
    wait_until(lambda: client.get(f"/jobs/{job}").json()["state"] in FINAL, seconds=20)
    found: dict[str, Any] = client.get(f"/jobs/{job}").json()
    return found


def test_a_reindex_runs_once_and_questions_are_answered_from_the_old_generation_meanwhile(
    own: Service, own_client: TestClient, corpus: Path
) -> None:
    (corpus / "storks.txt").write_text("Storks fly to Africa in autumn.")
    (corpus / "tides.md").unlink()
    first = own_client.post("/reindex")
    assert first.status_code == 202
    job = first.json()["job"]
    assert job["state"] == "running" and job["kind"] == "reindex"
    assert slow(own).reached.wait(20)
    second = own_client.post("/reindex")
    assert (second.status_code, second.json()["job"]["id"]) == (200, job["id"])
    during = own_client.post("/ask", json={"question": TIDES}).json()
    assert (during["index_generation"], during["answer"]) == (1, TWICE)
    assert own_client.get("/readyz").json()["generation"] == 1
    assert "storks.txt" not in own_client.get("/documents").text
    link = during["citations"][0]["url"]
    assert own_client.get(link).status_code == 200
    slow(own).go_on.set()
    done = final(own_client, job["id"])
    assert (done["state"], done["generation"], done["error"]) == ("done", 2, None)
    assert done["counts"] == {"added": 1, "changed": 0, "renamed": 0, "deleted": 1, "unchanged": 3, "failed": 0}
    after = own_client.post("/ask", json={"question": "Where do storks fly in autumn?"}).json()
    assert (after["index_generation"], after["answer"]) == (2, "Storks fly to Africa [1].")
    assert "tides.md" not in json.dumps(after), "a deleted document is in no answer"
    assert own_client.get(link).status_code == 404
    assert [body["id"] for body in own_client.get("/jobs").json()["jobs"]] == [job["id"]]
    third = own_client.post("/reindex")
    assert third.status_code == 202 and third.json()["job"]["id"] != job["id"]
    assert final(own_client, third.json()["job"]["id"])["generation"] == 2, "nothing changed"


def test_the_events_of_a_job_end_with_its_end(own: Service, own_client: TestClient, corpus: Path) -> None:
    (corpus / "storks.txt").write_text("Storks fly to Africa in autumn.")
    job = own_client.post("/reindex").json()["job"]["id"]
    threading.Timer(0.2, slow(own).go_on.set).start()
    events = events_of(own_client.get(f"/jobs/{job}/events").text)
    assert {name for name, _ in events} == {"job"}
    bodies = [body for _, body in events]
    assert [body["state"] for body in bodies] == ["running"] * (len(bodies) - 1) + ["done"]
    assert all(before != after for before, after in zip(bodies, bodies[1:], strict=False))
    assert bodies[-1] == own_client.get(f"/jobs/{job}").json()
    assert events_of(own_client.get(f"/jobs/{job}/events").text) == [("job", bodies[-1])], "also when it is over"


def test_a_cancelled_job_publishes_nothing(own: Service, own_client: TestClient, corpus: Path) -> None:
    (corpus / "storks.txt").write_text("Storks fly to Africa in autumn.")
    job = own_client.post("/reindex").json()["job"]["id"]
    assert slow(own).reached.wait(20)
    assert own_client.delete(f"/jobs/{job}").json()["state"] == "running"
    slow(own).go_on.set()
    assert final(own_client, job)["state"] == "cancelled"
    assert own_client.get("/documents").json()["generation"] == 1


def test_a_job_that_fails_tells_why_and_the_history_survives_a_restart(
    own: Service, own_client: TestClient, corpus: Path
) -> None:
    slow(own).go_on.set()
    (corpus / "broken.pdf").write_bytes(b"no pdf at all")
    partly = final(own_client, own_client.post("/reindex").json()["job"]["id"])
    assert (partly["state"], partly["counts"]["failed"]) == ("done", 1)
    assert partly["failures"][0]["document"] == "broken.pdf" and partly["failures"][0]["reason"]
    for path in sorted(corpus.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    failed = final(own_client, own_client.post("/reindex").json()["job"]["id"])
    assert failed["state"] == "failed" and str(corpus) in failed["error"]
    assert own_client.post("/ask", json={"question": TIDES}).json()["answer"] == TWICE
    again = Jobs(own.store)
    assert again.list() == [failed, partly] == own_client.get("/jobs").json()["jobs"]
