"""Frame by frame against the slow reference: every field of every timestep is equal."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from ale_py.vector_env import AtariVectorEnv
from atari_reference import AtariReference, Reference

from actors.atari import atari_game
from actors.environments import make_environments
from common.config import EnvConfig
from common.types import TimeSteps

SEED = 5


def make_references(env: EnvConfig, num_envs: int, training: bool) -> list[AtariReference]:
    game = atari_game(env)
    assert game is not None
    return [
        AtariReference(
            rom=game.rom,
            seed=SEED + e,
            sticky_actions=game.sticky_actions,
            full_action_space=env.full_action_space,
            noop_max=env.noop_max,
            life_loss_terminates=training and env.life_loss_terminates,
            action_repeat_frames=env.action_repeat_frames,
            stack=env.stack,
            max_game_frames=env.max_game_frames,
        )
        for e in range(num_envs)
    ]


def assert_equal(timesteps: TimeSteps, references: list[Reference], where: str) -> None:
    for e, reference in enumerate(references):
        for field in Reference._fields:
            actual, expected = getattr(timesteps, field)[e], getattr(reference, field)
            assert np.array_equal(actual, expected), (where, e, field, actual, expected)


def play_both(env: EnvConfig, *, steps: int, training: bool = True, num_envs: int = 2) -> Counter:
    """Play the same random actions on both sides, compare everything, return what happened."""
    environments = make_environments(env, num_envs, SEED, training)
    references = make_references(env, num_envs, training)
    rng = np.random.default_rng(0)
    seen: Counter = Counter()
    timesteps, expected = environments.reset(), [reference.reset() for reference in references]
    for step in range(steps):
        assert_equal(timesteps, expected, f"step {step}")
        seen["game_over"] += int(np.sum(timesteps.terminated & timesteps.game_over))
        seen["truncated"] += int(np.sum(timesteps.truncated))
        seen["life_lost"] += int(np.sum(timesteps.terminated & ~timesteps.game_over))
        seen["life_lost_at_the_limit"] += int(np.sum(timesteps.terminated & timesteps.truncated))
        seen["first"] += int(np.sum(timesteps.first))
        actions = rng.integers(environments.spec.num_actions, size=num_envs)
        timesteps = environments.step(actions)
        expected = [r.step(int(a)) for r, a in zip(references, actions, strict=True)]
    environments.close()
    seen["noop_counts"] = len({n for reference in references for n in reference.noops})
    return seen


def test_breakout_through_life_loss_and_game_over() -> None:
    seen = play_both(EnvConfig(id="breakout"), steps=500)
    assert seen["life_lost"] >= 10
    assert seen["game_over"] >= 3
    assert seen["first"] >= 5
    assert seen["noop_counts"] >= 3


def test_pong_with_sticky_actions_through_truncation() -> None:
    seen = play_both(EnvConfig(id="ALE/Pong-v5", max_game_frames=600), steps=400)
    assert seen["truncated"] >= 4
    assert seen["game_over"] == seen["life_lost"] == 0


def test_pong_through_a_whole_game() -> None:
    seen = play_both(EnvConfig(id="pong"), steps=1_000, num_envs=1)
    assert seen["game_over"] == 1
    assert seen["first"] == 2
    assert seen["life_lost"] == 0


def test_ms_pacman_through_life_loss_and_game_over() -> None:
    seen = play_both(EnvConfig(id="MsPacman", noop_max=0), steps=700)
    assert seen["life_lost"] >= 2
    assert seen["game_over"] >= 1


def test_raw_games_end_at_the_last_life_only() -> None:
    seen = play_both(EnvConfig(id="breakout"), steps=300, training=False)
    assert seen["game_over"] >= 2
    assert seen["life_lost"] == 0


def test_another_protocol_altogether() -> None:
    env = EnvConfig(
        id="BreakoutNoFrameskip-v4",
        sticky_actions=0.5,
        full_action_space=True,
        noop_max=7,
        action_repeat_frames=3,
        stack=2,
        max_game_frames=301,  # the limit falls into the middle of a step
    )
    seen = play_both(env, steps=400)
    assert seen["truncated"] >= 2
    assert seen["life_lost"] >= 2


def test_one_frame_per_action() -> None:
    env = EnvConfig(id="pong", action_repeat_frames=1, stack=1, max_game_frames=50)
    assert play_both(env, steps=150)["truncated"] >= 4


def limit_at_a_lost_life() -> EnvConfig:
    """Return a configuration whose time limit falls into the step that loses the first life."""
    environments = make_environments(EnvConfig(id="breakout"), 1, SEED, True)
    environments.reset()
    rng = np.random.default_rng(0)
    for step in range(1, 500):
        if environments.step(rng.integers(4, size=1)).terminated[0]:
            environments.close()
            return EnvConfig(id="breakout", max_game_frames=4 * step)
    raise AssertionError("no life was lost")


def test_a_life_lost_at_the_time_limit_ends_value_and_game() -> None:
    seen = play_both(limit_at_a_lost_life(), steps=200, num_envs=1)
    assert seen["life_lost_at_the_limit"] >= 1


def test_ale_pys_own_life_loss_signal_would_hide_that_end() -> None:
    # Why actors/atari.py does without `life_loss_info`: should this fail, ale-py has changed.
    env = limit_at_a_lost_life()
    options: dict[str, Any] = {"num_threads": 1, "noop_max": 31, "use_fire_reset": False}
    vector = AtariVectorEnv(
        "breakout",
        1,
        life_loss_info=True,
        max_num_frames_per_episode=env.max_game_frames,
        **options,
    )
    vector.reset(seed=SEED)
    rng = np.random.default_rng(0)
    for _ in range(env.max_game_frames // 4):
        _, _, terminated, truncated, info = vector.step(rng.integers(4, size=1))
    assert terminated[0]
    assert not truncated[0]
    assert info["lives"][0] > 0
    before = info["episode_frame_number"][0]
    _, _, _, _, info = vector.step(np.zeros(1, np.int64))
    assert info["episode_frame_number"][0] < before  # a new game began, unannounced


@pytest.mark.parametrize("game", ["breakout", "ms_pacman"])
def test_lost_lives_are_those_that_ale_py_reports(game: str) -> None:
    environments = make_environments(EnvConfig(id=game), 2, SEED, True)
    vector = AtariVectorEnv(
        game,
        2,
        num_threads=1,
        life_loss_info=True,
        noop_max=31,
        use_fire_reset=False,
        reward_clipping=False,
    )
    environments.reset()
    vector.reset(seed=SEED)
    rng = np.random.default_rng(1)
    lost = 0
    for _ in range(600):
        actions = rng.integers(environments.spec.num_actions, size=2)
        timesteps = environments.step(actions)
        observation, reward, terminated, truncated, _ = vector.step(actions)
        np.testing.assert_array_equal(timesteps.terminated, terminated)
        np.testing.assert_array_equal(timesteps.truncated, truncated)
        np.testing.assert_array_equal(timesteps.reward, reward)
        np.testing.assert_array_equal(timesteps.observation, observation)
        lost += int(np.sum(timesteps.terminated & ~timesteps.game_over))
    assert lost >= 2
    environments.close()
