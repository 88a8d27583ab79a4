"""When a loop last turned, told from another thread."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from common.process import Process


class Alive(NamedTuple):
    """A worker's answer to whether it is alive.

    Fields:
      process: it; None where its system does not tell.
      idle_s: seconds since its loop last turned; None: it is still getting ready.
    """

    process: Process | None
    idle_s: float | None


class Heartbeat:
    """One thread beats, any thread asks."""

    def __init__(self) -> None:
        self._beat_s: float | None = None

    def beat(self) -> None:
        """Say that the loop has turned."""
        self._beat_s = time.monotonic()

    def alive(self) -> Alive:
        """Return who this is, and how long ago the loop turned."""
        beat_s = self._beat_s
        idle_s = None if beat_s is None else time.monotonic() - beat_s
        return Alive(Process.of(os.getpid()), idle_s)
