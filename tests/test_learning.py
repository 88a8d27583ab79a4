"""Learns Catch to a floor, serially and through Ray, and fails to where a target is sabotaged.

The floor has two halves. Greedy whole games must be won; and the value of the opening board must be
about what gamma makes of a catch six steps later, 0.531, for in a game of fixed length a wrong
discount spoils the values and not the play. Measured (greedy return, value):

    as it should be, seeds 1-7          1.00            0.562 to 0.616
    the same through Ray, seeds 1-4     1.00            0.558 to 0.585
    no bootstrap, seeds 1-2             0.05 and 0.55   0.002 and 0.007
    target never copied, seeds 1-2      0.05 and 0.45   0.003 and 0.019
    ended games bootstrap, seeds 1-4    1.00            1.008 to 1.208
    gamma applied twice, seeds 1-2      1.00            0.319 and 0.320
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import catch_game
import numpy as np
import pytest
import torch
from launching import launch as launch_process
from launching import result_of

import actors.assembly
import actors.evaluator
import driver.plan
import launch
from actors.n_step import NStepAccumulator
from common.config import Config
from common.config_file import override
from common.networks import build_network, load_flat_state
from common.targets import n_step_target
from learner.algorithms import dqn
from learner.checkpoint import CheckpointFolder, load
from learner.learner import Learner
from learner.payload import spec_from_dict, weights_from_payload

GAMMA = 0.9
FLOOR_RETURN = 0.9
# Halfway between what is right, which a maximum over noise biases upward, and what is wrong.
LEAST_VALUE = 0.44
MOST_VALUE = 0.8

# About 1,500 learner steps: 7 s of one core.
SETTINGS = {
    "--preset": "cartpole",
    "--env": catch_game.CATCH,
    "--total-frames": "6000",
    "--agent.n-step": "1",
    "--agent.gamma": str(GAMMA),
    "--agent.hidden": "64",
    "--actor.envs": "8",
    "--actor.segment-transitions": "7",
    "--replay.min-size": "500",
    "--replay.samples-per-insert": "32",
    "--replay.priority-exponent": "0.6",
    "--learner.batch-size": "128",
    "--learner.learning-rate": "1e-3",
    "--learner.target-period-learner-steps": "30",
    "--evaluator.every-minutes": "60",  # once, at the end
    "--evaluator.episodes": "40",
}


class Learned(NamedTuple):
    """What came out of a run.

    Fields:
      greedy_return: mean return of whole greedy games; 1 is every ball caught.
      value: mean over the opening boards of the largest Q-value.
    """

    greedy_return: float
    value: float

    @property
    def reaches_floor(self) -> bool:
        """Whether the game was learned."""
        return self.greedy_return >= FLOOR_RETURN and LEAST_VALUE <= self.value <= MOST_VALUE


# The path that people use: a convolutional network with two streams on stacks of bytes, three-step
# returns, prioritised replay. About 1,100 learner steps.
PICTURES = {
    "--env": catch_game.PICTURE_CATCH,
    "--agent.network": "nips_cnn",
    "--agent.dueling": "True",
    "--agent.double": "True",
    "--agent.n-step": "3",
    "--total-frames": "5000",
    "--replay.samples-per-insert": "16",
    "--learner.batch-size": "64",
}


def flags(run: Path, **changes: str) -> list[str]:
    return [
        "--run-dir",
        str(run),
        *(word for pair in {**SETTINGS, **changes}.items() for word in pair),
    ]


def learn_serially(run: Path, seed: int, **changes: str) -> Learned:
    assert launch.main([*flags(run, **changes), "--serial", "--seed", str(seed)]) == 0
    return learned(run)


def learned(run: Path) -> Learned:
    newest = CheckpointFolder(run / "checkpoints", 1).newest()
    assert newest is not None
    payload = load(newest)
    config = override(Config(), payload["config"], str(newest))
    network = build_network(config.agent, spec_from_dict(payload["spec"]))
    load_flat_state(network, weights_from_payload(payload).buffer)
    with torch.no_grad():
        q = network(torch.from_numpy(opening_boards(config.env.id)))
    return Learned(result_of(run)["last_eval_score"], float(q.max(dim=1).values.mean()))


def opening_boards(env_id: str) -> np.ndarray:
    """Return [columns, k, *frame_shape]: the ball over each column once."""
    boards = []
    is_picture = env_id == catch_game.PICTURE_CATCH
    game = catch_game.PictureCatch() if is_picture else catch_game.Catch()
    for column in range(catch_game.COLUMNS):
        game.reset(seed=0)
        game.put_ball(column)
        boards.append(game.board())
    opening = np.stack(boards)[:, np.newaxis]
    padding = np.zeros_like(opening)  # what is before a game's first frame
    return np.concatenate([padding, opening], axis=1) if is_picture else opening


# --- sabotages ------------------------------------------------------------------------------------


def as_it_should_be(patch: pytest.MonkeyPatch) -> None:
    """Change nothing."""


def no_bootstrap(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(dqn, "n_step_target", lambda r_t, *_: r_t)


def target_network_is_never_copied(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Learner, "_copy_target", lambda self: None)


def terminated_games_bootstrap(patch: pytest.MonkeyPatch) -> None:
    """Treat the end of a game as a cut, the classic confusion."""
    observe = NStepAccumulator.observe

    def confused(self: Any, *args: Any, terminated: bool, truncated: bool, **rest: Any) -> Any:
        return observe(self, *args, terminated=False, truncated=terminated or truncated, **rest)

    patch.setattr(NStepAccumulator, "observe", confused)


def gamma_applied_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        dqn,
        "n_step_target",
        lambda r_t, discount_t, *q: n_step_target(r_t, GAMMA * discount_t, *q),
    )


@pytest.mark.parametrize(
    ("sabotage", "learns"),
    [
        (as_it_should_be, True),
        (no_bootstrap, False),
        (target_network_is_never_copied, False),
        (terminated_games_bootstrap, False),
        (gamma_applied_twice, False),
    ],
)
@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_catch_is_learned_serially_unless_the_target_is_sabotaged(
    sabotage: Callable[[pytest.MonkeyPatch], None],
    learns: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sabotage(monkeypatch)
    outcome = learn_serially(tmp_path / "run", seed=1)
    assert outcome.reaches_floor == learns, outcome


@pytest.mark.parametrize(
    ("sabotage", "learns"),
    [
        (as_it_should_be, True),
        (no_bootstrap, False),
        pytest.param(terminated_games_bootstrap, False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("torch_is_left_as_it_was")
def test_catch_is_learned_from_stacks_of_pictures_unless_the_target_is_sabotaged(
    sabotage: Callable[[pytest.MonkeyPatch], None],
    learns: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def make_games(env: Any, spec: Any, num_envs: int, seed: int, **rest: Any) -> Any:
        return catch_game.StackedCatch(num_envs, seed)

    monkeypatch.setattr(driver.plan, "resolve", lambda env: catch_game.StackedCatch(1, 0).spec)
    for module in (actors.assembly, actors.evaluator):
        monkeypatch.setattr(module, "make_run_environments", make_games)
    sabotage(monkeypatch)
    outcome = learn_serially(tmp_path / "run", seed=1, **PICTURES)
    assert outcome.reaches_floor == learns, outcome


@pytest.mark.ray
def test_catch_is_learned_through_ray(tmp_path: Path) -> None:
    run = tmp_path / "run"
    tests = str(Path(__file__).parent)
    paths = [tests, *filter(None, [os.environ.get("PYTHONPATH")])]
    # Actors play on while new weights are on their way, up to a second: it takes more games.
    longer = {"--total-frames": "16000", "--replay.samples-per-insert": "24", "--actors": "2"}
    done = launch_process(*flags(run, **longer), environment={"PYTHONPATH": os.pathsep.join(paths)})
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = learned(run)
    assert outcome.reaches_floor, outcome
