"""Exploration rates: the ladder over a run's environments, and the decaying schedule. Pure."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def epsilon_ladder(
    num_actors: int, envs_per_actor: int, actor: int, epsilon: float, alpha: float
) -> NDArray[np.float64]:
    """Return the constant exploration rates of one actor's environments.

    Over all N * E environments (Horgan et al. 2018, arXiv 1803.00933, section 4):

        eps_i = epsilon ** (1 + alpha * i / (N * E - 1))          i = j * N + actor

    where j is the environment's index in its actor, so that every actor spans the ladder. A run
    with one environment uses `epsilon` itself.

    Args:
      num_actors: N.
      envs_per_actor: E.
      actor: index of the actor, in [0, N).
      epsilon: base of the ladder, in [0, 1].
      alpha: exponent of the ladder, >= 0.

    Returns:
      float64[E], falling.
    """
    if not 0.0 <= epsilon <= 1.0:
        raise ValueError(f"Expect `epsilon` from 0 to 1, actually: {epsilon}")
    if alpha < 0:
        raise ValueError(f"Expect `alpha` >= 0, actually: {alpha}")
    ranks = _ranks(num_actors, envs_per_actor, actor)
    last = max(num_actors * envs_per_actor - 1, 1)
    return np.float64(epsilon) ** (1.0 + alpha * ranks / last)


def ladder_positions(num_actors: int, envs_per_actor: int, actor: int) -> NDArray[np.float64]:
    """Return where one actor's environments stand on the ladder.

    Returns:
      float64[E] in [0, 1): rank / (N * E). Equal shares of a run's environments fall into each
      quartile.
    """
    return _ranks(num_actors, envs_per_actor, actor) / (num_actors * envs_per_actor)


def _ranks(num_actors: int, envs_per_actor: int, actor: int) -> NDArray[np.int64]:
    """Return int64[E], the ranks j * N + actor of one actor's environments."""
    for name, value in (("num_actors", num_actors), ("envs_per_actor", envs_per_actor)):
        if value < 1:
            raise ValueError(f"Expect `{name}` >= 1, actually: {value}")
    if not 0 <= actor < num_actors:
        raise ValueError(f"Expect `actor` from 0 to {num_actors - 1}, actually: {actor}")
    return np.arange(envs_per_actor, dtype=np.int64) * num_actors + actor


def exponential_epsilon(
    agent_steps: int, start: float, end: float, decay_agent_steps: float
) -> float:
    """Return end + (start - end) * exp(-agent_steps / decay_agent_steps).

    Args:
      agent_steps: agent steps of the whole run, all actors together.
      start: rate at step 0.
      end: rate in the limit.
      decay_agent_steps: steps after which the distance to the end is 1/e of what it was, > 0.
    """
    if agent_steps < 0:
        raise ValueError(f"Expect `agent_steps` >= 0, actually: {agent_steps}")
    if decay_agent_steps <= 0:
        raise ValueError(f"Expect `decay_agent_steps` > 0, actually: {decay_agent_steps}")
    return end + (start - end) * math.exp(-agent_steps / decay_agent_steps)
