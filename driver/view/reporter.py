"""Turns what the roles report into what people look at: rows of scalars, and the status."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from common.config import Config
from common.metrics import Rate, merge, shares
from common.replay_totals import ReplayTotals
from common.reports import EvaluationResult, LearnerReport, ReplayReport
from common.types import EnvironmentSpec, EpisodeRecord, PhaseSeconds
from driver.view.console import Console
from driver.view.scores import human_normalized_score
from driver.view.sinks import Sinks
from driver.view.status import RunStatus
from driver.view.tags import (
    ACTORS_EPSILON,
    ACTORS_POLICY_LAG_LEARNER_STEPS,
    ENV_FRAMES_PER_S,
    EVAL_EPISODE_RETURN,
    EVAL_HUMAN_NORMALIZED_SCORE,
    LEARNER_DROPPED_PRIORITY_UPDATES,
    LEARNER_STEPS_PER_S,
    REPLAY_BYTES,
    REPLAY_EVICTED_TRANSITIONS,
    REPLAY_LOST_TRANSITIONS,
    REPLAY_REFUSED_SEGMENTS,
    REPLAY_SAMPLES_PER_INSERT,
    REPLAY_STALE_PRIORITY_UPDATES,
    REPLAY_TRANSITIONS,
    RETURN_GAMES,
    TRAIN_EPISODE_AGENT_STEPS,
    TRAIN_EPISODE_RETURN,
    TRAIN_MEAN_EPISODE_RETURN,
    TRANSITIONS_INSERTED_PER_S,
    TRANSITIONS_SAMPLED_PER_S,
    episode_return_quartile_tag,
    learner_tag,
    phase_share_tag,
    restarts_tag,
    save_held_tag,
    save_tag,
)

# Between two rows of scalars; with the writer's flush, TensorBoard shows them within 10 s.
_SCALARS_S = 5.0
_RATE_WINDOW_S = 60.0  # a serial run's turns may take as long
_GAMES_WINDOW_S = 300.0  # so may a few games
# A shard that is busy for so much of its time is what limits the run.
_REPLAY_BUSY_SHARE = 0.8


class Progress(NamedTuple):
    """Where the run stands.

    Fields:
      frames: emulator frames that replay has accepted.
      agent_steps: the same in agent steps.
      episodes: training games that ended.
      learner_steps: gradient updates done.
      last_train_return: mean raw return of the last 100 training games, NaN before the first.
      last_eval_score: mean raw return of the last evaluation, NaN before the first.
    """

    frames: int
    agent_steps: int
    episodes: int
    learner_steps: int
    last_train_return: float
    last_eval_score: float


class Before(NamedTuple):
    """What a run has behind it when it starts, or starts again.

    Fields:
      agent_steps: accepted by replay.
      episodes: training games that ended.
      learner_steps: gradient updates done.
      samples: transitions trained on.
      returns: raw returns of the last training games.
    """

    agent_steps: int
    episodes: int
    learner_steps: int
    samples: int
    returns: Sequence[float]


class Reporter:
    """Books reports and shows them. One thread only."""

    def __init__(
        self,
        *,
        config: Config,
        spec: EnvironmentSpec,
        before: Before,
        console: Console,
        sinks: Sinks,
        clock: Callable[[], float],
    ) -> None:
        """Start to report.

        Args:
          config: the run's settings.
          spec: the run's environment.
          before: what the run has behind it.
          console: where to show the status.
          sinks: where to write scalars.
          clock: seconds, monotonic.
        """
        self._config = config
        self._spec = spec
        self._before = before
        self._console = console
        self._sinks = sinks
        self._clock = clock
        self._started_s = self._scalars_s = clock()
        self._inserted, self._sampled, self._stepped = (
            Rate(window_s=_RATE_WINDOW_S, clock=clock) for _ in range(3)
        )
        self._ended = Rate(window_s=_GAMES_WINDOW_S, clock=clock)
        self._games_per_s = 0.0  # when the newest game ended
        self._learner_step = before.learner_steps
        self._totals = ReplayTotals(config.replay.shards)
        self._shards: dict[int, ReplayReport] = {}  # the newest of each
        self._learner: LearnerReport | None = None  # the newest
        self._restarts: Mapping[str, int] = {}
        self._playing = 0
        self._samples = before.samples  # the newest learner's
        self._samples_since = 0  # by every learner since the start
        self._returns: deque[float] = deque(before.returns, maxlen=RETURN_GAMES)
        self._phases: dict[str, list[PhaseSeconds]] = {"actor": [], "replay": [], "learner": []}
        self._learned: dict[str, list[float]] = {}  # metrics that came since the last row
        self._lags: list[float] = []
        self._epsilons: dict[int, float] = {}  # by actor, as it last pushed
        self._lag = math.nan
        self._eval_score = math.nan
        self._limit = "acting (filling replay)"
        self._is_unwritten = False

    @property
    def totals(self) -> ReplayTotals:
        """What the shards took in since this start of the run."""
        return self._totals

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        agent_steps = self._before.agent_steps + self._totals.accepted
        return Progress(
            frames=agent_steps * self._spec.action_repeat_frames,
            agent_steps=agent_steps,
            episodes=self._before.episodes + self._totals.episodes,
            learner_steps=self._learner_step,
            last_train_return=_mean(self._returns),
            last_eval_score=self._eval_score,
        )

    def close(self) -> None:
        """Write what came after the last scalars, and close the sinks."""
        if self._is_unwritten:
            self._write_scalars()
        self._sinks.close()

    def update(
        self,
        shards: Mapping[int, ReplayReport],
        learner: LearnerReport | None,
        restarts: Mapping[str, int],
        playing: int,
    ) -> None:
        """Book one round of reports and show it.

        Args:
          shards: reports that came, by shard; each is booked once.
          learner: the learner's newest, None where there is no new one.
          restarts: how often workers of each role were started again.
          playing: how many actors are at work.
        """
        self._restarts = restarts
        self._playing = playing
        self._is_unwritten = True
        ended_before = self._totals.episodes
        for index, shard in shards.items():
            self._book_shard(index, shard)
        self._inserted.update_total(self._totals.accepted)
        # Games may come further apart than the window: their rate is asked for when one ends.
        if ended := self._totals.episodes - ended_before:
            self._ended.add(ended)
            self._games_per_s = self._ended.per_second()
        if learner is not None:
            self._book_learner(learner)
        self._sinks.complain()
        now_s = self._clock()
        if now_s - self._scalars_s >= _SCALARS_S:
            self._write_scalars()
        progress = self.progress
        frames_per_s = self._inserted.per_second() * self._spec.action_repeat_frames
        self._console.update(
            RunStatus(
                frames=progress.frames,
                total_frames=self._config.total_frames,
                episodes=progress.episodes,
                total_episodes=self._config.total_episodes,
                eta_s=self._eta_s(frames_per_s),
                frames_per_s=frames_per_s,
                learner_steps_per_s=self._stepped.per_second(),
                train_return=progress.last_train_return,
                eval_score=progress.last_eval_score,
                human_normalized=_normalized(self._spec.name, progress.last_eval_score),
                samples_per_insert=self._ratio(),
                replay_fill=self._totals.transitions / self._config.replay.capacity,
                replay_bytes=sum(shard.bytes for shard in self._shards.values()),
                policy_lag=self._lag,
                limiting_stage=self._limit,
                elapsed_s=now_s - self._started_s,
            )
        )

    def _eta_s(self, frames_per_s: float) -> float:
        """Return the seconds until the run's frames or its games are played, NaN if none are."""
        left_s = [_seconds_for(self._config.total_frames - self.progress.frames, frames_per_s)]
        if self._config.total_episodes is not None:
            left = self._config.total_episodes - self.progress.episodes
            left_s.append(_seconds_for(left, self._games_per_s))
        return min((seconds for seconds in left_s if math.isfinite(seconds)), default=math.nan)

    def evaluated(self, result: EvaluationResult) -> None:
        """Book one evaluation, at the frames of the weights that played."""
        score = float(result.returns.mean())
        self._eval_score = score
        normalized = _normalized(self._spec.name, score)
        scalars = {EVAL_EPISODE_RETURN: score, EVAL_HUMAN_NORMALIZED_SCORE: normalized}
        self._sinks.scalars(scalars, result.agent_steps * self._spec.action_repeat_frames)
        human = f", human-normalised {normalized:.2f}" if math.isfinite(normalized) else ""
        self._console.note(
            f"evaluation of learner step {result.version.learner_step}: mean {score:.1f} over "
            f"{len(result.returns)} games (min {result.returns.min():.0f}, max "
            f"{result.returns.max():.0f}{human}), epsilon {result.epsilon:g}, "
            f"{result.seconds:.0f} s"
        )

    def _book_shard(self, index: int, shard: ReplayReport) -> None:
        since_frames = self.progress.frames
        if self._totals.update(index, shard.counts):
            self._shards[index] = shard
        self._write_games(shard.episodes, since_frames)
        self._returns.extend(game.episode_return for game in shard.episodes)
        self._phases["actor"].append(shard.actor_phases)
        self._phases["replay"].append(shard.phases)
        self._epsilons.update({actor: epsilon for actor, _, epsilon in shard.actors})
        if math.isfinite(shard.policy_lag_learner_steps):
            self._lags.append(shard.policy_lag_learner_steps)
            self._lag = shard.policy_lag_learner_steps

    def _book_learner(self, learner: LearnerReport) -> None:
        # One that came back from a checkpoint counts from there.
        self._samples_since += max(0, learner.samples - self._samples)
        self._samples = learner.samples
        if self._learner is None or learner.save.path != self._learner.save.path:
            self._sinks.flush()  # a run that is resumed from there finds its curves up to there
        self._sampled.update_total(self._samples_since)
        self._stepped.update_total(learner.learner_step)
        self._learner_step = learner.learner_step
        if self._learner is None or learner.phases != self._learner.phases:
            self._phases["learner"].append(learner.phases)  # the learner reports at its own pace
            for name, mean in learner.metrics.items():
                self._learned.setdefault(name, []).append(mean)
        self._learner = learner

    def _write_games(self, episodes: Sequence[EpisodeRecord], since_frames: int) -> None:
        """Write every game by itself: means are the reader's affair.

        A report does not say when its games ended. They are spread at equal distances over the
        frames since the report before, the last of them at the newest frame. A run may be resumed
        from that frame, so none stands beyond it, unless there are more games than frames.
        """
        frames_each = (self.progress.frames - since_frames) / max(1, len(episodes))
        for number, game in enumerate(episodes, start=1):
            frames = since_frames + max(1, round(number * frames_each))
            scalars = {
                TRAIN_EPISODE_RETURN: game.episode_return,
                TRAIN_EPISODE_AGENT_STEPS: float(game.agent_steps),
            }
            if math.isfinite(game.ladder_position):
                scalars[episode_return_quartile_tag(game.ladder_position)] = game.episode_return
            self._sinks.scalars(scalars, frames)

    def _write_scalars(self) -> None:
        now_s = self._clock()
        wall_s, self._scalars_s, self._is_unwritten = now_s - self._scalars_s, now_s, False
        shards = self._shards.values()
        role_shares = {role: merge(parts) for role, parts in self._phases.items()}
        self._limit = "acting (nobody plays)"
        if self._playing:
            self._limit = _limiting_stage(role_shares, len(shards), self._learner_step, wall_s)
        inserted_per_s = self._inserted.per_second()
        scalars = {
            ENV_FRAMES_PER_S: inserted_per_s * self._spec.action_repeat_frames,
            LEARNER_STEPS_PER_S: self._stepped.per_second(),
            TRANSITIONS_SAMPLED_PER_S: self._sampled.per_second(),
            TRANSITIONS_INSERTED_PER_S: inserted_per_s,
            **{learner_tag(name): _mean(means) for name, means in self._learned.items()},
            REPLAY_TRANSITIONS: self._totals.transitions,
            REPLAY_BYTES: sum(shard.bytes for shard in shards),
            REPLAY_SAMPLES_PER_INSERT: self._ratio(),
            REPLAY_STALE_PRIORITY_UPDATES: sum(s.history.stale_priority_updates for s in shards),
            REPLAY_REFUSED_SEGMENTS: sum(s.history.refused_segments for s in shards),
            REPLAY_EVICTED_TRANSITIONS: sum(shard.evicted for shard in shards),
            REPLAY_LOST_TRANSITIONS: self._totals.lost,
            LEARNER_DROPPED_PRIORITY_UPDATES: (
                self._learner.dropped_priority_updates if self._learner else math.nan
            ),
            ACTORS_POLICY_LAG_LEARNER_STEPS: _mean(self._lags),
            TRAIN_MEAN_EPISODE_RETURN: _mean(self._returns),
            ACTORS_EPSILON: _mean(list(self._epsilons.values())),
            **{restarts_tag(role): count for role, count in self._restarts.items()},
        }
        saves = {
            "learner": [self._learner.save] if self._learner else [],
            "replay": [shard.save for shard in shards],
        }
        for role, statuses in saves.items():
            ended = [status for status in statuses if status.attempts > 0]
            scalars[save_held_tag(role)] = max((s.held_s for s in ended), default=math.nan)
            scalars[save_tag(role)] = max((s.seconds for s in ended), default=math.nan)
        for role, phases in role_shares.items():
            # A shard is idle between calls, outside all phases; the others hardly ever are.
            all_s = len(shards) * wall_s if role == "replay" else None
            for phase, share in shares(phases, all_s).items():
                scalars[phase_share_tag(role, phase)] = share
        self._sinks.scalars(scalars, self.progress.frames)
        self._learned, self._lags = {}, []
        self._phases = {role: [] for role in self._phases}

    def _ratio(self) -> float:
        """Samples per insert as the rate limiter counts them: since replay held its minimum."""
        restored = self._totals.inserts + self._totals.lost - self._totals.accepted
        counted = self._totals.accepted - max(0, self._config.replay.min_size - restored)
        return self._samples_since / counted if counted > 0 else math.nan


def _mean(values: Collection[float]) -> float:
    return float(np.mean(list(values))) if values else math.nan


def _seconds_for(left: int, per_s: float) -> float:
    return max(left, 0) / per_s if per_s > 0 else math.nan


def _normalized(game: str, score: float) -> float:
    normalized = human_normalized_score(game, score)
    return math.nan if normalized is None else normalized


def _limiting_stage(
    phases: Mapping[str, PhaseSeconds], num_shards: int, learner_step: int, wall_s: float
) -> str:
    """Name what the others wait for: a busy replay, else whoever waits least."""
    if learner_step == 0:
        return "acting (filling replay)"
    busy = sum(seconds for _, seconds in phases["replay"].phases)
    if busy > _REPLAY_BUSY_SHARE * num_shards * wall_s:
        return "replay"
    actor_waits = shares(phases["actor"]).get("wait", 0.0)
    learner_waits = shares(phases["learner"]).get("wait", 0.0)
    return "acting" if learner_waits > actor_waits else "learning"
