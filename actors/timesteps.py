"""What every vector environment has in common: the first answer and the check of actions."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.types import TimeSteps


def opening_timesteps(observation: NDArray[Any]) -> TimeSteps:
    """Return the timesteps that open a game everywhere, for dtype[E, k, *frame_shape]."""
    num_envs = len(observation)
    return TimeSteps(
        observation=observation,
        reward=np.zeros(num_envs, np.float32),
        terminated=np.zeros(num_envs, np.bool_),
        truncated=np.zeros(num_envs, np.bool_),
        first=np.ones(num_envs, np.bool_),
        game_over=np.zeros(num_envs, np.bool_),
        life_lost=np.zeros(num_envs, np.bool_),
    )


def check_actions(actions: NDArray[np.int64], num_envs: int, num_actions: int) -> None:
    """Raise ValueError unless `actions` is int64[num_envs] from 0 to num_actions - 1."""
    if actions.shape != (num_envs,) or actions.dtype != np.int64:
        raise ValueError(
            f"Expect `actions` as int64[{num_envs}], actually: {actions.dtype}{list(actions.shape)}"
        )
    if actions.min() < 0 or actions.max() >= num_actions:
        raise ValueError(
            f"Expect `actions` from 0 to {num_actions - 1}, actually: {actions.tolist()}"
        )
