"""The return at which a run is done before its frames are: `--stop-at-return`."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from typing import Literal, assert_never

import numpy as np

from driver.view.tags import RETURN_GAMES


class ReturnGoal:
    """Hears of every game and says when the goal is reached.

    The loop it lives in:

        goal.trained(returns)       # whenever training games ended
        goal.evaluated(returns)     # whenever an evaluation ended
        if goal.reached: ...        # what reached it, for result.json

    The mean of the training games counts once it is one of RETURN_GAMES games: the first few would
    reach a goal by luck.
    """

    def __init__(
        self,
        *,
        at_least: float | None,
        of: Literal["train", "eval", "either"],
        before: Iterable[float],
    ) -> None:
        """Hear of what was before.

        Args:
          at_least: raw return that is enough; None: none is.
          of: whose: the mean of the last RETURN_GAMES training games, the mean of one evaluation,
            or either.
          before: raw returns of the last training games before a resumption, in their order; they
            count as any, but that none of them reaches the goal.
        """
        self._at_least = at_least
        match of:
            case "either":
                self._counts = {"train", "eval"}
            case "train" | "eval":
                self._counts = {of}
            case _:
                assert_never(of)
        self._games: deque[float] = deque(before, maxlen=RETURN_GAMES)
        self._reached = ""

    @property
    def reached(self) -> str:
        """What reached the goal first, with its figures; "" before."""
        return self._reached

    def trained(self, returns: Iterable[float]) -> None:
        """Hear the raw returns of training games in the order in which they ended."""
        for episode_return in returns:
            self._games.append(episode_return)
            if "train" in self._counts and len(self._games) == RETURN_GAMES:
                self._look_at("train", self._games)

    def evaluated(self, returns: Collection[float]) -> None:
        """Hear the raw returns of one evaluation."""
        if "eval" in self._counts:
            self._look_at("eval", returns)

    def _look_at(self, whose: str, returns: Collection[float]) -> None:
        if self._at_least is None or self._reached:
            return
        mean = float(np.mean(list(returns)))
        if mean >= self._at_least:
            self._reached = (
                f"{whose} return {mean:g} >= {self._at_least:g} (mean of {len(returns)} games)"
            )
