"""Runs launch.py as a user does: a process of its own, real signals, and a look at what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent


def launch(*arguments: str, timeout_s: float = 240.0) -> subprocess.CompletedProcess[str]:
    """Run launch.py to its end and check that it leaves no process behind."""
    with started(*arguments) as process:
        output, errors = process.communicate(timeout=timeout_s)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


@contextlib.contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start launch.py in a process group of its own; at the end nothing of it may be alive."""
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "launch.py"), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "TROOP_TEST_RUN": str(id(arguments))},
    )
    mark = f"TROOP_TEST_RUN={id(arguments)}"
    try:
        yield process
        process.wait(timeout=60)
    except BaseException:
        process.kill()
        raise
    finally:
        left = wait_until_gone(mark)
        for survivor in left:
            survivor.kill()
        assert not left, f"left behind: {left}"


def wait_until_gone(mark: str, timeout_s: float = 15.0) -> list[psutil.Process]:
    """Return the processes that carry `mark` in their environment and are alive after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        left = [p for p in psutil.process_iter() if _carries(p, mark)]
        if not left or time.monotonic() > deadline_s:
            return left
        time.sleep(0.2)


def _carries(process: psutil.Process, mark: str) -> bool:
    name, _, value = mark.partition("=")
    try:
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and process.environ().get(name) == value
    except psutil.Error:
        return False


def wait_for_line(process: subprocess.Popen[str], text: str, timeout_s: float = 120.0) -> list[str]:
    """Read the process's output until a line holds `text`; return the lines."""
    assert process.stdout is not None
    lines = []
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        line = process.stdout.readline()
        if not line:
            break
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"{text!r} did not come in {timeout_s} s: {''.join(lines)}")


def interrupt(process: subprocess.Popen[str], number: int = signal.SIGINT) -> None:
    """Send a signal to the whole process group, as a terminal does with Ctrl-C."""
    os.killpg(process.pid, number)


def result_of(run_dir: Path) -> dict[str, Any]:
    """Return the run's result.json."""
    content: dict[str, Any] = json.loads((run_dir / "result.json").read_text())
    return content
