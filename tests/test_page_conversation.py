"""The conversation of the chat page: follow-up questions, two modes side by side, adapters, refusals and feedback."""

import json
from collections.abc import Iterator
from typing import Any

import chat_page
import pytest
from chat_page import Open, ask, put_card, serving
from conftest import MakeService
from fakes import FixedAdapters, ScriptedGenerator
from playwright.sync_api import Page, Request, expect

from service.feedback import read_feedback
from service.running import Service

browser = chat_page.browser
visit = chat_page.visit

pytestmark = pytest.mark.slow
TIDES = "How often does the moon raise the tides of the ocean?"
TWICE = "The moon raises the tides twice a day [1]."
SPRING = "Spring tides come at full moon [1]."
EVIL = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'


@pytest.fixture
def generator() -> ScriptedGenerator:
    return ScriptedGenerator(f"{TWICE} {SPRING}", delay=0.01)


@pytest.fixture
def service(make_service: MakeService, generator: ScriptedGenerator) -> Service:
    made = make_service(generator, FixedAdapters(["sailor", "cook"]))
    for name in ("sailor", "cook"):
        put_card(made.settings.home, name)
    return made


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with serving(service) as found:
        yield found


def asked(page: Page) -> list[dict[str, Any]]:
    """The bodies of the questions that the page sends from now on."""
    bodies: list[dict[str, Any]] = []

    def note(request: Request) -> None:
        if request.url.endswith("/ask"):
            bodies.append(json.loads(request.post_data or "null"))

    page.on("request", note)
    return bodies


def test_a_follow_up_is_asked_with_the_conversation_and_says_what_was_searched(url: str, visit: Open) -> None:
    page = visit(url)
    bodies = asked(page)
    first = ask(page, TIDES)
    expect(first).not_to_contain_text("Searched for")  # it was what was typed
    second = ask(page, "And in a day?")
    expect(second.locator(".searched-for q")).to_have_text(f"{TIDES} And in a day?")
    turns = [{"role": "user", "content": TIDES}, {"role": "assistant", "content": f"{TWICE} {SPRING}"}]
    assert [body["history"] for body in bodies] == [[], turns]

    first.page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".turn")).to_have_count(0)
    ask(page, TIDES)
    assert bodies[-1]["history"] == []


def test_a_retry_sends_the_turns_before_it_and_an_unanswered_one_is_left_out(url: str, visit: Open) -> None:
    page = visit(url, errors="503")
    bodies = asked(page)
    page.route("**/ask", lambda route: route.fulfill(status=503, json={}))
    ask(page, TIDES, "failed")
    page.unroute("**/ask")
    ask(page, TIDES)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".turn").first.locator(".answer")).to_have_attribute("data-state", "answered")
    ask(page, TIDES)
    assert [len(body["history"]) for body in bodies] == [0, 0, 0, 4]


def test_history_is_cut_to_what_the_service_takes(url: str, visit: Open) -> None:
    page = visit(url)
    kept = page.evaluate("""async () => {
      const { historyOf } = await import("/static/history.js");
      const said = (n) => (n === 4 ? null : "\\u6f6e".repeat(900));
      const turns = [...Array(6)].map((_, n) => ({ question: n + "\\u{1F680}".repeat(99), said: () => said(n) }));
      const limits = { most: 8, characters: 50, bytes: 65536 };
      const changes = [{}, { most: 3 }, { characters: 900, bytes: 8192 }, { most: 0 }];
      return changes.map((each) => historyOf(turns, "q", { ...limits, ...each }));
    }""")
    assert [[each["content"][0] for each in some if each["role"] == "user"] for some in kept] == [
        ["1", "2", "3", "5"], ["5"], ["3", "5"], []]  # fmt: skip
    assert {len(each["content"]) for each in kept[0]} == {50}
    assert len(json.dumps(kept[2], ensure_ascii=False).encode()) < 8192


def test_two_modes_answer_side_by_side_one_after_the_other(
    url: str, visit: Open, generator: ScriptedGenerator, service: Service
) -> None:
    service.answerer.adapters.chosen = "sailor"  # type: ignore[attr-defined]
    page = visit(url)
    bodies = asked(page)
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("radio", name="Auto")).to_have_count(0)
    assert [page.get_by_label(name).input_value() for name in ("First mode", "Second mode")] == ["rag", "rag+tuned"]
    page.get_by_label("First mode").select_option("tuned")
    ask(page, TIDES)
    expect(page.locator(".tradeoff")).to_be_visible()
    assert [body["mode"] for body in bodies] == ["tuned", "rag+tuned"]
    assert generator.adapters == ["sailor", "sailor"] and generator.most_busy == 1
    left, right = page.locator(".answer").all()
    expect(left.get_by_role("heading", name="Tuned")).to_be_visible()
    assert left.locator(".chip").count() == 0 and right.locator("button.chip").count() == 2
    cells = page.locator(".tradeoff tbody tr").evaluate_all(
        "rows => rows.map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    found = {name: values for name, *values in cells}
    tokens = [str(len(prompt.ids)) for prompt in generator.prompts]
    assert found["Citations"] == ["0", "2"] and found["Tokens in"] == tokens and found["Retrieval"][0] == "none"
    for card, prompt in zip((left, right), tokens, strict=True):
        expect(card.locator(".facts")).to_contain_text(f"{prompt} tokens in")
    places = [card.bounding_box() or {} for card in (left, right)]
    assert places[0]["y"] == places[1]["y"] and places[0]["x"] < places[1]["x"]

    # The conversation goes on with the answer on the left.
    ask(page, "And in a day?")
    assert bodies[-1]["history"][1]["content"] == left.locator(".answer-text").inner_text().replace("\xa01", " [1]")


def test_both_stream_and_stop_ends_both(url: str, visit: Open, generator: ScriptedGenerator) -> None:
    generator.script, generator.delay = f"{TWICE} " * 200, 0.02
    page = visit(url, 390)
    bodies = asked(page)
    page.get_by_role("button", name="Compare").click()
    page.get_by_label("Your question").fill(TIDES)
    page.keyboard.press("Enter")
    left, right = page.locator(".answer").first, page.locator(".answer").last
    expect(left).to_have_attribute("data-state", "streaming")
    expect(right).to_contain_text("Waiting for the other answer")
    page.get_by_role("button", name="Stop the answer").click()
    for card in (left, right):
        expect(card).to_have_attribute("data-state", "stopped")
    assert len(bodies) == 1 and page.locator(".tradeoff").count() == 0
    expect(left).to_contain_text("twice a day")
    generator.script, generator.delay = TWICE, 0.0
    right.get_by_role("button", name="Ask again").click()
    expect(page.locator(".tradeoff")).to_be_visible()


def test_the_same_mode_cannot_stand_on_both_sides(url: str, visit: Open) -> None:
    page = visit(url)
    page.get_by_role("button", name="Compare").click()
    assert page.get_by_label("First mode").input_value() == "base"  # no adapter is active
    page.get_by_label("First mode").select_option("rag")
    assert page.get_by_label("Second mode").input_value() == "base"
    expect(page.get_by_label("Second mode").locator("option:disabled")).to_have_text(
        ["RAG + tuned (not available)", "Tuned (not available)"]
    )


def test_an_adapter_is_chosen_for_the_modes_that_use_one(
    url: str, visit: Open, generator: ScriptedGenerator, service: Service
) -> None:
    put_card(service.settings.home, "old", documents=[{"id": "0", "path": "gone.md", "hash": "0"}])
    page = visit(url)
    bodies = asked(page)
    expect(page.get_by_role("radio", name="Tuned , not available: The mode tuned")).to_be_disabled()
    assert {"cook", "old (stale)", "sailor"} <= set(page.locator("select#adapter").locator("option").all_inner_texts())
    page.locator("select#adapter").select_option("cook")
    page.get_by_role("radio", name="Tuned", exact=True).check()
    expect(ask(page, TIDES).locator(".facts")).to_contain_text("adapter cook")
    page.locator("label.mode", has_text="Base").click()
    expect(ask(page, TIDES).locator(".facts")).to_contain_text("no adapter")
    assert generator.adapters == ["cook", None]
    assert [body.get("adapter") for body in bodies] == ["cook", None]


@pytest.mark.parametrize(
    ("question", "script", "why"),
    [
        ("Who won the football match?", "", "so the model was not asked"),
        (TIDES, "The documents do not say.", "found no answer in them"),
        (TIDES, "Cheese is made of the finest yellow moonlight by robots [1].", "is not supported"),
    ],
)
def test_a_refusal_says_why_and_what_was_searched(
    url: str, visit: Open, generator: ScriptedGenerator, question: str, script: str, why: str
) -> None:
    generator.script = script
    card = ask(visit(url), question, "refused")
    expect(card).to_contain_text(why)
    expect(card.locator(".searched-for q")).to_have_text(question)
    expect(card.get_by_role("alert")).to_have_count(0)


def test_a_thumb_is_kept_with_its_answer(url: str, visit: Open, service: Service) -> None:
    page = visit(url)
    ids: list[str] = []
    page.on("response", lambda r: ids.append(r.headers["x-request-id"]) if r.url.endswith("/ask") else None)
    card = ask(page, TIDES)
    card.get_by_role("button", name="Good answer").click()
    expect(card.get_by_text("Thank you")).to_be_focused()
    expect(card.get_by_role("button", name="Bad answer")).to_have_count(0)  # one opinion an answer
    (kept,) = read_feedback(service.settings.home, 0, 10)
    opinion = kept.opinion
    assert (opinion.question, opinion.vote, opinion.mode, opinion.request_id) == (TIDES, "up", "rag", ids[0])
    assert opinion.answer == f"{TWICE} {SPRING}"
    assert "tides.md" in opinion.documents and opinion.citations[0]["quote"]


def test_a_bad_answer_is_corrected_and_what_fails_can_be_sent_again(url: str, visit: Open, service: Service) -> None:
    page = visit(url, errors="503")
    card = ask(page, TIDES)
    down = card.get_by_role("button", name="Bad answer")
    down.click()
    page.keyboard.press("Escape")
    expect(down).to_be_focused()
    expect(down).to_have_attribute("aria-expanded", "false")
    down.click()
    card.get_by_label("The right answer").fill("Twice a day and a bit.")
    card.get_by_label("What is wrong").fill("Too short.")
    error = {"error": {"code": "unavailable", "message": "The disk is full.", "do": "Free some space."}}
    page.route("**/feedback", lambda route: route.fulfill(status=503, json=error))
    card.get_by_role("button", name="Send").click()
    expect(card.get_by_role("alert")).to_contain_text("The disk is full.")
    assert list(read_feedback(service.settings.home, 0, 10)) == []
    page.unroute("**/feedback")
    card.get_by_role("button", name="Try again").click()
    expect(card.get_by_text("Thank you")).to_be_visible()
    (kept,) = read_feedback(service.settings.home, 0, 10)
    opinion = kept.opinion
    assert (opinion.vote, opinion.corrected_answer, opinion.comment) == ("down", "Twice a day and a bit.", "Too short.")


def test_a_document_that_attacks_the_page_stays_text_everywhere(
    url: str, visit: Open, generator: ScriptedGenerator
) -> None:
    text, name = f"The password of the lighthouse is heron. {EVIL}\n", "<img src=x onerror=alert()>.txt"
    generator.script = "The password of the lighthouse is heron [1]."
    page = visit(url)
    page.get_by_role("button", name="Documents", exact=True).click()
    expect(page.get_by_role("button", name="Upload")).to_be_visible()
    page.locator("#files").set_input_files({"name": name, "mimeType": "text/plain", "buffer": text.encode()})
    expect(page.locator("#documents")).to_contain_text(name)
    page.keyboard.press("Escape")
    card = ask(page, "What is the password of the lighthouse?")
    card.locator("button.chip").click()
    expect(page.locator("#source-panel .reading")).to_contain_text(EVIL)
    expect(page.locator("#source-title")).to_contain_text("onerror")
    with page.expect_popup() as popup:
        page.get_by_role("link", name="Open whole document page").click()
    expect(popup.value.locator(".document")).to_contain_text(EVIL)
    for shown in (page, popup.value):
        assert shown.evaluate("window.hit") is None
        assert shown.locator("img, body script, b").count() == 0


def test_a_rate_that_is_used_up_says_when_to_come_back(visit: Open, make_service: MakeService) -> None:
    with serving(make_service(TWICE, rate="1/minute")) as url:
        page = visit(url, errors="429")
        ask(page, TIDES)
        alert = ask(page, TIDES, "failed").get_by_role("alert")
        expect(alert).to_contain_text("It can be tried again in ")


def test_the_policy_lets_no_other_script_run(url: str, visit: Open) -> None:
    page = visit(url, errors="olicy")
    page.evaluate("""() => {
      const inline = document.createElement("script");
      inline.textContent = "window.hit = 1";
      document.body.append(inline);
      const frame = document.createElement("iframe");
      frame.src = "data:text/html,x";
      document.body.append(frame);
    }""")
    assert page.evaluate("window.hit") is None
    policy = page.request.get(url).headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
