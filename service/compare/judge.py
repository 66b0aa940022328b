"""A second opinion: a model behind an OpenAI-compatible server says whether an answer is right.

It is one more measure and decides nothing, because a judge has its own errors (Zheng et al. 2023, arXiv 2306.05685).
A server that fails three times in a row is not asked again: the comparison goes on without it.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from indexer.errors import TandemError
from service.compare.questions import Item
from service.compare.records import Record
from service.compare.squad import as_prediction

KEY_VARIABLE = "TANDEM_JUDGE_KEY"
_MOST_FAILURES = 3
_MOST_BYTES = 1 << 20
_WORD = re.compile(r"\b(right|partly|wrong)\b", re.IGNORECASE)
_GRADES = {"right": 1.0, "partly": 0.5, "wrong": 0.0}
_TASK = (
    "You grade an answer to a question. Reply with one word. RIGHT: it says what the reference says, in any words, and"
    " nothing that contradicts it. PARTLY: some of it. WRONG: otherwise. If the reference says that the documents do"
    " not answer, only declining to answer is RIGHT."
)


@dataclass(slots=True)
class ServerJudge:
    """Grades over HTTP. `url` is the server's base (".../v1"); `timeout` in seconds is for each grade."""

    url: str
    model: str = ""
    timeout: float = 30.0
    note: Callable[[str], None] = lambda message: None
    failures: int = field(default=0, init=False)
    asked: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https"):
            raise TandemError(
                f"{self.url!r} is not the address of a judge.",
                expected="The base of an OpenAI-compatible server, such as http://127.0.0.1:8001/v1.",
                do="Correct --judge.",
            )
        if not self.model:
            self.model = self._first_model()

    def __call__(self, item: Item, record: Record) -> float | None:
        """1 right, 0.5 partly, 0 wrong; None when the server did not say."""
        if self.failures >= _MOST_FAILURES:
            return None
        self.asked += 1
        reference = " or: ".join(item.pair.answers) if item.answerable else "The documents do not answer this."
        said = as_prediction(record.answer, record.refused) or "I decline to answer."
        asked = f"Question: {item.pair.question}\nReference: {reference}\nAnswer: {said}"
        messages = [{"role": "system", "content": _TASK}, {"role": "user", "content": asked}]
        try:
            body = self._request(
                "/chat/completions", {"model": self.model, "messages": messages, "temperature": 0, "max_tokens": 512}
            )
            found = _WORD.findall(str(body["choices"][0]["message"]["content"]))
        except (OSError, ValueError, KeyError, IndexError, TypeError, http.client.HTTPException) as error:
            self.failures += 1
            if self.failures == _MOST_FAILURES:
                self.note(f"The judge failed {_MOST_FAILURES} times in a row ({error}); it is not asked again.")
            return None
        self.failures = 0
        # A model that thinks aloud says its grade last.
        return _GRADES[found[-1].lower()] if found else None

    def _first_model(self) -> str:
        try:
            return str(self._request("/models", None)["data"][0]["id"])
        except (OSError, ValueError, KeyError, IndexError, TypeError, http.client.HTTPException) as error:
            raise TandemError(
                f"The judge {self.url} does not say which models it has: {error}.",
                expected="An OpenAI-compatible server that answers GET /models.",
                do="Start it, correct --judge, or name a model with --judge-model.",
                code="unavailable",
            ) from None

    def _request(self, path: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            return json.loads(response.read(_MOST_BYTES))
