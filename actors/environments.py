"""Vector environments behind one adapter: autoreset, life loss and raw reward are settled here.

The loop an `Environments` lives in:

    timesteps = environments.reset()
    while True:
        timesteps = environments.step(policy(timesteps.observation))

All kinds autoreset in the NEXT_STEP way: the timestep of a game's end carries the game's last
observation and `game_over`; the action sent there is void, and the answer to it opens the next game
(`first`, reward 0).
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actors.atari import AtariEnvironments, atari_game, atari_spec
from actors.cartpole_pixels import CARTPOLE_PIXELS, CartPolePixels, cartpole_pixels_spec
from actors.gymnasium_environments import GymnasiumEnvironments, gymnasium_spec
from common.config import EnvConfig
from common.endings import EnvironmentFailed
from common.heartbeat import Heartbeat
from common.types import EnvironmentSpec, TimeSteps


class Environments(Protocol):
    """E environments stepped together by one thread."""

    @property
    def spec(self) -> EnvironmentSpec:
        """What one of them is."""

    @property
    def num_envs(self) -> int:
        """E."""

    def reset(self) -> TimeSteps:
        """Open a new game everywhere. Only the first call seeds; later ones play on."""

    def step(self, actions: NDArray[np.int64]) -> TimeSteps:
        """Take one agent step everywhere.

        Args:
          actions: int64[E]; void where the last timestep was `game_over`.
        """

    def close(self) -> None:
        """End the environments. May be called twice."""


def resolve(env: EnvConfig) -> EnvironmentSpec:
    """Return what the id means. Starts no process.

    Raises:
      ValueError: one line; the id is unknown (with close matches), or its spaces are none that a
        DQN can use.
      EnvironmentFailed: it raised when it was imported, made or closed.
    """
    if env.id == CARTPOLE_PIXELS:
        return cartpole_pixels_spec(env)
    return gymnasium_spec(env) if atari_game(env) is None else atari_spec(env)


def clips_rewards(env: EnvConfig) -> bool:
    """Return whether rewards are clipped before they are learned from."""
    return atari_game(env) is not None if env.clip_rewards is None else env.clip_rewards


def reading(env: EnvConfig, spec: EnvironmentSpec) -> str:
    """Return the sentence on how a run reads observations and rewards."""
    seen = "read as they are" if spec.scale == 1.0 else f"divided by {1.0 / spec.scale:g}"
    learned = "clipped to [-1, 1]" if clips_rewards(env) else "learned as they are, not clipped"
    return f"Observations are {seen}; rewards are {learned}."


def make_environments(
    env: EnvConfig,
    num_envs: int,
    seed: int,
    training: bool,
    *,
    heartbeat: Heartbeat | None = None,
    render: bool = False,
) -> AtariEnvironments | CartPolePixels | GymnasiumEnvironments:
    """Return E environments.

    Args:
      env: what to play.
      num_envs: E.
      seed: of the first; the others have seed + 1, seed + 2, ...
      training: False plays raw games: a lost life ends nothing.
      heartbeat: is told in which call into an environment this thread is.
      render: so that they show themselves by `screens`; those of Atari do not.

    Raises:
      ValueError: as `resolve`, or an impossible number.
      EnvironmentFailed: one raised; so do `reset`, `step` and `close` of what is returned.
    """
    heartbeat = heartbeat or Heartbeat()
    if num_envs < 1:
        raise ValueError(f"Expect `num_envs` >= 1, actually: {num_envs}")
    if not 0 <= seed <= 2**31 - num_envs:
        raise ValueError(f"Expect `seed` from 0 to 2**31 - `num_envs`, actually: {seed}")
    if env.id == CARTPOLE_PIXELS:
        return CartPolePixels(env=env, num_envs=num_envs, seed=seed, heartbeat=heartbeat)
    if atari_game(env) is None:
        return GymnasiumEnvironments(
            env=env,
            num_envs=num_envs,
            seed=seed,
            render_mode="rgb_array" if render else None,
            heartbeat=heartbeat,
        )
    return AtariEnvironments(
        env=env, num_envs=num_envs, seed=seed, training=training, heartbeat=heartbeat
    )


def make_run_environments(
    env: EnvConfig,
    spec: EnvironmentSpec,
    num_envs: int,
    seed: int,
    training: bool,
    heartbeat: Heartbeat | None,
) -> Environments:
    """Return environments of a run: where they are played, a package may be missing, or another.

    Args are those of `make_environments`, and `spec`, what the run takes them for.

    Raises:
      EnvironmentFailed: one raised, they cannot be made here, or are others.
    """
    try:
        environments = make_environments(env, num_envs, seed, training, heartbeat=heartbeat)
    except ValueError as error:
        raise EnvironmentFailed(f"the environment {env.id} cannot be made here: {error}") from error
    here = environments.spec
    ours, theirs = (here.observation, here.num_actions), (spec.observation, spec.num_actions)
    if ours != theirs:
        raise EnvironmentFailed(
            f"the environment {env.id} is another here than in the driver: {ours}, not {theirs}"
        )
    return environments
