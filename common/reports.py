"""What the roles tell the driver: immutable, one NamedTuple each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.types import EpisodeRecord, PhaseSeconds, WeightsVersion


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


class ReplayReport(NamedTuple):
    """What one shard tells the driver, about once a second.

    Fields:
      incarnation: how many times the shard was started before. What happened "ever" includes what
        happened up to the snapshot that it was restored from, if it was.
      transitions: live transitions.
      bytes: bytes of the live segments as stored.
      inserts: transitions ever inserted.
      accepted: transitions inserted by this incarnation.
      samples: transitions ever sampled.
      evicted: transitions ever evicted.
      stale_priority_updates: priorities that came for evicted or lost ids and were dropped, ever.
      duplicate_segments: segments pushed twice and inserted once, ever.
      refused_pushes: pushes answered "not yet", ever.
      refused_segments: segments that were corrupt and not inserted, ever.
      ended_episodes: games whose records came into this incarnation.
      policy_lag_learner_steps: mean over the segments since the last report, learner step minus the
        acting version's, where that is the living learner's; NaN when there were none.
      actors: (index, incarnation) of the actors whose segments came since the last report.
      episodes: games that ended since the last report.
      actor_phases: wall time of all actors by phase since the last report.
      phases: the shard's own wall time by phase since the last report.
      save: how its snapshots go.
    """

    incarnation: int
    transitions: int
    bytes: int
    inserts: int
    accepted: int
    samples: int
    evicted: int
    stale_priority_updates: int
    duplicate_segments: int
    refused_pushes: int
    refused_segments: int
    ended_episodes: int
    policy_lag_learner_steps: float
    actors: tuple[tuple[int, int], ...]
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
