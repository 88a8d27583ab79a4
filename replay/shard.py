"""One replay shard as a plain object: replay, its side of the rate limiter, and its report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.metrics import PhaseTimer, merge
from common.reports import ReplayReport
from common.types import (
    AddReply,
    EpisodeRecord,
    PhaseSeconds,
    PriorityUpdate,
    Push,
    RunCounts,
    SampleReply,
    ShardCounts,
)
from replay.prioritized import PrioritizedReplay
from replay.rate_limiter import RateLimiter


class ReplayShard:
    """Answers actors, the learner and the driver; never waits.

    A push that would get too far ahead of the learner is answered "not yet" (`accepted=False`);
    waiting is the client's affair. What the other shards hold is known from the learner's last
    request. Not thread-safe: one Ray actor thread, or the serial scheduler, calls it.
    """

    def __init__(self, *, replay: PrioritizedReplay, limiter: RateLimiter) -> None:
        self._replay = replay
        self._limiter = limiter
        self._run = RunCounts(samples=0, inserts_elsewhere=0, learner_step=0)
        self._samples = 0
        self._stale = 0
        self._duplicates = 0
        self._refused = 0
        self._lags: list[float] = []
        self._actors: set[int] = set()
        self._episodes: list[EpisodeRecord] = []
        self._ended_episodes = 0
        self._actor_phases: list[PhaseSeconds] = []
        self._timer = PhaseTimer()

    @property
    def inserted(self) -> int:
        """Transitions ever inserted."""
        return self._replay.storage.inserted

    @property
    def ended_episodes(self) -> int:
        """Training games ever ended whose records came in."""
        return self._ended_episodes

    def add(self, push: Push) -> AddReply:
        """Insert a push, or answer "not yet".

        Raises:
          PackingError: a segment is corrupt; those before it are in.
        """
        with self._timer.phase("add"):
            inserts = self._replay.storage.inserted + self._run.inserts_elsewhere
            if not self._limiter.can_insert(inserts, self._run.samples, push.transitions):
                self._refused += 1
                return AddReply(accepted=False, duplicate_segments=0)
            duplicates = 0
            for packed in push.segments:
                added = self._replay.add(packed)
                if added is None:
                    duplicates += 1
                else:
                    self._actors.add(added.name.actor)
                    step = float(added.weights_version[:, 1].mean())
                    self._lags.append(self._run.learner_step - step)
            # A retry of a push that was stored brings its records again.
            if duplicates < len(push.segments) or not push.segments:
                self._episodes.extend(push.episodes)
                self._ended_episodes += len(push.episodes)
                self._actor_phases.append(push.phases)
            self._duplicates += duplicates
            return AddReply(accepted=True, duplicate_segments=duplicates)

    def sample(self, rows: Sequence[int], run: RunCounts) -> tuple[SampleReply, ...]:
        """Draw so many rows for each of several batches; the caller has asked its limiter."""
        with self._timer.phase("sample"):
            self._run = run
            replies = []
            for num in rows:
                reply = self._replay.sample(num)
                self._samples += len(reply.ids)
                replies.append(reply._replace(counts=self._with_episodes(reply.counts)))
            return tuple(replies)

    def counts(self, run: RunCounts) -> ShardCounts:
        """Return this shard's counts and take the run's."""
        self._run = run
        return self._with_episodes(self._replay.counts())

    def update_priorities(self, update: PriorityUpdate) -> int:
        """Set new priorities; return how many came too late."""
        with self._timer.phase("update"):
            stale = self._replay.update_priorities(update)
            self._stale += stale
            return stale

    def report(self) -> ReplayReport:
        """Return what happened since the last report; call it from one place only."""
        storage = self._replay.storage
        report = ReplayReport(
            transitions=len(storage),
            bytes=storage.num_bytes,
            inserts=storage.inserted,
            samples=self._samples,
            evicted=storage.evicted,
            stale_priority_updates=self._stale,
            duplicate_segments=self._duplicates,
            refused_pushes=self._refused,
            policy_lag_learner_steps=sum(self._lags) / len(self._lags) if self._lags else math.nan,
            actors=tuple(sorted(self._actors)),
            episodes=tuple(self._episodes),
            actor_phases=merge(self._actor_phases),
            phases=self._timer.drain(),
        )
        self._lags, self._episodes, self._actor_phases = [], [], []
        self._actors = set()
        return report

    def _with_episodes(self, counts: ShardCounts) -> ShardCounts:
        return counts._replace(episodes=self._ended_episodes)
