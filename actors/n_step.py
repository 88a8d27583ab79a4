"""Timesteps in, n-step transitions out. Every rule about the edges of a game lives here.

For a transition that starts at s_tm1 and spans m <= n agent steps to s_t (Sutton & Barto 2018,
section 7.1):

    r_t = sum_{i=0}^{m-1} gamma^i * reward_i        discount_t = gamma^m, or 0 where the value ends

* TERMINATION (game over, or a lost life if so configured) ends the value: every open transition
  closes at once, with the steps it really has and discount 0.
* TRUNCATION (the time limit) ends the game but not the value: every open transition closes at once
  with gamma^m, and bootstraps from the game's last observation.
* A lost life that is not the game's end cuts the value only; the frame stack runs on.
* The timestep after a game's end opens a new one: no transition leads into it, and the action sent
  at the end is void.

Gamma is multiplied here and nowhere else.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Moment(NamedTuple):
    """One timestep of one environment as a transition's end sees it.

    Fields:
      frame: index in the environment's stream of the observation's newest frame.
      depth: how many of the observation's frames belong to this game.
      q: float32[A], the actor's Q-values of the observation.
    """

    frame: int
    depth: int
    q: NDArray[np.float32]


class Row(NamedTuple):
    """One finished transition of one environment.

    Fields:
      tm1: where it starts.
      a_tm1: the action taken there.
      r_t: n-step return.
      discount_t: gamma^m, or 0 where the value ended.
      t: where it bootstraps from.
      version: (learner incarnation, learner step) of the weights that chose a_tm1.
    """

    tm1: Moment
    a_tm1: int
    r_t: float
    discount_t: float
    t: Moment
    version: tuple[int, int]


class NStepAccumulator:
    """Builds the n-step transitions of one environment.

    The loop it lives in:

        rows = accumulator.observe(
            moment, reward, terminated=..., truncated=..., first=..., game_over=...
        )
        action = policy(moment)
        accumulator.act(action, version)

    Not thread-safe.
    """

    def __init__(self, *, n_step: int, gamma: float) -> None:
        if n_step < 1:
            raise ValueError(f"Expect `n_step` >= 1, actually: {n_step}")
        if not 0.0 <= gamma <= 1.0:
            raise ValueError(f"Expect `gamma` from 0 to 1, actually: {gamma}")
        self._discounts = [gamma**i for i in range(n_step + 1)]
        self._starts: deque[tuple[Moment, int, tuple[int, int]]] = deque()
        self._rewards: deque[float] = deque(maxlen=n_step)  # one for each open start, oldest first
        self._n_step = n_step
        self._now: Moment | None = None  # None: the game is over, the next action is void

    def observe(
        self,
        moment: Moment,
        reward: float,
        *,
        terminated: bool,
        truncated: bool,
        first: bool,
        game_over: bool,
    ) -> list[Row]:
        """Take the next timestep and return the transitions it finishes, oldest first.

        Args:
          moment: the observation reached.
          reward: of the action before, clipped if so configured; ignored where `first`.
          terminated: the value ended here.
          truncated: the game was cut here.
          first: the observation opens a game.
          game_over: the game ended here, so the next action is void.
        """
        if first:
            assert not self._starts, "a game began while transitions of the one before were open"
            self._now = moment
            return []
        self._rewards.append(reward)
        rows: list[Row] = []
        if terminated or truncated:
            while self._starts:
                rows.append(self._close(moment, 0.0 if terminated else None))
        elif len(self._starts) == self._n_step:
            rows.append(self._close(moment, None))
        self._now = None if game_over else moment
        return rows

    def act(self, action: int, version: tuple[int, int]) -> None:
        """Open a transition at the observation last seen; void after a game's end."""
        if self._now is not None:
            self._starts.append((self._now, action, version))

    def _close(self, t: Moment, discount: float | None) -> Row:
        tm1, action, version = self._starts.popleft()
        steps = len(self._rewards)
        assert steps == len(self._starts) + 1, (steps, len(self._starts))
        r_t = sum(d * r for d, r in zip(self._discounts, self._rewards, strict=False))
        self._rewards.popleft()
        return Row(
            tm1, action, r_t, self._discounts[steps] if discount is None else discount, t, version
        )
