"""Environments by their ids: one table says which source an id is of, and what that can do."""

from __future__ import annotations

from actors.atari import ATARI
from actors.cartpole_pixels import CARTPOLE_PIXELS
from actors.environment_source import Environments, EnvironmentSource
from actors.gymnasium_environments import GYMNASIUM
from common.config import EnvConfig
from common.endings import EnvironmentFailed
from common.heartbeat import Heartbeat
from common.types import EnvironmentSpec

SOURCES = [CARTPOLE_PIXELS, ATARI, GYMNASIUM]
"""The first that matches an id is its source; the last matches all."""


def source_of(env: EnvConfig) -> EnvironmentSource:
    """Return the source that the id is of.

    Raises:
      ValueError: one line; the id is nearly one of a source's.
    """
    return next(source for source in SOURCES if source.matches(env))


def resolve(env: EnvConfig) -> EnvironmentSpec:
    """Return what the id means. Starts no process.

    Raises:
      ValueError: one line; the id is unknown (with close matches), or its spaces are none that a
        DQN can use.
      EnvironmentFailed: it raised when it was imported, made or closed.
    """
    return source_of(env).spec(env)


def clips_rewards(env: EnvConfig) -> bool:
    """Return whether rewards are clipped before they are learned from."""
    return source_of(env).clips_rewards if env.clip_rewards is None else env.clip_rewards


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
) -> Environments:
    """Return E environments.

    Args:
      env: what to play.
      num_envs: E.
      seed: of the first; the others have seed + 1, seed + 2, ...
      training: False plays raw games: a lost life ends nothing.
      heartbeat: is told in which call into an environment this thread is.

    Raises:
      ValueError: as `resolve`, or an impossible number.
      EnvironmentFailed: one raised; so do `reset`, `step` and `close` of what is returned.
    """
    if num_envs < 1:
        raise ValueError(f"Expect `num_envs` >= 1, actually: {num_envs}")
    if not 0 <= seed <= 2**31 - num_envs:
        raise ValueError(f"Expect `seed` from 0 to 2**31 - `num_envs`, actually: {seed}")
    return source_of(env).make(
        env=env,
        num_envs=num_envs,
        seed=seed,
        training=training,
        heartbeat=heartbeat or Heartbeat(),
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
