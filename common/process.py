"""A process of this machine, told apart from whoever gets its number after it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")
# Where to find them behind the name in /proc/PID/stat; man 5 proc counts from 3 there.
_STATE, _PARENT, _STARTED = 0, 1, 19

# As in linux/prctl.h.
_PR_SET_CHILD_SUBREAPER = 36


class Process(NamedTuple):
    """One process, as long as it lives: numbers are given again, the pair of both is not.

    Fields:
      pid: its number.
      started_ticks: clock ticks from the machine's boot to its start.
    """

    pid: int
    started_ticks: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return who has a number now; None: nobody, or the system does not tell."""
        stat = _stat(pid)
        return cls(pid, int(stat[_STARTED])) if stat else None

    @property
    def state(self) -> str:
        """Its letter in /proc/PID/stat: "Z" dead, "T" stopped; "" where it is gone."""
        stat = _stat(self.pid)
        return stat[_STATE] if stat and int(stat[_STARTED]) == self.started_ticks else ""

    @property
    def is_alive(self) -> bool:
        """Whether it runs, or could."""
        return self.state not in ("", "Z")

    @property
    def name(self) -> str:
        """What the kernel calls it, at most 15 bytes; "" where it is gone."""
        with contextlib.suppress(OSError):
            return (_PROC / str(self.pid) / "comm").read_text(errors="replace").strip()
        return ""

    def kill(self) -> None:
        """Send it SIGKILL; who has its number by now does not get it."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of every later descendant whose own parent ends before it.

    Ray's agents and workers go on for a while without their raylet: so they are still found.
    """
    with contextlib.suppress(OSError, AttributeError):  # a system that has no such thing
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> set[Process]:
    """Return every process that this one started, and what those started in turn.

    One whose parent has ended is found only under who adopted it.
    """
    children: dict[int, list[Process]] = {}
    for entry in _PROC.glob("[0-9]*"):
        if stat := _stat(int(entry.name)):
            process = Process(int(entry.name), int(stat[_STARTED]))
            children.setdefault(int(stat[_PARENT]), []).append(process)
    found: set[Process] = set()
    waiting = [os.getpid()]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child.pid)
    return found


def _stat(pid: int) -> list[str]:
    """Return /proc/PID/stat from the state on; empty where there is none."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()
