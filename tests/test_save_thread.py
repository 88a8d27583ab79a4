"""SaveThread: one save at a time beside the work, and what is told of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from common.reports import NEVER_SAVED
from common.save_thread import SaveThread

PATIENCE_S = 30.0


class Slow:
    """A save that goes on until it is let go."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.threads: list[str] = []
        self.go_on = threading.Event()

    def __call__(self) -> str:
        self.threads.append(threading.current_thread().name)
        assert self.go_on.wait(PATIENCE_S)
        return self.path


def at_once(save: Callable[[], str]) -> Callable[[], Callable[[], str]]:
    """Return a capture that takes hold of nothing."""
    return lambda: save


def failing(error: BaseException) -> Callable[[], str]:
    def save() -> str:
        raise error

    return save


@pytest.fixture
def slow() -> Iterator[Slow]:
    made = Slow("first")
    yield made
    made.go_on.set()


def test_before_the_first_save_there_is_nothing_to_tell() -> None:
    saver = SaveThread("saver")
    saver.wait()
    assert not saver.is_busy
    assert saver.status is NEVER_SAVED


def test_save_runs_beside_the_caller_in_a_thread_of_that_name(slow: Slow) -> None:
    saver = SaveThread("snapshot")
    assert saver.start(at_once(slow))
    assert saver.is_busy
    assert saver.status is NEVER_SAVED, "an attempt counts when it has ended"
    slow.go_on.set()
    saver.wait()
    assert slow.threads == ["snapshot"]
    assert not saver.is_busy
    assert saver.status[:3] == (1, "first", "")
    assert 0.0 <= saver.status.seconds < PATIENCE_S


def test_one_save_at_a_time(slow: Slow) -> None:
    saver = SaveThread("saver")
    assert saver.start(at_once(slow))
    other = Slow("other")
    assert not saver.start(at_once(other))
    slow.go_on.set()
    saver.wait()
    assert other.threads == []
    assert saver.status.attempts == 1
    assert saver.start(at_once(lambda: "second"))
    saver.wait()
    assert saver.status[:3] == (2, "second", "")


def test_disk_trouble_is_told_and_the_newest_good_path_stays() -> None:
    saver = SaveThread("saver")
    for save in (lambda: "good", failing(OSError(28, "No space left on device"))):
        assert saver.start(at_once(save))
        saver.wait()
    assert saver.status[:3] == (2, "good", "[Errno 28] No space left on device")
    assert saver.start(at_once(lambda: "better"))
    saver.wait()
    assert saver.status[:3] == (3, "better", "")


def test_disk_trouble_without_a_word_is_told_by_its_type() -> None:
    saver = SaveThread("saver")
    saver.start(at_once(failing(TimeoutError())))
    saver.wait()
    assert saver.status.trouble == "TimeoutError"


def test_fault_of_ours_is_in_the_status_and_raised_by_the_next_start_once(slow: Slow) -> None:
    saver = SaveThread("saver")
    assert saver.start(at_once(failing(KeyError("no such field"))))
    while saver.is_busy:
        threading.Event().wait(0.001)
    # Nobody may take it for a good save before the next call raises it.
    assert saver.status[:3] == (1, "", "KeyError: 'no such field'")
    with pytest.raises(KeyError, match="no such field"):
        saver.start(at_once(slow))
    assert slow.threads == []
    assert saver.start(at_once(lambda: "next"))
    saver.wait()
    assert saver.status[:3] == (2, "next", "")


def test_fault_of_ours_is_raised_by_wait() -> None:
    saver = SaveThread("saver")
    saver.start(at_once(failing(AssertionError("7 rows"))))
    with pytest.raises(AssertionError, match="7 rows"):
        saver.wait()
    saver.wait()


def test_seconds_are_those_of_the_newest_attempt() -> None:
    saver = SaveThread("saver")
    saver.start(at_once(failing(OSError("full"))))
    saver.wait()
    assert math.isfinite(saver.status.seconds)


def test_what_is_saved_is_captured_by_the_caller_while_nothing_is_written() -> None:
    saver = SaveThread("saver")
    state, captured_by = [1], []

    def capture() -> Callable[[], str]:
        captured_by.append(threading.current_thread())
        time.sleep(0.02)
        copy = list(state)
        return lambda: f"{copy}"

    assert saver.start(capture)
    state.append(2)
    saver.wait()
    assert captured_by == [threading.current_thread()]
    assert saver.status.path == "[1]"
    assert 0.02 <= saver.status.held_s < PATIENCE_S


def test_fault_of_a_capture_is_the_callers_at_once_and_no_attempt() -> None:
    def poisoned() -> Callable[[], str]:
        raise FloatingPointError("nan")

    saver = SaveThread("saver")
    with pytest.raises(FloatingPointError, match="nan"):
        saver.start(poisoned)
    assert saver.status is NEVER_SAVED
    assert saver.start(at_once(lambda: "good"))
    saver.wait()
    assert saver.status.path == "good"
