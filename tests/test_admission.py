import threading
import time

import pytest
from fakes import wait_until

from indexer.errors import TandemError
from service.admission import Admission


def waiting(admission: Admission, name: str, order: list[str], cancel: threading.Event) -> threading.Thread:
    def enter() -> None:
        with admission.enter(cancel):
            order.append(name)

    before = len(admission)
    thread = threading.Thread(target=enter)
    thread.start()
    wait_until(lambda: len(admission) == before + 1)
    return thread


def test_turns_come_in_order_and_one_at_a_time() -> None:
    admission, order, never = Admission(8, 5.0), list[str](), threading.Event()
    with admission.enter(never):
        threads = [waiting(admission, name, order, never) for name in "abcdef"]
        assert order == []
    for thread in threads:
        thread.join()
    assert order == list("abcdef")
    assert len(admission) == 0


def test_never_two_inside() -> None:
    admission, never = Admission(50, 30.0), threading.Event()
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with admission.enter(never):
                inside += 1
                most = max(most, inside)
                time.sleep(0)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_the_line_is_bounded_and_free_again_afterwards() -> None:
    admission, order, never = Admission(1, 5.0), list[str](), threading.Event()
    with admission.enter(never):
        thread = waiting(admission, "a", order, never)
        with pytest.raises(TandemError, match="1 questions are waiting") as caught, admission.enter(never):
            pass
        assert caught.value.code == "unavailable"
    thread.join()
    with admission.enter(never):
        assert len(admission) == 1


def test_a_long_wait_is_given_up() -> None:
    admission, never = Admission(4, 0.05), threading.Event()
    with admission.enter(never):
        started = time.monotonic()
        errors: list[TandemError] = []

        def enter() -> None:
            try:
                with admission.enter(never):
                    pass
            except TandemError as error:
                errors.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join(5)
        assert [error.code for error in errors] == ["unavailable"]
        assert 0.05 <= time.monotonic() - started < 2
        assert len(admission) == 1, "who gave up has left the line"


def test_a_waiting_client_that_leaves_does_not_hold_the_line() -> None:
    admission, order, never = Admission(4, 30.0), list[str](), threading.Event()
    gone = threading.Event()
    with admission.enter(never):
        leaver = waiting(admission, "left", order, gone)
        stayer = waiting(admission, "stayed", order, never)
        gone.set()
        leaver.join(5)
        assert not leaver.is_alive()
        assert len(admission) == 2
    stayer.join(5)
    assert order == ["left", "stayed"], "who left passes early, with its cancel set"


def test_an_error_inside_gives_the_turn_back() -> None:
    admission, never = Admission(1, 1.0), threading.Event()
    with pytest.raises(ValueError), admission.enter(never):
        raise ValueError
    assert len(admission) == 0
