"""How soon a client that leaves gives up what it held, measured on a real server."""

import socket
import statistics
import time
from collections.abc import Callable

import pytest
from conftest import MakeService
from fakes import ScriptedGenerator, wait_until
from test_api import ENDLESS, TIDES, Serve, connect, read_until, serve  # noqa: F401

from service.running import Service

MOST_SECONDS = 0.2


def endless(make_service: MakeService, **options: object) -> tuple[Service, ScriptedGenerator]:
    generator = ScriptedGenerator(ENDLESS, delay=0.01, window=10_000)
    return make_service(generator, max_tokens=4000, prompt_tokens=500, min_relevance=-1, **options), generator


def seconds_until(condition: Callable[[], bool]) -> float:
    began = time.perf_counter()
    wait_until(condition)
    return time.perf_counter() - began


@pytest.mark.parametrize("stream", [True, False])
def test_the_place_of_a_client_that_left_is_free_at_once(
    make_service: MakeService,
    serve: Serve,  # noqa: F811
    stream: bool,
) -> None:
    service, generator = endless(make_service)
    port, took = serve(service), []
    for _ in range(5):
        spoken = generator.spoken
        connection = connect(port, "POST", "/ask", {"question": TIDES, "stream": stream})
        if stream:
            read_until(connection, b"event: token")
        wait_until(lambda spoken=spoken: generator.spoken > spoken + 3)  # type: ignore[misc]
        connection.close()
        took.append(seconds_until(lambda: len(service.answerer.admission) == 0))
        assert generator.busy == 0
    assert statistics.median(took) < MOST_SECONDS, took


def test_who_waits_gets_the_place_of_one_who_left(
    make_service: MakeService,
    serve: Serve,  # noqa: F811
) -> None:
    service, generator = endless(make_service)
    port = serve(service)
    first = connect(port, "POST", "/ask", {"question": TIDES, "stream": True})
    read_until(first, b"event: token")
    second = connect(port, "POST", "/ask", {"question": TIDES, "stream": True})
    wait_until(lambda: service.answerer.admission.waiting == 1)
    first.shutdown(socket.SHUT_RDWR)
    assert seconds_until(lambda: len(generator.prompts) == 2) < MOST_SECONDS
    read_until(second, b"event: token")
    first.close()
    second.close()
    wait_until(lambda: len(service.answerer.admission) == 0)
    assert generator.most_busy == 1
