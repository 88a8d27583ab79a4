"""CartPole that takes its time, so that a run that only waits leaves the machine to others.

As `unhurried:Unhurried-v0` where this folder is on the path: a Ray run's processes import it too.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

_STEP_S = 0.004
GAME = "unhurried:Unhurried-v0"


class UnhurriedCartPole(CartPoleEnv):
    """CartPole whose every step takes 4 ms, in which nothing is computed."""

    def step(self, action: Any) -> Any:
        time.sleep(_STEP_S)
        return super().step(action)


if "Unhurried-v0" not in gymnasium.registry:
    gymnasium.register("Unhurried-v0", "unhurried:UnhurriedCartPole", max_episode_steps=500)
