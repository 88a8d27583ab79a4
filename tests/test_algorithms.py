"""One more algorithm takes its losses, its head and a name: everything else goes on as it is."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from fakes import FakeClock
from torch import Tensor, nn

from actors.policy import EpsilonGreedyPolicy
from actors.priority import first_priority
from common.config import AgentConfig, AlgorithmName, LearnerConfig
from common.heads import HEADS
from common.networks import QNetwork, build_network, flatten_state, load_flat_state
from common.reports import NEVER_SAVED
from common.types import Batch, EnvironmentSpec, ObservationSpec, PriorityUpdate
from learner.algorithms.algorithm import Losses
from learner.algorithms.table import ALGORITHMS
from learner.device_batch import DeviceBatch
from learner.learner import Learner
from learner.learner_loop import LearnerLoop
from learner.prefetch import SynchronousFetcher

ROWS, QUANTILES, ACTIONS = 32, 5, 2
VECTORS = EnvironmentSpec("bandit", ObservationSpec((3,), "float32", 1), ACTIONS, 1, "")
QUANTILE: Any = AgentConfig(algorithm="quantile", network="mlp", hidden=(16,))  # type: ignore[arg-type]
CONFIG = LearnerConfig(
    batch_size=ROWS, optimizer="adam", learning_rate=0.01, target_period_learner_steps=10
)


class QuantileHead:
    """QUANTILES numbers for each action, whose mean is the action's value."""

    def __init__(self, *, agent: AgentConfig, features: int, hidden: int, num_actions: int) -> None:
        self.hidden = nn.Linear(features, hidden)
        self.quantiles = nn.Linear(hidden, num_actions * QUANTILES)
        self.layers: dict[str, nn.Module] = {
            "hidden": self.hidden,
            "quantiles": self.quantiles,
        }

    def hidden_features(self, features: Tensor) -> Tensor:
        return torch.relu(self.hidden(features))

    def outputs(self, features: Tensor) -> Tensor:
        outputs: Tensor = self.quantiles(features)
        return outputs.unflatten(1, (-1, QUANTILES))

    def values(self, outputs: Tensor) -> Tensor:
        return outputs.mean(dim=2)

    def first_priority(
        self, q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t: Tensor
    ) -> Tensor:
        return torch.full_like(r_t, 7.0)


class QuantileRegression:
    """Dabney et al. 2018, equation 8, without the parabola."""

    def loss(self, online: QNetwork, target: QNetwork, batch: DeviceBatch) -> Losses:
        rows = torch.arange(len(batch.a_tm1))
        with torch.no_grad():
            floats_t = online.as_float(batch.s_t)
            a_t = online.acting_values(floats_t).argmax(dim=1)
            goal = batch.discount_t[:, None] * target.outputs(floats_t)[rows, a_t]
            goal = batch.r_t[:, None] + goal
        mine = online.outputs(online.as_float(batch.s_tm1))[rows, batch.a_tm1]
        error = goal[:, None, :] - mine[:, :, None]
        tau = (torch.arange(QUANTILES) + 0.5)[:, None] / QUANTILES
        loss = ((tau - (error < 0).float()).abs() * error.abs()).mean(dim=2).sum(dim=1)
        # It says what it likes, gradient or not.
        return Losses(loss, loss, {"spread": (mine[:, -1] - mine[:, 0]).mean()})


@pytest.fixture(autouse=True)
def _another_algorithm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HEADS, "quantile", QuantileHead)
    monkeypatch.setitem(ALGORITHMS, "quantile", lambda agent, config: QuantileRegression())


def bandit(rng: np.random.Generator) -> Batch:
    """Action 0 pays 1; action 1 pays 0 or 3. Each game is one step."""
    action = rng.integers(ACTIONS, size=ROWS)
    reward = np.where(action == 0, 1.0, 3.0 * rng.integers(2, size=ROWS)).astype(np.float32)
    observation = np.ones((ROWS, 1, 3), np.float32)
    ones = np.ones(ROWS, np.float32)
    return Batch(np.arange(ROWS), ones, observation, action, reward, 0 * ones, observation)


def make_learner(agent: AgentConfig) -> Learner:
    return Learner(
        agent=agent,
        config=CONFIG,
        spec=VECTORS,
        device=torch.device("cpu"),
        seed=1,
        compile_step=False,
    )


def test_every_algorithm_that_can_be_asked_for_has_its_losses_and_its_head() -> None:
    assert set(ALGORITHMS) == set(HEADS) == {*get_args(AlgorithmName), "quantile"}


def test_one_more_algorithm_learns_and_reports_and_is_acted_with() -> None:
    learner, rng = make_learner(QUANTILE), np.random.default_rng(0)
    updates: list[PriorityUpdate] = []
    loop = LearnerLoop(
        learner=learner,
        fetcher=SynchronousFetcher(fetch=lambda: bandit(rng), device=learner.device),
        send_priorities=updates.append,
        send_weights=lambda weights: None,
        agent_steps=lambda: 0,
        episodes=lambda: 0,
        incarnation=0,
        publish_period_learner_steps=10,
        samples=0,
        clock=FakeClock(),
    )
    reports = []
    for _ in range(2):
        for _ in range(200):
            assert loop.run_step(0.0)
        reports.append(loop.report(dropped_priority_updates=0, save=NEVER_SAVED))
    assert list(reports[0].metrics) == ["td_loss", "spread", "grad_norm"]
    assert reports[1].metrics["td_loss"] < 0.9 * reports[0].metrics["td_loss"]
    assert updates[-1].priority.shape == (ROWS,)
    assert not loop._sums.requires_grad

    actors = build_network(QUANTILE, VECTORS)
    load_flat_state(actors, flatten_state(learner.network))
    policy = EpsilonGreedyPolicy(network=actors, epsilons=np.zeros(1), rng=rng)
    (action,), (q,) = policy.act(np.ones((1, 1, 3), np.float32))
    assert action == 1
    assert q == pytest.approx([1.0, 1.5], abs=0.3)
    # Of what pays 0 or 3, the outer quantiles are 0 and 3; what always pays 1 has but one.
    quantiles = actors.outputs(torch.ones(1, 1, 3))[0].detach().numpy()
    assert quantiles[0] == pytest.approx(1.0, abs=0.3)
    assert quantiles[1, [0, -1]] == pytest.approx([0.0, 3.0], abs=0.3)


def test_first_priorities_are_those_of_the_algorithms_head() -> None:
    q, r_t = np.ones((4, ACTIONS), np.float32), np.zeros(4, np.float32)
    rule = build_network(QUANTILE, VECTORS).head.first_priority
    assert first_priority(rule, q, np.zeros(4, np.int32), r_t, r_t, q).tolist() == [7.0] * 4


def test_checkpoint_of_another_algorithm_is_refused() -> None:
    learner, other = make_learner(QUANTILE), make_learner(AgentConfig(network="mlp", hidden=(16,)))
    with pytest.raises(ValueError, match="Expect the state of this configuration's network"):
        learner.load_state_dict(other.state_dict())


@pytest.mark.parametrize("double", [True, False])
def test_observations_are_made_floats_once_each_for_both_networks(
    double: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In eager mode it is a pass over 14 MB of pixels, 512 times 4 frames."""
    made = []
    as_float = QNetwork.as_float

    def counted(network: QNetwork, observation: Tensor) -> Tensor:
        made.append(observation)
        return as_float(network, observation)

    monkeypatch.setattr(QNetwork, "as_float", counted)
    batch = DeviceBatch(*map(torch.from_numpy, bandit(np.random.default_rng(0))[1:]))
    make_learner(AgentConfig(network="mlp", hidden=(16,), double=double)).step(batch)
    assert [observation is batch.s_t for observation in made] == [True, False]
    assert made[1] is batch.s_tm1
