"""Interrupts under real signals, sent to this very process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from driver.interrupts import Interrupts, Request

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
EACH = pytest.mark.parametrize("number", NUMBERS)


@pytest.fixture(autouse=True)
def handlers_are_restored() -> Iterator[None]:
    outside = [signal.getsignal(number) for number in NUMBERS]
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever runs the tests, `nohup` for one
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    after = [signal.getsignal(number) for number in NUMBERS]
    for number, handler in zip(NUMBERS, outside, strict=True):
        signal.signal(number, handler)
    assert after == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@EACH
def test_first_signal_only_sets_the_request(number: int) -> None:
    with Interrupts(echo_s=0.0) as interrupts:
        assert not interrupts.requested.is_set()
        assert not interrupts.requested.wait(0.001)
        send(number)
        assert interrupts.requested.is_set()
        assert interrupts.requested.wait(10.0)


@EACH
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_second_signal_raises_whichever_came_first(first: int, number: int) -> None:
    with Interrupts(echo_s=0.0) as interrupts:
        send(first)
        with pytest.raises(KeyboardInterrupt):
            send(number)
        assert interrupts.requested.is_set()
        with pytest.raises(KeyboardInterrupt):
            send(number)


def test_handlers_before_are_restored_on_leaving() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        mine = signal.getsignal(signal.SIGTERM)
        with Interrupts(echo_s=0.0) as interrupts:
            send(signal.SIGTERM)
        assert interrupts.requested.is_set()
        assert seen == []
        assert signal.getsignal(signal.SIGTERM) is mine
        send(signal.SIGTERM)
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_handlers_are_restored_when_an_exception_leaves_the_context() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Interrupts(echo_s=0.0):
        send(signal.SIGINT)
        send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_handler_that_python_had_not_set_becomes_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(signal, "getsignal", lambda number: None)  # as for one set in C
            interrupts = Interrupts(echo_s=0.0).__enter__()
        interrupts.__exit__(None, None, None)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_signal_that_was_ignored_stays_ignored(number: int) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    with Interrupts(echo_s=0.0) as interrupts:
        interrupts.claim()
        send(number)
        assert not interrupts.requested.is_set()
        assert signal.getsignal(number) == signal.SIG_IGN
    signal.signal(number, before)


def test_claim_takes_the_signals_back_and_leaving_still_restores_the_first_handlers() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts(echo_s=0.0) as interrupts:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as Ray does when it starts
        send(signal.SIGINT)
        assert not interrupts.requested.is_set()
        interrupts.claim()
        send(signal.SIGINT)
        assert interrupts.requested.is_set()
    assert signal.getsignal(signal.SIGINT) is before


def test_signal_ends_a_wait_at_once() -> None:
    with Interrupts(echo_s=0.0) as interrupts:
        timer = threading.Timer(0.05, send, [signal.SIGINT])
        started_s = time.monotonic()
        timer.start()
        assert interrupts.requested.wait(60.0)
        assert time.monotonic() - started_s < 10
        timer.join()


def test_request_wakes_every_thread_that_waits() -> None:
    request = Request()
    woken: list[bool] = []
    threads = [threading.Thread(target=lambda: woken.append(request.wait(60.0))) for _ in range(4)]
    for thread in threads:
        thread.start()
    request.set()
    for thread in threads:
        thread.join(timeout=10)
    assert woken == [True] * 4


@pytest.mark.timeout(30)
def test_signal_in_the_middle_of_a_wait_never_deadlocks() -> None:
    # With a threading.Event as the request this hangs at once or nearly so.
    for _ in range(200):
        with Interrupts(echo_s=0.0) as interrupts:
            timer = threading.Timer(0.001, send, [signal.SIGINT])
            timer.start()
            while not interrupts.requested.wait(0.0):
                pass
            timer.join()


def test_echo_of_the_first_signal_does_not_force() -> None:
    with Interrupts(echo_s=60.0) as interrupts:
        send(signal.SIGINT)
        send(signal.SIGINT)
        assert interrupts.requested.is_set()
