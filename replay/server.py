"""RAY SHELL: a replay shard in a process of its own.

Segments arrive as `bytes`, which Ray copies out of its object store on arrival: nothing kept here
pins the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from common.config import Config
from common.reports import ReplayReport
from common.source import expect_source
from common.types import (
    AddReply,
    EnvironmentSpec,
    PriorityUpdate,
    Push,
    RunCounts,
    SampleReply,
    ShardCounts,
)
from replay.assembly import make_shard


class ReplayProcess:
    """Carries calls to a ReplayShard."""

    def __init__(
        self,
        config: Config,
        spec: EnvironmentSpec,
        shard: int,
        incarnation: int,
        max_bytes: int,
        source: str,
    ) -> None:
        expect_source(source, f"replay shard {shard}")
        self._shard = make_shard(
            config, spec, shard=shard, incarnation=incarnation, max_bytes=max_bytes
        )

    def add(self, push: Push) -> AddReply:
        """See ReplayShard.add."""
        return self._shard.add(push)

    def sample(self, rows: Sequence[int], run: RunCounts) -> tuple[SampleReply, ...]:
        """See ReplayShard.sample."""
        return self._shard.sample(rows, run)

    def counts(self, run: RunCounts) -> ShardCounts:
        """See ReplayShard.counts."""
        return self._shard.counts(run)

    def update_priorities(self, update: PriorityUpdate) -> int:
        """See ReplayShard.update_priorities."""
        return self._shard.update_priorities(update)

    def report(self) -> ReplayReport:
        """See ReplayShard.report."""
        return self._shard.report()


ReplayServer: Any = ray.remote(ReplayProcess)
