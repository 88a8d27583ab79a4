from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from actors.environments import make_environments
from actors.evaluator import EvaluationLoop
from actors.film import record_game
from common.config import EnvConfig
from common.types import EnvironmentSpec, ObservationSpec, TimeSteps


class FakeGames:
    """Environment e plays games of scripted lengths; a step of its g-th is worth 100 e + g."""

    def __init__(self, lengths: list[list[int]]) -> None:
        self.spec = EnvironmentSpec("fake", ObservationSpec((1,), "float32", 1), 2, 1, "fake")
        self.num_envs = len(lengths)
        self.lengths = lengths
        self.resets = 0
        self.actions: list[list[int]] = []
        self._game = np.full(self.num_envs, -1)
        self._left = np.zeros(self.num_envs, np.int64)

    def reset(self) -> TimeSteps:
        self.resets += 1
        self._left[:] = 0
        return self._answer()

    def step(self, actions: NDArray[np.int64]) -> TimeSteps:
        self.actions.append(actions.tolist())
        return self._answer()

    def close(self) -> None:
        pass

    def _answer(self) -> TimeSteps:
        first = self._left == 0
        for e in range(self.num_envs):
            if first[e]:
                self._game[e] += 1
                self._left[e] = self.lengths[e][self._game[e] % len(self.lengths[e])]
            else:
                self._left[e] -= 1
        worth = 100 * np.arange(self.num_envs) + self._game
        return TimeSteps(
            observation=np.zeros((self.num_envs, 1, 1), np.float32),
            reward=np.where(first, 9999, worth).astype(np.float32),  # must not be counted
            terminated=self._left == 0,
            truncated=np.zeros(self.num_envs, np.bool_),
            first=first,
            game_over=self._left == 0,
            life_lost=np.zeros(self.num_envs, np.bool_),
        )


class Constant(nn.Module):
    """Prefers one action."""

    def __init__(self, num_actions: int, preferred: int) -> None:
        super().__init__()
        self.q = torch.zeros(num_actions)
        self.q[preferred] = 1.0

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.q.expand(len(observation), -1)


def make_loop(games: FakeGames, epsilon: float = 0.0, seed: int = 0) -> EvaluationLoop:
    return EvaluationLoop(
        environments=games,
        network=Constant(2, 1),
        epsilon=epsilon,
        rng=np.random.default_rng(seed),
    )


def never() -> bool:
    return False


def test_games_are_given_out_beforehand_so_short_ones_are_not_favoured() -> None:
    # While environment 1 plays one game of 50 steps, environment 0 would play 16 games of 2.
    games = FakeGames([[2], [50]])
    played = make_loop(games).play(4, never)
    assert played is not None
    # Games 0 and 2 are the first two of environment 0, games 1 and 3 those of environment 1.
    assert played.lengths_agent_steps.tolist() == [2, 50, 2, 50]
    assert played.returns.tolist() == [2 * 0.0, 50 * 100.0, 2 * 1.0, 50 * 101.0]
    assert played.returns.dtype == np.float64
    assert played.lengths_agent_steps.dtype == np.int64


@pytest.mark.parametrize("episodes", [1, 2, 3, 4, 5, 7, 9])
def test_exactly_the_asked_number_of_games_is_played(episodes: int) -> None:
    lengths = [[3, 1, 4], [1, 5], [9, 2]]
    played = make_loop(FakeGames(lengths)).play(episodes, never)
    assert played is not None
    expected = [lengths[g % 3][(g // 3) % len(lengths[g % 3])] for g in range(episodes)]
    assert played.lengths_agent_steps.tolist() == expected
    assert len(played.returns) == episodes


def test_no_step_is_played_beyond_the_last_game() -> None:
    games = FakeGames([[3], [5]])
    make_loop(games).play(2, never)
    assert len(games.actions) == 5


def test_each_evaluation_begins_with_new_games() -> None:
    games = FakeGames([[3], [5]])
    loop = make_loop(games)
    loop.play(2, never)
    played = loop.play(2, never)
    assert games.resets == 2
    assert played is not None
    assert played.lengths_agent_steps.tolist() == [3, 5]


def test_it_stops_when_told_to() -> None:
    games = FakeGames([[100]])
    assert make_loop(games).play(1, lambda: len(games.actions) == 7) is None
    assert len(games.actions) == 7


def test_it_is_greedy_but_for_epsilon() -> None:
    greedy, random = FakeGames([[2000]]), FakeGames([[2000]])
    make_loop(greedy, epsilon=0.0).play(1, never)
    make_loop(random, epsilon=0.5).play(1, never)
    assert {action for actions in greedy.actions for action in actions} == {1}
    # A quarter is random and not preferred; four standard deviations are 0.039.
    assert np.mean(np.array(random.actions) == 0) == pytest.approx(0.25, abs=0.039)


def test_no_games_are_refused() -> None:
    with pytest.raises(ValueError, match="Expect `episodes` >= 1, actually: 0"):
        make_loop(FakeGames([[1]])).play(0, never)


def test_an_atari_game_is_all_its_lives_and_its_return_is_raw() -> None:
    # Breakout without a move: FIRE serves the next ball at once, so five lives are soon lost.
    env = EnvConfig(id="breakout", max_game_frames=4_000)
    environments = make_environments(env, 2, 0, training=False)
    network = Constant(4, 1)
    loop = EvaluationLoop(
        environments=environments, network=network, epsilon=0.0, rng=np.random.default_rng(0)
    )
    played = loop.play(2, never)
    environments.close()
    assert played is not None
    by_hand = make_environments(EnvConfig(id="breakout"), 2, 0, training=True)
    by_hand.reset()
    lives_lost, length, score = 0, 0, 0.0
    while True:
        timesteps = by_hand.step(np.ones(2, np.int64))
        length += 1
        score += float(timesteps.reward[0])
        lives_lost += int(timesteps.terminated[0])
        if timesteps.game_over[0]:
            break
    by_hand.close()
    assert lives_lost == 5
    assert played.lengths_agent_steps[0] == length
    assert played.returns[0] == score


def read_video(path: Path) -> tuple[list[np.ndarray], float]:
    """Return the pictures (BGR) and their rate."""
    video = cv2.VideoCapture(str(path))
    rate = video.get(cv2.CAP_PROP_FPS)
    pictures: list[np.ndarray] = []
    while True:
        there, picture = video.read()
        if not there:
            return pictures, rate
        pictures.append(picture)


def test_a_whole_atari_game_is_recorded_in_colour(tmp_path: Path) -> None:
    env = EnvConfig(id="ALE/Breakout-v5", max_game_frames=240)
    path = tmp_path / "videos" / "game.mp4"
    score = record_game(env, Constant(4, 1), 0.1, 3, path)
    pictures, rate = read_video(path)
    assert len(pictures) == 1 + 240 // 4
    assert rate == 15.0
    assert pictures[0].shape == (420, 640, 3)
    assert np.ptp(pictures[-1].astype(int), axis=2).max() > 60  # coloured bricks
    assert (pictures[0] != pictures[30]).any()
    assert [file.name for file in path.parent.iterdir()] == ["game.mp4"]

    # The same game without the camera.
    environments = make_environments(env, 1, 3, training=False)
    loop = EvaluationLoop(
        environments=environments,
        network=Constant(4, 1),
        epsilon=0.1,
        rng=np.random.default_rng(3),
    )
    played = loop.play(1, never)
    environments.close()
    assert played is not None
    assert played.returns.tolist() == [score]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "CartPole-v1-pixels"])
def test_other_environments_draw_themselves(env_id: str, tmp_path: Path) -> None:
    path = tmp_path / "game.mp4"
    score = record_game(EnvConfig(id=env_id), Constant(2, 0), 0.0, 0, path)
    pictures, rate = read_video(path)
    assert len(pictures) == 1 + score
    assert pictures[0].shape == (400, 600, 3)
    assert rate == 50.0


def test_a_failed_recording_leaves_no_file(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, observation: torch.Tensor) -> torch.Tensor:
            raise ArithmeticError("broken network")

    with pytest.raises(ArithmeticError, match="broken network"):
        record_game(EnvConfig(id="pong"), Broken(), 0.0, 0, tmp_path / "game.mp4")
    assert list(tmp_path.iterdir()) == []
