import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from conftest import MakeService
from fakes import FixedAdapters, ScriptedGenerator
from starlette.testclient import TestClient
from test_gate import BASE

from indexer.errors import TandemError
from service import tracing
from service.api.app import create_app
from service.keys import create_key
from service.logs import JsonFormatter, set_up_logs
from service.running import Service

TIDES = "How often does the moon raise the tides of the ocean?"
TWICE = "The moon raises the tides twice a day [1]."


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(TWICE, FixedAdapters(["sailor"]))


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), base_url=BASE) as made:
        yield made


def samples(client: TestClient, headers: dict[str, str] | None = None) -> dict[str, float]:
    """Every sample of /metrics by its name and labels, read by a small parser of our own."""
    response = client.get("/metrics", headers=headers or {})
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain")
    lines = [line for line in response.text.splitlines() if line and not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_a_request_carries_one_id_from_its_client_to_the_log(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    response = client.get("/documents", headers={"X-Request-ID": "front-end.7_A"})
    assert response.headers["x-request-id"] == "front-end.7_A"
    assert client.get("/nowhere", headers={"X-Request-ID": "abc"}).json()["error"]["request_id"] == "abc"
    assert "[front-end.7_A]" in caplog.text


@pytest.mark.parametrize("given", ["", "x" * 65, "a b", "a\tb", 'x"y', "-x", "é", "<script>", "a;b"])
def test_an_id_that_is_no_plain_word_is_replaced(client: TestClient, given: str) -> None:
    response = client.get("/documents", headers={"X-Request-ID": given.encode("latin-1")})  # type: ignore[dict-item]
    assert re.fullmatch(r"[0-9a-f]{16}", response.headers["x-request-id"])


def test_the_line_of_an_answer(client: TestClient, service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    client.post("/ask", json={"question": TIDES, "stream": True}, headers={"X-Request-ID": "r1"})
    (record,) = (record for record in caplog.records if record.name == "service.api.observing")
    line = json.loads(JsonFormatter().format(record))
    assert line["message"].startswith("POST /ask 200 ") and line["level"] == "info"
    expected = {"request_id": "r1", "method": "POST", "route": "/ask", "status": 200, "mode": "rag", "refused": False}
    assert {name: line[name] for name in expected} == expected
    assert line["completion_tokens"] == len(re.findall(r"\S+", TWICE)) and line["prompt_tokens"] > 10
    assert 0 <= line["first_token_ms"] <= line["ms"] + 1
    assert "question" not in line and TIDES not in json.dumps(line)


def test_a_line_names_the_key_and_never_shows_it(
    client: TestClient, service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secret = create_key(service.store, "anna", "user")
    client.post("/ask", json={"question": TIDES}, headers={"Authorization": f"Bearer {secret}"})
    client.get("/documents", headers={"Authorization": f"Bearer {secret}x"})
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    ours = [line for line in lines if line["logger"] == "service.api.observing"]
    assert [line.get("key") for line in ours] == ["anna", None]
    assert secret[8:] not in json.dumps(lines)


def test_questions_are_logged_only_for_those_who_ask_for_it(
    make_service: MakeService, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    service = make_service(TWICE, log_questions=True)
    with TestClient(create_app(service), base_url=BASE) as client:
        client.post("/ask", json={"question": TIDES})
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    assert [line["question"] for line in lines if "question" in line] == [TIDES]


def test_a_json_line_is_one_line_whatever_is_in_it() -> None:
    try:
        raise ValueError("one\ntwo \ud800 \x1b[31m")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "", 0, "a\nb\u2028c %s", ("d\r",), info)
    text = JsonFormatter().format(record)
    assert "\n" not in text and text.isascii() and "\x1b" not in text
    assert json.loads(text)["message"] == "a\nb\u2028c d\r" and "Traceback" in json.loads(text)["exception"]


@pytest.mark.parametrize(("form", "is_json"), [("json", True), ("text", False), ("auto", True)])
def test_the_form_of_log_lines(form: Any, is_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        set_up_logs("info", form)
        logging.getLogger("service.x").info("hello")
        assert capsys.readouterr().err.startswith("{") is is_json
    finally:
        root.handlers[:] = before
        root.setLevel(level)


def test_metrics_count_what_was_asked(client: TestClient, service: Service) -> None:
    for stream in (False, True):
        client.post("/ask", json={"question": TIDES, "stream": stream})
    client.post("/ask", json={"question": "Who won the football world cup in 1998?"})
    client.get("/sources/nothing")
    client.get("/wp-login.php")
    client.request("BREW", "/ask")
    found = samples(client)
    assert found['tandem_requests_total{method="POST",route="/ask",status="2xx"}'] == 3
    assert found['tandem_requests_total{method="GET",route="/sources/{chunk}",status="4xx"}'] == 1
    assert found['tandem_requests_total{method="GET",route="other",status="4xx"}'] == 1
    assert found['tandem_answers_total{mode="rag",outcome="answered"}'] == 2
    assert found['tandem_answers_total{mode="rag",outcome="refused"}'] == 1
    assert found['tandem_tokens_total{kind="completion",mode="rag"}'] == 2 * len(re.findall(r"\S+", TWICE))
    assert found['tandem_first_token_seconds_count{mode="rag"}'] == 2
    assert found['tandem_retrieval_seconds_count{mode="rag"}'] == 3
    assert found["tandem_index_documents"] == 4 and found["tandem_index_generation"] >= 1
    assert (found["tandem_ready"], found["tandem_queue"], found["tandem_in_flight"]) == (1, 0, 1)
    assert found["tandem_adapters_stale"] == 0 and found["process_resident_memory_bytes"] > 1e6


def test_who_is_turned_away_is_counted_in_a_stream_too(make_service: MakeService) -> None:
    generator = ScriptedGenerator(TWICE, delay=0.05)
    service = make_service(generator, queue=1, queue_seconds=0.05, rate="3/hour")
    with TestClient(create_app(service), base_url=BASE) as client, service.answerer.admission.enter(threading.Event()):
        assert client.post("/ask", json={"question": TIDES}).status_code == 503
        assert "unavailable" in client.post("/ask", json={"question": TIDES, "stream": True}).text
        client.post("/ask", json={"question": ""})
        assert client.post("/ask", json={"question": TIDES}).status_code == 429
        found = samples(client)
    assert found['tandem_turned_away_total{reason="queue"}'] == 2
    assert found['tandem_turned_away_total{reason="rate"}'] == 1
    assert not any("_created" in name for name in found)


def test_no_label_comes_from_a_client(client: TestClient) -> None:
    before = len(samples(client))
    for number in range(30):
        client.get(f"/attack-{number}")
        client.get(f"/sources/{number}")
        client.request(f"VERB{number}", "/ask")
        client.post("/ask", json={"question": TIDES, "mode": f"m{number}", "adapter": f"a{number}"})
    after = samples(client)
    assert len(after) - before < 80
    assert not any(re.search(r"attack|VERB|m\d|a\d\d", name) for name in after)


def test_metrics_are_for_administrators_and_hold_no_names(client: TestClient, service: Service) -> None:
    user = {"Authorization": f"Bearer {create_key(service.store, 'anna', 'user')}"}
    admin = {"Authorization": f"Bearer {create_key(service.store, 'ops', 'admin')}"}
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", headers=user).status_code == 403
    client.post("/ask", json={"question": TIDES}, headers=user)
    text = client.get("/metrics", headers=admin).text
    assert "tandem_answers_total" in text and "anna" not in text and "tides" not in text


def test_a_service_without_a_model_or_an_index_has_metrics_too(make_service: MakeService, tmp_path: Any) -> None:
    service = make_service(TWICE, home=tmp_path / "empty")
    service._answerer = None
    with TestClient(create_app(service), base_url=BASE) as client:
        found = samples(client)
    assert found["tandem_ready"] == 0 and "tandem_index_generation" not in found


class Collector(HTTPServer):
    """Takes what an exporter sends, as an OpenTelemetry collector on this machine would."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.bodies.append(self.rfile.read(int(self.headers["content-length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                """Say nothing."""

        super().__init__(("127.0.0.1", 0), Handler)


def test_traces_are_sent_where_the_setting_says(make_service: MakeService) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra `tracing` is not installed")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    trace = "0af7651916cd43dd8448eb211c80319c"
    try:
        service = make_service(TWICE, otlp_endpoint=f"http://127.0.0.1:{collector.server_port}/v1/traces")
        with TestClient(create_app(service), base_url=BASE) as client:
            headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
            client.post("/ask", json={"question": TIDES}, headers=headers)
        spans = []
        for body in collector.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                spans += [span for scope in resource.scope_spans for span in scope.spans]
        by_name = {span.name: span for span in spans}
        assert by_name.keys() == {"POST /ask", "retrieve", "generate"}
        root = by_name["POST /ask"]
        assert root.trace_id.hex() == trace and root.parent_span_id.hex() == "b7ad6b7169203331"
        for name in ("retrieve", "generate"):
            child = by_name[name]
            assert child.parent_span_id == root.span_id
            assert child.start_time_unix_nano <= child.end_time_unix_nano
        assert by_name["retrieve"].end_time_unix_nano <= by_name["generate"].end_time_unix_nano
        assert b"tides" not in b"".join(collector.bodies)
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()


def test_without_an_endpoint_there_is_no_tracer_and_without_the_extra_it_is_named(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service.tracer is None
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(TandemError, match=r"tandem-qa\[tracing\]"):
        tracing.load_tracer("http://127.0.0.1:1/v1/traces")


def test_a_request_that_fails_is_counted_and_told_with_its_id(
    make_service: MakeService, caplog: pytest.LogCaptureFixture
) -> None:
    service = make_service(ScriptedGenerator(TWICE, fail_after=2))
    with TestClient(create_app(service), base_url=BASE) as client:
        response = client.post("/ask", json={"question": TIDES}, headers={"X-Request-ID": "bad-1"})
        assert response.status_code == 500 and response.json()["error"]["request_id"] == "bad-1"
        found = samples(client)
    assert found['tandem_requests_total{method="POST",route="/ask",status="5xx"}'] == 1
    assert "request bad-1 failed" in caplog.text
