"""Any gymnasium environment with discrete actions behind the adapter of actors.environments."""

from __future__ import annotations

import difflib
import functools
import re
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from actors.atari import atari_title, games
from actors.checked_environment import MOST_FLOAT32, MOST_REWARD, CheckedEnvironment
from actors.environment_calls import EnvironmentCalls, in_a_line
from actors.environment_source import EnvironmentSource, FilmedScreen
from actors.timesteps import check_actions, opening_timesteps
from common.config import EnvConfig
from common.endings import EnvironmentFailed
from common.heartbeat import Heartbeat
from common.types import EnvironmentSpec, ObservationSpec, TimeSteps

# Of a picture's numbers: 16 bits a pixel. Beyond it bounds are none, but a dtype's or a guess.
_MOST_PIXEL = 65_535.0


class GymnasiumEnvironments:
    """Any other gymnasium environment with discrete actions and array observations.

    Stepped one after the other; observations get a stack axis of 1. Not thread-safe.
    """

    def __init__(
        self,
        *,
        env: EnvConfig,
        num_envs: int,
        seed: int,
        render_mode: str | None,
        heartbeat: Heartbeat,
    ) -> None:
        """Make E environments as `make_environments` says; `render_mode` is gymnasium's."""
        self._spec = gymnasium_spec(env, heartbeat)
        self._calls = EnvironmentCalls(env.id, heartbeat)
        # Not every environment takes a render mode.
        look: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        is_picture = len(self._spec.observation.frame_shape) >= 2
        checked = functools.partial(
            CheckedEnvironment,
            calls=self._calls,
            most_reward=MOST_FLOAT32 if env.clip_rewards else MOST_REWARD,
            # Of a picture a little more than its bounds, for what was computed in floats.
            most_observed=1.001 / self._spec.scale if is_picture else MOST_FLOAT32,
        )

        with self._calls.into("make"), warnings.catch_warnings():
            # That it cannot be drawn is told by whoever wants a picture, in one line.
            warnings.filterwarnings("ignore", ".*is not in the possible render_modes")
            self._vector = gymnasium.make_vec(
                env.id,
                num_envs,
                vectorization_mode="sync",
                vector_kwargs={"autoreset_mode": AutoresetMode.NEXT_STEP},
                # The limit comes last: what gymnasium's wrappers make of a wrong answer is no help.
                wrappers=(
                    checked,
                    functools.partial(TimeLimit, max_episode_steps=_time_limit(env)),
                ),
                max_episode_steps=-1,
                disable_env_checker=True,
                **look,
            )
        space = self._vector.single_action_space
        assert isinstance(space, Discrete)
        self._first_action = int(space.start)
        self._num_envs = num_envs
        self._seed: int | None = seed
        self._game_over = np.zeros(num_envs, np.bool_)

    @property
    def spec(self) -> EnvironmentSpec:
        """What one of them is."""
        return self._spec

    @property
    def num_envs(self) -> int:
        """E."""
        return self._num_envs

    def reset(self) -> TimeSteps:
        """Open a new game everywhere. Only the first call seeds; later ones play on."""
        seed, self._seed = self._seed, None
        observation, _ = self._vector.reset(seed=seed)
        self._game_over = np.zeros(self._num_envs, np.bool_)
        return opening_timesteps(self._stacked(observation))

    def step(self, actions: NDArray[np.int64]) -> TimeSteps:
        """Take one agent step everywhere."""
        check_actions(actions, self._num_envs, self._spec.num_actions)
        observation, reward, terminated, truncated, _ = self._vector.step(
            actions + self._first_action
        )
        first, self._game_over = self._game_over, terminated | truncated
        return TimeSteps(
            observation=self._stacked(observation),
            reward=np.asarray(reward, np.float32),
            terminated=terminated,
            truncated=truncated,
            first=first,
            game_over=self._game_over,
            life_lost=np.zeros(self._num_envs, np.bool_),
        )

    @property
    def render_frames_per_s(self) -> float:
        """Speed of play; 30 where the environment does not say."""
        with self._calls.into("render"):
            return float(self._vector.metadata.get("render_fps") or 30)

    def screens(self) -> tuple[NDArray[np.uint8], ...]:
        """Return uint8[H, W, 3] for each environment; needs render_mode "rgb_array"."""
        with self._calls.into("render"):
            screens = tuple(np.asarray(screen) for screen in self._vector.render() or ())
            for screen in screens:
                if screen.dtype != np.uint8 or screen.shape[2:] != (3,):
                    modes = self._vector.metadata.get("render_modes")
                    raise self._calls.failed(
                        f"gave no picture: it must draw an rgb_array, and can draw {modes}"
                    )
            return screens

    def close(self) -> None:
        """End the environments. May be called twice."""
        with self._calls.into("close"):
            self._vector.close()

    def _stacked(self, observation: NDArray[Any]) -> NDArray[Any]:
        return observation.astype(self._spec.observation.dtype, copy=False)[:, np.newaxis]


def gymnasium_spec(env: EnvConfig, heartbeat: Heartbeat | None = None) -> EnvironmentSpec:
    """Return what the gymnasium id means.

    Raises:
      ValueError: one line; the id is unknown, or its spaces are none that a DQN can use.
      EnvironmentFailed: it is known, and raised when it was imported, made or closed.
    """
    calls = EnvironmentCalls(env.id, heartbeat or Heartbeat())
    try:
        with calls.into("make"):
            single = gymnasium.make(env.id, disable_env_checker=True)
            limit = _time_limit(env)  # of this very id: `make` takes one without its version, too
            actions, observations = single.action_space, single.observation_space
    except EnvironmentFailed as failure:
        raise _refusal(env.id, failure) from failure
    with calls.into("close"):
        single.close()
    if not isinstance(actions, Discrete):
        raise ValueError(f"Expect discrete actions, actually: {actions} in {env.id!r}")
    if not isinstance(observations, Box) or not (
        observations.dtype == np.uint8 or np.issubdtype(observations.dtype, np.floating)
    ):
        raise ValueError(
            "Expect observations that are uint8 or float arrays,"
            f" actually: {observations} in {env.id!r}"
        )
    if 0 in observations.shape:
        raise ValueError(f"Expect observations of >= 1 number, actually: {observations}")
    dtype = "uint8" if observations.dtype == np.uint8 else "float32"
    num_actions = int(actions.n)
    return EnvironmentSpec(
        name=re.sub(r"[^a-z0-9]+", "_", env.id.lower()),
        observation=ObservationSpec(tuple(observations.shape), dtype, 1),
        num_actions=num_actions,
        action_repeat_frames=1,
        protocol=(
            f"{env.id} is gymnasium's, with {num_actions} actions of 1 frame and a limit of"
            f" {limit:,} frames; the Atari options do not apply."
        ),
        scale=_scale(observations, env.id),
    )


def _refusal(env_id: str, failure: EnvironmentFailed) -> Exception:
    """Return what to raise for an id of which nothing could be made.

    The failure itself, unless the id is at fault or a package is missing: ValueError then.
    """
    cause = failure.__cause__
    is_malformed = env_id.startswith((".", ":")) or env_id.count(":") > 1
    if isinstance(cause, gymnasium.error.UnregisteredEnv):
        rule, reason = "to name an Atari game or a gymnasium environment", ""
    elif is_malformed or isinstance(cause, gymnasium.error.Error | ImportError):
        rule, reason = "that can be made", f": {in_a_line(cause)}"
    else:
        return failure
    return ValueError(f"Expect `env.id` {rule}, actually: {env_id!r}{reason}{_hint(env_id)}")


def _scale(space: Box, env_id: str) -> float:
    """Return what the network multiplies observations of this space by.

    A picture's numbers are a measure of light, which the space's own bounds bring to 1; a vector's
    mean what they are, whatever their type.

    Raises:
      ValueError: a picture whose bounds do not say how bright a pixel can be.
    """
    if len(space.shape) < 2:
        return 1.0
    bound = float(np.abs([space.low, space.high]).max())
    if not 0.0 < bound <= _MOST_PIXEL:
        raise ValueError(
            f"Expect pictures whose bounds lie within +-{_MOST_PIXEL:,.0f}, to scale pixels by,"
            f" actually: {space} in {env_id!r}"
        )
    return 1.0 / bound


def _time_limit(env: EnvConfig) -> int:
    """Return the limit in agent steps: the registered one, or the configured if that is less."""
    registered = gymnasium.spec(env.id.rpartition(":")[2]).max_episode_steps  # module:id-v0
    return env.max_game_frames if registered is None else min(registered, env.max_game_frames)


def _hint(env_id: str) -> str:
    """Return words on up to three other known ids that look like this one."""
    known = {
        stem: f"ALE/{atari_title(rom)}-v5" if env_id.startswith("ALE/") else rom
        for stem, rom in games().items()
    }
    for registered in gymnasium.registry.values():
        if "ale_py" not in str(registered.entry_point):
            known[registered.id.rpartition("-v")[0].lower()] = registered.id
    stem = re.sub(r"^ale/|noframeskip|deterministic|-ram|-v\d+$|_", "", env_id.lower())
    close = [known[match] for match in difflib.get_close_matches(stem, known, n=3)]
    return f"; close: {', '.join(close)}" if close and env_id not in close else ""


def _make(
    *, env: EnvConfig, num_envs: int, seed: int, training: bool, heartbeat: Heartbeat
) -> GymnasiumEnvironments:
    del training  # no lives here
    return GymnasiumEnvironments(
        env=env, num_envs=num_envs, seed=seed, render_mode=None, heartbeat=heartbeat
    )


def _film(env: EnvConfig, seed: int) -> FilmedScreen:
    return FilmedScreen(
        GymnasiumEnvironments(
            env=env, num_envs=1, seed=seed, render_mode="rgb_array", heartbeat=Heartbeat()
        )
    )


GYMNASIUM = EnvironmentSource(
    matches=lambda env: True, spec=gymnasium_spec, make=_make, film=_film, clips_rewards=False
)
"""Whatever gymnasium knows by the id."""
