"""The chat page held against the rules of axe-core (WCAG 2.2 A and AA, and best practice), in each of its states."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import chat_page
import pytest
from chat_page import CITATION, Open, ask, event, made_up, put_card, reply, serving
from conftest import MakeService
from fakes import FixedAdapters
from playwright.sync_api import Page, expect

from service.keys import create_key
from service.running import Service

browser = chat_page.browser
visit = chat_page.visit

pytestmark = pytest.mark.slow
TIDES = "How often does the moon raise the tides of the ocean?"
TWICE = "The moon raises the tides twice a day [1]."
FILE = {"name": "geese.md", "mimeType": "text/markdown", "buffer": b"# Geese\n\nGeese fly south in a wedge.\n"}
# axe-core sets styles of its own while it looks, which the policy of the page forbids: it is off for these tests.
RUN = """async () => (await axe.run(document, { resultTypes: ["violations"] })).violations
  .map(({ id, nodes }) => [id, nodes.map((node) => node.html.slice(0, 200))])"""


@pytest.fixture(scope="module")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core, from npm; npm is installed where that is possible."""
    if shutil.which("npm") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "nodejs", "npm"]):
            subprocess.run(["apt-get", *command], env=environment, capture_output=True, check=False, timeout=300)
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed and could not be")
    folder = tmp_path_factory.mktemp("axe")
    (folder / "package.json").write_text(json.dumps({"private": True}))
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "axe-core@4"]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    if installed.returncode:
        pytest.skip(f"axe-core could not be installed: {installed.stderr[-300:]}")
    return Path(folder / "node_modules" / "axe-core" / "axe.min.js").read_text("utf-8")


@pytest.fixture
def service(make_service: MakeService) -> Service:
    made = make_service(TWICE, FixedAdapters(["sailor"], "sailor"))
    put_card(made.settings.home, "sailor")
    return made


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with serving(service) as found:
        yield found


def violations(page: Page, axe: str) -> list[object]:
    if page.evaluate("typeof axe") == "undefined":
        page.evaluate(axe)
    page.mouse.move(0, 0)
    found: list[object] = page.evaluate(RUN)
    return found


def test_the_rules_find_what_is_wrong(url: str, visit: Open, axe: str) -> None:
    page = visit(url, bypass_csp=True)
    page.evaluate("document.querySelector('#send').removeAttribute('aria-label')")
    assert [found[0] for found in violations(page, axe)] == ["button-name"]  # type: ignore[index]


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_state_of_the_page_breaks_a_rule(url: str, visit: Open, axe: str, width: int, scheme: str) -> None:
    page = visit(url, width, color_scheme=scheme, errors="responded with a status of", bypass_csp=True)
    states: dict[str, list[object]] = {}

    def look(state: str) -> None:
        states[state] = violations(page, axe)

    expect(page.locator(".example").first).to_be_enabled()
    look("welcome")
    card = ask(page, TIDES)
    card.get_by_role("button", name="Bad answer").click()
    look("answer and correction")
    card.locator("button.chip").click()
    expect(page.locator("#source-panel mark")).to_be_visible()
    look("source")
    page.keyboard.press("Escape")
    ask(page, "Who won the football match?", "refused")
    look("refusal")
    page.get_by_role("button", name="Compare").click()
    ask(page, TIDES)
    expect(page.locator(".tradeoff")).to_be_visible()
    look("side by side")
    page.get_by_role("button", name="Documents", exact=True).click()
    expect(page.get_by_role("button", name="Upload")).to_be_visible()
    page.locator("#files").set_input_files([FILE | {"name": "no.exe"}, FILE])  # type: ignore[list-item]
    page.get_by_role("button", name="Delete geese.md").click()
    look("documents")
    page.get_by_role("button", name="Close the documents").click()
    page.route("**/ask", lambda route: route.fulfill(status=503, json={}))
    ask(page, TIDES, "failed")
    look("failure")
    assert {state: found for state, found in states.items() if found} == {}


def test_asking_for_a_key_breaks_no_rule(url: str, visit: Open, axe: str, service: Service) -> None:
    create_key(service.store, "ada", "admin")
    page = visit(url, errors="401", bypass_csp=True)
    page.get_by_label("Key", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_text("That key was not accepted.")).to_be_visible()
    assert violations(page, axe) == []


def test_the_document_page_breaks_no_rule(url: str, visit: Open, axe: str) -> None:
    page = visit(url, bypass_csp=True)
    ask(page, TIDES).locator("button.chip").click()
    expect(page.locator("#source-panel mark")).to_be_visible()
    page.goto(url.rstrip("/") + str(page.locator("#source-link").get_attribute("href")))
    assert violations(page, axe) == []


def test_a_screen_reader_hears_whole_sentences_and_the_end(url: str, visit: Open) -> None:
    pieces = [event("token", {"text": text}) for text in ("It is", " so [1]", ". And", " this too [1].")]
    page = visit(url, before=lambda page: reply(page, *pieces, event("done", made_up("It is so [1].", [CITATION]))))
    ask(page, "?")
    assert page.locator("#announcer p").all_inner_texts() == [
        "Looking for an answer.", "It is so (source 1).", "And this too (source 1).", "Answer complete, 1 source.",
    ]  # fmt: skip


def test_every_control_is_reached_with_the_tab_key_and_shows_it(url: str, visit: Open) -> None:
    page = visit(url, bypass_csp=True)
    ask(page, TIDES)
    page.locator("body").evaluate("document.activeElement.blur()")
    seen = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        seen.add(
            page.evaluate("""() => {
          const at = document.activeElement, ring = getComputedStyle(at.matches("#question") ? at.form : at);
          const label = at.matches(".mode input") ? getComputedStyle(at.nextElementSibling) : ring;
          const shown = label.outlineStyle !== "none" || ring.boxShadow !== "none";
          const name = at.getAttribute("aria-label") || at.id || at.value || at.textContent;
          return at === document.body || shown ? name : `no ring: ${name}`;
        }""")
        )
    wanted = {"New conversation", "Good answer", "Bad answer", "question", "auto", "adapter", "compare"}
    assert not [name for name in seen if "no ring" in name]
    assert {name for name in wanted if name not in seen and name not in {"New conversation"}} == set()
    assert {"new", "open-index", "Switch to the dark theme"} <= seen
