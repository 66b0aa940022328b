import re
import time
from collections.abc import Iterator

import pytest
from conftest import MakeService
from starlette.testclient import TestClient
from test_gate import BASE, error

from indexer.errors import TandemError
from service.api.app import create_app
from service.api.limits import Rates
from service.keys import create_key
from service.running import Service
from service.settings import load_settings


def test_a_rate_holds_for_each_key_and_a_refused_request_does_not_count() -> None:
    rates = Rates("2/second;100/minute")
    rates.count("anna")
    rates.count("anna")
    for _ in range(200):
        with pytest.raises(TandemError) as caught:
            rates.count("anna")
    assert caught.value.code == "rate_limited" and caught.value.retry_after == 1
    rates.count("bert")
    time.sleep(1.05)
    rates.count("anna")


def test_the_seconds_to_wait_are_those_until_the_oldest_request_leaves_the_window() -> None:
    rates = Rates("1/minute")
    rates.count("")
    with pytest.raises(TandemError, match="1 per 1 minute") as caught:
        rates.count("")
    assert 58 <= (caught.value.retry_after or 0) <= 60


@pytest.mark.parametrize("rate", ["often", "60", "0/minute", "1/fortnight", "-1/second"])
def test_what_is_no_rate_is_refused_at_the_start(rate: str) -> None:
    with pytest.raises(TandemError, match="'rate' is not valid"):
        load_settings(rate=rate)


@pytest.fixture
def service(make_service: MakeService) -> Service:
    return make_service("Spring tides come at full moon.", rate="3/minute")


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(create_app(service), base_url=BASE) as made:
        yield made


def test_work_is_counted_and_looking_is_not(client: TestClient, service: Service) -> None:
    keys = {name: {"Authorization": f"Bearer {create_key(service.store, name, 'admin')}"} for name in ("anna", "bert")}
    for _ in range(10):
        assert client.get("/documents", headers=keys["anna"]).status_code == 200
        assert client.get("/healthz").status_code == 200
    ask = {"question": "When do spring tides come?"}
    assert client.get("/search", params=ask, headers=keys["anna"]).status_code == 200
    assert client.post("/ask", json=ask, headers=keys["anna"]).status_code == 200
    assert client.post("/ask", json={"nonsense": 1}, headers=keys["anna"]).status_code == 422
    for response in (
        client.post("/ask", json=ask, headers=keys["anna"]),
        client.post("/ask", json={**ask, "stream": True}, headers=keys["anna"]),
        client.get("/search", params=ask, headers=keys["anna"]),
    ):
        assert response.status_code == 429 and error(response)["code"] == "rate_limited"
        assert re.fullmatch(r"[1-9]\d?", response.headers["retry-after"])
    assert client.post("/ask", json=ask, headers=keys["bert"]).status_code == 200, "another key has its own count"


def test_a_draining_service_takes_nothing_new_and_is_not_ready(client: TestClient, service: Service) -> None:
    assert client.get("/readyz").status_code == 200
    service.drain()
    response = client.post("/ask", json={"question": "When?"})
    assert response.status_code == 503 and "being stopped" in error(response)["message"]
    assert int(response.headers["retry-after"]) > 0
    ready = client.get("/readyz")
    assert (ready.status_code, ready.json()["status"]) == (503, "stopping")
    assert client.get("/healthz").status_code == 200
