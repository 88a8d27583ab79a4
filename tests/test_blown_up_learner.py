"""A learner whose numbers are not finite any more: nothing of it gets out, and nothing is saved."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from fakes import FakeClock
from shard_contract import ENVIRONMENT

from common.config import AgentConfig, Config, LearnerConfig
from common.reports import NEVER_SAVED
from common.types import Batch, PriorityUpdate, Weights
from learner.assembly import make_learner
from learner.learner_loop import LearnerLoop
from learner.payload import checkpoint_payload
from learner.prefetch import SynchronousFetcher


class Bench:
    """A real learner that draws the same batch again and again, all rewards of it 0.

    Attributes:
      r_t: float32[B], rewards of that batch; may be changed.
      learner, loop: the learner.
      updates, weights: what it sent.
    """

    def __init__(self) -> None:
        pixels = (2, 8, *ENVIRONMENT.observation.shape)
        s_tm1, s_t = np.random.default_rng(0).integers(0, 256, pixels, np.uint8)
        ones, actions = np.ones(8, np.float32), np.zeros(8, np.int64)
        self.r_t = np.zeros(8, np.float32)
        batch = Batch(np.arange(8), ones, s_tm1, actions, self.r_t, 0.9 * ones, s_t)
        self._config = Config(
            agent=AgentConfig(network="mlp", hidden=(16,)),
            learner=LearnerConfig(batch_size=8, loss="mse", max_grad_norm=None, compile="off"),
        )
        device = torch.device("cpu")
        self.learner = make_learner(self._config, ENVIRONMENT, device=device, serial=True)
        self.updates: list[PriorityUpdate] = []
        self.weights: list[Weights] = []
        self.loop = LearnerLoop(
            learner=self.learner,
            fetcher=SynchronousFetcher(fetch=lambda: batch, device=device),
            send_priorities=self.updates.append,
            send_weights=self.weights.append,
            agent_steps=lambda: 0,
            episodes=lambda: 0,
            incarnation=0,
            publish_period_learner_steps=10**9,
            samples=0,
            clock=FakeClock(),
        )

    def save(self) -> None:
        payload = checkpoint_payload(self._config, ENVIRONMENT, self.learner, self.loop, {})
        assert payload["format"] > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, 3e38])
def test_return_that_blows_up_the_learner_is_an_error_before_anything_leaves(bad: float) -> None:
    """3e38 is finite, and so is its Huber loss; half its square is not."""
    bench = Bench()
    bench.loop.publish()
    bench.loop.run_step(0.0)
    bench.save()
    bench.r_t[3] = bad
    bench.loop.run_step(0.0)
    assert len(bench.updates) == 1
    with pytest.raises(FloatingPointError, match="Expect finite numbers"):
        bench.loop.publish()
    with pytest.raises(FloatingPointError, match="Expect finite numbers"):
        bench.save()
    with pytest.raises(FloatingPointError, match="actually at learner step 2: td_loss"):
        bench.loop.report(dropped_priority_updates=0, save=NEVER_SAVED)
    if math.isfinite(bad):  # that batch's errors were finite still
        bench.loop.run_step(0.0)
    with pytest.raises(FloatingPointError, match="Expect finite priorities"):
        bench.loop.run_step(0.0)
    assert len(bench.updates) == (2 if math.isfinite(bad) else 1)
    assert all(np.isfinite(update.priority).all() for update in bench.updates)
    assert len(bench.weights) == 1


@pytest.mark.parametrize("part", ["target", "optimizer"])
def test_checkpoint_is_refused_where_training_could_not_go_on(part: str) -> None:
    """Its weights would still play, but a run that resumed from it would end at once."""
    bench = Bench()
    bench.loop.run_step(0.0)
    bench.save()
    state = bench.learner.state_dict()
    if part == "target":
        name, tensor = "target.", next(iter(state["target"].values()))
    else:
        moment, tensors = next(iter(state["optimizer"]["state"].items()))
        name, tensor = f"{moment}[0]", tensors[0]
    tensor.view(-1)[0] = math.nan
    bench.learner.load_state_dict(state)
    with pytest.raises(FloatingPointError, match="learner step 1: nan in `" + re.escape(name)):
        bench.save()
