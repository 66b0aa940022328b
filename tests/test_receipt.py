import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from fakes import wait_until

from service.api.receipt import receipt_protocol
from service.server import allow_connections

SECONDS = 1
HEAD = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


class Echo:
    """Answers the length of a body; `left` counts requests whose client went before the body was whole."""

    def __init__(self) -> None:
        self.left = 0
        self.deny = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        size, more = 0, not self.deny
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.left += 1
                return
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        await asyncio.sleep(SECONDS * 1.5 if scope["path"] == "/slow" else 0)
        body = str(size).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def app() -> Echo:
    return Echo()


@pytest.fixture
def connect(app: Echo) -> Iterator[Callable[[], socket.socket]]:
    allow_connections()
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = uvicorn.Config(app, http=receipt_protocol(SECONDS), log_config=None, ws="none", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    wait_until(lambda: server.started)
    made: list[socket.socket] = []

    def connect() -> socket.socket:
        made.append(socket.create_connection(listener.getsockname(), timeout=8))
        return made[-1]

    yield connect
    for connection in made:
        connection.close()
    server.should_exit = True
    thread.join()
    listener.close()


def all_of(connection: socket.socket) -> bytes:
    received = b""
    while part := connection.recv(65536):
        received += part
    return received


def answer(connection: socket.socket) -> bytes:
    """The body of one answer on a connection that stays open."""
    received = b""
    while b"\r\n\r\n" not in received:
        received += (part := connection.recv(65536))
        assert part, received
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split()[0])
    while len(body) < length:
        body += connection.recv(65536)
    return body


def refusal(received: bytes) -> tuple[int, dict[str, str]]:
    head, _, body = received.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert error.keys() == {"code", "message", "expected", "do", "request_id"}
    assert b"connection: close" in head.lower() and error["request_id"].encode() in head
    return int(head.split()[1]), error


def test_five_hundred_half_open_connections_neither_stop_a_request_nor_stay(
    connect: Callable[[], socket.socket],
) -> None:
    started = time.monotonic()
    half_open = [connect() for _ in range(500)]
    for number, connection in enumerate(half_open):
        connection.sendall([b"GET / HT", HEAD % 100, HEAD % 100 + b"x"][number % 3])
    good = connect()
    asked = time.monotonic()
    good.sendall(HEAD % 2 + b"ok")
    assert answer(good) == b"2"
    assert time.monotonic() - asked < 1
    assert refusal(all_of(half_open[0]))[0] == 408
    for connection in half_open[1:]:
        assert all_of(connection).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - started < 6


@pytest.mark.parametrize("drip", [b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100, HEAD % 1000 + b"x" * 900])
def test_who_sends_little_by_little_is_late_too(connect: Callable[[], socket.socket], app: Echo, drip: bytes) -> None:
    connection = connect()
    started = time.monotonic()
    with pytest.raises(OSError):
        for place in range(len(drip)):
            connection.sendall(drip[place : place + 1])
            if place > 60:  # the headers of the second one at once
                time.sleep(0.05)
        pytest.fail("it was never told")
    assert 0.8 * SECONDS <= time.monotonic() - started < 5 * SECONDS


def test_a_request_whose_body_stays_away_is_left_by_the_application(
    connect: Callable[[], socket.socket], app: Echo
) -> None:
    connection = connect()
    connection.sendall(HEAD % 10 + b"123")
    code, error = refusal(all_of(connection))
    assert (code, error["code"]) == (408, "timeout")
    wait_until(lambda: app.left == 1)


def test_headers_and_body_have_their_time_each(connect: Callable[[], socket.socket]) -> None:
    connection = connect()
    for part in ((HEAD % 4)[:20], (HEAD % 4)[20:] + b"12", b"34"):
        connection.sendall(part)
        time.sleep(0.7 * SECONDS if part != b"34" else 0)
    assert answer(connection) == b"4"


def test_a_large_body_may_take_longer_while_it_arrives(connect: Callable[[], socket.socket]) -> None:
    connection, part = connect(), b"x" * 20_000
    connection.sendall(HEAD % (len(part) * 10))
    for _ in range(10):
        connection.sendall(part)
        time.sleep(0.25)
    assert answer(connection) == b"200000"


def test_a_long_answer_is_no_late_request(connect: Callable[[], socket.socket]) -> None:
    connection = connect()
    connection.sendall(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer(connection) == b"0"


def test_a_connection_is_used_again_and_watched_again(connect: Callable[[], socket.socket]) -> None:
    connection = connect()
    for _ in range(3):
        connection.sendall(HEAD % 2 + b"ok")
        assert answer(connection) == b"2"
        time.sleep(0.6 * SECONDS)
    connection.sendall(b"GET / HTTP/1.1\r\nHo")
    assert refusal(all_of(connection))[0] == 408


def test_an_answer_does_not_wait_for_the_client_to_acknowledge_its_headers(
    connect: Callable[[], socket.socket],
) -> None:
    connection, times = connect(), []
    for _ in range(40):
        started = time.monotonic()
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer(connection) == b"0"
        times.append(time.monotonic() - started)
    # The first ones are acknowledged at once; with Nagle's algorithm every later one takes 40 ms (RFC 1122, 4.2.3.2).
    assert min(times[20:]) < 0.03, times


def test_a_body_that_nobody_reads_does_not_keep_the_connection(connect: Callable[[], socket.socket], app: Echo) -> None:
    app.deny = True
    connection = connect()
    connection.sendall(HEAD % 10 + b"1")
    assert answer(connection) == b"0"
    assert connection.recv(65536) == b""


def test_a_connection_that_was_never_used_is_closed_without_a_word(connect: Callable[[], socket.socket]) -> None:
    assert all_of(connect()) == b""


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01 this is TLS\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"x" * 1_000_000 + b"\r\n\r\n"]
)
def test_what_is_no_request_is_told_in_the_one_shape(connect: Callable[[], socket.socket], garbage: bytes) -> None:
    connection = connect()
    with_error = b""
    try:
        connection.sendall(garbage)
        with_error = all_of(connection)
    except ConnectionError:
        # Closed while the rest was still on its way; the answer may have been lost with it.
        return
    code, error = refusal(with_error)
    assert (code, error["code"]) == (400, "invalid_request")
