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
      place: where it is, as a message ends: "in the environment's reset"; "" for nowhere special.
    """

    process: Process | None
    idle_s: float | None
    place: str


class Heartbeat:
    """One thread beats, any thread asks."""

    def __init__(self) -> None:
        self._beat_s: float | None = None
        self._place = ""

    def beat(self) -> None:
        """Say that the loop has turned."""
        self._beat_s = time.monotonic()

    def enter(self, place: str) -> None:
        """Say where the thread is from now on: it may take its time there."""
        self._place = place

    def leave(self) -> None:
        """Say that it is nowhere special any more.

        That is a beat, too, once there was one: several slow calls in a row are no silence.
        """
        self._place = ""
        if self._beat_s is not None:
            self.beat()

    def alive(self) -> Alive:
        """Return who this is, how long ago the loop turned, and where it is."""
        beat_s = self._beat_s
        idle_s = None if beat_s is None else time.monotonic() - beat_s
        return Alive(Process.of(os.getpid()), idle_s, self._place)
