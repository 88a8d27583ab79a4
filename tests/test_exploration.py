"""Exploration: how it is set, that it is acted with, and that `actors/epsilon` shows it."""

from __future__ import annotations

import math
import typing
from pathlib import Path

import numpy as np
import pytest
from fakes import make_weights
from launching import ON_THE_PATH, launch
from telltale_game import NUM_ACTIONS, TELLTALE, actions_in

from actors import exploration
from actors.assembly import make_actor_loop
from actors.environments import resolve
from actors.exploration import SCHEDULES, Exploration, make_exploration
from common.config import ActorConfig, Config
from common.networks import build_network
from common.presets import PRESETS
from driver.view.events import read_scalars

CONFIG = PRESETS["cartpole"].config
STEPS = 4_000
FLAGS = {
    "ladder": "--actor.epsilon-schedule ladder --actor.epsilon 0.5 --actor.epsilon-alpha 4",
    "exponential": "--actor.epsilon-schedule exponential --actor.epsilon-start 1 "
    "--actor.epsilon-end 0.05 --actor.epsilon-decay-agent-steps 200",
}


def test_every_schedule_that_can_be_asked_for_is_in_the_table() -> None:
    asked = typing.get_type_hints(ActorConfig)["epsilon_schedule"]
    assert set(SCHEDULES) == set(typing.get_args(asked))


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_gives_a_rate_and_a_place_to_each_environment(name: str) -> None:
    config = ActorConfig(count=2, envs=3, epsilon_schedule=name)  # type: ignore[arg-type]
    made = make_exploration(config, 1)
    assert made.epsilons(0).shape == (3,)
    assert len(made.ladder_positions) == 3


def test_a_schedule_of_ones_own_is_acted_with_from_the_weights_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever it is called: neither mode knows the names of schedules."""

    def halving(config: ActorConfig, actor: int) -> Exploration:
        rates = np.linspace(1.0, 0.5, config.envs)
        return Exploration(lambda agent_steps: rates / 2**agent_steps, [math.nan] * config.envs)

    monkeypatch.setitem(exploration.SCHEDULES, "halving", halving)
    actor = ActorConfig(count=1, envs=2, epsilon_schedule="halving")  # type: ignore[arg-type]
    config = Config(env=CONFIG.env, agent=CONFIG.agent, actor=actor)
    spec = resolve(config.env)
    loop = make_actor_loop(config, spec, actor=0, incarnation=0)
    assert loop.epsilon == 0.75
    loop.take(make_weights(0, agent_steps=3, network=build_network(config.agent, spec)))
    assert loop.epsilon == 0.75 / 8
    while not (games := loop.drain_episodes()):
        loop.collect(1)
    assert {game.epsilon for game in games} <= {1.0 / 8, 0.5 / 8}


@pytest.mark.parametrize("schedule", FLAGS)
@pytest.mark.parametrize("mode", ["serial", pytest.param("ray", marks=pytest.mark.ray)])
def test_epsilon_shown_is_the_share_of_actions_that_explored(
    mode: str, schedule: str, tmp_path: Path
) -> None:
    run, played = tmp_path / "run", tmp_path / "played"
    played.mkdir()
    done = launch(
        *f"--preset cartpole --env {TELLTALE} --actors 2 --envs-per-actor 2".split(),
        *f"--total-frames {STEPS} --replay.min-size {2 * STEPS} --seed 1".split(),
        *f"--evaluator.no-enabled --run-dir {run} {FLAGS[schedule]}".split(),
        *["--serial"] * (mode == "serial"),
        environment={"TELLTALE": str(played), **ON_THE_PATH},
    )
    assert done.returncode == 0, done.stderr
    actions = actions_in(played)
    assert len(actions) == 4
    # Nothing was learned, so each network's greedy action is one; the last half, when the
    # exponential schedule has come to its end.
    late = np.concatenate([one[len(one) // 2 :] for one in actions])
    greedy = np.bincount(np.concatenate(actions)).argmax()
    explored = (late != greedy).mean() * NUM_ACTIONS / (NUM_ACTIONS - 1)
    shown = read_scalars(run)["actors/epsilon"].values[-1]
    deviation = math.sqrt(0.25 / len(late))
    assert shown == pytest.approx(explored, abs=4 * deviation)
    if schedule == "exponential":
        assert shown == pytest.approx(0.05, abs=0.005)
