"""RAY SHELL: the latest weights, put into Ray's object store once per version."""

from __future__ import annotations

from typing import Any, NamedTuple

import ray

from common.heartbeat import Alive, Heartbeat
from common.types import Weights, WeightsVersion


class LatestWeights(NamedTuple):
    """Answer to a poll.

    Fields:
      version: of the newest weights, None before the first.
      agent_steps: agent steps of the whole run when they were published.
      buffer: [ObjectRef of uint8[P]]; in a list so that Ray passes the reference on; empty before
        the first.
    """

    version: WeightsVersion | None
    agent_steps: int
    buffer: list[Any]


class WeightStoreProcess:
    """Holds one set of weights."""

    def __init__(self) -> None:
        self._latest = LatestWeights(None, 0, [])
        self._heartbeat = Heartbeat()

    def publish(self, weights: Weights) -> None:
        """Take the learner's newest weights."""
        self._latest = LatestWeights(
            weights.version, weights.agent_steps, [ray.put(weights.buffer)]
        )

    def latest(self) -> LatestWeights:
        """Return the newest weights by reference."""
        return self._latest

    def alive(self) -> Alive:
        """Return who this is; that it answers says that it is at work."""
        self._heartbeat.beat()
        return self._heartbeat.alive()


WeightStore: Any = ray.remote(WeightStoreProcess)
