from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from actors.policy import EpsilonGreedyPolicy


class Linear(nn.Module):
    """Q-values are the first A numbers of the observation."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.num_actions = num_actions
        self.calls: list[torch.Tensor] = []

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        assert torch.is_inference_mode_enabled()
        self.calls.append(observation)
        return observation.flatten(1)[:, : self.num_actions].float()


def make_policy(epsilons: list[float], seed: int = 0, num_actions: int = 4) -> EpsilonGreedyPolicy:
    return EpsilonGreedyPolicy(
        network=Linear(num_actions), epsilons=np.array(epsilons), rng=np.random.default_rng(seed)
    )


def random_observation(num_envs: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).random((num_envs, 1, 6)).astype(np.float32)


def test_greedy_actions_are_the_largest_q_values() -> None:
    policy = make_policy([0.0, 0.0])
    observation = np.array([[[0.0, 3.0, 2.0, 1.0]], [[5.0, 5.0, -1.0, 5.0]]], np.float32)
    actions, q = policy.act(observation)
    assert actions.dtype == np.int64
    assert actions.tolist() == [1, 0]  # the first of equals
    assert q.dtype == np.float32
    np.testing.assert_array_equal(q, observation[:, 0])


def test_all_environments_are_one_forward_pass() -> None:
    network = Linear(4)
    policy = EpsilonGreedyPolicy(
        network=network, epsilons=np.zeros(3), rng=np.random.default_rng(0)
    )
    observation = np.zeros((3, 4, 84, 84), np.uint8)
    policy.act(observation)
    assert [tuple(call.shape) for call in network.calls] == [(3, 4, 84, 84)]
    assert network.calls[0].dtype == torch.uint8


def test_q_values_are_kept_by_later_steps() -> None:
    policy = make_policy([0.5, 0.5])
    _, q = policy.act(random_observation(2, seed=1))
    kept = q.copy()
    policy.act(random_observation(2, seed=2))
    np.testing.assert_array_equal(q, kept)


def test_each_environment_explores_at_its_own_rate() -> None:
    rates, num_actions, draws = [0.0, 0.1, 0.6, 1.0], 4, 20_000
    policy = make_policy(rates)
    observation = np.tile(np.array([9.0, 0, 0, 0, 0, 0], np.float32), (4, 1, 1))
    actions = np.stack([policy.act(observation)[0] for _ in range(draws)])
    for e, rate in enumerate(rates):
        shares = np.bincount(actions[:, e], minlength=num_actions) / draws
        expected = np.full(num_actions, rate / num_actions)
        expected[0] += 1 - rate
        # Four standard deviations of a share are below 4 * sqrt(0.25 / 20,000) = 0.0142.
        np.testing.assert_allclose(shares, expected, atol=0.0142)


def test_draws_do_not_depend_on_rates_or_values() -> None:
    rngs = [np.random.default_rng(3) for _ in range(2)]
    policies = [
        EpsilonGreedyPolicy(network=Linear(4), epsilons=np.array(epsilons), rng=rng)
        for epsilons, rng in zip([[0.0, 1.0], [0.7, 0.2]], rngs, strict=True)
    ]
    for step in range(50):
        for seed, policy in enumerate(policies):
            policy.act(random_observation(2, seed=1000 * seed + step))
    assert rngs[0].bit_generator.state == rngs[1].bit_generator.state


def test_same_seed_same_actions() -> None:
    first, second = make_policy([0.5] * 8, seed=4), make_policy([0.5] * 8, seed=4)
    for step in range(20):
        observation = random_observation(8, seed=step)
        np.testing.assert_array_equal(first.act(observation)[0], second.act(observation)[0])


def test_epsilons_can_change_and_cannot_be_written() -> None:
    policy = make_policy([1.0, 1.0])
    given = np.array([0.0, 0.25])
    policy.set_epsilons(given)
    given[:] = 1.0
    assert policy.epsilons.tolist() == [0.0, 0.25]
    with pytest.raises(ValueError, match="read-only"):
        policy.epsilons[0] = 1.0


def test_acting_moves_no_running_statistics() -> None:
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 4))
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    policy = EpsilonGreedyPolicy(
        network=network.train(), epsilons=np.zeros(5), rng=np.random.default_rng(0)
    )
    policy.act(random_observation(5))
    for name, buffer in network.named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize("epsilons", [[-0.1], [1.1], [float("nan")]])
def test_impossible_rates_are_refused(epsilons: list[float]) -> None:
    with pytest.raises(ValueError, match="Expect `epsilons` from 0 to 1"):
        make_policy(epsilons)


def test_rates_without_environments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Expect `epsilons` as float64\[E\]"):
        make_policy([])


def test_observations_of_another_number_of_environments_are_refused() -> None:
    with pytest.raises(AssertionError):
        make_policy([0.0, 0.0]).act(random_observation(3))
