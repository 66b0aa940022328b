"""The chat page opened in Chromium, for tests: the browser, a page that must not complain, answers made up for it, and
a real server whose model says what a test tells it to.
"""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fakes import wait_until
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from service.api.app import create_app
from service.running import Service
from tuner.adapters import CARD_FILE, AdapterCard

QUESTION = "How many parameters does the default base model have?"  # the manual answers it
WAIT = 240_000  # ms; a small machine may be busy
ARGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
# Every state an answer passes through, in order: the proof that it streamed.
RECORD_STATES = """
window.states = [];
addEventListener("securitypolicyviolation", (event) => console.error("policy", event.violatedDirective));
addEventListener("DOMContentLoaded", () => new MutationObserver(() => {
  const state = document.querySelector(".turn:last-child .answer")?.dataset.state;
  if (state && state !== window.states.at(-1)) window.states.push(state);
}).observe(document.body, {subtree: true, childList: true, attributes: true}));
"""

Open = Callable[..., Page]
Before = Callable[[Page], None]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=ARGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Open]:
    """Opens the page at an address; afterwards the console must hold no error but those that the test expects."""
    complaints: list[str] = []
    expected: list[str] = []
    contexts = []

    def open_(url: str, width: int = 1280, *, errors: str = "", before: Before | None = None, **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 844}, reduced_motion="reduce", **options)
        context.set_default_timeout(15_000)
        contexts.append(context)
        context.add_init_script(RECORD_STATES)
        page = context.new_page()
        expected.append(errors)
        page.on("console", lambda message: complaints.append(said(message)) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        if before:
            before(page)
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    unexpected = [text for text in complaints if not any(part and part in text for part in expected)]
    assert not unexpected, unexpected


@pytest.fixture
def open_page(visit: Open, server_url: str) -> Open:
    """As visit, at the address of the real service over the manual."""
    return lambda width=1280, **options: visit(server_url, width, **options)


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The address of a real server with this service."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(service), log_config=None, timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_until(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()


def put_card(home: Path, name: str, **values: Any) -> None:
    """An adapter as far as a list of adapters goes: its card."""
    card = AdapterCard(name, "bundled", "0" * 64, "0" * 64, "0" * 64, {"name": "lora"}, "2026-03-01T10:00:00+00:00")
    folder = home / "adapters" / name
    folder.mkdir(parents=True)
    (folder / CARD_FILE).write_text(json.dumps(asdict(card) | values))


def said(message: ConsoleMessage) -> str:
    return f"{message.text} ({message.location['url']})"


def ask(page: Page, question: str, state: str = "answered") -> Any:
    page.get_by_label("Your question").fill(question)
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled(timeout=WAIT)  # the server is ready
    page.keyboard.press("Enter")
    card = page.locator(".turn").last.locator(".answer").last
    expect(card).to_have_attribute("data-state", state, timeout=WAIT)
    return card


def event(name: str, body: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(body)}\n\n"


def reply(page: Page, *events: str) -> None:
    page.route("**/ask", lambda route: route.fulfill(content_type="text/event-stream", body="".join(events)))


def made_up(answer: str, citations: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "answer": answer, "refused": False, "mode": "rag", "adapter": None, "citations": citations, "passages": [],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3}, "index_generation": 1, "finish_reason": "stop",
        "timings_ms": {"retrieve": 1.0, "first_token": None, "total": 2.0},
    }  # fmt: skip


CITATION = {"n": 1, "document": "a.md", "chunk": "c", "title": "A", "page": None, "start": 12, "end": 17,
            "quote": "quote", "score": 0.5, "url": "/sources/c?start=12&end=17#quote"}  # fmt: skip
