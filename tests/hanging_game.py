"""A game that hangs for ever, inside of a call into C that no signal ends.

Importing this module registers it with gymnasium, so `hanging_game:Hanging-v0` is an id wherever
this folder is on the path.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.classic_control import CartPoleEnv
from numpy.typing import NDArray

HANGING = "hanging_game:Hanging-v0"
HANGS = "the game hangs"
_STEPS = 100


def hang(seconds: float | None = None) -> None:
    """Hang in the C library, as code does that waits for itself: for ever, or for so long."""
    libc = ctypes.CDLL(None)
    lock = ctypes.create_string_buffer(64)  # zeroes are an open one; of 40 bytes in glibc
    libc.pthread_mutex_lock(lock)
    if seconds is None:  # the second time it waits for itself
        libc.pthread_mutex_lock(lock)
    now = (ctypes.c_long * 2)()
    libc.clock_gettime(0, now)
    until = (ctypes.c_long * 2)(now[0] + int(seconds or 0), now[1])
    libc.pthread_mutex_timedlock(lock, until)


class Hanging(CartPoleEnv):
    """CartPole, until it hangs."""

    _steps = 0

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self._steps += 1
        if self._steps == _STEPS:
            print(HANGS, file=sys.stderr, flush=True)
            hang()
        return super().step(action)


gymnasium.register(id="Hanging-v0", entry_point="hanging_game:Hanging")
