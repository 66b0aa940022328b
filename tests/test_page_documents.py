"""The documents panel of the chat page: uploading, replacing, deleting, indexing under way, and who may do it."""

import threading
from collections.abc import Iterator
from typing import Any

import chat_page
import pytest
from chat_page import Open, ask, serving
from conftest import MakeService
from fakes import HashingEmbedder
from playwright.sync_api import Locator, Page, Route, expect

from indexer.embedding import Vectors
from service.keys import create_key
from service.running import Service
from service.uploads import list_uploads

browser = chat_page.browser
visit = chat_page.visit

pytestmark = pytest.mark.slow
GEESE = {"name": "geese.md", "mimeType": "text/markdown", "buffer": b"# Geese\n\nGeese fly south in a wedge.\n"}


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service("Geese fly south in a wedge [1].", upload_bytes=2048)


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with serving(service) as found:
        yield found


def open_documents(page: Page) -> Locator:
    page.get_by_role("button", name="Documents", exact=True).click()
    expect(page.locator("#documents li").first).to_be_visible()
    return page.locator("#index-panel")


def upload(page: Page, *files: Any) -> None:
    expect(page.get_by_role("button", name="Upload")).to_be_visible()  # the page knows that it may
    page.locator("#files").set_input_files(list(files))


def test_a_list_that_was_not_told_yet_is_not_called_empty(url: str, visit: Open) -> None:
    waiting: list[Route] = []
    page = visit(url, before=lambda page: page.route("**/documents", lambda route: waiting.append(route)))
    page.get_by_role("button", name="Documents", exact=True).click()
    expect(page.get_by_role("button", name="Upload")).to_be_visible()
    expect(page.locator("#documents li")).to_have_count(0)
    for route in waiting:
        route.continue_()
    expect(page.locator("#documents li")).to_have_count(4)


def test_a_document_is_uploaded_asked_about_replaced_and_deleted(url: str, visit: Open, service: Service) -> None:
    page = visit(url)
    panel = open_documents(page)
    with page.expect_file_chooser() as chooser:
        panel.get_by_role("button", name="Upload").click()
    chooser.value.set_files([GEESE])
    row = panel.locator("#documents li", has_text="geese.md")
    expect(row).to_contain_text("uploaded")
    expect(panel.locator("#job")).to_contain_text("1 added")
    expect(panel.locator("#uploads li")).to_have_count(0)
    expect(page.locator("#status-text")).to_have_text("5 documents")
    assert panel.get_by_role("button", name="Delete").count() == 1, "those of a folder cannot be deleted"
    expect(ask(page, "How do geese fly south?").locator(".source-meta")).to_contain_text("geese.md")

    upload(page, GEESE | {"buffer": b"# Geese and cranes\n\nCranes fly south in a wedge.\n"})
    expect(row.locator(".document-title")).to_have_text("Geese and cranes")

    row.get_by_role("button", name="Delete geese.md").click()
    expect(row.get_by_role("button", name="Keep it")).to_be_focused()
    page.keyboard.press("Enter")
    expect(row.get_by_role("button", name="Delete geese.md")).to_be_focused()
    page.keyboard.press("Enter")
    row.get_by_role("button", name="Delete", exact=True).click()
    expect(row).to_have_count(0)
    assert list_uploads(service.settings.home) == []


def test_of_several_files_those_that_cannot_be_stored_say_why(url: str, visit: Open, service: Service) -> None:
    page = visit(url, errors="422")
    panel = open_documents(page)
    big = GEESE | {"name": "big.md", "buffer": b"x" * 3000}
    program = GEESE | {"name": "program.exe"}
    upload(page, big, program, GEESE)
    lines = panel.locator("#uploads li")
    expect(lines.filter(has_text="big.md")).to_contain_text("it has 3 kB, and at most 2 kB can be uploaded")
    expect(lines.filter(has_text="program.exe")).to_contain_text("A file of this type cannot be uploaded.")
    expect(panel.locator("#documents li", has_text="geese.md")).to_have_count(1)
    expect(lines).to_have_count(2)
    assert list_uploads(service.settings.home) == ["geese.md"]


def test_files_are_dropped_on_the_panel(url: str, visit: Open) -> None:
    page = visit(url)
    panel = open_documents(page)
    files = page.evaluate_handle("""() => {
      const data = new DataTransfer();
      data.items.add(new File(["# Geese\\n\\nGeese fly."], "dropped.md"));
      return data;
    }""")
    panel.dispatch_event("dragover", {"dataTransfer": files})
    expect(panel).to_have_attribute("data-drop", "")
    panel.dispatch_event("drop", {"dataTransfer": files})
    expect(panel.locator("#documents li", has_text="dropped.md")).to_have_count(1)


class HeldEmbedder(HashingEmbedder):
    """Embeds documents only once it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = threading.Event()

    def embed_documents(self, texts: Any) -> Vectors:
        assert self.go.wait(30)
        return super().embed_documents(texts)


def test_indexing_is_followed_and_cancelled_and_what_was_stored_stays(url: str, visit: Open, service: Service) -> None:
    embedder = HeldEmbedder()
    service.answerer.retriever.embedder = embedder
    page = visit(url)
    panel = open_documents(page)
    upload(page, GEESE)
    job = panel.locator("#job")
    expect(job).to_have_attribute("data-state", "running")
    expect(job.get_by_role("progressbar")).to_be_visible()
    expect(panel.locator("#uploads li")).to_contain_text("Stored. Being indexed.")
    expect(panel.get_by_role("button", name="Re-index")).to_be_disabled()
    job.get_by_role("button", name="Cancel").click()
    page.wait_for_timeout(200)
    embedder.go.set()
    expect(job).to_contain_text("Indexing was cancelled")
    expect(panel.locator("#uploads li")).to_contain_text("not indexed yet. Re-index to take it up.")
    expect(panel.locator("#documents li", has_text="geese.md")).to_have_count(0)
    panel.get_by_role("button", name="Re-index").click()
    expect(panel.locator("#documents li", has_text="geese.md")).to_have_count(1)


def test_a_job_that_another_page_started_is_found(url: str, visit: Open, service: Service) -> None:
    embedder = HeldEmbedder()
    service.answerer.retriever.embedder = embedder
    first = visit(url)
    open_documents(first)
    upload(first, GEESE)
    expect(first.locator("#job")).to_have_attribute("data-state", "running")
    second = visit(url, 390)
    panel = open_documents(second)
    expect(panel.locator("#job")).to_have_attribute("data-state", "running")
    embedder.go.set()
    for page in (first, second):
        expect(page.locator("#documents li", has_text="geese.md")).to_have_count(1)


def test_a_user_sees_why_and_an_administrator_says_who_may_read(url: str, visit: Open, service: Service) -> None:
    keys = {"user": create_key(service.store, "uma", "user"), "admin": create_key(service.store, "ada", "admin")}

    def enter(role: str) -> None:
        page.get_by_label("Key", exact=True).fill(keys[role])
        page.keyboard.press("Enter")

    page = visit(url, errors="401")
    enter("user")
    panel = open_documents(page)
    expect(panel.locator("#not-admin")).to_contain_text("need an administrator's key")
    for name in ("Upload", "Re-index"):
        expect(panel.get_by_role("button", name=name)).to_have_count(0)
    expect(panel.get_by_text("This tab has a user's key.")).to_be_visible()

    panel.locator("#not-admin").get_by_role("button", name="Use another key").click()
    expect(page.get_by_text("That key was not accepted.")).to_be_hidden()
    enter("admin")
    expect(panel.locator("#not-admin")).to_be_hidden()
    panel.get_by_label("Groups that may read").fill("hr, board")
    upload(page, GEESE)
    expect(panel.locator("#documents li", has_text="geese.md")).to_contain_text("only for hr or board")

    panel.locator("#key-row").get_by_role("button", name="Use another key").click()
    enter("user")
    expect(panel.locator("#documents li", has_text="geese.md")).to_have_count(0)
    expect(panel.locator("#documents li", has_text="tides.md")).to_have_count(1)

    panel.get_by_role("button", name="Forget it").click()
    expect(page.get_by_role("heading", name="Access key")).to_be_visible()
    assert "tides.md" not in page.content() and page.evaluate("sessionStorage.length") == 0


def test_where_nothing_may_be_read_the_page_says_so(visit: Open, make_service: MakeService) -> None:
    service = make_service("", groups={"*": ["hr"]})
    key = create_key(service.store, "uma", "user")
    with serving(service) as url:
        page = visit(url, errors="401")
        page.get_by_label("Key", exact=True).fill(key)
        page.keyboard.press("Enter")
        expect(page.get_by_text("nothing that your key opens")).to_be_visible()
        expect(page.locator(".example")).to_have_count(0)
        open_documents(page)
        expect(page.locator("#documents .empty")).to_contain_text("An administrator can add some.")
