"""Learns Catch to a floor, in one process and through Ray, and not when the target or the discount is wrong.

The floor has two parts, since a wrong discount alone does not spoil the greedy play of a game whose length is fixed:
whole greedy games must be won, and the value of the opening board must be what gamma makes of a catch six steps later.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import catch_game
import numpy as np
import pytest
import torch
from launching import ROOT, launch as launch_process
from launching import result_of

import launch
from actors.n_step import NStepAccumulator
from common.config import Config, override
from common.networks import build_network, load_flat_state
from common.targets import n_step_target
from learner import learner as learner_module
from learner.assembly import spec_from_dict, weights_from_payload
from learner.checkpoint import CheckpointFolder, load
from learner.learner import Learner

GAMMA = 0.9
# One-step targets, so the reward of the last step reaches the first ones by bootstrapping alone.
FLAGS = (
    *("--env", catch_game.CATCH, "--preset", "cartpole"),
    *("--agent.n-step", "1", "--agent.gamma", str(GAMMA), "--agent.hidden", "64"),
    *("--actor.envs", "8", "--actor.segment-transitions", "7"),
    *("--replay.capacity", "20000", "--replay.min-size", "500", "--replay.samples-per-insert", "32", "--replay.priority-exponent", "0.6"),
    *("--learner.batch-size", "128", "--learner.learning-rate", "1e-3"),
    *("--learner.target-period-learner-steps", "30"),
    *("--evaluator.every-minutes", "60", "--evaluator.episodes", "40"),
)  # fmt: skip


class Learned(NamedTuple):
    """What came out of a run.

    Fields:
      greedy_return: mean return of greedy whole games; 1 is every ball caught.
      value: mean over the opening boards of the largest Q-value.
    """

    greedy_return: float
    value: float

    @property
    def reaches_floor(self) -> bool:
        return self.greedy_return >= 0.9 and abs(self.value - TRUE_VALUE) <= 0.1


# A catch six agent steps after the first action.
TRUE_VALUE = GAMMA ** (catch_game.GAME_AGENT_STEPS - 1)


@pytest.fixture(autouse=True)
def torch_is_left_as_it_was() -> Iterator[None]:
    """A serial run makes this process's torch deterministic and single-threaded."""
    before = torch.get_num_threads()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(before)


def learn_serially(run: Path, total_frames: int, seed: int) -> Learned:
    flags = (*FLAGS, "--total-frames", str(total_frames), "--seed", str(seed))
    assert launch.main([*flags, "--serial", "--run-dir", str(run)]) == 0
    return learned(run)


def learned(run: Path) -> Learned:
    newest = CheckpointFolder(run / "checkpoints", 1).newest()
    assert newest is not None
    payload = load(newest)
    config = override(Config(), payload["config"], str(newest))
    network = build_network(config.agent, spec_from_dict(payload["spec"]))
    load_flat_state(network, weights_from_payload(payload).buffer)
    boards = np.zeros((catch_game.COLUMNS, 1, catch_game.ROWS, catch_game.COLUMNS), np.float32)
    boards[:, 0, -1, catch_game.COLUMNS // 2] = 1.0
    boards[range(catch_game.COLUMNS), 0, 0, range(catch_game.COLUMNS)] = 1.0
    with torch.no_grad():
        q = network(torch.from_numpy(boards.reshape(catch_game.COLUMNS, 1, -1)))
    score = result_of(run)["last_eval_score"]
    return Learned(score, float(q.max(dim=1).values.mean()))
