"""RAY SHELL: asks learner and replay to save, and says how it went."""

from __future__ import annotations

import os
import time
from typing import Any

import ray

from common.reports import SaveStatus
from driver.crew import Crew
from driver.run_folder import RunFolder
from driver.supervisor import WorkerName
from driver.view.console import Console

_ANSWER_S = 60.0


class RunSaves:
    """The saves of a run's processes, which they do beside their work."""

    def __init__(
        self,
        *,
        crew: Crew,
        console: Console,
        folder: RunFolder,
        every_s: float,
        names: list[WorkerName],
        newest: str,
    ) -> None:
        """Begin to count the time.

        Args:
          crew: the run's processes.
          console: is told of saves that fail.
          folder: of the run; looked into before a save is named as good.
          every_s: between two saves.
          names: who saves.
          newest: path of the checkpoint that the run goes on from, "" for none.
        """
        self._crew = crew
        self._console = console
        self._folder = folder
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
        """Return the end of a sentence that names it, "" if there is none."""
        # Not Path.exists, which raises where the folder may not be looked into.
        is_there = os.path.exists(self._newest)
        return f"; the last good checkpoint is {self._newest}" if is_there else ""

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
        # Another incarnation counts anew, so the number of attempts alone does not tell them apart.
        if status.trouble and status != before:
            what = "checkpoint" if is_learner else "snapshot"
            self._console.note(
                f"{name[0]} {name[1]} could not write its {what}: {status.trouble}; training goes "
                f"on{self._last_good_of(name, status)}"
            )

    def _last_good_of(self, name: WorkerName, status: SaveStatus) -> str:
        """Return the end of a sentence on what is left of a process's earlier saves.

        Nothing of a shard's where none is known: one that was replaced knows only its own.
        """
        role, index = name
        good = self._newest if role == "learner" else status.path
        if not good:
            return ", there is none before" if role == "learner" else ""
        where = good if role == "learner" else self._folder.snapshots(index)
        is_there = os.path.exists(where)
        return f", the last good one is {good}" if is_there else ", the last good one is gone"
