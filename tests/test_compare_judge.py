"""A judge over HTTP: a real server on this machine that grades, stalls or talks nonsense."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from compared import item, record

from indexer.errors import TandemError
from service.compare.judge import ServerJudge
from tuner.prompt import REFUSAL

Answer = Callable[[dict[str, Any]], str]


class Grader:
    """An OpenAI-compatible server with one model whose answers `answer` makes; `delay` seconds late."""

    def __init__(self) -> None:
        self.answer: Answer = lambda body: "RIGHT"
        self.delay = 0.0
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        grader = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send({"data": [{"id": "grader-1"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                grader.bodies.append(body)
                grader.keys.append(self.headers.get("Authorization"))
                time.sleep(grader.delay)
                self._send({"choices": [{"message": {"content": grader.answer(body)}}]})

            def _send(self, value: Any) -> None:
                data = json.dumps(value).encode()
                try:
                    self.send_response(200)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # the judge did not wait

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


@pytest.fixture
def grader() -> Iterator[Grader]:
    made = Grader()
    yield made
    made.close()


def test_grades(grader: Grader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_JUDGE_KEY", "a-secret-key")
    judge = ServerJudge(grader.url)
    assert judge.model == "grader-1"
    for said, grade in (("RIGHT", 1.0), ("Partly.", 0.5), ("Not right at all: WRONG", 0.0), ("Hm", None)):
        grader.answer = lambda body, said=said: said  # type: ignore[misc]
        assert judge(item("How hot?", "1538", "1,538"), record("It is 1538 [1].")) == grade
    asked = grader.bodies[0]["messages"][-1]["content"]
    assert asked == "Question: How hot?\nReference: 1538 or: 1,538\nAnswer: It is 1538."
    assert grader.bodies[0]["model"] == "grader-1" and grader.bodies[0]["temperature"] == 0
    assert grader.keys[0] == "Bearer a-secret-key"
    judge(item("How hot?"), record(REFUSAL))
    assert "do not answer this" in grader.bodies[-1]["messages"][-1]["content"]
    assert "I decline to answer." in grader.bodies[-1]["messages"][-1]["content"]


def test_a_judge_that_times_out_is_given_up(grader: Grader) -> None:
    notes: list[str] = []
    judge = ServerJudge(grader.url, "grader-1", timeout=0.1, note=notes.append)
    grader.delay = 0.6
    started = time.monotonic()
    assert [judge(item("How hot?", "9"), record("9")) for _ in range(6)] == [None] * 6
    assert time.monotonic() - started < 3
    assert judge.asked == 3
    assert len(notes) == 1 and "not asked again" in notes[0]


def test_one_failure_is_forgiven(grader: Grader) -> None:
    judge = ServerJudge(grader.url, "grader-1", timeout=5)
    replies = iter(["RIGHT"] * 6)
    url = judge.url
    grades = []
    for broken in (True, True, False, True, True, False):
        judge.url = "http://127.0.0.1:9/v1" if broken else url
        grader.answer = lambda body: next(replies)
        grades.append(judge(item("How hot?", "9"), record("9")))
    assert grades == [None, None, 1.0, None, None, 1.0]


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/v1", "file:///etc/passwd", "nonsense"])
def test_a_judge_that_is_not_there(url: str) -> None:
    with pytest.raises(TandemError):
        ServerJudge(url)
