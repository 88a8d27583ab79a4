"""Greedy whole games on the environment code that the actors use, and a video of one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import nn

from actors.atari import AtariEnvironments, atari_game, atari_screen_shape, atari_vector
from actors.environments import Environments, make_environments, make_run_environments
from actors.policy import EpsilonGreedyPolicy
from common.config import Config, EnvConfig
from common.files import unguessable
from common.heartbeat import Heartbeat
from common.networks import build_network
from common.reports import EvaluationResult
from common.types import EnvironmentSpec, Weights

ATARI_FRAMES_PER_SECOND = 60

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


def expect_pictures(env: EnvConfig, seed: int) -> None:
    """Raise EnvironmentFailed unless a game of `env` can be filmed: some do not draw themselves."""
    with closing(_filmed(env, seed)) as filmed:
        filmed.reset()
        filmed.picture()


def record_game(env: EnvConfig, network: nn.Module, epsilon: float, seed: int, path: Path) -> float:
    """Play one whole game and write it as an MP4, one picture per agent step, at the speed of play.

    Args:
      env: what to play.
      network: as in EpsilonGreedyPolicy; in evaluation mode from now on.
      epsilon: exploration rate.
      seed: of the game and of the exploration.
      path: the file, `*.mp4`; its folder is made. It is there whole or not at all.

    Returns:
      The game's raw return.

    Raises:
      EnvironmentFailed: an environment raised, or drew nothing.
    """
    # Imported here: it is slow to import, and nobody else needs it.
    from moviepy.video.io.ffmpeg_writer import FFMPEG_VideoWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = unguessable(path.absolute())  # ffmpeg follows links, and obeys `-x` and `http:`
    filmed = _filmed(env, seed)
    policy = EpsilonGreedyPolicy(
        network=network, epsilons=np.array([epsilon]), rng=np.random.default_rng(seed)
    )
    score, over = 0.0, False
    try:
        observation = filmed.reset()
        height, width, _ = filmed.picture().shape
        with FFMPEG_VideoWriter(str(partial), (width, height), filmed.pictures_per_s) as writer:
            writer.write_frame(filmed.picture())
            while not over:
                actions, _ = policy.act(observation)
                observation, reward, over = filmed.step(actions)
                score += reward
                writer.write_frame(filmed.picture())
        os.replace(partial, path)
    finally:
        filmed.close()
        partial.unlink(missing_ok=True)
    return score


class _Filmed(Protocol):
    """One environment that is played and looked at."""

    pictures_per_s: float

    def reset(self) -> NDArray[Any]:
        """Open the game and return dtype[1, k, *frame_shape]."""

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[Any], float, bool]:
        """Return the observation, the reward and whether the game is over."""

    def picture(self) -> NDArray[np.uint8]:
        """Return uint8[H, W, 3], H and W even as the codec wants them."""

    def close(self) -> None:
        """End it."""


def _filmed(env: EnvConfig, seed: int) -> _Filmed:
    return _FilmedGymnasium(env, seed) if atari_game(env) is None else _FilmedAtari(env, seed)


class _FilmedAtari:
    """An Atari game and its twin in colour: the same seed, the same actions, the whole screen."""

    def __init__(self, env: EnvConfig, seed: int) -> None:
        self._played = make_environments(env, 1, seed, training=False)
        height, width = atari_screen_shape(env)
        self._twin = atari_vector(
            env, 1, grayscale=False, img_height=height, img_width=width, stack_num=1
        )
        self._seed = seed
        self.pictures_per_s = ATARI_FRAMES_PER_SECOND / env.action_repeat_frames

    def reset(self) -> NDArray[Any]:
        self._picture, _ = self._twin.reset(seed=self._seed)
        return self._played.reset().observation

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[Any], float, bool]:
        timesteps = self._played.step(actions)
        self._picture, reward, *_ = self._twin.step(actions)
        assert reward[0] == timesteps.reward[0], "the game and its twin in colour went apart"
        return timesteps.observation, float(timesteps.reward[0]), bool(timesteps.game_over[0])

    def picture(self) -> NDArray[np.uint8]:
        # The console's pixels are about twice as wide as they are high; and all is doubled, since
        # 160 x 210 is small.
        picture = np.asarray(self._picture[0, 0], np.uint8)
        return picture.repeat(2, axis=0).repeat(4, axis=1)

    def close(self) -> None:
        self._played.close()
        self._twin.close()


class _FilmedGymnasium:
    """Any other environment, which draws itself."""

    def __init__(self, env: EnvConfig, seed: int) -> None:
        played = make_environments(env, 1, seed, training=False, render=True)
        assert not isinstance(played, AtariEnvironments)
        self._played = played
        self.pictures_per_s = self._played.render_frames_per_s

    def reset(self) -> NDArray[Any]:
        return self._played.reset().observation

    def step(self, actions: NDArray[np.int64]) -> tuple[NDArray[Any], float, bool]:
        timesteps = self._played.step(actions)
        return timesteps.observation, float(timesteps.reward[0]), bool(timesteps.game_over[0])

    def picture(self) -> NDArray[np.uint8]:
        (picture,) = self._played.screens()
        height, width, _ = picture.shape
        return np.ascontiguousarray(picture[: height - height % 2, : width - width % 2])

    def close(self) -> None:
        self._played.close()
