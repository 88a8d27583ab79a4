"""Catch: a ball falls, a paddle moves under it; +1 for a catch, -1 for a miss, when it is down.

Importing this module registers it with gymnasium, so `catch_game:Catch-v0` is an id wherever this
folder is on the path. It is learned in seconds, and one-step targets have to carry the only reward
back over all steps before it: what bootstraps wrongly shows.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

from actors.environments import make_environments
from common.config import EnvConfig
from common.types import TimeSteps

ROWS = 8
COLUMNS = 5
# Every game: the ball starts in the top row and is judged in the bottom one.
CATCH = "catch_game:Catch-v0"
PICTURE_CATCH = "catch_game:PictureCatch-v0"


class Catch(gymnasium.Env[NDArray[np.float32], np.int64]):
    """The Catch of bsuite and rlax on 8 rows of 5 columns; actions are left, stay, right."""

    metadata = {"render_modes": []}
    observation_space = Box(0.0, 1.0, (ROWS * COLUMNS,), np.float32)
    action_space = Discrete(3)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self._row = 0
        self._ball = int(self.np_random.integers(COLUMNS))
        self._paddle = COLUMNS // 2
        return self.board(), {}

    def step(
        self, action: np.int64
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._paddle = int(np.clip(self._paddle + int(action) - 1, 0, COLUMNS - 1))
        self._row += 1
        over = self._row == ROWS - 1
        reward = 0.0 if not over else 1.0 if self._ball == self._paddle else -1.0
        if over:
            # The next ball shows already, as in an arcade. So a finished game looks like one that
            # begins, and whoever bootstraps from it counts the next catch too.
            self._row, self._ball = 0, int(self.np_random.integers(COLUMNS))
        return self.board(), reward, over, False, {}

    def put_ball(self, column: int) -> None:
        """Put the ball over a column, right after `reset`."""
        self._ball = column

    def board(self) -> NDArray[np.float32]:
        """Return the observation: 1 where the ball is and where the paddle is."""
        board = np.zeros((ROWS, COLUMNS), np.float32)
        board[self._row, self._ball] = 1.0
        board[ROWS - 1, self._paddle] = 1.0
        return board.ravel()


class PictureCatch(Catch):
    """The same as a picture: uint8[36, 36], as small as a convolutional network takes."""

    observation_space: Any = Box(0, 255, (36, 36), np.uint8)

    def board(self) -> NDArray[Any]:
        """Return the picture: each cell is 4 rows of 7 pixels, white where something is."""
        cells = super().board().reshape(ROWS, COLUMNS).astype(np.uint8) * 255
        return np.pad(cells.repeat(4, axis=0).repeat(7, axis=1), ((2, 2), (0, 1)))


class StackedCatch:
    """E games of PictureCatch with stacks of frames, as Atari's are: what `make_environments` says.

    An id of gymnasium's gets stacks of one frame.
    """

    STACK = 2

    def __init__(self, num_envs: int, seed: int) -> None:
        self._games = make_environments(EnvConfig(id=PICTURE_CATCH), num_envs, seed, training=True)
        observation = self._games.spec.observation._replace(stack=self.STACK)
        self.spec = self._games.spec._replace(observation=observation)
        self._stacks = np.zeros((num_envs, *observation.shape), np.uint8)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._games, name)

    def reset(self) -> TimeSteps:
        return self._stacked(self._games.reset())

    def step(self, actions: NDArray[np.int64]) -> TimeSteps:
        return self._stacked(self._games.step(actions))

    def _stacked(self, timesteps: TimeSteps) -> TimeSteps:
        before = self._stacks[:, 1:].copy()
        before[timesteps.first] = 0
        self._stacks = np.concatenate([before, timesteps.observation], axis=1)
        return timesteps._replace(observation=self._stacks.copy())


gymnasium.register(id="Catch-v0", entry_point="catch_game:Catch")
gymnasium.register(id="PictureCatch-v0", entry_point="catch_game:PictureCatch")
