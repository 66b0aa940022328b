"""One answer over HTTP as the one who asks sees it: when text came, and when it ended.

Two dialects: the /v1/completions of OpenAI, which llama.cpp, transformers and our own small servers speak, and the
/ask of Tandem. Tandem holds a sentence back until it is checked, so its first text is a first sentence; when its model
made the first token, and how many, it tells at the end.
"""

import http.client
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 1800


@dataclass(frozen=True, slots=True)
class Reply:
    """Times in seconds since the request was sent; `decoding` from the first token to the last.

    Of an answer without any token the first is when that was known.
    """

    first_token: float
    first_text: float
    total: float
    tokens: int
    decoding: float
    prompt_tokens: int | None

    @property
    def speed(self) -> float | None:
        """Tokens a second after the first; None of an answer that has no second."""
        return (self.tokens - 1) / self.decoding if self.tokens > 1 and self.decoding > 0 else None


def complete(url: str, body: dict[str, Any], count: Callable[[str], int]) -> Reply:
    """Stream one completion; `count` says how many tokens a text has."""
    began = time.perf_counter()
    parts, first, last, prompt_tokens = list[str](), None, None, None
    for _, data in _events(url + "/v1/completions", body | {"stream": True}):
        if data == "[DONE]":
            break
        event = json.loads(data)
        if "error" in event:
            raise SystemExit(f"{url} failed: {event['error']}")
        text = "".join(choice.get("text") or "" for choice in event.get("choices", ()))
        if text:
            last = time.perf_counter() - began
            first = last if first is None else first
            parts.append(text)
        prompt_tokens = (event.get("usage") or {}).get("prompt_tokens", prompt_tokens)
    total = time.perf_counter() - began
    if first is None or last is None:
        return Reply(total, total, total, 0, 0.0, prompt_tokens)
    return Reply(first, first, total, count("".join(parts)), last - first, prompt_tokens)


def ask(url: str, body: dict[str, Any]) -> Reply:
    """Stream one answer of Tandem."""
    began = time.perf_counter()
    first_text: float | None = None
    answer: dict[str, Any] | None = None
    for name, data in _events(url + "/ask", body | {"stream": True}):
        if name == "error":
            raise SystemExit(f"{url} failed: {data}")
        if name == "token" and first_text is None:
            first_text = time.perf_counter() - began
        if name == "done":
            answer = json.loads(data)
    total = time.perf_counter() - began
    if answer is None or first_text is None:
        raise SystemExit(f"{url} ended without an answer to {body['question']!r}")
    times, usage = answer["timings_ms"], answer["usage"]
    first_token = (times["total"] if times["first_token"] is None else times["first_token"]) / 1000
    decoding = times["total"] / 1000 - first_token
    return Reply(first_token, first_text, total, usage["completion_tokens"], decoding, usage["prompt_tokens"])


def prompt_tokens(url: str, body: dict[str, Any]) -> int:
    """How many tokens a server reads for this completion, which is made and not streamed."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=TIMEOUT_SECONDS)
    with _posted(connection, "/v1/completions", body) as response:
        return int(json.load(response)["usage"]["prompt_tokens"])


def _posted(connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
    connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    if response.status != 200:
        raise SystemExit(
            f"{connection.host}:{connection.port}{path} said {response.status}: {response.read()[:2000]!r}"
        )
    return response


def _events(url: str, body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, data) of server-sent events with one line of data each, as they arrive."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.netloc, timeout=TIMEOUT_SECONDS)
    try:
        response, name = _posted(connection, address.path, body), ""
        while line := response.readline():
            field, _, value = line.decode().rstrip("\r\n").partition(":")
            if field == "event":
                name = value.strip()
            elif field == "data":
                yield name, value.strip()
                name = ""
    finally:
        connection.close()
