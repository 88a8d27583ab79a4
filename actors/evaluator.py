"""Greedy whole games on the environment code that the actors use."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from actors.environment_source import Environments
from actors.environments import make_run_environments
from actors.policy import EpsilonGreedyPolicy
from common.config import Config
from common.heartbeat import Heartbeat
from common.networks import build_network
from common.reports import EvaluationResult
from common.types import EnvironmentSpec, Weights

MAX_EVALUATION_ENVS = 8
"""Games that an evaluation plays at once."""


class EvaluationGames(NamedTuple):
    """Whole games played with one set of weights, in the order in which they were given out.

    Fields:
      returns: float64[G], raw return of each game.
      lengths_agent_steps: int64[G].
    """

    returns: NDArray[np.float64]
    lengths_agent_steps: NDArray[np.int64]


class EvaluationLoop:
    """Plays whole games without learning from them.

    Whoever owns it may load new weights into the network between calls. Not thread-safe.
    """

    def __init__(
        self,
        *,
        environments: Environments,
        network: nn.Module,
        epsilon: float,
        rng: np.random.Generator,
    ) -> None:
        """Take what plays.

        Args:
          environments: E environments made with training=False, so that a game is all its lives.
          network: as in EpsilonGreedyPolicy; in evaluation mode from now on.
          epsilon: exploration rate. Above 0, or Breakout waits for ever for the agent to fire.
          rng: source of exploration.
        """
        self._environments = environments
        self._epsilon = epsilon
        self._policy = EpsilonGreedyPolicy(
            network=network, epsilons=np.full(environments.num_envs, epsilon), rng=rng
        )

    def play(self, episodes: int, should_stop: Callable[[], bool]) -> EvaluationGames | None:
        """Play exactly `episodes` whole games.

        The games are given out beforehand: environment e plays games e, e + E, e + 2E, ... and what
        it plays beyond them does not count. To take the first games that end, whoever played them,
        would favour short ones.

        Args:
          episodes: G, >= 1.
          should_stop: asked before every step.

        Returns:
          The games; None if it was told to stop.

        Raises:
          EnvironmentFailed: an environment raised, or answered what it may not.
        """
        if episodes < 1:
            raise ValueError(f"Expect `episodes` >= 1, actually: {episodes}")
        num_envs = self._environments.num_envs
        returns = np.zeros(episodes)
        lengths = np.zeros(episodes, np.int64)
        game = np.arange(num_envs)  # the game each environment plays; beyond the last: surplus
        timesteps = self._environments.reset()
        while (playing := game < episodes).any():
            if should_stop():
                return None
            actions, _ = self._policy.act(timesteps.observation)
            timesteps = self._environments.step(actions)
            counts = playing & ~timesteps.first
            returns[game[counts]] += timesteps.reward[counts]
            lengths[game[counts]] += 1
            game[timesteps.game_over] += num_envs
        return EvaluationGames(returns, lengths)

    def evaluate(
        self, weights: Weights, episodes: int, should_stop: Callable[[], bool]
    ) -> EvaluationResult | None:
        """Play exactly `episodes` whole games with `weights`, which stay; as `play` otherwise."""
        self._policy.load(weights.buffer)
        started_s = time.monotonic()
        games = self.play(episodes, should_stop)
        if games is None:
            return None
        return EvaluationResult(
            version=weights.version,
            agent_steps=weights.agent_steps,
            returns=games.returns,
            lengths_agent_steps=games.lengths_agent_steps,
            epsilon=self._epsilon,
            seconds=time.monotonic() - started_s,
        )

    def close(self) -> None:
        """Close the environments."""
        self._environments.close()


def make_evaluation(
    config: Config, spec: EnvironmentSpec, seed: int, heartbeat: Heartbeat | None = None
) -> EvaluationLoop:
    """Return what plays a run's evaluations, with weights still to come.

    Args:
      config: settings of the run.
      spec: its environment.
      seed: of the games and of the exploration.
      heartbeat: is told in which call into an environment this thread is.

    Raises:
      EnvironmentFailed: an environment raised, or is not what the spec says; so does the loop.
    """
    games_at_once = min(config.evaluator.episodes, MAX_EVALUATION_ENVS)
    return EvaluationLoop(
        environments=make_run_environments(
            config.env, spec, games_at_once, seed, training=False, heartbeat=heartbeat
        ),
        network=build_network(config.agent, spec),
        epsilon=config.evaluator.epsilon,
        rng=np.random.default_rng(seed),
    )


def play(
    config: Config,
    spec: EnvironmentSpec,
    weights: Weights,
    seed: int,
    should_stop: Callable[[], bool],
) -> EvaluationResult | None:
    """Evaluate `weights` in this process as the evaluator process does; None when told to stop."""
    with closing(make_evaluation(config, spec, seed)) as evaluation:
        return evaluation.evaluate(weights, config.evaluator.episodes, should_stop)
