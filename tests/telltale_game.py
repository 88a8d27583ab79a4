"""A game that writes down every action it is sent: what really explored can be counted.

Importing this module registers it with gymnasium, so `telltale_game:Telltale-v0` is an id wherever
this folder is on the path. TELLTALE names the folder of the files, one for each environment.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

TELLTALE = "telltale_game:Telltale-v0"
NUM_ACTIONS = 10
GAME_STEPS = 10


class Telltale(gymnasium.Env[NDArray[np.float32], np.int64]):
    """Shows the same thing always, so that the greedy action of one network is always the same."""

    metadata = {"render_modes": []}
    observation_space = Box(0.0, 1.0, (1,), np.float32)
    action_space = Discrete(NUM_ACTIONS)

    def __init__(self, **kwargs: Any) -> None:
        self._path = Path(os.environ["TELLTALE"]) / secrets.token_hex(8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed, options=options)
        self._left = GAME_STEPS
        return np.ones(1, np.float32), {}

    def step(self, action: np.int64) -> Any:
        with self._path.open("ab") as file:
            file.write(bytes([int(action)]))
        time.sleep(0.001)  # an actor's new weights come once a second
        self._left -= 1
        return np.ones(1, np.float32), 0.0, self._left == 0, False, {}


gymnasium.register("Telltale-v0", entry_point=Telltale)


def actions_in(folder: Path) -> list[NDArray[np.uint8]]:
    """Return uint8[N] for each environment that played, in the order in which it was sent them."""
    played = [np.frombuffer(path.read_bytes(), np.uint8) for path in folder.iterdir()]
    return [actions for actions in played if len(actions)]
