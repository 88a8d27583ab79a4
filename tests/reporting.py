"""A reporter on a clock that moves by hand, and the reports that it is fed."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fakes import NOTHING_BEFORE, made

from common.config import Config, ReplayConfig
from common.reports import NEVER_SAVED, EvaluationResult, LearnerReport, ReplayReport, ShardHistory
from common.types import (
    EnvironmentSpec,
    EpisodeRecord,
    ObservationSpec,
    PhaseSeconds,
    ShardCounts,
    WeightsVersion,
)
from driver.view.console import Console
from driver.view.events import EventWriter, Series, read_scalars
from driver.view.reporter import Before, Reporter
from driver.view.sinks import Sink, Sinks
from driver.view.status import RunStatus

PONG = EnvironmentSpec(
    name="pong",
    observation=ObservationSpec((84, 84), "uint8", 4),
    num_actions=6,
    action_repeat_frames=4,
    protocol="",
)
NUM_SHARDS = 3
RESTARTS = {"actor": 3, "replay": 0, "learner": 1}


def game(episode_return: float, position: float = 0.0, agent_steps: int = 100) -> EpisodeRecord:
    """Return the record of a training game."""
    return EpisodeRecord(episode_return, agent_steps, epsilon=0.1, ladder_position=position)


def phases(**seconds: float) -> PhaseSeconds:
    """Return seconds by phase."""
    return PhaseSeconds(tuple(seconds.items()))


def shard_report(
    *,
    incarnation: int = 0,
    inserts: int = 0,
    restored: int = 0,
    by_the_dead: int = 0,
    transitions: int = 0,
    ended_episodes: int = 0,
    stale_priority_updates: int = 0,
    **changes: Any,
) -> ReplayReport:
    """Return a shard's report in which nothing has happened but what is given."""
    report = ReplayReport(
        counts=ShardCounts(
            incarnation=incarnation,
            inserts=inserts,
            restored=restored,
            transitions=transitions,
            mass=0.0,
            accepted=by_the_dead + inserts - restored,
            episodes=ended_episodes,
        ),
        history=ShardHistory(
            samples=0,
            stale_priority_updates=stale_priority_updates,
            duplicate_segments=0,
            refused_pushes=0,
            refused_segments=0,
        ),
        bytes=0,
        evicted=0,
        policy_lag_learner_steps=math.nan,
        actors=(),
        episodes=(),
        actor_phases=phases(),
        phases=phases(),
        save=NEVER_SAVED,
    )
    return report._replace(**changes)


def learner_report(**changes: Any) -> LearnerReport:
    """Return a learner's report in which nothing has happened but `changes`."""
    report = LearnerReport(
        version=WeightsVersion(0, 0),
        learner_step=0,
        samples=0,
        agent_steps=0,
        metrics={},
        phases=phases(),
        dropped_priority_updates=0,
        save=NEVER_SAVED,
    )
    return report._replace(**changes)


def evaluation(*returns: float, agent_steps: int = 0) -> EvaluationResult:
    """Return what an evaluation at learner step 50 came to."""
    return EvaluationResult(
        version=WeightsVersion(0, 50),
        agent_steps=agent_steps,
        returns=np.array(returns),
        lengths_agent_steps=np.full(len(returns), 10),
        epsilon=0.001,
        seconds=12.0,
    )


class Stage:
    """A reporter on a clock that moves by hand, its console recorded, its events in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_s = 1_000.0
        self.output = io.StringIO()
        self.statuses: list[RunStatus] = []
        self.ended = [0] * NUM_SHARDS
        self.console = Console(stream=self.output, log_file=None, clock=lambda: self.now_s)
        show = self.console.update

        def update(status: RunStatus) -> None:
            self.statuses.append(status)
            show(status)

        self.console.update = update  # type: ignore[method-assign]

    def start(
        self,
        *,
        spec: EnvironmentSpec = PONG,
        total_episodes: int | None = None,
        min_size: int = 0,
        before: Before = NOTHING_BEFORE,
        beside: Sequence[Sink] = (),
    ) -> Reporter:
        """Make the reporter of a run of 40,000 frames, with sinks beside its events."""
        replay = ReplayConfig(shards=NUM_SHARDS, capacity=1_000, min_size=min_size)
        first_frames = before.agent_steps * spec.action_repeat_frames
        events = EventWriter(folder=made(self.folder), flush_s=10.0, first_frames=first_frames)
        self.reporter = Reporter(
            config=Config(total_frames=40_000, total_episodes=total_episodes, replay=replay),
            spec=spec,
            before=before,
            console=self.console,
            sinks=Sinks([events, *beside], self.console.note),
            clock=lambda: self.now_s,
        )
        return self.reporter

    def update(
        self,
        *shards: ReplayReport,
        after_s: float,
        learner: LearnerReport | None = None,
        restarts: dict[str, int] | None = None,
        playing: int = 1,
    ) -> RunStatus:
        self.now_s += after_s
        report = learner_report() if learner is None else learner
        for index, shard in enumerate(shards):
            self.ended[index] += len(shard.episodes)
        reports = {
            index: shard._replace(counts=shard.counts._replace(episodes=self.ended[index]))
            for index, shard in enumerate(shards)
        }
        restarts = RESTARTS if restarts is None else restarts
        self.reporter.update(reports, report, restarts, playing)
        return self.statuses[-1]

    def scalars(self) -> dict[str, Series]:
        self.reporter.close()
        return read_scalars(self.folder)

    def pairs(self, tag: str) -> list[tuple[float, float]]:
        series = self.scalars()[tag]
        return list(zip(series.frames.tolist(), series.values.tolist(), strict=True))
