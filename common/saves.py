"""RAY SHELL: asks learner and replay to save, and says how it went."""

from __future__ import annotations

import time
from typing import Any

import ray

from common.console import Console
from common.crew import Crew
from common.reports import SaveStatus
from common.supervisor import WorkerName

_ANSWER_S = 60.0


class Saves:
    """The saves of a run's processes, which they do beside their work."""

    def __init__(
        self, *, crew: Crew, console: Console, every_s: float, names: list[WorkerName], newest: str
    ) -> None:
        """Begin to count the time.

        Args:
          crew: the run's processes.
          console: is told of saves that fail.
          every_s: between two saves.
          names: who saves.
          newest: path of the checkpoint that the run goes on from, "" for none.
        """
        self._crew = crew
        self._console = console
        self._every_s = every_s
        self._names = names
        self._newest = newest
        self._statuses: dict[WorkerName, SaveStatus] = {}  # as last told
        self._asked: list[tuple[WorkerName, Any, Any]] = []  # with the handle and the ObjectRef
        self._saved_s = time.monotonic()

    @property
    def newest(self) -> str:
        """Path of the newest checkpoint that is known to be good, "" for none."""
        return self._newest

    def last_good(self) -> str:
        """Return the end of a sentence that names it."""
        return f"; the last good checkpoint is {self._newest}" if self._newest else ""

    def ask_when_due(self) -> None:
        """Make everybody save, if it is time."""
        now_s = time.monotonic()
        if now_s - self._saved_s < self._every_s:
            return
        self._saved_s = now_s
        for name in self._names:
            if (handle := self._crew.handle(name)) is not None:
                self._asked.append((name, handle, handle.save.remote()))

    def look_after(self) -> None:
        """Bury who could not even begin to save; how it went on, reports tell."""
        for save in list(self._asked):
            name, handle, ref = save
            if not ray.wait([ref], timeout=0)[0]:
                continue
            self._asked.remove(save)
            try:
                ray.get(ref, timeout=_ANSWER_S)
            except ray.exceptions.RayError as error:
                self._crew.bury(name, handle, error)

    def told(self, name: WorkerName, status: SaveStatus) -> None:
        """Take note of how a process's saves go, and say of one that failed that it did."""
        before, self._statuses[name] = self._statuses.get(name), status
        is_learner = name[0] == "learner"
        if is_learner and status.path:
            self._newest = status.path
        if status.trouble and (before is None or before.attempts != status.attempts):
            good = f"the last good one is {status.path}" if status.path else "there is none before"
            what = "checkpoint" if is_learner else "snapshot"
            self._console.note(
                f"{name[0]} {name[1]} could not write its {what}: {status.trouble}; training goes "
                f"on, {good}"
            )
