"""The curves of runs, as plots see them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.schedules import epsilon_ladder
from driver.view.scores import RANDOM_AND_HUMAN
from driver.view.tags import (
    ACTORS_EPSILON,
    ACTORS_POLICY_LAG_LEARNER_STEPS,
    ENV_FRAMES_PER_S,
    EVAL_EPISODE_RETURN,
    LEARNER_Q_MEAN,
    LEARNER_STEPS_PER_S,
    LEARNER_TD_LOSS,
    REPLAY_SAMPLES_PER_INSERT,
    TRAIN_EPISODE_RETURN,
)

Kind = Literal["games", "evaluation", "noisy", "plain"]
KINDS: Mapping[str, Kind] = {
    TRAIN_EPISODE_RETURN: "games",
    EVAL_EPISODE_RETURN: "evaluation",
    LEARNER_TD_LOSS: "noisy",
    LEARNER_Q_MEAN: "noisy",
    ACTORS_EPSILON: "plain",
    ENV_FRAMES_PER_S: "noisy",
    LEARNER_STEPS_PER_S: "noisy",
    REPLAY_SAMPLES_PER_INSERT: "plain",
    ACTORS_POLICY_LAG_LEARNER_STEPS: "noisy",
}
"""The tags that are drawn, and how: "games" with the average that is asked for (see
average_returns); "evaluation" as marked points; "noisy" with a moving average over a fiftieth of
the values; "plain" as they are."""


class Curve(NamedTuple):
    """One tag's finite values.

    Fields:
      frames: float64[n], strictly increasing.
      seconds: float64[n], how long the run had run.
      games: float64[n], how many training games had ended by that frame; None where an older file
        does not say.
      values: float64[n].
      smooth: float64[n], their moving average, taken over every value that the run has.
    """

    frames: NDArray[np.float64]
    seconds: NDArray[np.float64]
    games: NDArray[np.float64] | None
    values: NDArray[np.float64]
    smooth: NDArray[np.float64]


class Ladder(NamedTuple):
    """Constant exploration rates, one per environment (see common.schedules.epsilon_ladder).

    Fields:
      environments: N * E.
      epsilon: base of the ladder.
      alpha: exponent of the ladder.
    """

    environments: int
    epsilon: float
    alpha: float

    @property
    def rates(self) -> NDArray[np.float64]:
        """float64[N * E], by rank: falling."""
        return epsilon_ladder(1, self.environments, 0, self.epsilon, self.alpha)


class RunCurves(NamedTuple):
    """One run as plots see it.

    Fields:
      label: what a legend calls it.
      about: what run.json says of it, {} where there is none.
      ladder: its exploration rates; None where they follow a schedule, or nobody knows.
      average: which average `smooth` of the training returns is (see average_returns).
      curves: tag -> curve, of the tags in KINDS that have values.
    """

    label: str
    about: Mapping[str, Any]
    ladder: Ladder | None
    average: float
    curves: Mapping[str, Curve]

    @property
    def has_games(self) -> bool:
        """Whether every curve can be drawn over training games."""
        return all(curve.games is not None for curve in self.curves.values())

    @property
    def human_score(self) -> float | None:
        """The human score of its game, None where nobody published one."""
        game = self.about.get("game")
        pair = RANDOM_AND_HUMAN.get(game) if isinstance(game, str) else None
        return None if pair is None else pair[1]
