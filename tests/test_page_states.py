"""The chat page when things are not ready, not allowed, lost or under way."""

from typing import Any

import chat_page
import pytest
from chat_page import QUESTION, WAIT, Open, ask, event, made_up, reply
from playwright.sync_api import Page, Route, expect

browser = chat_page.browser
visit = chat_page.visit
open_page = chat_page.open_page

pytestmark = pytest.mark.slow
BUSY = {"error": {"code": "unavailable", "message": "The queue is full.", "expected": "At most 16 wait.",
                  "do": "Try again soon.", "request_id": "r"}}  # fmt: skip
LOCKED = {"error": {"code": "unauthorized", "message": "Key needed.", "expected": "", "do": "", "request_id": "r2"}}


def job(state: str, **values: Any) -> dict[str, Any]:
    counts = {"added": 0, "changed": 0, "renamed": 0, "deleted": 0, "unchanged": 0, "failed": 0}
    return {"id": "j1", "kind": "reindex", "state": state, "stage": "read", "counts": counts, "done": 1, "total": 4,
            "current": "b.md", "eta_seconds": 8.0, "failures": [], "started": "", "finished": None, "error": None,
            "generation": None} | values  # fmt: skip


def test_asking_waits_until_the_server_is_ready_and_says_why(open_page: Open) -> None:
    looks: list[int] = []

    def readiness(route: Route) -> None:
        looks.append(1)
        if len(looks) < 3:
            route.fulfill(status=503, json={"status": "loading", "reason": "The weights are being fetched."})
        else:
            route.continue_()

    page = open_page(errors="503", before=lambda page: page.route("**/readyz", readiness))
    expect(page.locator("#notice")).to_have_text("Getting ready: The weights are being fetched.")
    page.get_by_label("Your question").fill("Now?")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_disabled()
    page.keyboard.press("Enter")
    expect(page.locator(".turn")).to_have_count(0)
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled(timeout=WAIT)
    expect(page.locator("#notice")).to_be_hidden()


def test_an_error_shows_its_three_parts_and_the_same_question_can_be_tried_again(open_page: Open) -> None:
    page = open_page(errors="503", before=lambda page: page.route("**/ask", lambda r: r.fulfill(status=503, json=BUSY)))
    card = ask(page, "Busy?", "failed")
    for part in ("The queue is full.", "At most 16 wait.", "Try again soon."):
        expect(card.get_by_role("alert")).to_contain_text(part)
    page.unroute("**/ask")
    reply(page, event("error", BUSY))
    card.get_by_role("button", name="Try again").click()
    expect(card.get_by_role("alert")).to_contain_text("The queue is full.")  # an error inside the stream as well
    page.unroute("**/ask")
    reply(page, event("token", {"text": "Yes."}), event("done", made_up("Yes.", [])))
    card.get_by_role("button", name="Try again").click()
    expect(card).to_have_attribute("data-state", "answered")
    assert page.locator(".turn").count() == 1


def test_a_lost_connection_is_told_and_keeps_what_had_arrived(open_page: Open) -> None:
    page = open_page(errors="net::ERR", before=lambda page: reply(page, event("token", {"text": "Half an ans"})))
    card = ask(page, "Cut?", "failed")
    expect(card).to_contain_text("Half an ans")
    expect(card.get_by_role("alert")).to_contain_text("The connection was lost")
    page.unroute("**/ask")
    page.route("**/ask", lambda route: route.abort())
    card.get_by_role("button", name="Try again").click()
    expect(card.get_by_role("alert")).to_contain_text("cannot be reached")


def test_a_server_with_keys_asks_for_one_and_goes_on_with_the_request(open_page: Open) -> None:
    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer right":
            route.fulfill(content_type="text/event-stream", body=event("done", made_up("Let in.", [])))
        else:
            route.fulfill(status=401, json=LOCKED)

    page = open_page(errors="401", before=lambda page: page.route("**/ask", guard))
    page.get_by_label("Your question").fill("May I?")
    expect(page.get_by_role("button", name="Ask", exact=True)).to_be_enabled(timeout=WAIT)
    page.keyboard.press("Enter")
    page.get_by_label("Key", exact=True).fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_text("That key was not accepted.")).to_be_visible()
    page.get_by_label("Key", exact=True).fill("right")
    page.keyboard.press("Enter")
    expect(page.locator(".turn .answer")).to_contain_text("Let in.")
    assert page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]


def test_with_a_key_the_document_page_opens_in_its_own_tab_with_the_quote(open_page: Open) -> None:
    page = open_page()
    page.evaluate("sessionStorage.setItem('tandem.key', 'mine')")
    sent: list[str | None] = []
    page.on("request", lambda request: sent.append(request.headers.get("authorization")))
    ask(page, QUESTION).locator("button.chip").first.click()
    quote = page.locator("#source-panel mark").text_content()
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Open whole document page").click()
    mark = popup.value.locator("mark#quote")
    expect(mark).to_have_text(quote or "never", use_inner_text=False)
    expect(mark).to_have_css("border-radius", "3px")  # the style sheet came too
    expect(mark).to_be_in_viewport()
    assert popup.value.url == "about:blank"  # a link of its own could not have sent the key
    assert sent[-1] == "Bearer mine"


def test_a_passage_that_has_gone_leaves_its_quote(open_page: Open) -> None:
    def before(page: Page) -> None:
        reply(page, event("done", made_up("Yes [1].", [chat_page.CITATION])))
        page.route("**/sources/**", lambda route: route.fulfill(status=404, json=BUSY))

    page = open_page(errors="404", before=before)
    ask(page, "Where?").locator("button.chip").click()
    expect(page.locator("#source-panel mark")).to_have_text("quote")
    expect(page.locator("#source-panel").get_by_role("alert")).to_be_visible()


def test_modes_that_cannot_be_used_are_disabled_with_their_reason(open_page: Open) -> None:
    modes = [
        {"name": "rag", "available": True, "reason": ""},
        {"name": "tuned", "available": False, "reason": "no adapter"},
    ]
    page = open_page(
        before=lambda page: page.route("**/modes", lambda r: r.fulfill(json={"default": "rag", "modes": modes}))
    )
    expect(page.get_by_role("radio", name="RAG")).to_be_checked()
    expect(page.get_by_role("radio", name="Tuned")).to_be_disabled()
    page.locator("label.mode", has_text="Tuned").hover()
    expect(page.locator("#mode-hint")).to_have_text("Tuned is not available: no adapter")


def test_reindexing_runs_to_its_end(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("button", name="Documents", exact=True).click()
    expect(page.locator("#documents li .path").first).to_be_visible(timeout=WAIT)
    page.get_by_role("button", name="Re-index").click()
    expect(page.locator("#job")).to_have_attribute("data-state", "done", timeout=WAIT)
    expect(page.locator("#job")).to_contain_text("unchanged")
    expect(page.get_by_role("button", name="Re-index")).to_be_enabled()


def test_a_job_under_way_is_found_followed_and_can_be_cancelled(open_page: Open) -> None:
    failures = [{"document": "locked.pdf", "reason": "It is encrypted."}]
    state = {"now": job("running", failures=failures)}

    def one(route: Route) -> None:
        if route.request.method == "DELETE":
            state["now"] = job("cancelled", failures=failures)
        route.fulfill(json=state["now"])

    def before(page: Page) -> None:
        page.route("**/jobs", lambda route: route.fulfill(json={"jobs": [state["now"]]}))
        page.route("**/jobs/j1", one)
        page.route("**/jobs/j1/events", lambda route: route.fulfill(
            content_type="text/event-stream", body=": ping\n\n" + event("job", state["now"])))  # fmt: skip

    page = open_page(before=before)
    page.get_by_role("button", name="Documents", exact=True).click()
    view = page.locator("#job")
    for text in ("Reading documents", "1 of 4 documents, about 8 s left", "b.md", "It is encrypted."):
        expect(view).to_contain_text(text)
    assert view.get_by_role("progressbar").evaluate("(bar) => bar.value / bar.max") == 0.25
    view.get_by_role("button", name="Cancel").click()
    expect(view).to_contain_text("Indexing was cancelled")


def test_a_new_conversation_keeps_nothing(open_page: Open) -> None:
    page = open_page(before=lambda page: reply(page, event("done", made_up("Secret.", []))))
    ask(page, "Keep this?")
    page.get_by_role("button", name="New conversation").click()
    expect(page.get_by_role("heading", name="Ask your documents")).to_be_visible()
    assert "Keep this?" not in page.content() and page.get_by_role("button", name="New conversation").count() == 0


def test_the_theme_switch_outlives_a_reload(open_page: Open) -> None:
    page = open_page(color_scheme="light")
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Switch to the dark theme").click()
    dark = page.evaluate(ground)
    assert dark != light
    page.reload()
    assert page.evaluate(ground) == dark
