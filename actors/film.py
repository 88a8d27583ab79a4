"""A video of one game."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import numpy as np
from torch import nn

from actors.environments import source_of
from actors.policy import EpsilonGreedyPolicy
from common.config import EnvConfig
from common.files import unguessable


def expect_pictures(env: EnvConfig, seed: int) -> None:
    """Raise EnvironmentFailed unless a game of `env` can be filmed: some do not draw themselves."""
    with closing(source_of(env).film(env, seed)) as filmed:
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
    filmed = source_of(env).film(env, seed)
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
