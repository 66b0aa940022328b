"""POST /v1/completions over an engine that has no server of its own. Standard library only.

The servers of this folder run under the interpreter that has the engine, so nothing of Tandem is imported here.
"""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol


class Engine(Protocol):
    def count(self, prompt: str) -> int:
        """Tokens of a prompt."""

    def stream(self, question: str, prompt: str, max_tokens: int) -> Iterator[str]:
        """The answer in parts, greedily."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


def serve(engine: Engine, port: int) -> None:
    """Serve until killed. One answer is made at a time, as the engines here are one model in one process."""
    turn = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._begin("application/json")
            self.wfile.write(b"{}")

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            asked = body["question"], body["prompt"], body["max_tokens"]
            usage = {"prompt_tokens": engine.count(body["prompt"])}
            with turn:
                if body.get("stream"):
                    self._begin("text/event-stream")
                    for text in engine.stream(*asked):
                        self._event({"choices": [{"text": text}]})
                    self._event({"choices": [], "usage": usage})
                else:
                    answer: dict[str, Any] = {"choices": [{"text": "".join(engine.stream(*asked))}], "usage": usage}
                    self._begin("application/json")
                    self.wfile.write(json.dumps(answer).encode())

        def _begin(self, kind: str) -> None:
            self.send_response(200)
            self.send_header("content-type", kind)
            self.end_headers()

        def _event(self, event: dict[str, Any]) -> None:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
            self.wfile.flush()

        def log_message(self, format: str, *arguments: object) -> None:
            """Nothing: a line a request would be measured too."""

    _Server(("127.0.0.1", port), Handler).serve_forever()
