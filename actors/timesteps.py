"""What every vector environment has in common: first answer, check of actions, words of itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.types import EnvironmentSpec, TimeSteps


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


def reading(scale: float, clips_rewards: bool) -> str:
    """Return the sentence on how observations and rewards are read.

    Args:
      scale: what observations are multiplied by.
      clips_rewards: whether rewards are clipped before they are learned from.
    """
    learned = "clipped to [-1, 1]" if clips_rewards else "learned as they are, not clipped"
    return f"Observations are {_observed(scale)}; rewards are {learned}."


def with_scale(spec: EnvironmentSpec, scale: float) -> EnvironmentSpec:
    """Return the spec of a run that began while observations of its environment had another scale.

    Its weights know no other numbers.
    """
    if spec.scale == scale:
        return spec
    now, then = _observed(spec.scale), f"{_observed(scale)}, as since this run began"
    return spec._replace(scale=scale, protocol=spec.protocol.replace(f"are {now};", f"are {then};"))


def _observed(scale: float) -> str:
    return "read as they are" if scale == 1.0 else f"divided by {1.0 / scale:g}"


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
