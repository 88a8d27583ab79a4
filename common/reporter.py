"""Turns what the roles report into what people look at: TensorBoard, console, `result.json`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from common.console import Console, RunStatus
from common.goal import RETURN_GAMES
from common.metrics import Rate, merge, shares
from common.reports import EvaluationResult, LearnerReport, ReplayReport
from common.scores import human_normalized_score
from common.tensorboard import (
    ACTORS_EPSILON,
    ACTORS_POLICY_LAG_LEARNER_STEPS,
    ENV_FRAMES_PER_S,
    EVAL_EPISODE_RETURN,
    EVAL_HUMAN_NORMALIZED_SCORE,
    LEARNER_GRAD_NORM,
    LEARNER_Q_MEAN,
    LEARNER_STEPS_PER_S,
    LEARNER_TD_LOSS,
    REPLAY_BYTES,
    REPLAY_SAMPLES_PER_INSERT,
    REPLAY_STALE_PRIORITY_UPDATES,
    REPLAY_TRANSITIONS,
    TRAIN_EPISODE_RETURN,
    TRANSITIONS_INSERTED_PER_S,
    TRANSITIONS_SAMPLED_PER_S,
    EventWriter,
    episode_return_quartile_tag,
    phase_share_tag,
    restarts_tag,
)
from common.types import EnvironmentSpec, EpisodeRecord, PhaseSeconds

# Between two rows of scalars; with the writer's flush, TensorBoard shows them within 10 s.
_SCALARS_S = 5.0
_RATE_WINDOW_S = 15.0
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


class Reporter:
    """Books reports and shows them. One thread only."""

    def __init__(
        self,
        *,
        spec: EnvironmentSpec,
        total_frames: int,
        capacity: int,
        min_size: int,
        samples_before: int,
        learner_steps_before: int,
        agent_steps_before: int,
        episodes_before: int,
        mean_epsilon: Callable[[int], float],
        console: Console,
        events: EventWriter,
        clock: Callable[[], float],
    ) -> None:
        """Start to report.

        Args:
          spec: the run's environment.
          total_frames: where the run ends.
          capacity: transitions replay may hold.
          min_size: transitions that are inserted before learning starts.
          samples_before: transitions trained on before this start of the run.
          learner_steps_before: gradient updates done before this start of the run.
          agent_steps_before: agent steps accepted before this start of the run.
          episodes_before: training games that ended before this start of the run.
          mean_epsilon: mean exploration rate over all environments at an agent step.
          console: where to show the status.
          events: where to write scalars.
          clock: seconds, monotonic.
        """
        self._spec = spec
        self._total_frames = total_frames
        self._capacity = capacity
        self._min_size = min_size
        self._samples_before = samples_before
        self._agent_steps_before = agent_steps_before
        self._mean_epsilon = mean_epsilon
        self._console = console
        self._events = events
        self._clock = clock
        self._started_s = self._scalars_s = clock()
        self._inserted, self._sampled, self._stepped = (
            Rate(window_s=_RATE_WINDOW_S, clock=clock) for _ in range(3)
        )
        self._learner_step = learner_steps_before
        self._agent_steps = agent_steps_before
        self._episodes = episodes_before
        self._returns: deque[float] = deque(maxlen=RETURN_GAMES)
        self._phases: dict[str, list[PhaseSeconds]] = {"actor": [], "replay": [], "learner": []}
        self._learned: list[LearnerReport] = []  # since the last row, of steps that were taken
        self._lags: list[float] = []
        self._lag = math.nan
        self._eval_score = math.nan
        self._limit = "acting (filling replay)"
        self._last_learner: LearnerReport | None = None
        self._unwritten: tuple[Sequence[ReplayReport], LearnerReport, Mapping[str, int]] | None = (
            None
        )

    @property
    def progress(self) -> Progress:
        """Where the run stands."""
        return Progress(
            frames=self._agent_steps * self._spec.action_repeat_frames,
            agent_steps=self._agent_steps,
            episodes=self._episodes,
            learner_steps=self._learner_step,
            last_train_return=_mean(self._returns),
            last_eval_score=self._eval_score,
        )

    def close(self) -> None:
        """Write what came after the last scalars, and close the events."""
        if self._unwritten is not None:
            self._write_scalars(*self._unwritten)
        self._events.close()

    def update(
        self,
        shards: Sequence[ReplayReport],
        learner: LearnerReport,
        restarts: Mapping[str, int],
    ) -> None:
        """Book one round of reports and show it."""
        inserts = sum(shard.inserts for shard in shards)
        transitions = sum(shard.transitions for shard in shards)
        self._agent_steps = self._agent_steps_before + inserts
        self._inserted.update_total(inserts)
        self._sampled.update_total(learner.samples)
        self._stepped.update_total(learner.learner_step)
        self._learner_step = learner.learner_step
        for shard in shards:
            self._write_games(shard.episodes)
            self._episodes += len(shard.episodes)
            self._returns.extend(game.episode_return for game in shard.episodes)
            self._phases["actor"].append(shard.actor_phases)
            self._phases["replay"].append(shard.phases)
            if math.isfinite(shard.policy_lag_learner_steps):
                self._lags.append(shard.policy_lag_learner_steps)
                self._lag = shard.policy_lag_learner_steps
        if self._last_learner is None or learner.phases != self._last_learner.phases:
            self._phases["learner"].append(learner.phases)  # the learner reports at its own pace
            if math.isfinite(learner.td_loss):
                self._learned.append(learner)
        self._last_learner = learner
        self._unwritten = (shards, learner, restarts)
        now_s = self._clock()
        if now_s - self._scalars_s >= _SCALARS_S:
            self._write_scalars(shards, learner, restarts)
        progress = self.progress
        frames_per_s = self._inserted.per_second() * self._spec.action_repeat_frames
        left = max(self._total_frames - progress.frames, 0)
        score = self._eval_score
        self._console.update(
            RunStatus(
                frames=progress.frames,
                total_frames=self._total_frames,
                eta_s=left / frames_per_s if frames_per_s > 0 else math.nan,
                frames_per_s=frames_per_s,
                learner_steps_per_s=self._stepped.per_second(),
                train_return=progress.last_train_return,
                eval_score=score,
                human_normalized=_normalized(self._spec.name, score),
                samples_per_insert=self._ratio(learner.samples, inserts),
                replay_fill=transitions / self._capacity,
                replay_bytes=sum(shard.bytes for shard in shards),
                policy_lag=self._lag,
                limiting_stage=self._limit,
                elapsed_s=now_s - self._started_s,
            )
        )

    def evaluated(self, result: EvaluationResult) -> None:
        """Book one evaluation, at the frames of the weights that played."""
        score = float(result.returns.mean())
        self._eval_score = score
        normalized = _normalized(self._spec.name, score)
        scalars = {EVAL_EPISODE_RETURN: score, EVAL_HUMAN_NORMALIZED_SCORE: normalized}
        self._events.scalars(scalars, result.agent_steps * self._spec.action_repeat_frames)
        human = f", human-normalised {normalized:.2f}" if math.isfinite(normalized) else ""
        self._console.note(
            f"evaluation of learner step {result.version.learner_step}: mean {score:.1f} over "
            f"{len(result.returns)} games (min {result.returns.min():.0f}, max "
            f"{result.returns.max():.0f}{human}), epsilon {result.epsilon:g}, "
            f"{result.seconds:.0f} s"
        )

    def _write_games(self, episodes: Sequence[EpisodeRecord]) -> None:
        """Write every game by itself: means are the reader's affair."""
        for game in episodes:
            quartile = episode_return_quartile_tag(game.ladder_position)
            scalars = {
                TRAIN_EPISODE_RETURN: game.episode_return,
                quartile: game.episode_return,
                "train/episode_agent_steps": float(game.agent_steps),
            }
            self._events.scalars(scalars, self.progress.frames)

    def _write_scalars(
        self,
        shards: Sequence[ReplayReport],
        learner: LearnerReport,
        restarts: Mapping[str, int],
    ) -> None:
        now_s = self._clock()
        wall_s, self._scalars_s, self._unwritten = now_s - self._scalars_s, now_s, None
        inserts = sum(shard.inserts for shard in shards)
        role_shares = {role: merge(parts) for role, parts in self._phases.items()}
        self._limit = _limiting_stage(role_shares, len(shards), learner.learner_step, wall_s)
        inserted_per_s = self._inserted.per_second()
        scalars = {
            ENV_FRAMES_PER_S: inserted_per_s * self._spec.action_repeat_frames,
            LEARNER_STEPS_PER_S: self._stepped.per_second(),
            TRANSITIONS_SAMPLED_PER_S: self._sampled.per_second(),
            TRANSITIONS_INSERTED_PER_S: inserted_per_s,
            LEARNER_TD_LOSS: _mean([report.td_loss for report in self._learned]),
            LEARNER_Q_MEAN: _mean([report.q_mean for report in self._learned]),
            LEARNER_GRAD_NORM: _mean([report.grad_norm for report in self._learned]),
            REPLAY_TRANSITIONS: sum(shard.transitions for shard in shards),
            REPLAY_BYTES: sum(shard.bytes for shard in shards),
            REPLAY_SAMPLES_PER_INSERT: self._ratio(learner.samples, inserts),
            REPLAY_STALE_PRIORITY_UPDATES: sum(s.stale_priority_updates for s in shards),
            ACTORS_POLICY_LAG_LEARNER_STEPS: _mean(self._lags),
            ACTORS_EPSILON: self._mean_epsilon(self._agent_steps),
            **{restarts_tag(role): count for role, count in restarts.items()},
        }
        for role, phases in role_shares.items():
            # A shard is idle between calls, outside all phases; the others always are in one.
            all_s = len(shards) * wall_s if role == "replay" else None
            for phase, share in shares(phases, all_s).items():
                scalars[phase_share_tag(role, phase)] = share
        self._events.scalars(scalars, self.progress.frames)
        self._learned, self._lags = [], []
        self._phases = {role: [] for role in self._phases}

    def _ratio(self, samples: int, inserts: int) -> float:
        """Samples per insert as the rate limiter counts them: since replay held its minimum."""
        counted = inserts - self._min_size
        return (samples - self._samples_before) / counted if counted > 0 else math.nan


def _mean(values: Collection[float]) -> float:
    return float(np.mean(list(values))) if values else math.nan


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
