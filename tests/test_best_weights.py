"""BestWeights: which evaluation's weights `best.pt` holds, also over a resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fakes import new_plan
from reporting import PONG, evaluation

from common.config import Config
from common.types import Weights, WeightsVersion
from driver.best_weights import BestWeights
from driver.plan import Plan
from learner.payload import load_playable, weights_from_payload


def weights(step: int) -> Weights:
    return Weights(WeightsVersion(0, step), np.full(9, step, np.uint8), agent_steps=10 * step)


def kept(plan: Plan) -> tuple[int, float]:
    """Return the learner step and the score of what is kept."""
    payload = load_playable(plan.folder.checkpoints / "best.pt")
    found = weights_from_payload(payload)
    assert found.buffer.tolist() == [found.version.learner_step] * 9
    return found.version.learner_step, payload["score"]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return new_plan(Config(), PONG, tmp_path)


def test_weights_that_scored_best_are_kept_and_of_equals_the_newest(plan: Plan) -> None:
    best = BestWeights(plan, print)
    scores = []
    for step, returns in enumerate([(-21.0, -19.0), (5.0, 6.0), (1.0, 2.0), (5.5,), (5.4,)], 1):
        best.offer(evaluation(*returns), weights(step))
        scores.append(kept(plan))
    assert scores == [(1, -20.0), (2, 5.5), (2, 5.5), (4, 5.5), (4, 5.5)]


def test_resumed_run_does_not_replace_better_weights_by_worse(plan: Plan) -> None:
    BestWeights(plan, print).offer(evaluation(8.0), weights(1))
    resumed = dataclasses.replace(plan, resume_from="somewhere")
    BestWeights(resumed, print).offer(evaluation(7.0), weights(2))
    assert kept(plan) == (1, 8.0)
    BestWeights(resumed, print).offer(evaluation(9.0), weights(3))
    assert kept(plan) == (3, 9.0)


def test_damaged_best_weights_are_replaced_by_the_next(plan: Plan) -> None:
    plan.folder.checkpoints.mkdir()
    (plan.folder.checkpoints / "best.pt").write_bytes(b"half a file")
    best = BestWeights(dataclasses.replace(plan, resume_from="somewhere"), print)
    best.offer(evaluation(-21.0), weights(1))
    assert kept(plan) == (1, -21.0)


def test_weights_that_could_not_be_written_do_not_count_as_the_best(plan: Plan) -> None:
    said: list[str] = []
    best = BestWeights(plan, said.append)
    plan.folder.checkpoints.write_text("in the way")
    best.offer(evaluation(9.0), weights(1))
    assert said[0].startswith("best.pt could not be written: ")
    plan.folder.checkpoints.unlink()
    best.offer(evaluation(8.0), weights(2))
    assert kept(plan) == (2, 8.0)
    assert len(said) == 1
