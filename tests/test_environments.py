from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete

from actors.atari import atari_game, atari_vector
from actors.environment_source import Environments
from actors.environments import make_environments, resolve
from common.config import EnvConfig
from common.types import EnvironmentSpec, ObservationSpec, TimeSteps
from driver.view.scores import RANDOM_AND_HUMAN


class CountingEnv(gymnasium.Env[np.ndarray, np.int64]):
    """Observes how many steps it took and the action; ends at the third step by action 6."""

    def __init__(self, dtype: Any = np.float64, render_mode: str | None = None) -> None:
        self.observation_space = Box(0, 255, (2,), dtype)
        self.action_space = Discrete(3, start=5)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, self.observation_space.dtype), {}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        observation = np.array([self.steps, action], self.observation_space.dtype)
        return observation, 0.5, self.steps == 3 and action == 6, False, {}


@pytest.fixture
def counting_ids() -> Iterator[dict[str, str]]:
    ids = {"float64": "TroopCounting64-v0", "uint8": "TroopCounting8-v0"}
    for dtype, env_id in ids.items():
        gymnasium.register(env_id, lambda dtype=dtype, **kw: CountingEnv(np.dtype(dtype), **kw))
    yield ids
    for env_id in ids.values():
        del gymnasium.registry[env_id]


# What an id means.


@pytest.mark.parametrize(
    ("env_id", "rom", "sticky"),
    [
        ("pong", "pong", 0.0),
        ("Pong", "pong", 0.0),
        ("ms_pacman", "ms_pacman", 0.0),
        ("MsPacman", "ms_pacman", 0.0),
        ("PongNoFrameskip-v4", "pong", 0.0),
        ("PongNoFrameskip-v0", "pong", 0.25),
        ("PongDeterministic-v4", "pong", 0.0),
        ("ALE/Pong-v5", "pong", 0.25),
        ("ALE/MsPacman-v5", "ms_pacman", 0.25),
        ("ALE/Blackjack-v5", "blackjack", 0.25),
    ],
)
def test_atari_ids_mean_their_protocol(env_id: str, rom: str, sticky: float) -> None:
    assert atari_game(EnvConfig(id=env_id)) == (rom, sticky)
    assert atari_game(EnvConfig(id=env_id, sticky_actions=0.1)) == (rom, 0.1)
    assert atari_game(EnvConfig(id=env_id, sticky_actions=0.0)) == (rom, 0.0)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Blackjack-v1", "combat", "ALE/Pong-v4", "a b"])
def test_other_ids_are_no_atari_games(env_id: str) -> None:
    assert atari_game(EnvConfig(id=env_id)) is None


def test_every_registered_atari_id_has_its_registered_stickiness() -> None:
    checked = 0
    for spec in gymnasium.registry.values():
        fixed_skip = isinstance(spec.kwargs.get("frameskip"), int)
        if "ale_py" in str(spec.entry_point) and fixed_skip:
            registered = (spec.kwargs["game"], spec.kwargs["repeat_action_probability"])
            assert atari_game(EnvConfig(id=spec.id)) == registered, spec.id
            checked += 1
    assert checked > 200


def test_every_scored_game_is_found_by_both_spellings() -> None:
    for rom in RANDOM_AND_HUMAN:
        for env_id in (rom, rom.title().replace("_", "")):
            game = atari_game(EnvConfig(id=env_id))
            assert game is not None
            assert game.rom == rom


def test_pong_is_resolved() -> None:
    assert resolve(EnvConfig(id="ALE/Pong-v5")) == EnvironmentSpec(
        name="pong",
        observation=ObservationSpec((84, 84), "uint8", 4),
        num_actions=6,
        action_repeat_frames=4,
        protocol=(
            "ALE/Pong-v5 means Pong with sticky actions 0.25, 6 actions of 4 frames, up to 30 no-op"
            " frames at the start, a limit of 108,000 frames; a lost life ends the value in"
            " training."
        ),
        scale=1.0 / 255.0,
    )


def test_protocol_says_what_was_overridden() -> None:
    env = EnvConfig(
        id="ALE/Breakout-v5",
        sticky_actions=0.0,
        full_action_space=True,
        life_loss_terminates=False,
        stack=2,
    )
    spec = resolve(env)
    assert spec.num_actions == 18
    assert spec.observation.shape == (2, 84, 84)
    assert "sticky actions 0, the full set of 18 actions" in spec.protocol
    assert "a lost life is no signal" in spec.protocol
    seeds = EnvConfig(id="breakout", fire_reset=True, life_loss_reward=-1.0)
    protocol = resolve(seeds).protocol
    assert "up to 30 no-op frames and FIRE at the start" in protocol
    assert "a lost life ends the value and is worth -1 in training" in protocol
    only_worth = dataclasses.replace(seeds, life_loss_terminates=False)
    assert "a lost life is worth -1 in training" in resolve(only_worth).protocol


def test_cartpole_is_resolved() -> None:
    spec = resolve(EnvConfig(id="CartPole-v1"))
    assert spec == EnvironmentSpec(
        name="cartpole_v1",
        observation=ObservationSpec((4,), "float32", 1),
        num_actions=2,
        action_repeat_frames=1,
        protocol=(
            "CartPole-v1 is gymnasium's, with 2 actions of 1 frame and a limit of 500 frames;"
            " the Atari options do not apply."
        ),
    )


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("breakot", "actually: 'breakot'; close: .*breakout"),
        ("ALE/Breakot-v5", "close: .*ALE/Breakout-v5"),
        ("BreakotNoFrameskip-v4", "close: .*breakout"),
        ("CartPole-v9", "close: .*CartPole-v1"),
        ("CartPol-v1", "close: .*CartPole-v1"),
        ("Pong-ram-v4", "close: .*pong"),
        ("zzzzzzzz", "Expect `env.id` to name an Atari game or a gymnasium environment"),
        ("no_such_module:Thing-v0", "actually: 'no_such_module:Thing-v0'"),
        ("a b", "Expect `env.id` that can be made, actually: 'a b'"),
        (".foo:Bar-v0", "Expect `env.id` that can be made, actually: '.foo:Bar-v0'"),
        ("GymV21Environment-v0", "Expect `env.id` that can be made, actually: 'GymV21"),
        pytest.param(
            "CartPole",
            "actually: 'CartPole': No registered env with id: CartPole; close: CartPole-v1",
            marks=pytest.mark.filterwarnings("ignore:.*latest versioned"),
        ),
        ("Pong-v4", "skips 2 to 4 frames at random; use pong, ALE/Pong-v5 or PongNoFrameskip-v4"),
        ("MsPacman-v0", "use ms_pacman, ALE/MsPacman-v5 or MsPacmanNoFrameskip-v4"),
        ("Pendulum-v1", "Expect discrete actions, actually: Box"),
        ("FrozenLake-v1", "Expect observations that are uint8 or float arrays, actually: Discrete"),
        ("Blackjack-v1", "Expect observations that are uint8 or float arrays, actually: Tuple"),
    ],
)
def test_unusable_ids_are_refused_in_one_line(env_id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        resolve(EnvConfig(id=env_id))
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match=message):
        make_environments(EnvConfig(id=env_id), 1, 0, True)


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="Expect `num_envs` >= 1, actually: 0"):
        make_environments(EnvConfig(), 0, 0, True)
    for seed in (-1, 2**31 - 1):
        with pytest.raises(ValueError, match="Expect `seed` from 0"):
            make_environments(EnvConfig(), 2, seed, True)


def test_ale_writes_no_banner() -> None:
    code = (
        "import numpy as np\n"
        "from common.config import EnvConfig\n"
        "from actors.environments import make_environments, resolve\n"
        "resolve(EnvConfig(id='pong'))\n"
        "e = make_environments(EnvConfig(id='pong'), 1, 0, True)\n"
        "e.reset(); e.step(np.zeros(1, np.int64)); e.close()\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert answer.stdout == answer.stderr == ""


# What both kinds promise.


IDS = {"pong": "pong", "cartpole_v1": "CartPole-v1", "cartpole_pixels": "CartPole-v1-pixels"}


@pytest.fixture(params=IDS.values())
def environments(request: pytest.FixtureRequest) -> Iterator[Environments]:
    made: Environments = make_environments(EnvConfig(id=request.param), 3, 7, True)
    yield made
    made.close()


def test_timesteps_have_the_promised_shapes(environments: Environments) -> None:
    spec = environments.spec
    for timesteps in (environments.reset(), environments.step(np.zeros(3, np.int64))):
        assert timesteps.observation.shape == (3, *spec.observation.shape)
        assert timesteps.observation.dtype == spec.observation.dtype
        assert timesteps.reward.dtype == np.float32
        for array in timesteps[1:]:
            assert array.shape == (3,)
        for array in timesteps[2:]:
            assert array.dtype == np.bool_


def test_reset_opens_a_game_everywhere(environments: Environments) -> None:
    for _ in range(2):
        timesteps = environments.reset()
        assert timesteps.first.all()
        assert not timesteps.reward.any()
        assert not (timesteps.terminated | timesteps.truncated | timesteps.game_over).any()
        assert not timesteps.life_lost.any()
        assert not environments.step(np.zeros(3, np.int64)).first.any()


def test_same_seed_same_games_and_a_second_reset_opens_others(environments: Environments) -> None:
    again = make_environments(EnvConfig(id=IDS[environments.spec.name]), 3, 7, True)
    first, second = environments.reset(), environments.reset()
    np.testing.assert_array_equal(again.reset().observation, first.observation)
    np.testing.assert_array_equal(again.reset().observation, second.observation)
    assert (first.observation != second.observation).any()
    again.close()


def test_environments_have_consecutive_seeds(environments: Environments) -> None:
    one = make_environments(EnvConfig(id=IDS[environments.spec.name]), 1, 7 + 2, True)
    np.testing.assert_array_equal(one.reset().observation[0], environments.reset().observation[2])
    one.close()


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (np.array([0, 1, 99]), r"Expect `actions` from 0 to \d, actually: \[0, 1, 99\]"),
        (np.array([0, -1, 0]), r"Expect `actions` from 0 to \d, actually: \[0, -1, 0\]"),
        (np.zeros(2, np.int64), r"Expect `actions` as int64\[3\], actually: int64\[2\]"),
        (np.zeros(3, np.float32), r"Expect `actions` as int64\[3\], actually: float32\[3\]"),
    ],
)
def test_impossible_actions_are_refused(
    environments: Environments, actions: np.ndarray, message: str
) -> None:
    # ale-py itself would wait for ever.
    environments.reset()
    with pytest.raises(ValueError, match=message):
        environments.step(actions)
    environments.step(np.zeros(3, np.int64))


def test_answers_may_be_kept_and_changed(environments: Environments) -> None:
    twin = make_environments(EnvConfig(id=IDS[environments.spec.name]), 3, 7, True)
    rng = np.random.default_rng(0)
    kept: list[tuple[TimeSteps, list[np.ndarray]]] = []
    timesteps, untouched = environments.reset(), twin.reset()
    for _ in range(60):
        np.testing.assert_array_equal(timesteps.observation, untouched.observation)
        kept.append((untouched, [array.copy() for array in untouched]))
        timesteps.observation[:] = 1  # must not reach the environment
        actions = rng.integers(2, size=3)
        timesteps, untouched = environments.step(actions), twin.step(actions)
    for before, copies in kept:
        for array, copy in zip(before, copies, strict=True):
            np.testing.assert_array_equal(array, copy)
    twin.close()


def test_close_may_be_called_twice(environments: Environments) -> None:
    environments.reset()
    environments.close()
    environments.close()


# Atari.


def random_play(
    env: EnvConfig, steps: int, *, num_envs: int = 2, training: bool = True
) -> list[TimeSteps]:
    environments = make_environments(env, num_envs, 3, training)
    rng = np.random.default_rng(0)
    played = [environments.reset()]
    for _ in range(steps):
        played.append(environments.step(rng.integers(environments.spec.num_actions, size=num_envs)))
    environments.close()
    return played


def test_the_fake_step_comes_after_game_over_and_nowhere_else() -> None:
    played = random_play(EnvConfig(id="breakout", max_game_frames=900), 500)
    over = np.stack([timesteps.game_over for timesteps in played])
    first = np.stack([timesteps.first for timesteps in played])
    assert first[0].all()
    np.testing.assert_array_equal(first[1:], over[:-1])
    assert over.sum() >= 4
    for timesteps in played:
        assert not timesteps.reward[timesteps.first].any()
        assert not timesteps.terminated[timesteps.first].any()


def test_a_step_after_a_lost_life_is_real_and_its_stack_runs_on() -> None:
    played = random_play(EnvConfig(id="breakout"), 400)
    lost = 0
    for before, after in zip(played, played[1:], strict=False):
        for e in np.flatnonzero(before.terminated & ~before.game_over):
            assert not after.first[e]
            np.testing.assert_array_equal(after.observation[e, :-1], before.observation[e, 1:])
            assert after.observation[e, :-1].any(axis=(1, 2)).all()
            lost += 1
    assert lost >= 5


def test_stacks_are_padded_with_zeros_and_never_cross_games() -> None:
    played = random_play(EnvConfig(id="breakout", max_game_frames=300), 300)
    depth = np.zeros(2, np.int64)
    shallow = 0
    for before, now in zip([played[0], *played], played, strict=False):
        depth = np.where(now.first, 1, np.minimum(depth + 1, 4))
        for e in range(2):
            padding, frames = np.split(now.observation[e], [4 - depth[e]])
            assert not padding.any()
            assert frames.any(axis=(1, 2)).all()
            if not now.first[e]:
                np.testing.assert_array_equal(now.observation[e, :-1], before.observation[e, 1:])
            shallow += int(depth[e] < 4)
    assert shallow >= 3 * 2 * 3


def test_the_time_limit_truncates_and_does_not_terminate() -> None:
    played = random_play(EnvConfig(id="pong", max_game_frames=40), 33)
    # Ten steps of four frames, then the step that opens the next game.
    for step, timesteps in enumerate(played):
        assert timesteps.truncated.all() == (step % 11 == 10)
        assert timesteps.game_over.all() == (step % 11 == 10)
        assert timesteps.first.all() == (step % 11 == 0)
        assert not timesteps.terminated.any()


def test_rewards_are_raw() -> None:
    played = random_play(EnvConfig(id="ms_pacman"), 100)
    assert max(timesteps.reward.max() for timesteps in played) >= 10


def test_evaluation_ignores_lost_lives_and_training_need_not_heed_them() -> None:
    heeded = random_play(EnvConfig(id="breakout"), 200)
    others = [
        random_play(EnvConfig(id="breakout"), 200, training=False),
        random_play(EnvConfig(id="breakout", life_loss_terminates=False), 200),
    ]
    assert any((timesteps.terminated & ~timesteps.game_over).any() for timesteps in heeded)
    for played in others:
        for one, other in zip(heeded, played, strict=True):
            np.testing.assert_array_equal(one.observation, other.observation)
            np.testing.assert_array_equal(other.terminated, other.game_over)


class ScriptedVector:
    """Stands for ale-py's vector of one environment: says what it is told to."""

    def __init__(self, steps: list[tuple[int, bool, bool]]) -> None:
        self.steps = iter(steps)

    def reset(self, *, seed: int | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        return np.zeros((1, 4, 84, 84), np.uint8), {"lives": np.array([3], np.int32)}

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        lives, over, truncated = next(self.steps)
        observation, info = np.zeros((1, 4, 84, 84), np.uint8), {"lives": np.array([lives])}
        return observation, np.zeros(1), np.array([over]), np.array([truncated]), info

    def close(self) -> None:
        pass


def test_lost_lives_are_told_in_training_and_evaluation_and_leave_rewards_raw() -> None:
    """The punishment is the actor's affair: no environment mixes it into what is reported."""
    punished = EnvConfig(id="breakout", life_loss_terminates=False, life_loss_reward=-1.0)
    trained = random_play(punished, 600)
    lost = np.stack([timesteps.life_lost for timesteps in trained])
    over = np.stack([timesteps.game_over for timesteps in trained])
    assert over.sum() >= 2
    for e in range(2):
        games = np.flatnonzero(over[:, e])
        # Five lives a game, the last of which ends it.
        assert lost[: games[0] + 1, e].sum() == 5
        assert lost[over[:, e], e].all()
    evaluated = random_play(EnvConfig(id="breakout"), 600, training=False)
    for one, other in zip(trained, evaluated, strict=True):
        np.testing.assert_array_equal(one.reward, other.reward)
        np.testing.assert_array_equal(one.life_lost, other.life_lost)
        assert one.reward.min() >= 0


@pytest.mark.parametrize("training", [True, False])
def test_fire_reset_serves_the_first_ball_and_nothing_else_does(training: bool) -> None:
    """Breakout without a FIRE waits for ever; after the first life it waits in either case."""

    def lives_lost(env: EnvConfig) -> int:
        environments = make_environments(env, 1, 0, training)
        environments.reset()
        idle = np.zeros(1, np.int64)
        played = [environments.step(idle) for _ in range(200)]
        environments.close()
        return sum(int(timesteps.life_lost[0]) for timesteps in played)

    assert lives_lost(EnvConfig(id="breakout", fire_reset=False)) == 0
    assert lives_lost(EnvConfig(id="breakout", fire_reset=True)) == 1


@pytest.mark.parametrize(
    ("steps", "terminated", "game_over", "first", "life_lost"),
    [
        # An extra life, then the limit: the next game has fewer lives, and none was lost.
        ([(4, False, False), (4, False, True), (3, False, False)], "000", "010", "001", "000"),
        # A game may be over with lives left.
        ([(2, True, False), (3, False, False), (2, False, False)], "101", "100", "010", "101"),
        # No lives left but not over yet (Q*bert falls for a while): the end comes with the game's.
        ([(1, False, False), (0, False, False), (0, True, False)], "101", "001", "000", "110"),
    ],
)
def test_rare_ends_of_lives_and_games(
    monkeypatch: pytest.MonkeyPatch,
    steps: list[tuple[int, bool, bool]],
    terminated: str,
    game_over: str,
    first: str,
    life_lost: str,
) -> None:
    monkeypatch.setattr("actors.atari.atari_vector", lambda *_, **__: ScriptedVector(steps))
    environments = make_environments(EnvConfig(id="qbert"), 1, 0, True)
    environments.reset()
    played = [environments.step(np.zeros(1, np.int64)) for _ in steps]
    expected_of = {
        "terminated": terminated,
        "game_over": game_over,
        "first": first,
        "life_lost": life_lost,
    }
    for field, expected in expected_of.items():
        actual = "".join(str(int(getattr(timesteps, field)[0])) for timesteps in played)
        assert actual == expected, field


def test_no_ops_are_uniform_from_zero_to_the_configured_maximum() -> None:
    vector = atari_vector(EnvConfig(id="pong", noop_max=3), 16, img_height=8, img_width=8)
    counts = np.zeros(4, np.int64)
    for draw in range(25):
        _, info = vector.reset(seed=0 if draw == 0 else None)
        np.add.at(counts, info["episode_frame_number"], 1)
    # 400 draws: each share within four standard deviations, 4 * sqrt(0.25 * 0.75 / 400) = 0.087.
    np.testing.assert_allclose(counts / 400, 0.25, atol=0.087)
    vector.close()


def test_an_actors_environments_use_one_thread_and_give_it_back() -> None:
    def num_threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before = num_threads()
    environments = make_environments(EnvConfig(id="pong"), 3, 0, True)
    environments.reset()
    assert num_threads() == before + 1
    environments.close()
    assert num_threads() == before


# Other environments.


def test_cartpole_is_played_as_gymnasium_plays_it() -> None:
    environments = make_environments(EnvConfig(id="CartPole-v1"), 2, 11, True)
    singles = [gymnasium.make("CartPole-v1") for _ in range(2)]
    timesteps = environments.reset()
    observations = [env.reset(seed=11 + e)[0] for e, env in enumerate(singles)]
    over = [False, False]
    rng = np.random.default_rng(0)
    games = 0
    for _ in range(200):
        np.testing.assert_array_equal(timesteps.observation[:, 0], np.stack(observations))
        actions = rng.integers(2, size=2)
        timesteps = environments.step(actions)
        for e, env in enumerate(singles):
            if over[e]:
                observations[e], _ = env.reset()
                over[e] = False
                assert timesteps.first[e]
                assert timesteps.reward[e] == 0
                games += 1
                continue
            observations[e], reward, terminated, truncated, _ = env.step(int(actions[e]))
            over[e] = terminated or truncated
            assert not timesteps.first[e]
            assert timesteps.reward[e] == reward
            assert timesteps.terminated[e] == terminated
            assert timesteps.truncated[e] == truncated
            assert timesteps.game_over[e] == over[e]
    assert games >= 4
    environments.close()


def test_the_configured_limit_truncates_other_environments_too() -> None:
    env = EnvConfig(id="CartPole-v1", max_game_frames=5)
    assert "a limit of 5 frames" in resolve(env).protocol
    played = random_play(env, 12)
    assert [bool(timesteps.truncated.all()) for timesteps in played] == [
        step % 6 == 5 for step in range(13)
    ]
    assert not any(timesteps.terminated.any() for timesteps in played)


def test_actions_that_do_not_start_at_zero_are_shifted(counting_ids: dict[str, str]) -> None:
    environments = make_environments(EnvConfig(id=counting_ids["float64"]), 2, 0, True)
    assert environments.spec.num_actions == 3
    assert environments.spec.observation == ObservationSpec((2,), "float32", 1)
    environments.reset()
    timesteps = environments.step(np.array([0, 2]))
    assert timesteps.observation.dtype == np.float32
    assert timesteps.observation.tolist() == [[[1.0, 5.0]], [[1.0, 7.0]]]
    environments.step(np.array([1, 1]))
    timesteps = environments.step(np.array([1, 2]))
    assert timesteps.terminated.tolist() == [True, False]
    environments.close()


def test_bytes_stay_bytes(counting_ids: dict[str, str]) -> None:
    environments = make_environments(EnvConfig(id=counting_ids["uint8"]), 2, 0, True)
    assert environments.spec.observation == ObservationSpec((2,), "uint8", 1)
    assert environments.reset().observation.dtype == np.uint8
    environments.close()
