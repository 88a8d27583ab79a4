"""A gymnasium environment whose answers are checked: what misleads the learning is a failure."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box
from numpy.typing import NDArray

from actors.environment_calls import EnvironmentCalls, one_line

MOST_REWARD = 1e15
"""Of rewards that are learned from as they are. Its square is 1e30 and float32 ends at 3e38, which
leaves room for sums over steps, a batch and the weights; beyond it replay refuses what is not
finite, and nothing is learned."""

_MOST_FLOAT32 = float(np.finfo(np.float32).max)


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
        most_observed: float | None,
    ) -> None:
        """Take the bare environment, below whatever cuts its games.

        Args:
          env: its observation space is a Box.
          calls: the way into it.
          most_reward: size of the largest reward that is no failure.
          most_observed: the same of an observed number; None: whatever its dtype holds.
        """
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, Box), space
        self._shape, self._dtype = space.shape, space.dtype
        self._calls = calls
        self._most_reward = min(most_reward, _MOST_FLOAT32)
        self._most_observed = most_observed
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
        is_castable = array.dtype == self._dtype or np.can_cast(
            array.dtype, self._dtype, "same_kind"
        )
        if array.shape != self._shape or not is_castable:
            raise self._calls.failed(
                f"gave an observation {array.dtype}{list(array.shape)}: must be "
                f"{self._dtype}{list(self._shape)}, as its space says",
            )
        most = self._most_observed
        if most is None or _are_small(array, most) or (worst := np.abs(array).max()) <= most:
            return array
        rule = "finite" if most == _MOST_FLOAT32 else "within the bounds of its space"
        raise self._calls.failed(f"gave an observation that holds {worst}: must be {rule}")

    def _reward(self, reward: Any) -> float:
        number = reward
        if type(reward) is not float:
            array = np.asarray(reward)
            if array.size != 1 or array.dtype.kind not in "biuf":
                raise self._calls.failed(f"gave the reward {one_line(reward)}: must be a number")
            number = float(array.item())
        if not abs(number) <= self._most_reward:
            rule = f"finite and at most {self._most_reward:.3g} in size"
            raise self._calls.failed(f"gave the reward {number:g}: must be {rule}")
        return number

    def _flag(self, name: str, flag: Any) -> bool:
        if type(flag) is bool:
            return flag
        array = np.asarray(flag)
        if array.size != 1 or array.item() not in (False, True):
            raise self._calls.failed(f"gave {name} as {one_line(flag)}: must be true or false")
        return bool(array.item())


def most_observed(space: Box, scale: float) -> float | None:
    """Return the largest size of a number in an observation that goes with the scale it is read by.

    Args:
      space: of the observations.
      scale: what they are multiplied by.

    Returns:
      None where any number of the dtype will do.
    """
    if is_picture(space):
        # A little more, for what was computed in floats.
        most = 1.001 / scale
        return None if space.dtype == np.uint8 and most >= 255 else most
    return None if space.dtype == np.uint8 else _MOST_FLOAT32


def is_picture(space: Box) -> bool:
    """Return whether what is observed has rows and columns, and not only numbers in a row."""
    return len(space.shape) >= 2


def _are_small(array: NDArray[Any], most: float) -> bool:
    """Return whether all numbers are surely at most so large: a fifth of the time for a few."""
    if array.dtype not in (np.float32, np.float64):
        return False
    numbers = array.ravel()
    return float(numbers.dot(numbers)) <= most * most
