"""Runs launch.py as a user does: a process, real signals, and a look at what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
# For environments of the tests' own, which a run's other processes import, too.
ON_THE_PATH = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
# Long enough for two cores that somebody else uses too: a start alone may then take a minute.
PATIENCE_S = 240.0
# What DESIGN allows from a signal to the last process's end.
STOP_S = 15.0
_POLL_S = 0.1
# Whether torch.compile has what it needs on a processor; that of a run is tried out by the run.
HAS_COMPILER = shutil.which("g++") is not None


class Launched:
    """A launch.py that was started.

    Its output goes to files, not to pipes: nobody has to read along for it to go on.
    """

    def __init__(self, process: subprocess.Popen[bytes], mark: str, out: Path, err: Path) -> None:
        self._process = process
        self._mark = mark
        self._out = out
        self._err = err

    @property
    def pid(self) -> int:
        """Of the driver, and of the session that everything it starts belongs to."""
        return self._process.pid

    @property
    def said(self) -> str:
        """Everything it said so far, for messages of failed assertions."""
        return self._out.read_text(errors="replace") + self._err.read_text(errors="replace")

    @property
    def is_running(self) -> bool:
        """Whether the driver runs."""
        return self._process.poll() is None

    def wait(self, timeout_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Wait for the driver's end."""
        try:
            code = self._process.wait(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s} s: {self.said}") from None
        return subprocess.CompletedProcess(
            self._process.args, code, self._out.read_text(), self._err.read_text()
        )

    def wait_until(
        self, holds: Callable[[], bool], what: str, timeout_s: float = PATIENCE_S
    ) -> None:
        """Wait until something holds; fail at once when the driver ends before."""
        deadline_s = time.monotonic() + timeout_s
        while not holds():
            assert self.is_running, f"ended before {what}: {self.said}"
            assert time.monotonic() < deadline_s, f"no {what} in {timeout_s} s: {self.said}"
            time.sleep(_POLL_S)

    def wait_for(self, text: str, timeout_s: float = PATIENCE_S) -> None:
        """Wait until it has said `text`."""
        self.wait_until(lambda: text in self.said, repr(text), timeout_s)

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Send a signal to the whole process group, as a terminal does with Ctrl-C."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """Kill the driver alone, as the kernel does when memory runs out."""
        self._process.kill()

    def processes(self) -> list[psutil.Process]:
        """Return every live process of the run: the driver, and what it or its children started.

        They share the driver's session; should one have left it, the mark in its environment tells.
        """
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def workers(self, name: str) -> list[psutil.Process]:
        """Return the live Ray workers whose title begins with `ray::` and the name."""
        return [p for p in self.processes() if title_of(p).startswith(f"ray::{name}")]

    def wait_until_gone(self, timeout_s: float) -> list[psutil.Process]:
        """Return what is still alive after `timeout_s`; returns as soon as nothing is."""
        deadline_s = time.monotonic() + timeout_s
        while (left := self.processes()) and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        return left

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            if os.getsid(process.pid) == self.pid:
                return True
            return process.environ().get("TROOP_TEST_MARK") == self._mark
        except (psutil.Error, OSError):  # gone meanwhile, or not ours to look at
            return False


@contextlib.contextmanager
def started(
    *arguments: str, environment: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Iterator[Launched]:
    """Start launch.py in a session of its own.

    At the end of the block the driver must end within a minute, and nothing of it may be alive 15 s
    later. When the block fails everything is killed, so that no later test suffers from it.
    """
    mark = secrets.token_hex(8)
    with tempfile.TemporaryDirectory(prefix="troop-test-") as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "launch.py"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out_file,
                stderr=err_file,
                start_new_session=True,
                cwd=cwd,
                env={**os.environ, "TROOP_TEST_MARK": mark, **(environment or {})},
            )
        launched = Launched(process, mark, out, err)
        try:
            yield launched
            launched.wait(timeout_s=60.0)
            left = [f"{p.pid} {title_of(p)}" for p in launched.wait_until_gone(STOP_S)]
            assert not left, f"left behind: {left}: {launched.said}"
        finally:
            for survivor in launched.processes():
                with contextlib.suppress(psutil.Error):
                    survivor.kill()
            process.wait()


def launch(
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = PATIENCE_S,
) -> subprocess.CompletedProcess[str]:
    """Run launch.py to its end and check that it leaves no process behind."""
    with started(*arguments, environment=environment, cwd=cwd) as launched:
        return launched.wait(timeout_s)


def result_of(run_dir: Path) -> dict[str, Any]:
    """Return the run's result.json."""
    content: dict[str, Any] = json.loads((run_dir / "result.json").read_text())
    return content


def title_of(process: psutil.Process) -> str:
    """Return a process's command line or title, "" if it is gone."""
    try:
        return " ".join(process.cmdline()).strip()
    except psutil.Error:
        return ""


def raylets(launched: Launched) -> list[psutil.Process]:
    """Return a run's raylet, if it is up."""
    found = []
    for process in launched.processes():
        with contextlib.suppress(psutil.Error):
            if process.name() == "raylet":
                found.append(process)
    return found


def left_in(base: Path) -> list[str]:
    """Return the names of the runs' folders in a place."""
    return sorted(path.name for path in base.glob("troop-*"))
