"""What the roles tell the driver: immutable, one NamedTuple each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.types import EpisodeRecord, PhaseSeconds, ShardCounts, WeightsVersion


class SaveStatus(NamedTuple):
    """How saving goes that a process does beside its work.

    Fields:
      attempts: that ended, well or not, in this incarnation.
      path: what the newest good one wrote, "" before the first.
      trouble: why the newest failed, one line; "" if it did not.
      held_s: that the newest kept the process from its work.
      seconds: that the newest took to write, beside it.
    """

    attempts: int
    path: str
    trouble: str
    held_s: float
    seconds: float


NEVER_SAVED = SaveStatus(attempts=0, path="", trouble="", held_s=math.nan, seconds=math.nan)


class ShardHistory(NamedTuple):
    """What a shard has counted since the run began: snapshots keep it.

    Fields:
      samples: transitions sampled.
      stale_priority_updates: priorities that came for evicted or lost ids and were dropped.
      duplicate_segments: segments pushed again and not inserted again.
      refused_pushes: pushes answered "not yet".
      refused_segments: segments that were corrupt and not inserted.
    """

    samples: int
    stale_priority_updates: int
    duplicate_segments: int
    refused_pushes: int
    refused_segments: int


class ReplayReport(NamedTuple):
    """What one shard tells the driver, about once a second.

    Fields:
      counts: see ShardCounts.
      history: see ShardHistory.
      bytes: bytes of the live segments as stored.
      evicted: transitions ever evicted.
      policy_lag_learner_steps: mean over the segments since the last report, learner step minus the
        acting version's, where that is the living learner's; NaN when there were none.
      actors: (index, incarnation, mean exploration rate of its environments) of the actors whose
        segments came since the last report.
      episodes: games that ended since the last report.
      actor_phases: wall time of all actors by phase since the last report.
      phases: the shard's own wall time by phase since the last report.
      save: how its snapshots go.
    """

    counts: ShardCounts
    history: ShardHistory
    bytes: int
    evicted: int
    policy_lag_learner_steps: float
    actors: tuple[tuple[int, int, float], ...]
    episodes: tuple[EpisodeRecord, ...]
    actor_phases: PhaseSeconds
    phases: PhaseSeconds
    save: SaveStatus


class LearnerReport(NamedTuple):
    """What the learner tells the driver, about once a second.

    Fields:
      version: the newest weights.
      learner_step: gradient updates done, over all incarnations.
      samples: transitions trained on, over all incarnations.
      agent_steps: agent steps of the run that replay had accepted at the last sample.
      metrics: by name, means over the steps since the last report; none when there were none.
      phases: wall time by phase since the last report.
      dropped_priority_updates: priorities dropped because replay could not take them in time.
      save: how its checkpoints go.
    """

    version: WeightsVersion
    learner_step: int
    samples: int
    agent_steps: int
    metrics: Mapping[str, float]
    phases: PhaseSeconds
    dropped_priority_updates: int
    save: SaveStatus


class EvaluationResult(NamedTuple):
    """Whole games played greedily with one set of weights.

    Fields:
      version: the weights that played.
      agent_steps: agent steps of the run when those weights were published.
      returns: float64[G], raw return of each game.
      lengths_agent_steps: int64[G].
      epsilon: exploration rate used.
      seconds: wall time it took.
    """

    version: WeightsVersion
    agent_steps: int
    returns: NDArray[np.float64]
    lengths_agent_steps: NDArray[np.int64]
    epsilon: float
    seconds: float
