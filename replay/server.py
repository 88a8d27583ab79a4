"""RAY SHELL: a replay shard in a process of its own.

Segments arrive as `bytes`, which Ray copies out of its object store on arrival: nothing kept here
pins the store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import ray

from common.config import Config
from common.heartbeat import Alive, Heartbeat
from common.reports import ReplayReport
from common.save_thread import SaveThread
from common.source import Source, expect_source
from common.types import (
    EnvironmentSpec,
    LearnerCounts,
    PriorityUpdate,
    Push,
    SampleReply,
    ShardCounts,
)
from replay.assembly import make_shard, restore
from replay.snapshot import SnapshotFolder


class ReplayProcess:
    """Carries calls to a ReplayShard, and keeps its snapshots."""

    def __init__(
        self,
        config: Config,
        spec: EnvironmentSpec,
        shard: int,
        incarnation: int,
        max_bytes: int,
        snapshots: os.PathLike[str] | None,
        before: tuple[int, int],
        source: Source,
    ) -> None:
        """Make the shard; it goes on from its newest snapshot, if it has one.

        Args:
          config: the run.
          spec: its environment.
          shard: index of the shard.
          incarnation: how many times it was started before.
          max_bytes: most bytes over all shards.
          snapshots: folder of the shard's snapshots, None for none.
          before: transitions that the shard's dead incarnations accepted since this start of the
            run, and their games.
          source: the driver's.
        """
        expect_source(source, f"replay shard {shard}")
        self._shard = make_shard(
            config,
            spec,
            shard=shard,
            incarnation=incarnation,
            max_bytes=max_bytes,
            accepted_before=before[0],
            episodes_before=before[1],
        )
        self._saver = SaveThread("snapshot")
        self._folder: SnapshotFolder | None = None
        self._description = ""
        if snapshots is not None:
            self._folder = SnapshotFolder(snapshots, config.checkpoint.keep)
            self._description = restore(self._shard, self._folder)
        self._heartbeat = Heartbeat()

    def describe(self) -> str:
        """Return one line on what it was restored from, "" if there was nothing."""
        return self._description

    def add(self, push: Push) -> bool:
        """See ReplayShard.add."""
        return self._shard.add(push)

    def sample(self, rows: Sequence[int], learner: LearnerCounts) -> SampleReply:
        """See ReplayShard.sample."""
        return self._shard.sample(rows, learner)

    def counts(self, learner: LearnerCounts) -> ShardCounts:
        """See ReplayShard.counts."""
        return self._shard.counts(learner)

    def update_priorities(self, update: PriorityUpdate) -> int:
        """See ReplayShard.update_priorities."""
        return self._shard.update_priorities(update)

    def report(self) -> ReplayReport:
        """See ReplayShard.report."""
        return self._shard.report(self._saver.status)

    def alive(self) -> Alive:
        """Return who this is; that it answers says that it is at work."""
        self._heartbeat.beat()
        return self._heartbeat.alive()

    def save(self) -> None:
        """Start to write a snapshot beside the work; reports tell how it went."""
        if self._folder is not None:
            self._saver.start(partial(self._capture, self._folder))

    def finish(self) -> ReplayReport:
        """Write the last snapshot, wait for it, and return the last report.

        Raises:
          OSError: it could not be written.
        """
        self._saver.wait()
        self.save()
        self._saver.wait()
        if trouble := self._saver.status.trouble:
            raise OSError(trouble)
        return self.report()

    def _capture(self, folder: SnapshotFolder) -> Callable[[], str]:
        state = self._shard.capture()
        return lambda: f"snapshot {folder.write(state)}"


ReplayServer: Any = ray.remote(ReplayProcess)
