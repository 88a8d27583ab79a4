"""Environment, actor, bytes, shards, sampler, decoder: what comes out is what the actor saw.

`connect` says where the shards live; another shard_contract.Connect is one more parameter.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
from fakes import (
    NO_PHASES,
    FakeClock,
    RandomPolicy,
    RecordingEnvironments,
    ScriptedEnvironments,
    make_weights,
    random_script,
)
from oracles import SeenTransition, seen_transitions
from shard_contract import Connect, connect_local

from actors.actor_loop import ActorLoop
from actors.environments import make_environments
from actors.exploration import Exploration
from actors.priority import first_priority
from common.config import Config, EnvConfig, LearnerConfig, ReplayConfig
from common.heads import QHead
from common.types import (
    Batch,
    EnvironmentSpec,
    ObservationSpec,
    PriorityUpdate,
    Segment,
    TimeSteps,
)
from replay.assembly import make_sampler
from replay.priority_updater import PriorityUpdater
from replay.sampler import ReplaySampler
from replay.writer import ReplayWriter

N_STEP = 3
GAMMA = 0.99
ROWS = 10  # transitions per segment


class Played(NamedTuple):
    """What an actor saw and what it made of it.

    Fields:
      segments: in order, those of one vector step together.
      seen: of all environments, what the segments must hold.
      timesteps: as recorded.
    """

    spec: EnvironmentSpec
    segments: list[list[Segment]]
    seen: list[SeenTransition]
    timesteps: list[TimeSteps]


GAMES = {
    "scripted": 400,
    "scripted_vectors": 200,
    "pong": 250,
    "breakout": 300,
}


def make_game(name: str) -> Any:
    if name == "scripted":
        return ScriptedEnvironments(script=random_script(1, 12), num_envs=3)
    if name == "scripted_vectors":
        spec = ObservationSpec((4,), "float32", 1)
        return ScriptedEnvironments(script=random_script(2, 12), num_envs=2, observation=spec)
    # Random play of Pong outlasts the test: cut each game after 90 agent steps.
    limit = 4 * 90 if name == "pong" else 108_000
    return make_environments(EnvConfig(id=name, max_game_frames=limit), 2, seed=3, training=True)


@pytest.fixture(scope="module", params=list(GAMES))
def played(request: pytest.FixtureRequest) -> Played:
    environments = RecordingEnvironments(make_game(request.param))
    num_envs, spec = environments.num_envs, environments.spec
    loop = ActorLoop(
        environments=environments,
        policy=RandomPolicy(num_envs=num_envs, num_actions=spec.num_actions, seed=1),  # type: ignore[arg-type]
        exploration=Exploration(lambda agent_steps: np.zeros(num_envs), [0.0] * num_envs),
        n_step=N_STEP,
        gamma=GAMMA,
        clip_rewards=True,
        life_loss_reward=0.0,
        segment_transitions=ROWS,
        frames_per_block=4,
        first_priority=functools.partial(first_priority, QHead.first_priority),
        actor=0,
        incarnation=0,
    )
    loop.take(make_weights(0))
    segments = [loop.collect(1) for _ in range(GAMES[request.param])]
    environments.close()
    seen: list[SeenTransition] = []
    for e in range(num_envs):
        mine = seen_transitions(
            environments.timesteps,
            environments.actions,
            e,
            n_step=N_STEP,
            gamma=GAMMA,
            clip_rewards=True,
        )
        seen += mine[: len(mine) // ROWS * ROWS]  # the rest is not in a full segment yet
    assert sum(len(group) for group in segments) * ROWS == len(seen)
    return Played(spec, [group for group in segments if group], seen, environments.timesteps)


@pytest.fixture(params=["local"])
def connect(request: pytest.FixtureRequest) -> Connect:
    return {"local": connect_local}[request.param]


@pytest.fixture(params=[(1, 1), (1, 2), (2, 1), (2, 2)], ids="shards{0[0]}-threads{0[1]}".format)
def config(request: pytest.FixtureRequest) -> Config:
    shards, threads = request.param
    return Config(
        replay=ReplayConfig(
            capacity=4000,
            max_bytes=10**8,
            min_size=1,
            priority_exponent=0.0,
            samples_per_insert="off",
            shards=shards,
        ),
        learner=LearnerConfig(decode_threads=threads),
    )


class Path(NamedTuple):
    """The way from an actor to the learner."""

    writer: ReplayWriter
    sampler: ReplaySampler
    updater: PriorityUpdater


def make_path(connect: Connect, config: Config, spec: EnvironmentSpec) -> Path:
    shards = [connect(config, spec, shard, 0) for shard in range(config.replay.shards)]
    return Path(
        ReplayWriter(shards=shards, window=2, first_shard=0, clock=FakeClock()),
        make_sampler(config, spec, shards=shards, in_flight=1, rows_per_request=1),
        PriorityUpdater(shards=shards, window=4, rows_per_call=1),
    )


def push(path: Path, segments: list[Segment]) -> None:
    path.writer.push(segments, (), NO_PHASES, 0.5)
    while not path.writer.has_room():
        path.writer.wait(1.0)


def fetch(path: Path) -> Batch:
    """Return the next batch; until the shards have told their counts there is none."""
    for _ in range(3000):
        batch = path.sampler.fetch()
        if batch is not None:
            return batch
    raise AssertionError("no batch")


def key_of_seen(row: SeenTransition) -> tuple[Any, ...]:
    return (
        row.s_tm1.tobytes(),
        row.a_tm1,
        float(np.float32(row.r_t)),
        float(np.float32(row.discount_t)),
        row.s_t.tobytes(),
    )


def keys_of(batch: Batch) -> list[tuple[Any, ...]]:
    return [
        (
            batch.s_tm1[i].tobytes(),
            int(batch.a_tm1[i]),
            float(batch.r_t[i]),
            float(batch.discount_t[i]),
            batch.s_t[i].tobytes(),
        )
        for i in range(len(batch.ids))
    ]


def test_every_transition_comes_out_bit_for_bit_as_it_was_seen(
    played: Played, connect: Connect, config: Config
) -> None:
    """Uniform replay draws as many rows as there are by strata, so each of them exactly once."""
    learner = dataclasses.replace(config.learner, batch_size=len(played.seen))
    config = dataclasses.replace(config, learner=learner)
    path = make_path(connect, config, played.spec)
    for segments in played.segments:
        push(path, segments)
    while path.writer.accepted_transitions < len(played.seen):
        path.writer.wait(1.0)
        path.writer.has_room()
    while path.sampler.inserts < len(played.seen):  # otherwise the split would know too little
        path.sampler._poll(1.0)
    batch = fetch(path)
    assert batch.s_tm1.dtype == batch.s_t.dtype == played.timesteps[0].observation.dtype
    assert batch.s_tm1.shape[1:] == played.spec.observation.shape
    assert len(set(batch.ids.tolist())) == len(played.seen)
    assert Counter(keys_of(batch)) == Counter(map(key_of_seen, played.seen))
    assert batch.weight.tolist() == [1.0] * len(played.seen)


def test_every_row_stays_right_while_segments_come_and_go(
    played: Played, connect: Connect, config: Config
) -> None:
    """A small prioritised replay: pushes, evictions, samples and new priorities in turn."""
    config = dataclasses.replace(
        config,
        replay=dataclasses.replace(config.replay, capacity=120, priority_exponent=0.6),
        learner=dataclasses.replace(config.learner, batch_size=32),
    )
    path = make_path(connect, config, played.spec)
    rng = np.random.default_rng(0)
    seen = set(map(key_of_seen, played.seen))
    ids: set[int] = set()
    for segments in played.segments:
        push(path, segments)
        batch = fetch(path)
        assert seen.issuperset(keys_of(batch))
        path.updater.update(PriorityUpdate(batch.ids, rng.exponential(1.0, 32).astype(np.float32)))
        ids.update(batch.ids.tolist())
    assert len(ids) > 0.6 * len(played.seen)
    assert path.sampler.inserts > 2 * 120 >= 2 * path.sampler.size, "segments were evicted"


def test_games_hold_the_edges_that_these_tests_are_about(played: Played) -> None:
    """Starts, lost lives, ends and cut games, lest the rest prove nothing."""
    atari = played.spec.action_repeat_frames == 4
    flags = [
        np.array([getattr(timesteps, field) for timesteps in played.timesteps])
        for field in ("terminated", "truncated", "first", "game_over")
    ]
    terminated, truncated, first, game_over = flags
    assert first[1:].any(), "a second game begins"
    if played.spec.name != "pong":
        assert (terminated & ~game_over).any(), "a life is lost and the game goes on"
        assert (terminated & game_over).any(), "a game ends"
        assert any(row.discount_t == 0 for row in played.seen)
    if played.spec.name != "breakout":
        assert (truncated & game_over & ~terminated).any(), "a game is cut"
        kept = {float(row.discount_t) for row in played.seen}
        assert {GAMMA, GAMMA**2, GAMMA**3} <= kept
    if played.spec.observation.stack > 1:
        padded = [row for row in played.seen if not row.s_tm1[0].any() and row.s_tm1[-1].any()]
        assert len(padded) >= (3 if atari else 30)
