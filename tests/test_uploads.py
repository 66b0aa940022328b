"""Uploading, replacing and deleting documents over HTTP, and what bad uploads meet."""

import json
import os
import signal
import subprocess
import sys
import threading
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from conftest import MakeService
from fakes import wait_until
from starlette.testclient import TestClient
from test_gate import BASE, error

from indexer.errors import TandemError
from indexer.outcome import Cancelled, Outcome
from indexer.store import Store
from service.api.app import create_app
from service.jobs import FINAL
from service.keys import create_key
from service.running import Service
from service.uploads import check_name, list_uploads, uploads_folder

LIMIT = 2048


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service("Hm.", upload_bytes=LIMIT, body_bytes=1024)


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), base_url=BASE) as made:
        yield made


def upload(client: TestClient, name: str, text: str | bytes, groups: str | None = None, key: str = "") -> Any:
    data = {} if groups is None else {"groups": groups}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return client.post("/documents", files={"file": (name, text)}, data=data, headers=headers)


def finished(service: Service, response: Any) -> dict[str, Any]:
    assert response.status_code == 202, response.text
    job = response.json()["job"]["id"]
    wait_until(lambda: service.jobs.get(job)["state"] in FINAL, seconds=20)
    found = service.jobs.get(job)
    assert found["state"] == "done", found
    return found


def documents(client: TestClient, key: str = "") -> dict[str, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return {item["document"]: item for item in client.get("/documents", headers=headers).json()["documents"]}


def found(client: TestClient, question: str, key: str = "") -> dict[str, str]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    passages = client.get("/search", params={"question": question, "k": 50}, headers=headers).json()
    return {item["document"]: item["text"] for item in passages}


def test_add_replace_and_delete(client: TestClient, service: Service) -> None:
    before = set(documents(client))
    response = upload(client, "geese.md", "# Geese\n\nGeese fly in a wedge.")
    assert {**response.json(), "job": None} == {"document": "geese.md", "replaced": False, "groups": [], "job": None}
    assert finished(service, response)["counts"]["added"] == 1
    listed = documents(client)
    assert set(listed) == before | {"geese.md"}
    assert [name for name, item in listed.items() if item["uploaded"]] == ["geese.md"]
    assert "wedge" in found(client, "How do geese fly?")["geese.md"]

    response = upload(client, "geese.md", "# Geese\n\nGeese fly in a long line.")
    assert response.json()["replaced"] is True
    assert finished(service, response)["counts"]["changed"] == 1
    assert "long line" in found(client, "How do geese fly?")["geese.md"]
    assert set(documents(client)) == before | {"geese.md"}, "replaced, not doubled"

    response = client.delete(f"/documents/{documents(client)['geese.md']['id']}")
    assert response.json()["document"] == "geese.md"
    assert finished(service, response)["counts"]["deleted"] == 1
    assert set(documents(client)) == before and "geese.md" not in found(client, "How do geese fly?")
    assert os.listdir(uploads_folder(service.settings.home)) == []
    assert error(client.delete("/documents/geese.md"))["code"] == "not_found"


def test_a_document_of_a_folder_is_not_deleted(client: TestClient, library: Path) -> None:
    response = client.delete(f"/documents/{documents(client)['tides.md']['id']}")
    assert response.status_code == 409 and "/reindex" in error(response)["do"]
    assert (library / "corpus" / "tides.md").is_file()


def test_an_upload_that_cannot_be_read_is_a_failure_of_the_job_and_can_be_deleted(
    client: TestClient, service: Service
) -> None:
    job = finished(service, upload(client, "cut.pdf", b"%PDF-1.7\nnothing"))
    assert [failure["document"] for failure in job["failures"]] == ["cut.pdf"]
    assert client.delete("/documents/cut.pdf").status_code == 202
    assert list_uploads(service.settings.home) == []


@pytest.mark.parametrize(
    "name",
    [
        *("", " ", ".", "..", ".hidden.md", "../up.md", "a/b.md", "a\\b.md", "/etc/passwd.md", "end.md."),
        *("a\u202egnp.md", "a\u200bb.md", "a\x7fb.md", "a\u2028b.md", "a\ue000.md"),
        *("program.exe", "noending", "x.pairs.jsonl", "a" * 300 + ".md", "é" * 150 + ".md"),
    ],
)
def test_names_that_are_refused(client: TestClient, service: Service, name: str) -> None:
    with pytest.raises(TandemError) as caught:
        check_name(name, service.settings)
    assert name.strip() in ("", ".", "..", "/") or name not in str(caught.value), "what was sent is not echoed"
    response = upload(client, name, "Text.")
    assert response.status_code in (413, 422) and error(response)["message"]
    assert list_uploads(service.settings.home) == [] and service.jobs.list() == []


def test_names_with_nul_and_lone_surrogates(service: Service) -> None:
    # Clients and the form's parser change these on the way.
    for name in ("C:\\x.md", "a\tb.md", "a\x00b.md", "a\udc80.md", "a\n.md", "a\r.md"):
        with pytest.raises(TandemError, match="name of the file"):
            check_name(name, service.settings)


def test_names_are_composed_and_differ_in_more_than_case(client: TestClient, service: Service) -> None:
    decomposed = unicodedata.normalize("NFD", "Gänse 鳥 #1.md")
    assert finished(service, upload(client, decomposed, "Geese."))["counts"]["added"] == 1
    assert list_uploads(service.settings.home) == [unicodedata.normalize("NFC", decomposed)]
    response = upload(client, "gänse 鳥 #1.md", "Geese.")
    assert response.status_code == 409 and error(response)["code"] == "conflict"


def test_sizes(client: TestClient, service: Service) -> None:
    assert upload(client, "full.txt", "x " * (LIMIT // 2)).status_code == 202
    response = upload(client, "over.txt", "x" * (LIMIT + 1))
    assert response.status_code == 413 and f"{LIMIT:,}" in error(response)["expected"]
    response = upload(client, "far.txt", "x" * 200_000)
    assert response.status_code == 413 and error(response)["code"] == "too_large"
    response = upload(client, "none.txt", "")
    assert response.status_code == 422 and "empty" in error(response)["message"]
    assert os.listdir(uploads_folder(service.settings.home)) == ["full.txt"]


def test_a_large_body_is_for_uploads_only(client: TestClient) -> None:
    for method, path in (("POST", "/ask"), ("POST", "/feedback"), ("DELETE", "/documents/x"), ("POST", "/documents/")):
        response = client.request(method, path, content=b"x" * 1500, headers={"Content-Type": "application/json"})
        assert response.status_code == 413, (method, path)


def test_a_body_without_its_length_is_cut_off(client: TestClient, service: Service) -> None:
    def parts() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
        for _ in range(1000):
            yield b"x" * 1000

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    response = client.post("/documents", content=parts(), headers=headers)
    assert response.status_code == 413 and error(response)["code"] == "too_large"
    assert list_uploads(service.settings.home) == []


PART = b'--x\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
FILE = PART % (b"file", b'; filename="a.txt"', b"Text.")
MULTIPART = "multipart/form-data; boundary=x"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("", b"x"),
        ("multipart/form-data", FILE + b"--x--\r\n"),
        ("multipart/form-data; boundary=", FILE + b"--x--\r\n"),
        ("multipart/form-data; boundary=" + "y" * 500, FILE + b"--x--\r\n"),
        (MULTIPART, b""),
        (MULTIPART, b"garbage"),
        (MULTIPART, b"--x--\r\n"),
        (MULTIPART, PART % (b"file", b"", b"no file") + b"--x--\r\n"),
        (MULTIPART, PART % (b"groups", b"", b"hr") + b"--x--\r\n"),
        (MULTIPART, FILE + FILE + b"--x--\r\n"),
        (MULTIPART, FILE + PART % (b"other", b"", b"1") + b"--x--\r\n"),
        (MULTIPART, FILE + PART % (b"groups", b'; filename="g.txt"', b"hr") + b"--x--\r\n"),
        (MULTIPART, FILE + (PART % (b"groups", b"", b"hr")) * 2 + b"--x--\r\n"),
        (MULTIPART, FILE + PART % (b"groups", b"", b"a b") + b"--x--\r\n"),
        (MULTIPART, FILE + PART % (b"groups", b"", b"\xff\x00") + b"--x--\r\n"),
        (MULTIPART, FILE + PART % (b"groups", b"", b"x" * 9000) + b"--x--\r\n"),
        (MULTIPART, FILE + PART % (b"groups", b"", b",".join(b"g%d" % n for n in range(101))) + b"--x--\r\n"),
        (
            MULTIPART,
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a\x00.txt"\r\n\r\nText.\r\n--x--\r\n',
        ),
        (MULTIPART, b'--x\r\nContent-Disposition: form-data; filename="a.txt"\r\n\r\nText.\r\n--x--\r\n'),
    ],
)
def test_forms_that_are_refused(client: TestClient, service: Service, kind: str, body: bytes) -> None:
    response = client.post("/documents", content=body, headers={"Content-Type": kind} if kind else {})
    assert response.status_code in (400, 413, 422), response.text
    assert error(response)["message"]
    assert list_uploads(service.settings.home) == [] and service.jobs.list() == []


def test_types_can_be_limited(make_service: MakeService) -> None:
    service = make_service("Hm.", upload_types=".md .TXT")
    with TestClient(create_app(service), base_url=BASE) as client:
        assert upload(client, "a.MD", "Text.").status_code == 202
        assert upload(client, "b.txt", "Text.").status_code == 202
        response = upload(client, "c.html", "<p>Text.")
        assert response.status_code == 422 and ".md, .txt" in error(response)["expected"]


@pytest.mark.parametrize("id", ["..%2f..%2fetc%2fpasswd", "%00", "a" * 3000, "%ff", "*", "'--", "%F0%9F%A6%AB"])
def test_ids_that_do_not_exist(client: TestClient, id: str) -> None:
    response = client.delete(f"/documents/{id}")
    assert response.status_code == 404
    assert error(response)["code"] == "not_found"


# Groups


@pytest.fixture
def keys(service: Service) -> dict[str, str]:
    return {
        "admin": create_key(service.store, "admin", "admin"),
        "hr": create_key(service.store, "hanna", "user", ["hr"]),
        "none": create_key(service.store, "nils", "user"),
    }


def test_groups_of_an_upload(client: TestClient, service: Service, keys: dict[str, str]) -> None:
    finished(service, upload(client, "pay.md", "The geese are paid in corn.", " hr, board,hr ", keys["admin"]))
    assert documents(client, keys["admin"])["pay.md"]["groups"] == [["hr", "board"]]
    assert "pay.md" in documents(client, keys["hr"]) and "pay.md" not in documents(client, keys["none"])
    assert "pay.md" not in found(client, "How are the geese paid?", keys["none"])
    # A new version without the field keeps them, with an empty field it is open, and the old text is not.
    finished(service, upload(client, "pay.md", "The geese are paid in wheat.", None, keys["admin"]))
    assert "pay.md" not in documents(client, keys["none"])
    hold = hold_up(service)
    response = upload(client, "pay.md", "The geese are paid.", "", keys["admin"])
    assert response.json()["groups"] == []
    assert "pay.md" not in found(client, "How are the geese paid?", keys["none"]), "still the old text"
    hold.set()
    finished(service, response)
    assert found(client, "How are the geese paid?", keys["none"])["pay.md"] == "The geese are paid."
    # The same content with other groups takes effect at once.
    generation = client.get("/readyz").json()["generation"]
    finished(service, upload(client, "pay.md", "The geese are paid.", "hr", keys["admin"]))
    assert "pay.md" not in documents(client, keys["none"])
    assert client.get("/readyz").json()["generation"] == generation, "nothing was embedded"


def hold_up(service: Service) -> threading.Event:
    """A reindex that runs until the event is set, and does nothing."""
    go = threading.Event()

    def work(report: Any, cancel: threading.Event) -> Outcome:
        while not go.wait(0.01):
            if cancel.is_set():
                raise Cancelled
        return Outcome()

    service.jobs.start("reindex", work)
    return go


def test_an_upload_during_a_reindex_is_indexed_by_the_next_job(client: TestClient, service: Service) -> None:
    go = hold_up(service)
    first = upload(client, "one.md", "One goose.")
    second = upload(client, "two.md", "Two geese.")
    assert first.json()["job"]["state"] == "queued"
    assert first.json()["job"]["id"] == second.json()["job"]["id"], "one job for both"
    go.set()
    assert finished(service, second)["counts"]["added"] == 2


def test_what_is_not_needed_of_groups_is_forgotten(client: TestClient, service: Service) -> None:
    def stored() -> int:
        with service.store.connection() as connection:
            return int(connection.execute("SELECT count(*) FROM file_groups").fetchone()[0])

    finished(service, upload(client, "pay.md", "The geese are paid.", "hr"))
    finished(service, client.delete("/documents/pay.md"))
    assert stored() == 1, "a rollback brings the document back"
    finished(service, upload(client, "other.md", "Other geese."))
    assert stored() == 0


def test_a_user_may_not_upload_or_delete(client: TestClient, service: Service, keys: dict[str, str]) -> None:
    assert upload(client, "a.md", "Text.", None, keys["hr"]).status_code == 403
    response = client.delete("/documents/a.md", headers={"Authorization": f"Bearer {keys['hr']}"})
    assert response.status_code == 403
    assert list_uploads(service.settings.home) == []


@pytest.mark.slow
def test_an_upload_that_was_acknowledged_outlives_a_kill(library: Path, home: Path) -> None:
    """kill -9 of a real server right after the 202, with a reindex running; the next one takes it up by itself."""
    environment = os.environ | {"PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{Path(__file__).parents[1]}"}
    (home.parent / "corpus").mkdir()
    command = [sys.executable, str(Path(__file__).with_name("scripted_server.py")), str(home), json.dumps({})]

    def start() -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        return process, f"http://127.0.0.1:{int(process.stdout.readline())}"

    for number in range(300):
        (home.parent / "corpus" / f"{number}.txt").write_text(f"Number {number}. " * 50)
    acknowledged = []
    for trial in range(4):
        process, url = start()
        try:
            httpx2.post(f"{url}/reindex")
            for part in range(trial + 1):
                name = f"kept-{trial}-{part}.md"
                response = httpx2.post(f"{url}/documents", files={"file": (name, f"Kept as {name}.")})
                assert response.status_code == 202
                acknowledged.append(name)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    process, url = start()
    try:
        wait_until(lambda: all(job["state"] in FINAL for job in httpx2.get(f"{url}/jobs").json()["jobs"]), seconds=60)
        states = [job["state"] for job in httpx2.get(f"{url}/jobs").json()["jobs"]]
        assert states[0] == "done" and "failed" in states, states
        listed = {item["document"] for item in httpx2.get(f"{url}/documents").json()["documents"]}
        assert set(acknowledged) <= listed
    finally:
        process.terminate()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
    assert not [name for name in os.listdir(Store(home).home / "uploads") if name.startswith(".")]
