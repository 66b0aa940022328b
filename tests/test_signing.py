"""Links that open a source without a key: each opens one source, for a while, with what its key may read by then."""

import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import MakeService
from fakes import HashingEmbedder
from starlette.testclient import TestClient
from test_gate import BASE, routes_of

from indexer.retrieval import Retriever
from service import signing
from service.api.app import create_app
from service.keys import create_key, revoke_key
from service.running import Service

TIDES = "How often does the moon raise the tides of the ocean?"
ANSWER = "The moon raises the tides twice a day [1]."
Make = Callable[..., tuple[Service, TestClient]]


@pytest.fixture
def make(make_service: MakeService) -> Iterator[Make]:
    clients: list[TestClient] = []

    def make(**settings: Any) -> tuple[Service, TestClient]:
        service = make_service(ANSWER, **({"link_minutes": 10, "groups": {"tides.md": ("sea",)}} | settings))
        clients.append(TestClient(create_app(service), base_url=BASE))
        return service, clients[-1]

    yield make
    for client in clients:
        client.close()


def cited(client: TestClient, key: str = "", **headers: str) -> str:
    """The address of the source that an answer cites, without the host."""
    given = headers | ({"Authorization": f"Bearer {key}"} if key else {})
    body = {"model": "tandem-rag", "messages": [{"role": "user", "content": TIDES}]}
    response = client.post("/v1/chat/completions", json=body, headers=given)
    assert response.status_code == 200, response.text
    address = urlsplit(response.json()["choices"][0]["message"]["annotations"][0]["url_citation"]["url"])
    assert address.fragment == "quote"
    return f"{address.path}?{address.query}"


def test_a_link_opens_its_source_and_nothing_else(make: Make) -> None:
    service, client = make()
    key, other = create_key(service.store, "anna", "user", ["sea"]), create_key(service.store, "root", "admin")
    link = cited(client, key)
    page = client.get(link, headers={"Accept": "text/html"})
    assert page.status_code == 200 and '<mark id="quote">The moon raises the tides' in page.text
    assert key not in link and client.get(link.partition("&until")[0]).status_code == 401
    values = parse_qs(link.partition("?")[2])
    signature = f"until={values['until'][0]}&code={values['code'][0]}"
    found = Retriever(service.store, HashingEmbedder()).retrieve("iron bread marmots", 4).passages
    others = [f"/sources/{passage.chunk.id}" for passage in found if passage.path != "tides.md"]
    assert others
    for path in (*others, "/sources/", f"/sources/{'0' * 16}"):
        assert client.get(f"{path}?{signature}").status_code == 401, path
    for method, path in routes_of(create_app(service).routes):
        if path not in ("/", "/healthz", "/readyz", "/static/{name}"):
            filled = re.sub(r"\{[^}]+\}", urlsplit(link).path.split("/")[2], path)
            expected = 200 if (method, path) == ("GET", "/sources/{chunk}") else 401
            assert client.request(method, f"{filled}?{signature}").status_code == expected, (method, path)
    wrong = {"Authorization": "Bearer tandem-wrong"}
    assert client.get(link, headers=wrong).status_code == 401, "a key that was given is the one that counts"
    assert client.get(link, headers={"Authorization": f"Bearer {other}"}).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        lambda text: re.sub(r"until=(\d+)", lambda match: f"until={int(match[1]) + 1}", text),
        lambda text: re.sub(r"until=(\d+)", r"until=0\1", text),
        lambda text: re.sub(r"until=\d+", "until=x", text),
        lambda text: re.sub(r"until=\d+", "until=9e99", text),
        lambda text: re.sub(r"code=.", "code=z", text),
        lambda text: re.sub(r"code=\w+", "code=", text),
        lambda text: re.sub(r"code=\w+", "code=%ff%00%F0%9F", text),
        lambda text: text[:-1],
        lambda text: text.replace("/sources/", "/sources/0"),
    ],
)
def test_a_link_that_was_changed_does_not_open(make: Make, change: Callable[[str], str]) -> None:
    service, client = make()
    link = cited(client, create_key(service.store, "anna", "user", ["sea"]))
    assert client.get(link).status_code == 200
    assert change(link) != link
    response = client.get(change(link))
    assert response.status_code == 401 and response.json()["error"]["code"] == "unauthorized"


def test_a_link_ends_with_its_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    service, client = make()
    link, now = cited(client, create_key(service.store, "anna", "user", ["sea"])), signing.time.time()
    monkeypatch.setattr(signing.time, "time", lambda: now + 595)
    assert client.get(link).status_code == 200
    monkeypatch.setattr(signing.time, "time", lambda: now + 601)
    assert client.get(link).status_code == 401


def test_a_shorter_time_ends_longer_links_too(make: Make) -> None:
    service, client = make()
    link = cited(client, create_key(service.store, "anna", "user", ["sea"]))
    assert make(link_minutes=10)[1].get(link).status_code == 200, "another process on the same home opens it"
    assert make(link_minutes=5)[1].get(link).status_code == 401
    assert make(link_minutes=0)[1].get(link).status_code == 401


def test_a_link_ends_with_its_key_and_the_groups_of_it(make: Make) -> None:
    service, client = make()
    create_key(service.store, "root", "admin")
    link = cited(client, create_key(service.store, "anna", "user", ["sea"]))
    with service.store.connection() as connection:
        connection.execute("UPDATE keys SET groups = '[]' WHERE name = 'anna'")
    assert client.get(link).status_code == 404, "as for every source that its key does not open"
    with service.store.connection() as connection:
        connection.execute("UPDATE keys SET groups = '[\"sea\"]', expires = '2020-01-01T00:00:00+00:00'")
    assert client.get(link).status_code == 401
    with service.store.connection() as connection:
        connection.execute("UPDATE keys SET expires = NULL")
    assert client.get(link).status_code == 200
    revoke_key(service.store, "anna")
    create_key(service.store, "anna", "user", ["sea"])
    assert client.get(link).status_code == 401, "the name alone is not the key"


def test_the_links_of_an_administrator_are_no_administrators(make: Make) -> None:
    service, client = make()
    link = cited(client, create_key(service.store, "root", "admin"))
    assert client.get(link).status_code == 200
    assert client.post("/reindex?" + link.partition("?")[2]).status_code == 401


@pytest.mark.parametrize("minutes", [0, 10])
def test_without_keys_or_without_the_setting_nothing_is_signed(make: Make, minutes: int) -> None:
    service, client = make(link_minutes=minutes, groups={})
    assert "code" not in cited(client), "there are no keys, so every address opens"
    key = create_key(service.store, "anna", "user")
    assert ("code" in cited(client, key)) == bool(minutes)


def test_the_footer_is_signed_too_and_no_log_line_holds_a_code(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    service, client = make(chat_sources="footer")
    key = create_key(service.store, "anna", "user", ["sea"])
    body = {"model": "tandem-rag", "messages": [{"role": "user", "content": TIDES}]}
    headers = {"Authorization": f"Bearer {key}"}
    text = client.post("/v1/chat/completions", json=body, headers=headers).json()["choices"][0]["message"]["content"]
    link = re.search(r"\((http\S+)\)", text)[1]
    with caplog.at_level("DEBUG"):
        assert client.get(link).status_code == 200
    code = parse_qs(urlsplit(link).query)["code"][0]
    ours = [record for record in caplog.records if record.name.startswith(("service", "indexer", "uvicorn"))]
    assert ours and code and code not in "".join(record.getMessage() + str(record.__dict__) for record in ours)
