"""A gymnasium environment whose answers are checked: what misleads the learning is a failure."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from actors.environment_calls import EnvironmentCalls, in_a_line

MOST_REWARD = 1e15
"""Of rewards that are learned from as they are. Its square is 1e30 and float32 ends at 3e38, which
leaves room for sums over steps, a batch and the weights; beyond it replay refuses what is not
finite, and nothing is learned."""

MOST_FLOAT32 = float(np.finfo(np.float32).max)
"""Of any number."""

_FLAGS = (bool, np.bool_)
_FEW = 16


class CheckedEnvironment(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose answers are what gymnasium and its own spaces promise, or a failure.

    It hands on no `info`: nobody reads it, and gymnasium's vectors cannot merge just any.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        calls: EnvironmentCalls,
        most_reward: float,
        most_observed: float,
    ) -> None:
        """Take the bare environment, below whatever cuts its games.

        Args:
          env: its observation space is a Box.
          calls: the way into it.
          most_reward: size of the largest reward that is no failure.
          most_observed: the same of an observed number; of bytes 255 at most.
        """
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, Box), space
        self._shape, self._dtype = space.shape, space.dtype
        self._calls = calls
        self._most_reward = most_reward
        self._most_observed = min(most_observed, 255.0 if space.dtype == np.uint8 else np.inf)
        self._takes_all = space.dtype == np.uint8 and self._most_observed == 255.0
        self._steps = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Open a game."""
        with self._calls.into("reset"):
            observation, _ = self._parts(self.env.reset(seed=seed, options=options), 2)
            return self._observation(observation), {}

    def step(self, action: Any) -> tuple[NDArray[Any], float, bool, bool, dict[str, Any]]:
        """Take one agent step."""
        self._steps += 1
        with self._calls.into(f"step {self._steps}"):
            observation, reward, terminated, truncated, _ = self._parts(self.env.step(action), 5)
            return (
                self._observation(observation),
                self._reward(reward),
                self._flag("terminated", terminated),
                self._flag("truncated", truncated),
                {},
            )

    def _parts(self, answer: Any, number: int) -> tuple[Any, ...]:
        if isinstance(answer, tuple) and len(answer) == number:
            return answer
        kind = f"{len(answer)} values" if isinstance(answer, tuple) else type(answer).__name__
        raise self._calls.failed(f"gave {kind}: must be {number} values, as in gymnasium")

    def _observation(self, observation: Any) -> NDArray[Any]:
        array = np.asarray(observation)
        dtype, wanted = array.dtype, self._dtype
        if array.shape != self._shape or not (
            dtype == wanted or np.can_cast(dtype, wanted, "same_kind")
        ):
            raise self._calls.failed(
                f"gave an observation {dtype}{list(array.shape)}: must be "
                f"{wanted}{list(self._shape)}, as its space says",
            )
        if self._takes_all and dtype == wanted:
            return array
        most = self._most_observed
        # Of a few, a third of the time that numpy takes; nor does it warn of what is too large.
        if array.size <= _FEW and sum(map(abs, array.ravel().tolist())) <= most:
            return array
        if not (worst := float(np.abs(array).max())) <= most:
            rule = "finite" if most == MOST_FLOAT32 else "within the bounds of its space"
            raise self._calls.failed(f"gave an observation that holds {worst}: must be {rule}")
        return array

    def _reward(self, reward: Any) -> float:
        if not isinstance(reward, float):
            array = np.asarray(reward)
            if array.size != 1 or array.dtype.kind not in "biuf":
                raise self._calls.failed(f"gave the reward {in_a_line(reward)}: must be a number")
            reward = array.item()
        number = float(reward)
        if not abs(number) <= self._most_reward:
            rule = f"finite and at most {self._most_reward:.3g} in size"
            raise self._calls.failed(f"gave the reward {number:g}: must be {rule}")
        return number

    def _flag(self, name: str, flag: Any) -> bool:
        if type(flag) not in _FLAGS:
            array = np.asarray(flag)
            if array.size != 1 or array.item() not in (False, True):
                raise self._calls.failed(f"gave {name} as {in_a_line(flag)}: must be true or false")
            flag = array.item()
        return bool(flag)
