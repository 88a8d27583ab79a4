"""The table of environment sources: an entry of one's own is all that another kind takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launching import result_of
from numpy.typing import NDArray

from actors import environments
from actors.environment_source import EnvironmentSource
from actors.environments import clips_rewards, make_run_environments, resolve, source_of
from actors.film import record_game
from common.config import AgentConfig, EnvConfig
from common.heartbeat import Heartbeat
from common.networks import build_network
from common.types import EnvironmentSpec, ObservationSpec, TimeSteps
from launch import main

COLOURS = EnvConfig(id="colours")
SPEC = EnvironmentSpec("colours", ObservationSpec((64, 64, 3), "uint8", 1), 2, 1, "toy.", 1 / 255)
GAME_STEPS = 10


class Colours:
    """Games of GAME_STEPS steps that show noise of 64 x 64 x 3 and pay for action 1."""

    spec = SPEC

    def __init__(
        self, *, env: EnvConfig, num_envs: int, seed: int, training: bool, heartbeat: Heartbeat
    ) -> None:
        self.num_envs = num_envs
        self._rng = np.random.default_rng(seed)
        self._left = 0

    def reset(self) -> TimeSteps:
        self._left = GAME_STEPS
        return self._seen(np.zeros(self.num_envs), first=True)

    def step(self, actions: NDArray[np.int64]) -> TimeSteps:
        if self._left == 0:
            return self.reset()
        self._left -= 1
        return self._seen(actions, first=False)

    def close(self) -> None:
        """Nothing is open."""

    def _seen(self, reward: NDArray[Any], first: bool) -> TimeSteps:
        shape = (self.num_envs, *SPEC.observation.shape)
        over, no = np.full(self.num_envs, self._left == 0), np.zeros(self.num_envs, np.bool_)
        return TimeSteps(
            observation=self._rng.integers(0, 256, shape, np.uint8),
            reward=reward.astype(np.float32),
            terminated=over,
            truncated=no,
            first=np.full(self.num_envs, first),
            game_over=over,
            life_lost=no,
        )


class Film:
    """One of these games, looked at."""

    pictures_per_s = 30.0

    def __init__(self, env: EnvConfig, seed: int) -> None:
        self._game = Colours(env=env, num_envs=1, seed=seed, training=False, heartbeat=Heartbeat())

    def reset(self) -> NDArray[Any]:
        self._shown = self._game.reset().observation
        return self._shown

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[Any], float, bool]:
        seen = self._game.step(actions)
        self._shown = seen.observation
        return self._shown, float(seen.reward[0]), bool(seen.game_over[0])

    def picture(self) -> NDArray[np.uint8]:
        return self._shown[0, 0]

    def close(self) -> None:
        self._game.close()


@pytest.fixture(autouse=True)
def colours(monkeypatch: pytest.MonkeyPatch) -> EnvironmentSource:
    """Put a source for the id `colours` into the table."""
    source = EnvironmentSource(
        matches=lambda env: env.id == COLOURS.id,
        spec=lambda env: SPEC,
        make=Colours,
        film=Film,
        clips_rewards=True,
    )
    monkeypatch.setattr(environments, "SOURCES", [source, *environments.SOURCES])
    return source


def test_an_id_is_of_the_first_source_that_matches(colours: EnvironmentSource) -> None:
    assert source_of(COLOURS) is colours
    assert [source_of(EnvConfig(id=name)) for name in ("CartPole-v1-pixels", "pong", "x")] == (
        environments.SOURCES[1:]
    )


def test_a_source_says_what_its_ids_are_and_how_they_are_read() -> None:
    assert resolve(COLOURS) == SPEC
    assert clips_rewards(COLOURS)
    assert not clips_rewards(EnvConfig(id=COLOURS.id, clip_rewards=False))
    made = make_run_environments(COLOURS, SPEC, 3, 0, training=True, heartbeat=None)
    assert made.reset().observation.shape == (3, 1, 64, 64, 3)


def test_a_game_of_a_source_is_filmed(tmp_path: Path) -> None:
    network = build_network(AgentConfig(network="mlp", hidden=(8,)), SPEC)
    film = tmp_path / "game.mp4"
    assert 0.0 <= record_game(COLOURS, network, 0.5, 0, film) <= GAME_STEPS
    assert film.stat().st_size > 1_000


@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_a_run_trains_and_evaluates_on_a_source_of_ones_own(tmp_path: Path) -> None:
    run = tmp_path / "run"
    flags = "--preset cartpole --env colours --serial --actors 1 --envs-per-actor 2 --seed 1"
    short = "--total-frames 400 --replay.min-size 100 --evaluator.episodes 1"
    assert main([*flags.split(), *short.split(), "--run-dir", str(run)]) == 0
    result = result_of(run)
    assert result["end_reason"] == "done"
    assert result["learner_steps"] > 0
    assert 0.0 <= result["last_eval_score"] <= GAME_STEPS
