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

ROWS = 8
COLUMNS = 5
# Every game: the ball starts in the top row and is judged in the bottom one.
CATCH = "catch_game:Catch-v0"


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


gymnasium.register(id="Catch-v0", entry_point="catch_game:Catch")
