"""How much the environments of an actor explore: one table of schedules, for both modes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.config import ActorConfig
from common.schedules import epsilon_ladder, exponential_epsilon, ladder_positions


class Exploration(NamedTuple):
    """What one actor explores by.

    Fields:
      epsilons: from the agent steps of the whole run to float64[E], the exploration rate of each
        environment.
      ladder_positions: [E], where each environment stands on the ladder, in [0, 1); NaN where all
        of them explore alike.
    """

    epsilons: Callable[[int], NDArray[np.float64]]
    ladder_positions: Sequence[float]


def make_exploration(config: ActorConfig, actor: int) -> Exploration:
    """Return what the actor with this index explores by."""
    return SCHEDULES[config.epsilon_schedule](config, actor)


def _ladder(config: ActorConfig, actor: int) -> Exploration:
    rates = epsilon_ladder(config.count, config.envs, actor, config.epsilon, config.epsilon_alpha)
    positions = ladder_positions(config.count, config.envs, actor)
    return Exploration(lambda agent_steps: rates, positions.tolist())


def _exponential(config: ActorConfig, actor: int) -> Exploration:
    def epsilons(agent_steps: int) -> NDArray[np.float64]:
        rate = exponential_epsilon(
            agent_steps, config.epsilon_start, config.epsilon_end, config.epsilon_decay_agent_steps
        )
        return np.full(config.envs, rate)

    return Exploration(epsilons, [np.nan] * config.envs)


SCHEDULES: dict[str, Callable[[ActorConfig, int], Exploration]] = {
    "ladder": _ladder,
    "exponential": _exponential,
}
"""By the names of `actor.epsilon_schedule`."""
