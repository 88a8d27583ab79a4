"""Catch: a ball falls, a paddle moves under it; +1 for a catch, -1 for a miss, at the end of the game.

Importing this module registers it with gymnasium, so the id `catch_game:Catch-v0` works wherever this folder is on
the path. Small enough to be learned in seconds; its reward comes `ROWS - 1` agent steps after the first action, so with
n = 1 nothing is learned unless targets bootstrap, and unless they stop at the end of a game.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

ROWS = 8
COLUMNS = 5
# Every game is as long as every other: the ball starts in the top row and is judged in the bottom one.
GAME_AGENT_STEPS = ROWS - 1
CATCH = "catch_game:Catch-v0"


class Catch(gymnasium.Env[NDArray[np.float32], np.int64]):
    """The game of bsuite's and rlax's Catch on 8 rows of 5 columns: actions are left, stay, right."""

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
        return self._board(), {}

    def step(
        self, action: np.int64
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._paddle = int(np.clip(self._paddle + int(action) - 1, 0, COLUMNS - 1))
        self._row += 1
        over = self._row == ROWS - 1
        reward = 0.0 if not over else 1.0 if self._ball == self._paddle else -1.0
        return self._board(), reward, over, False, {}

    def _board(self) -> NDArray[np.float32]:
        board = np.zeros((ROWS, COLUMNS), np.float32)
        board[self._row, self._ball] = 1.0
        board[ROWS - 1, self._paddle] = 1.0
        return board.ravel()


gymnasium.register(id="Catch-v0", entry_point=Catch)
