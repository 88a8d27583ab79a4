"""Process: whose number it is, on real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from common.process import Process, descendants

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """Return a process of somebody else."""
    process = subprocess.Popen(SLEEP)
    yield process
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()


def test_a_process_is_killed(other: subprocess.Popen[bytes]) -> None:
    process = Process.of(other.pid)
    assert process is not None
    assert process.is_alive
    process.kill()
    assert other.wait(timeout=30) == -signal.SIGKILL
    assert not process.is_alive
    process.kill()  # nobody has the number now, or somebody else


def test_who_has_the_number_by_now_is_left_alone(other: subprocess.Popen[bytes]) -> None:
    living = Process.of(other.pid)
    assert living is not None
    former = living._replace(started_ticks=living.started_ticks - 1)
    assert not former.is_alive
    former.kill()
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(timeout=0.5)
    living.kill()
    assert other.wait(timeout=30) == -signal.SIGKILL


def test_one_that_is_dead_but_not_buried_is_not_alive(other: subprocess.Popen[bytes]) -> None:
    process = Process.of(other.pid)
    assert process is not None
    other.kill()
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert process.state == "Z"
    assert not process.is_alive


def test_nobody_has_a_number_that_is_free() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert Process.of(process.pid) is None


def test_descendants_are_children_and_theirs() -> None:
    nested = f"import subprocess; print(subprocess.Popen({SLEEP!r}).pid, flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", nested],
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert {child.pid, grandchild} <= {process.pid for process in descendants()}
        assert os.getpid() not in {process.pid for process in descendants()}
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
