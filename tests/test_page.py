"""The chat page in a real browser against the real service over the manual. Where a test needs text that no model
gives on demand, the browser is handed that response and the rest stays real."""

import re
from pathlib import Path

import chat_page
import pytest
from chat_page import CITATION, QUESTION, WAIT, Open, ask, event, made_up, reply
from playwright.sync_api import Page, expect

WEB = Path(__file__).parent.parent / "service" / "web"
ABSENT = "Who won the football World Cup in 1998?"
ENDLESS = "Tell me a long story about a lighthouse keeper and the sea."

browser = chat_page.browser
visit = chat_page.visit
open_page = chat_page.open_page


def test_the_page_builds_no_markup_from_text_and_loads_nothing_from_elsewhere() -> None:
    for path in WEB.iterdir():
        text = path.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            path
        )
        assert not re.search(r"https?://|@import\s+(?!\"tokens\.css\")|\burl\(", text), path
    page = (WEB / "index.html").read_text("utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=\"/static/)", page)
    for name in re.findall(r"/static/([\w.-]+)", page):
        assert (WEB / name).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_an_answer_streams_and_its_chip_opens_the_quoted_span(open_page: Open, server_url: str, width: int) -> None:
    page = open_page(width)
    card = ask(page, QUESTION)
    assert page.evaluate("states") == ["waiting", "streaming", "answered"]
    # Generation is greedy: the same question, asked past the page, has the same answer.
    done = page.request.post(
        f"{server_url.rstrip('/')}/ask", data={"question": QUESTION, "mode": "auto"}, timeout=WAIT
    ).json()
    assert done["citations"], "the question was chosen to be answered with a citation"
    assert re.sub(r"[\[\]]", "", done["answer"]).split() == card.locator(".answer-text").inner_text().split()
    assert card.locator(".sources li").count() == len(done["citations"])
    expect(card.locator(".facts")).to_contain_text(f"index generation {done['index_generation']}")

    chip = card.locator("button.chip").first
    citation = next(each for each in done["citations"] if str(each["n"]) == chip.inner_text())
    chip.click()
    mark = page.locator("#source-panel mark")
    expect(mark).to_have_text(citation["quote"], use_inner_text=False)
    expect(mark).to_be_in_viewport()
    expect(page.locator("#source-title")).to_be_focused()
    assert page.locator("#source-link").get_attribute("href") == citation["url"]
    page.keyboard.press("Escape")
    expect(page.locator("#source-panel")).to_be_hidden()
    expect(chip).to_be_focused()

    page.goto(server_url.rstrip("/") + citation["url"])
    expect(page.locator("mark#quote")).to_have_text(citation["quote"], use_inner_text=False)


@pytest.mark.slow
def test_a_refusal_is_calm_and_lists_what_was_searched(open_page: Open) -> None:
    page = open_page()
    card = ask(page, ABSENT, "refused")
    assert card.locator("button.chip").count() == 0
    expect(card.get_by_role("alert")).to_have_count(0)
    searched = card.get_by_role("group", name="Passages that were searched").get_by_role("button")
    searched.first.click()
    expect(page.locator("#source-panel mark")).not_to_be_empty()


@pytest.mark.slow
def test_stop_ends_the_request_and_keeps_what_was_written(open_page: Open) -> None:
    page = open_page()
    page.locator("label.mode", has_text="Base").click()
    page.get_by_label("Your question").fill(ENDLESS)
    page.get_by_role("button", name="Ask", exact=True).click()
    with page.expect_event("requestfailed") as dropped:
        page.get_by_role("button", name="Stop the answer").click()
    expect(page.locator(".turn .answer")).to_have_attribute("data-state", "stopped")
    assert dropped.value.url.endswith("/ask")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_visible()
    expect(page.get_by_label("Your question")).to_be_focused()


@pytest.mark.slow
def test_hostile_titles_and_answers_stay_text(open_page: Open) -> None:
    evil = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'
    place = {"document": evil, "title": evil, "chunk": "c", "page": None, "start": 0, "end": 5, "before": evil,
             "text": evil, "after": evil, "context": evil, "quote_start": 0, "quote_end": 9}  # fmt: skip
    document = {"id": "d", "document": evil, "title": evil, "format": "md", "chunks": 1, "pages": None, "corpus": "c"}
    documents = {"generation": 1, "documents": [document | {"characters": 9}]}

    def before(page: Page) -> None:
        citation = {**CITATION, "title": evil, "document": evil, "quote": evil, "url": "javascript:window.hit=1"}
        reply(page, event("token", {"text": evil}), event("done", made_up(f"{evil} [1]", [citation])))
        page.route("**/sources/**", lambda route: route.fulfill(json=place))
        page.route("**/documents", lambda route: route.fulfill(json=documents))

    page = open_page(before=before)
    card = ask(page, evil)
    expect(card.locator(".answer-text")).to_contain_text(evil)
    expect(page.locator("h2.question")).to_have_text(evil)
    card.locator("button.chip").click()
    expect(page.locator("#source-panel .reading")).to_contain_text(evil)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Documents", exact=True).click()
    expect(page.locator("#documents")).to_contain_text(evil)
    assert page.evaluate("window.hit") is None
    assert page.locator("img, body script, a[href^=javascript]").count() == 0


@pytest.mark.slow
def test_offsets_count_characters_not_utf_16_units(open_page: Open) -> None:
    place = {"document": "a.md", "title": "A", "chunk": "c", "page": 3, "start": 10, "end": 20, "before": "",
             "after": "", "text": "\U0001f680\U0001f680quote!", "context": "", "quote_start": 2,
             "quote_end": 7}  # fmt: skip

    def before(page: Page) -> None:
        reply(page, event("done", made_up("Yes [1] and [7].", [CITATION])))
        page.route("**/sources/**", lambda route: route.fulfill(json=place))

    page = open_page(before=before)
    card = ask(page, "?")
    expect(card.locator(".answer-text")).to_have_text("Yes 1 and [7].")  # no such source: no chip
    card.locator("button.chip").click()
    expect(page.locator("#source-panel mark")).to_have_text("quote")


@pytest.mark.slow
def test_each_marker_of_one_passage_opens_its_own_quote(open_page: Open) -> None:
    quotes = [{**CITATION, "start": start, "end": start + 1} for start in (3, 5)]

    def before(page: Page) -> None:
        reply(page, event("done", made_up("One [1]. Two [1].", quotes)))
        page.route("**/sources/**", lambda route: route.fulfill(status=404, json={}))

    page = open_page(errors="404", before=before)
    chips = ask(page, "?").locator("button.chip")
    for index, start in ((0, 3), (1, 5)):
        with page.expect_request(f"**/sources/c?start={start}&end={start + 1}"):
            chips.nth(index).click()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_scrolls_sideways(open_page: Open, width: int, scheme: str) -> None:
    long = "x" * 400
    citation = {**CITATION, "title": long, "document": f"{long}.md", "quote": long}

    def fits() -> bool:
        return bool(page.evaluate("[document.documentElement, ...document.querySelectorAll('.panel-body')]"
                                  ".every((box) => box.scrollWidth <= box.clientWidth)"))  # fmt: skip

    page = open_page(
        width, color_scheme=scheme, before=lambda page: reply(page, event("done", made_up(long, [citation])))
    )
    expect(page.locator(".example").first).to_be_enabled(timeout=WAIT)
    assert fits()
    card = ask(page, long)
    assert fits()
    card.locator("button.source").click(trial=True)
    page.get_by_role("button", name="Documents", exact=True).click()
    expect(page.locator("#documents li").first).to_be_visible()
    assert fits()


@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 390])
def test_everything_works_from_the_keyboard(open_page: Open, width: int) -> None:
    page = open_page(width)
    expect(page.locator(".example").first).to_be_enabled(timeout=WAIT)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # the skip link
    expect(page.get_by_label("Your question")).to_be_focused()
    page.keyboard.type(QUESTION)
    page.keyboard.press("Shift+Enter")
    assert page.get_by_label("Your question").input_value().endswith("\n")
    page.keyboard.press("Enter")
    expect(page.locator(".turn .answer")).to_have_attribute("data-state", "answered", timeout=WAIT)
    for _ in range(40):
        page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.matches('button.chip')"):
            break
    page.keyboard.press("Enter")
    expect(page.locator("#source-title")).to_be_focused()
    page.keyboard.press("Escape")
    expect(page.locator("#source-panel")).to_be_hidden()
    assert page.evaluate("document.activeElement.matches('button.chip')")
