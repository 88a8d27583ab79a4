"""Replay in this process: the shards and their snapshots, for `--serial`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from driver.plan import Plan
from replay.assembly import make_shard, make_writer, restore
from replay.handles import LocalHandle
from replay.shard import ReplayShard
from replay.snapshot import SnapshotFolder
from replay.writer import ReplayWriter


class SerialReplay:
    """All shards of a run, restored from their snapshots if there are any."""

    def __init__(self, plan: Plan, incarnation: int) -> None:
        """Make the shards.

        Args:
          plan: the run.
          incarnation: how many times it was started before.
        """
        config = plan.config
        indices = range(config.replay.shards)
        self.shards: Sequence[ReplayShard] = [
            make_shard(
                config,
                plan.spec,
                shard=k,
                incarnation=incarnation,
                max_bytes=plan.max_bytes,
                accepted_before=0,
                episodes_before=0,
            )
            for k in indices
        ]
        self.handles = [LocalHandle(shard) for shard in self.shards]
        self._config = config
        self._folders = [
            SnapshotFolder(plan.folder.snapshots_place(k), config.checkpoint.keep)
            for k in indices
            if config.checkpoint.replay
        ]
        said = map(restore, self.shards, self._folders)
        self.notes = [f"replay {k}: {line}" for k, line in enumerate(said) if line]
        """Lines for the user on what was restored."""

    @property
    def accepted(self) -> int:
        """Transitions that the shards accepted since this start of the run."""
        return sum(shard.accepted for shard in self.shards)

    @property
    def episodes(self) -> int:
        """Training games that ended since then."""
        return sum(shard.ended_episodes for shard in self.shards)

    def make_writers(self) -> list[ReplayWriter]:
        """Return a writer for each actor; their clock ticks whenever one looks at it."""
        ticks = itertools.count()
        return [
            make_writer(
                self._config, shards=self.handles, actor=actor, clock=lambda: float(next(ticks))
            )
            for actor in range(self._config.actor.count)
        ]

    def save(self) -> None:
        """Write a snapshot of each shard, where the run keeps them.

        Raises:
          OSError: one cannot be written; earlier ones are whole.
        """
        for folder, shard in zip(self._folders, self.shards, strict=False):
            folder.write(shard.capture())
