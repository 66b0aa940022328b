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


def test_keys_take_turns() -> None:
    admission, order, never = Admission(20, 30.0), list[str](), threading.Event()

    def enter(key: str, name: str) -> None:
        with admission.enter(never, key):
            order.append(name)

    threads = []
    with admission.enter(never, "a"):
        for key, name in [("a", f"a{n}") for n in range(5)] + [("b", "b0"), ("b", "b1"), ("c", "c0")]:
            before = len(admission)
            threads.append(threading.Thread(target=enter, args=(key, name)))
            threads[-1].start()
            wait_until(lambda before=before: len(admission) == before + 1)  # type: ignore[misc]
        assert admission.waiting == 8
    for thread in threads:
        thread.join(5)
    assert order == ["a0", "b0", "c0", "a1", "b1", "a2", "a3", "a4"]


def test_a_full_line_turns_away_who_has_most_waiting_and_not_the_newcomer() -> None:
    admission, never = Admission(4, 30.0), threading.Event()
    order: list[str] = []

    def enter(key: str, name: str) -> None:
        try:
            with admission.enter(never, key):
                order.append(name)
        except TandemError as error:
            assert error.code == "unavailable"
            order.append(f"{name} turned away")

    threads = []

    def start(key: str, name: str, length: int) -> None:
        threads.append(threading.Thread(target=enter, args=(key, name)))
        threads[-1].start()
        wait_until(lambda: admission.waiting == length and len(threads) == len(order) + length)

    with admission.enter(never, "a"):
        for number in range(4):
            start("a", f"a{number}", number + 1)
        start("b", "b0", 4)
        assert order == ["a3 turned away"]
        start("b", "b1", 4)
        assert order[1:] == ["a2 turned away"], "two and two: from here on neither pushes the other out"
        start("b", "b2", 4)
        start("a", "a4", 4)
        assert order[2:] == ["b2 turned away", "a4 turned away"]
        start("c", "c0", 4)
        assert len(order) == 5 and order[4] in ("a1 turned away", "b1 turned away")
    for thread in threads:
        thread.join(5)
    assert len(order) == 9 and len(admission) == 0


def test_many_threads_that_give_up_or_leave_lose_no_turn() -> None:
    admission, inside = Admission(100, 0.02), 0
    done = threading.Lock()
    finished = 0

    def work(number: int) -> None:
        nonlocal inside, finished
        for turn in range(10):
            gone = threading.Event()
            if (number + turn) % 3 == 0:
                gone.set()
            try:
                with admission.enter(gone, str(number % 4)):
                    if not gone.is_set():
                        inside += 1
                        assert inside == 1
                        time.sleep(0.002)
                        inside -= 1
            except TandemError:
                pass
            with done:
                finished += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert finished == 120 and len(admission) == 0
    with admission.enter(threading.Event()):
        assert len(admission) == 1
