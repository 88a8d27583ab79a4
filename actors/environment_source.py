"""What a kind of environments is made of: an entry of the table in actors.environments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from common.config import EnvConfig
from common.heartbeat import Heartbeat
from common.types import EnvironmentSpec, TimeSteps


class Environments(Protocol):
    """E environments stepped together by one thread.

    The loop they live in:

        timesteps = environments.reset()
        while True:
            timesteps = environments.step(policy(timesteps.observation))

    All kinds autoreset in the NEXT_STEP way: the timestep of a game's end carries the game's last
    observation and `game_over`; the action sent there is void, and the answer to it opens the next
    game (`first`, reward 0).
    """

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


class Filmed(Protocol):
    """One environment that is played and looked at."""

    pictures_per_s: float

    def reset(self) -> NDArray[Any]:
        """Open the game and return dtype[1, k, *frame_shape]."""

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[Any], float, bool]:
        """Return the observation, the reward and whether the game is over."""

    def picture(self) -> NDArray[np.uint8]:
        """Return uint8[H, W, 3], H and W even as the codec wants them."""

    def close(self) -> None:
        """End it."""


class DrawnEnvironments(Environments, Protocol):
    """Environments that draw themselves."""

    @property
    def render_frames_per_s(self) -> float:
        """Speed of play."""

    def screens(self) -> tuple[NDArray[np.uint8], ...]:
        """Return uint8[H, W, 3] for each environment."""


class FilmedScreen:
    """One environment that draws itself."""

    def __init__(self, played: DrawnEnvironments) -> None:
        self._played = played
        self.pictures_per_s = played.render_frames_per_s

    def reset(self) -> NDArray[Any]:
        """Open the game and return dtype[1, k, *frame_shape]."""
        return self._played.reset().observation

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[Any], float, bool]:
        """Return the observation, the reward and whether the game is over."""
        timesteps = self._played.step(actions)
        return timesteps.observation, float(timesteps.reward[0]), bool(timesteps.game_over[0])

    def picture(self) -> NDArray[np.uint8]:
        """Return uint8[H, W, 3], an odd row or column left out."""
        (picture,) = self._played.screens()
        height, width, _ = picture.shape
        return np.ascontiguousarray(picture[: height - height % 2, : width - width % 2])

    def close(self) -> None:
        """End it."""
        self._played.close()


class MakeEnvironments(Protocol):
    """Makes E environments; see `actors.environments.make_environments`."""

    def __call__(
        self, *, env: EnvConfig, num_envs: int, seed: int, training: bool, heartbeat: Heartbeat
    ) -> Environments:
        """Make them."""


class EnvironmentSource(NamedTuple):
    """Where environments of some ids come from.

    Fields:
      matches: whether an id is one of them. Raises ValueError, in one line, for one that nearly is.
      spec: what an id means; `actors.environments.resolve` says what it raises.
      make: makes E environments of an id.
      film: makes one that is looked at, from an id and a seed.
      clips_rewards: whether rewards are clipped unless the settings say otherwise.
    """

    matches: Callable[[EnvConfig], bool]
    spec: Callable[[EnvConfig], EnvironmentSpec]
    make: MakeEnvironments
    film: Callable[[EnvConfig, int], Filmed]
    clips_rewards: bool
