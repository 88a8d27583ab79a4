"""One replay shard as a plain object: replay, its side of the rate limiter, and its report."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.metrics import PhaseTimer, merge
from common.packing import PackingError, segment_fingerprint
from common.reports import NEVER_SAVED, ReplayReport, SaveStatus, ShardHistory
from common.types import (
    EpisodeRecord,
    LearnerCounts,
    ObservationSpec,
    PhaseSeconds,
    PriorityUpdate,
    Push,
    SampleReply,
    ShardCounts,
)
from replay.prioritized import PrioritizedReplay
from replay.rate_limiter import RateLimiter
from replay.state import ShardState, SnapshotError
from replay.waiting_line import WaitingLine


class ReplayShard:
    """Answers actors, the learner and the driver; never waits.

    A push that would get too far ahead of the learner is answered "not yet" (False);
    waiting is the client's affair, and whoever asked first goes first. What the other shards hold
    is known from the learner's last request. Not thread-safe: one Ray actor thread, or the serial
    scheduler, calls it.
    """

    def __init__(
        self,
        *,
        replay: PrioritizedReplay,
        limiter: RateLimiter,
        shards: int,
        observation: ObservationSpec,
        accepted_before: int,
        episodes_before: int,
    ) -> None:
        """Prepare to answer.

        Args:
          replay: an empty replay.
          limiter: the run's rate limiter.
          shards: shards in the run.
          observation: what the segments' frames are.
          accepted_before: transitions that the shard's dead incarnations accepted since this start
            of the run: this one counts on from there.
          episodes_before: training games whose records came to them.
        """
        self._replay = replay
        self._limiter = limiter
        self._shards = shards
        self._observation = observation
        self._line = WaitingLine()
        self._learner = LearnerCounts(samples=0, inserts_elsewhere=0, version=None)
        self._accepted_before = accepted_before
        self._samples = 0
        self._stale = 0
        self._duplicates = 0
        self._refused = 0
        self._refused_segments = 0
        self._lags: list[float] = []
        self._actors: dict[tuple[int, int], float] = {}  # their exploration rates
        self._episodes: list[EpisodeRecord] = []
        self._ended_episodes = episodes_before
        self._actor_phases: list[PhaseSeconds] = []
        self._timer = PhaseTimer()

    @property
    def inserted(self) -> int:
        """Transitions ever inserted, restored ones included."""
        return self._replay.storage.inserted

    @property
    def incarnation(self) -> int:
        """How many times this shard was started before."""
        return self._replay.storage.incarnation

    @property
    def accepted(self) -> int:
        """Transitions accepted since this start of the run; see ShardCounts."""
        storage = self._replay.storage
        return self._accepted_before + storage.inserted - storage.restored

    @property
    def ended_episodes(self) -> int:
        """Training games whose records came since this start of the run."""
        return self._ended_episodes

    def add(self, push: Push) -> bool:
        """Insert a push and return True, or return False: not yet, offer the same again later.

        A corrupt segment is left out and counted: whoever sent it can do nothing about it.

        Raises:
          ValueError: a segment is larger than the shard; those before it are in.
        """
        with self._timer.phase("add"):
            if not self._has_room(push):
                self._refused += 1
                return False
            inserted = duplicates = 0
            for packed in push.segments:
                try:
                    added = self._replay.add(packed)
                except PackingError:
                    self._refused_segments += 1
                    continue
                if added is None:
                    duplicates += 1
                else:
                    inserted += 1
                    self._actors[added.name.actor, added.name.incarnation] = push.epsilon
                    self._lags += self._lag_of(added.weights_version)
            # A retry of a push that was stored brings its records again.
            if inserted or not duplicates:
                self._episodes.extend(push.episodes)
                self._ended_episodes += len(push.episodes)
                self._actor_phases.append(push.phases)
            self._duplicates += duplicates
            return True

    def sample(self, rows: Sequence[int], learner: LearnerCounts) -> SampleReply:
        """Draw so many rows for each of several batches; the caller has asked its limiter."""
        with self._timer.phase("sample"):
            self._learner = learner
            self._samples += sum(rows) if len(self._replay.storage) else 0
            return SampleReply(self._counts(), tuple(map(self._replay.sample, rows)))

    def counts(self, learner: LearnerCounts) -> ShardCounts:
        """Return this shard's counts and take the learner's."""
        self._learner = learner
        return self._counts()

    def update_priorities(self, update: PriorityUpdate) -> int:
        """Set new priorities; return how many came too late."""
        with self._timer.phase("update"):
            stale = self._replay.update_priorities(update)
            self._stale += stale
            return stale

    def report(self, save: SaveStatus = NEVER_SAVED) -> ReplayReport:
        """Return what happened since the last report; call it from one place only.

        Args:
          save: how its snapshots go, where they are written beside the work.
        """
        storage = self._replay.storage
        report = ReplayReport(
            counts=self._counts(),
            history=self._history(),
            bytes=storage.num_bytes,
            evicted=storage.evicted,
            policy_lag_learner_steps=sum(self._lags) / len(self._lags) if self._lags else math.nan,
            actors=tuple(sorted((*name, epsilon) for name, epsilon in self._actors.items())),
            episodes=tuple(self._episodes),
            actor_phases=merge(self._actor_phases),
            phases=self._timer.drain(),
            save=save,
        )
        self._lags, self._episodes, self._actor_phases = [], [], []
        self._actors = {}
        return report

    def capture(self) -> ShardState:
        """Return all that a snapshot has to hold.

        Segments are shared, not copied: a million transitions take some milliseconds.
        """
        with self._timer.phase("capture"):
            replay, storage = self._replay, self._replay.storage
            segments, first_ids = storage.live_segments()
            return ShardState(
                shard=storage.shard,
                shards=self._shards,
                observation=self._observation,
                incarnation=storage.incarnation,
                alpha=replay.alpha,
                inserted=storage.inserted,
                segments=segments,
                first_ids=first_ids,
                masses=replay.masses(),
                names=storage.names(),
                rng=replay.rng_state,
                history=self._history(),
            )

    def restore(self, state: ShardState) -> None:
        """Go on where an earlier incarnation stood.

        What it held keeps its ids; new transitions get this incarnation's. So the ids of what was
        inserted after the capture and lost are never issued again, and priorities for them are
        stale. With less room than there was, the newest segments are kept. For another priority
        exponent see PrioritizedReplay.restore.

        Raises:
          ValueError: this shard is not empty.
          SnapshotError: the state is another shard's, of a run with other shards or observations,
            of an incarnation not before this one, or unsound. Nothing was changed.
        """
        storage = self._replay.storage
        for what, own, theirs in (
            ("`replay.shards`", self._shards, state.shards),
            ("shard", storage.shard, state.shard),
            ("observations", tuple(self._observation), tuple(state.observation)),
        ):
            if own != theirs:
                raise SnapshotError(f"Expect a snapshot of {what} {own}, actually: {theirs}")
        if state.incarnation >= storage.incarnation:
            raise SnapshotError(
                f"Expect a snapshot of an incarnation before {storage.incarnation}, actually: "
                f"{state.incarnation}; ids would be issued twice"
            )
        try:
            self._replay.restore(state)
        except PackingError as error:
            raise SnapshotError(str(error)) from error
        (
            self._samples,
            self._stale,
            self._duplicates,
            self._refused,
            self._refused_segments,
        ) = state.history

    def check_valid(self) -> None:
        """Raise AssertionError unless what is stored and its masses agree."""
        self._replay.check_valid()

    def _has_room(self, push: Push) -> bool:
        """Return whether the push may come in now; if not, it gets or keeps its place in line."""
        if not push.segments:
            return True  # records take no room
        key = segment_fingerprint(push.segments[0])
        inserts = self._replay.storage.inserted + self._learner.inserts_elsewhere
        if self._limiter.can_insert(
            inserts, self._learner.samples, push.transitions, promised=self._line.ahead_of(key)
        ):
            self._line.leave(key)
            return True
        self._line.wait(key, push.transitions)
        return False

    def _lag_of(self, versions: NDArray[np.int64]) -> list[float]:
        """Return [mean policy lag in learner steps], [] where no weights of this learner acted.

        A learner that came back from a checkpoint counts again from there: its steps and those of
        the one before say nothing of each other.

        Args:
          versions: int64[T, 2], WeightsVersion of each transition.
        """
        if self._learner.version is None:
            return []
        incarnation, step = versions.T
        of_now = step[incarnation == self._learner.version.incarnation]
        return [self._learner.version.learner_step - float(of_now.mean())] if len(of_now) else []

    def _counts(self) -> ShardCounts:
        storage = self._replay.storage
        return ShardCounts(
            incarnation=storage.incarnation,
            inserts=storage.inserted,
            restored=storage.restored,
            transitions=len(storage),
            mass=self._replay.mass,
            accepted=self.accepted,
            episodes=self._ended_episodes,
        )

    def _history(self) -> ShardHistory:
        return ShardHistory(
            samples=self._samples,
            stale_priority_updates=self._stale,
            duplicate_segments=self._duplicates,
            refused_pushes=self._refused,
            refused_segments=self._refused_segments,
        )
