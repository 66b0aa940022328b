import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MakeService
from fakes import FixedAdapters, HashingEmbedder, ScriptedGenerator, wait_until
from small_models import save_adapter, save_small_model
from starlette.testclient import TestClient
from test_compare_gate import about, remember
from test_gate import BASE, error

from indexer.retrieval import Retriever
from indexer.store import Store
from service.answering import Answerer
from service.api.app import create_app
from service.assembly import HomeAdapters
from service.keys import create_key
from service.running import Service
from service.settings import Settings
from tuner.active import active_adapter, deactivate
from tuner.adapters import read_card
from tuner.basemodel import BaseModel, load_base_model
from tuner.generation import TorchGenerator


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    folder = save_small_model(tmp_path_factory.mktemp("small") / "model")
    return load_base_model(str(folder), cache=folder, device="cpu", quantisation="none")


@pytest.fixture
def service(home: Path, small: BaseModel) -> Iterator[Service]:
    """A service whose model is a real one, if small, with two adapters; `iron` was trained on a document of ours."""
    settings = Settings(home=home, base_model="small", min_relevance=-1, max_tokens=4)
    store = Store(home)
    with store.read() as snapshot:
        document = snapshot.document("iron.txt")
    kept = {"id": document.id, "path": "iron.txt", "hash": "0"}
    gone = {"id": "0", "path": "copper.txt", "hash": "0"}
    save_adapter(home / "adapters" / "iron", small, seed=1, documents=(kept,))
    save_adapter(home / "adapters" / "copper", small, seed=2, documents=(kept, gone))
    save_adapter(home / "adapters" / "foreign", small, seed=3, base_sha256="0" * 64)
    generator = TorchGenerator(small)
    answerer = Answerer(Retriever(store, HashingEmbedder()), generator, settings, HomeAdapters(settings, generator))
    made = Service(settings, store, answerer)
    yield made
    made.close()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), base_url=BASE) as made:
        yield made


def ask(client: TestClient) -> str | None:
    response = client.post("/ask", json={"question": "At how many degrees does iron melt?"})
    assert response.status_code == 200, response.text
    adapter: str | None = response.json()["adapter"]
    return adapter


def test_an_adapter_is_activated_and_deactivated_without_a_restart(client: TestClient) -> None:
    assert ask(client) is None
    assert client.post("/adapters/iron/activate").json()["active"] == "iron"
    assert ask(client) == "iron"
    assert client.post("/adapters/copper/activate", json={"force": False}).status_code == 200
    assert ask(client) == "copper"
    assert client.get("/adapters").json()["active"] == "copper"
    assert client.post("/adapters/deactivate").json() == {"active": None}
    assert ask(client) is None


def test_stale_adapters_are_named(client: TestClient, service: Service) -> None:
    body = client.get("/adapters").json()
    found = {adapter["name"]: adapter for adapter in body["adapters"]}
    assert {"copper", "foreign", "iron"} <= found.keys()
    assert (found["iron"]["stale"], found["copper"]["stale"]) == (False, True)
    assert [entry["path"] for entry in found["copper"]["stale_documents"]] == ["copper.txt"]
    assert found["copper"]["card"]["recipe"] == {"name": "lora"}


def test_metrics_count_stale_adapters_as_the_index_is_now(client: TestClient, service: Service) -> None:
    def stale() -> str:
        (line,) = re.findall(r"^tandem_adapters_stale (.*)$", client.get("/metrics").text, re.MULTILINE)
        return line

    assert stale() == "1.0" == stale()
    with service.store.connection() as connection:
        connection.execute("UPDATE documents SET died = 1 WHERE path = 'iron.txt'")
        connection.execute("UPDATE generations SET documents = documents - 1")
    assert stale() == "2.0"
    shutil.rmtree(service.settings.home / "adapters" / "copper")
    assert stale() == "1.0"


def test_a_user_sees_no_documents_of_an_adapter(client: TestClient, service: Service) -> None:
    headers = {"Authorization": f"Bearer {create_key(service.store, 'anna', 'user')}"}
    response = client.get("/adapters", headers=headers)
    assert response.status_code == 200 and "copper.txt" not in response.text and "iron.txt" not in response.text
    for path in ("/adapters/iron/activate", "/adapters/deactivate"):
        assert client.post(path, headers=headers).status_code == 403


def test_one_that_does_not_fit_is_refused_and_nothing_changes(client: TestClient, service: Service) -> None:
    client.post("/adapters/iron/activate")
    response = client.post("/adapters/foreign/activate")
    assert response.status_code == 409 and "another base model" in error(response)["message"]
    for name, status in (("nothing", 404), ("..", 404), ("..%2f..", 404), ("a b", 422), ("x" * 65, 422), ("é", 422)):
        assert client.post(f"/adapters/{name}/activate").status_code in (status, 404, 422), name
    assert client.post("/adapters/iron/activate", json={"force": "maybe"}).status_code == 422
    assert active_adapter(service.settings.home, "small") == "iron"


def test_one_that_lost_its_comparison_needs_force(client: TestClient, service: Service) -> None:
    home = service.settings.home
    remember(home, adapters=about(read_card(home / "adapters" / "iron"), "worse"))
    response = client.post("/adapters/iron/activate")
    assert response.status_code == 409 and "It is worse." in error(response)["message"]
    assert client.get("/adapters").json()["active"] is None
    assert client.post("/adapters/iron/activate", json={"force": True}).status_code == 200
    assert client.get("/adapters").json()["active"] == "iron"


def test_activation_over_http_is_seen_by_every_process_on_the_home(client: TestClient, service: Service) -> None:
    client.post("/adapters/iron/activate")
    assert active_adapter(service.settings.home, "small") == "iron"
    deactivate(service.settings.home)
    assert client.get("/adapters").json()["active"] is None


def test_what_is_being_answered_finishes_with_the_adapter_that_it_began_with(make_service: MakeService) -> None:
    adapters = FixedAdapters(["iron", "copper"], active="iron")
    generator = ScriptedGenerator("Iron melts at 1538 degrees Celsius. " * 3, delay=0.02)
    service = make_service(generator, adapters)
    answers: list[str | None] = []
    with TestClient(create_app(service), base_url=BASE) as client:
        thread = threading.Thread(target=lambda: answers.append(ask(client)))
        thread.start()
        wait_until(lambda: generator.busy == 1)
        adapters.chosen = "copper"
        thread.join()
        assert answers == ["iron"] and ask(client) == "copper"
        assert generator.adapters == ["iron", "copper"]
        response = client.post("/adapters/iron/activate")
        assert response.status_code == 409, "a model of elsewhere takes no adapters of this home"
