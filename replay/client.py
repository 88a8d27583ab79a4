"""RAY SHELL: a replay shard behind Ray, for the writer and the sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from common.types import LearnerCounts, PriorityUpdate, Push, SampleReply, ShardCounts
from replay.handles import Pending, ShardLost

# A shard answers within milliseconds; one that is silent so long is stuck or gone.
_ANSWER_S = 120.0


class RayPending:
    """An answer under way through Ray."""

    def __init__(self, ref: Any, what: str) -> None:
        self._ref = ref
        self._what = what

    def wait(self, timeout_s: float) -> bool:
        """Wait at most so long; return whether the answer is there."""
        ready, _ = ray.wait([self._ref], timeout=timeout_s)
        return bool(ready)

    def result(self) -> Any:
        """Return the answer.

        Raises:
          ShardLost: the process died, or nothing came in two minutes.
        """
        try:
            return ray.get(self._ref, timeout=_ANSWER_S)
        except ray.exceptions.GetTimeoutError as error:
            raise ShardLost(f"{self._what}: no answer in {_ANSWER_S:.0f} s") from error
        except ray.exceptions.RayActorError as error:
            raise ShardLost(f"{self._what}: the process died") from error


class RayHandle:
    """A shard in a Ray process, or after its death in the one that takes its place.

    A push goes to the object store once, however often it is offered.
    """

    def __init__(self, server: Any, index: int) -> None:
        """Talk to `server`, the actor handle of replay shard `index`."""
        self._server = server
        self._index = index

    def replace(self, server: Any) -> None:
        """Talk to `server` from now on; any thread may call this."""
        self._server = server

    def prepare(self, push: Push) -> Any:
        """Put the push into the object store."""
        return ray.put(push)

    def add(self, prepared: Any) -> Pending[bool]:
        """Offer a push."""
        return self._pending(self._server.add.remote(prepared), "add")

    def sample(self, rows: Sequence[int], learner: LearnerCounts) -> Pending[SampleReply]:
        """Ask for so many rows for each of several batches."""
        return self._pending(self._server.sample.remote(rows, learner), "sample")

    def counts(self, learner: LearnerCounts) -> Pending[ShardCounts]:
        """Ask for counts."""
        return self._pending(self._server.counts.remote(learner), "counts")

    def update_priorities(self, update: PriorityUpdate) -> Pending[int]:
        """Send new priorities."""
        return self._pending(self._server.update_priorities.remote(update), "update_priorities")

    def _pending(self, ref: Any, method: str) -> RayPending:
        return RayPending(ref, f"replay shard {self._index}, {method}")
