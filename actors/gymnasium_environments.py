"""Any gymnasium environment with discrete actions behind the adapter of actors.environments."""

from __future__ import annotations

import difflib
import re
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from actors.atari import atari_title, games
from actors.timesteps import check_actions, opening_timesteps
from common.config import EnvConfig
from common.types import EnvironmentSpec, ObservationSpec, TimeSteps


class GymnasiumEnvironments:
    """Any other gymnasium environment with discrete actions and array observations.

    Stepped one after the other; observations get a stack axis of 1. Not thread-safe.
    """

    def __init__(
        self, *, env: EnvConfig, num_envs: int, seed: int, render_mode: str | None
    ) -> None:
        """Make E environments as `make_environments` says; `render_mode` is gymnasium's."""
        self._spec = gymnasium_spec(env)
        # Not every environment takes a render mode.
        look: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        self._vector = gymnasium.make_vec(
            env.id,
            num_envs,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.NEXT_STEP},
            max_episode_steps=_time_limit(env),
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
        return float(self._vector.metadata.get("render_fps") or 30)

    def screens(self) -> tuple[NDArray[np.uint8], ...]:
        """Return uint8[H, W, 3] for each environment; needs render_mode "rgb_array"."""
        screens = self._vector.render()
        assert screens is not None
        return tuple(np.asarray(screen, np.uint8) for screen in screens)

    def close(self) -> None:
        """End the environments. May be called twice."""
        self._vector.close()

    def _stacked(self, observation: NDArray[Any]) -> NDArray[Any]:
        return observation.astype(self._spec.observation.dtype, copy=False)[:, np.newaxis]


def gymnasium_spec(env: EnvConfig) -> EnvironmentSpec:
    """Return what the gymnasium id means.

    Raises:
      ValueError: one line; the id is unknown, or its spaces are none that a DQN can use.
    """
    try:
        single = gymnasium.make(env.id, disable_env_checker=True)
        limit = _time_limit(env)  # of this very id: `make` takes one without its version, too
    except (gymnasium.error.UnregisteredEnv, ModuleNotFoundError) as error:
        raise ValueError(
            "Expect `env.id` to name an Atari game or a gymnasium environment,"
            f" actually: {env.id!r}{_hint(env.id)}"
        ) from error
    # The last two: it needs a package that is not here; its module cannot be imported so.
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"Expect `env.id` that can be made, actually: {env.id!r}: {reason}{_hint(env.id)}"
        ) from error
    actions, observations = single.action_space, single.observation_space
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
    )


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
