"""Real signals to real processes: what asks a run to save and end, and what is deaf to it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hanging_game import HANGING, HANGS
from launching import PATIENCE_S, ROOT, STOP_S, result_of, started

from driver.interrupts import ECHO_S

SERIAL = ("--preset", "cartpole", "--serial", "--evaluator.no-enabled")
ENDLESS = (*SERIAL, "--total-frames", "100000000", "--checkpoint.every-minutes", "600")


@contextlib.contextmanager
def inherited(number: int, disposition: signal.Handlers) -> Iterator[None]:
    """Start processes that begin with this disposition."""
    before = signal.signal(number, disposition)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_signal_asks_a_run_to_save_and_end(tmp_path: Path, number: int) -> None:
    run = tmp_path / "run"
    with (
        inherited(number, signal.SIG_DFL),
        started(*ENDLESS, "--run-dir", str(run)) as launched,
    ):
        launched.wait_for("frames/s")
        os.kill(launched.pid, number)
        done = launched.wait(STOP_S)
    assert done.returncode == 130, done
    assert done.stderr == ""
    assert "saved learner step" in done.stdout
    assert f"launch.py --resume {run}" in done.stdout
    assert result_of(run)["end_reason"] == "interrupted"


def test_run_under_nohup_does_not_mind_the_terminals_end(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = (*SERIAL, "--total-frames", "3000")
    with (
        inherited(signal.SIGHUP, signal.SIG_IGN),
        started(*flags, "--run-dir", str(run)) as launched,
    ):
        launched.wait_for("run folder")
        os.kill(launched.pid, signal.SIGHUP)
        assert launched.wait().returncode == 0
    assert result_of(run)["end_reason"] == "done"


def test_run_whose_terminal_is_lost_saves_and_ends(tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "run" / "log.txt"
    command = [sys.executable, str(ROOT / "launch.py"), *ENDLESS, "--run-dir", str(run)]
    terminal, side = pty.openpty()

    def take_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = subprocess.Popen(
        command,
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
        preexec_fn=take_terminal,
        env={**os.environ, "TERM": "xterm"},
    )
    try:
        os.close(side)
        deadline_s = time.monotonic() + PATIENCE_S
        while not (log.exists() and "frames/s" in log.read_text()):
            os.read(terminal, 65_536)
            assert time.monotonic() < deadline_s
        os.close(terminal)  # as when a connection breaks: SIGHUP comes, and every write fails
        assert process.wait(STOP_S) == 130
    finally:
        process.kill()
        process.wait()
    assert result_of(run)["end_reason"] == "interrupted"
    logged = log.read_text()
    assert "saved learner step" in logged
    assert "the output is gone ([Errno 5] Input/output error)" in logged


def test_run_that_hangs_inside_of_its_game_is_not_deaf(tmp_path: Path) -> None:
    flags = ("--env", HANGING, *ENDLESS, "--run-dir", str(tmp_path / "run"))
    path = os.pathsep.join(map(str, (ROOT / "tests", ROOT)))
    with started(*flags, environment={"PYTHONPATH": path}) as launched:
        launched.wait_for(HANGS)
        launched.interrupt(signal.SIGINT)
        time.sleep(2 * ECHO_S)
        launched.interrupt(signal.SIGTERM)
        done = launched.wait(2 * STOP_S)
    assert done.returncode == 130
    assert "forced to stop: the main thread does not answer" in done.stderr
    assert "Traceback" not in done.stderr


# What a first signal finds busy, in a call into C that takes longer than the second gets.
BUSY = """
import os, sys, time, threading
from driver import interrupts
from hanging_game import hang
interrupts.ECHO_S, interrupts.DEAF_S = 0.1, 0.5
interrupts.raise_at_signals()
with interrupts.Interrupts() as asked:
    def send():
        for number in map(int, sys.argv[1:]):
            os.kill(os.getpid(), number)
            time.sleep(0.2)
    threading.Thread(target=send).start()
    hang(2.0)
print("saved", asked.requested.is_set())
"""


@pytest.mark.parametrize(
    ("numbers", "code", "said"),
    [
        ([], 0, "saved False\n"),
        ([signal.SIGTERM], 0, "saved True\n"),
        ([signal.SIGTERM, signal.SIGUSR1], 130, ""),
        ([signal.SIGINT, signal.SIGINT, signal.SIGINT], 130, ""),
        ([signal.SIGWINCH, signal.SIGCONT, signal.SIGTERM], 0, "saved True\n"),
    ],
)
def test_one_signal_never_ends_what_is_busy_and_a_second_does_in_bounded_time(
    numbers: list[int], code: int, said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BUSY, *(str(int(number)) for number in numbers)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "tests", ROOT)))},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert (done.returncode, done.stdout) == (code, said), done
