"""`tandem ask --url`: what a running service answers, shown as `tandem ask` shows its own, without loading anything."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import uvicorn
from conftest import MakeService
from fakes import ScriptedGenerator, wait_until
from pydantic import SecretStr
from typer.testing import CliRunner

from indexer.errors import TandemError
from service.api.app import create_app
from service.cli import app
from service.commands.asking import run_ask_running
from service.keys import create_key
from service.running import Service
from service.settings import load_settings

TIDES = "How often does the moon raise the tides of the ocean?"
TWICE = "The moon raises the tides twice a day [1]."


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service(ScriptedGenerator(f"{TWICE} The moon is made of cheese."), None)


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home without an index: nothing here can answer."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TANDEM_HOME", str(tmp_path / "empty"))


def ask(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["ask", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_answer_and_its_sources_are_shown(url: str) -> None:
    code, shown, told = ask(TIDES, "--url", f"{url}/")
    assert code == 0
    assert TWICE in shown and "cheese" not in shown
    assert '[1] tides.md: Tides\n    "The moon raises the tides of the ocean twice a day.' in shown
    assert f"rag of {url};" in told and "s in all" in told


def test_json_is_the_body_of_ask(url: str, service: Service) -> None:
    code, shown, _ = ask(TIDES, "--url", url, "--json", "-k", "1", "--filter", "path=tides*", "--max-tokens", "30")
    body = json.loads(shown)
    assert code == 0 and body["answer"] == TWICE and len(body["passages"]) == 1
    assert body["index_generation"] == 1 and not body["refused"]
    # The filter went along: nothing else may answer.
    _, shown, _ = ask(TIDES, "--url", url, "--json", "--filter", "path=bread*", "--filter", "path=iron*")
    assert {passage["document"] for passage in json.loads(shown)["passages"]} <= {"bread.md", "iron.txt"}


def test_what_the_service_says_is_told_with_exit_code_2(url: str) -> None:
    code, _, told = ask(TIDES, "--url", url, "--mode", "wise")
    assert code == 2 and "wise" in told and "Traceback" not in told
    code, shown, _ = ask(TIDES, "--url", url, "--adapter", "nobody", "--json")
    assert code == 2 and json.loads(shown)["error"]["code"] == "not_found"


def test_a_key_is_sent_and_a_missing_one_is_named(url: str, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    key = create_key(service.store, "anna", "user")
    code, _, told = ask(TIDES, "--url", url)
    assert code == 2 and "TANDEM_USER_KEY" in told
    monkeypatch.setenv("TANDEM_USER_KEY", key)
    assert ask(TIDES, "--url", url)[0] == 0


@pytest.mark.parametrize("address", ["file:///etc/passwd", "127.0.0.1:8000", "ftp://x/"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(TandemError, match="no address"):
        run_ask_running(address, {"question": TIDES}, as_json=True)


Answering = Callable[[bytes, int, dict[str, str]], str]


@pytest.fixture
def asked() -> list[str]:
    """The paths that were asked for."""
    return []


@pytest.fixture
def answering(asked: list[str]) -> Iterator[Answering]:
    """Start something that is not Tandem, giving the same answer to everything."""
    servers: list[HTTPServer] = []

    def start(body: bytes, status: int, headers: dict[str, str]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers["content-length"] or 0))
                asked.append(self.path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, format: str, *arguments: object) -> None:
                """Nothing."""

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_what_is_not_tandem_is_said_so(answering: Answering) -> None:
    for body in (b"<html>hello</html>", b"", b'event: token\ndata: {"text": "half"}\n\n', b"\xff\xfe\n"):
        with pytest.raises(TandemError, match="broke off"):
            run_ask_running(answering(body, 200, {}), {"question": TIDES}, as_json=True)
    with pytest.raises(TandemError, match="not Tandem's"):
        run_ask_running(answering(b"no", 404, {}), {"question": TIDES}, as_json=True)
    gone = answering(b"", 200, {}).rpartition(":")[0] + ":1"
    with pytest.raises(TandemError, match="No answer came") as caught:
        run_ask_running(gone, {"question": TIDES}, as_json=True)
    assert caught.value.code == "unavailable"


def test_a_key_does_not_follow_a_redirect(
    answering: Answering, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_USER_KEY", "tandem-secret-0123456789")
    away = answering(b"", 302, {"Location": f"{answering(b'', 200, {})}/elsewhere"})
    with pytest.raises(TandemError, match="not Tandem's"):
        run_ask_running(away, {"question": TIDES}, as_json=True)
    assert asked == ["/ask"]


def test_the_key_is_read_as_settings_are(url: str, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    key = create_key(service.store, "anna", "user")
    Path("tandem.toml").write_text(f'user_key = "{key}"\n')
    assert ask(TIDES, "--url", url)[0] == 0
    monkeypatch.setenv("tandem_User_Key", "another-secret-0123456789")
    assert load_settings().user_key == SecretStr("another-secret-0123456789")
    assert ask(TIDES, "--url", url)[0] == 2
    Path("tandem.toml").write_text("user_key = ")
    monkeypatch.delenv("tandem_User_Key")
    code, _, told = ask(TIDES, "--url", url)
    assert code == 2 and "tandem.toml cannot be read" in told
    with pytest.raises(TandemError, match=r"tandem\.toml cannot be read"):
        load_settings()


def test_a_question_to_a_service_loads_next_to_nothing() -> None:
    asked = """
import contextlib, sys
from service.cli import app
with contextlib.suppress(SystemExit):
    app(["ask", "Why?", "--url", "http://127.0.0.1:9"])
heavy = "torch transformers numpy faiss tokenizers fastapi pydantic_settings rich".split()
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]" and "No answer came" in done.stderr
