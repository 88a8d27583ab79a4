"""The Atari protocol once more, slowly and frame by frame: what the environments are held to.

Mnih et al. 2015 (Methods), in the order of events of ale-py's vector: no-ops of one frame each, an
action held for `action_repeat_frames` frames, grey screens, the maximum of the last two, area
resize to 84 x 84, a zero-padded stack of the last k, the time limit in frames, lost lives, and one
void timestep after each game.
"""

from __future__ import annotations

from typing import NamedTuple

import ale_py
import cv2
import numpy as np
from ale_py import roms
from numpy.typing import NDArray


class Reference(NamedTuple):
    """One timestep of one environment; the fields of TimeSteps without their first axis."""

    observation: NDArray[np.uint8]
    reward: float
    terminated: bool
    truncated: bool
    first: bool
    game_over: bool


class AtariReference:
    """One Atari environment."""

    def __init__(
        self,
        *,
        rom: str,
        seed: int,
        sticky_actions: float,
        full_action_space: bool,
        noop_max: int,
        life_loss_terminates: bool,
        action_repeat_frames: int,
        stack: int,
        max_game_frames: int,
    ) -> None:
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", sticky_actions)
        self._ale.setInt("random_seed", seed)
        path = roms.get_rom_path(rom)
        assert path is not None
        self._ale.loadROM(path)
        self._actions = (
            self._ale.getLegalActionSet() if full_action_space else self._ale.getMinimalActionSet()
        )
        # A numpy generator with the state of C++'s std::mt19937(seed).
        self._mersenne = np.random.MT19937()
        self._mersenne._legacy_seeding(seed)
        self._noop_max = noop_max
        self._life_loss_terminates = life_loss_terminates
        self._action_repeat_frames = action_repeat_frames
        self._stack = stack
        self._max_game_frames = max_game_frames
        self.noops: list[int] = []
        self._over = True

    def reset(self) -> Reference:
        """Open a new game."""
        self._ale.reset_game()
        self.noops.append(self._draw_noops())
        for _ in range(self.noops[-1]):
            self._ale.act(0)
            if self._ale.game_over():
                self._ale.reset_game()
        screen = self._ale.getScreenGrayscale()
        self._screens = [screen, np.zeros_like(screen)]
        self._frames = [np.zeros((84, 84), np.uint8)] * self._stack
        self._elapsed_frames = 0
        self._over = False
        return Reference(self._observe(), 0.0, False, False, True, False)

    def step(self, action: int) -> Reference:
        """Take one agent step, or open the next game if this one is over."""
        if self._over:
            return self.reset()
        lives, reward, life_lost = self._ale.lives(), 0, False
        for frames_left in reversed(range(self._action_repeat_frames)):
            reward += self._ale.act(self._actions[action])
            self._elapsed_frames += 1
            life_lost = 0 < self._ale.lives() < lives
            self._over = self._ale.game_over() or self._elapsed_frames >= self._max_game_frames
            if self._over:
                break  # the screens of this and the later frames are not captured
            if frames_left < 2:
                self._screens[frames_left] = self._ale.getScreenGrayscale()
        died = self._ale.game_over()
        return Reference(
            observation=self._observe(),
            reward=float(reward),
            terminated=died or (self._life_loss_terminates and life_lost),
            truncated=self._over and not died,
            first=False,
            game_over=self._over,
        )

    def _observe(self) -> NDArray[np.uint8]:
        # The maximum takes the last screen's place, and stays there until that place is captured
        # anew.
        self._screens[0] = np.maximum(*self._screens)
        frame = cv2.resize(self._screens[0], (84, 84), interpolation=cv2.INTER_AREA)
        self._frames = [*self._frames[1:], np.asarray(frame, np.uint8)]
        return np.stack(self._frames)

    def _draw_noops(self) -> int:
        """Return what libstdc++'s uniform_int_distribution(0, noop_max) draws (Lemire 2019)."""
        width = self._noop_max + 1
        if width == 1:
            return 0
        while True:
            product = int(self._mersenne.random_raw()) * width
            if product % 2**32 >= 2**32 % width:
                return product >> 32
