"""Batched epsilon-greedy choice, and the Q-values that the first priorities need."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from common.networks import load_flat_state


class EpsilonGreedyPolicy:
    """Chooses the actions of E environments with one forward pass on the CPU.

    Each call draws the same things from its generator, whatever the rates and the Q-values, so that
    two runs which differ in one action only differ from there on through the environment alone.

    The network is put into evaluation mode: acting must not move the running statistics of a batch
    normalisation. Not thread-safe.
    """

    def __init__(
        self, *, network: nn.Module, epsilons: NDArray[np.float64], rng: np.random.Generator
    ) -> None:
        """Take a network of this policy's own.

        Args:
          network: dtype[E, k, *frame_shape] -> float32[E, A], on the CPU.
          epsilons: float64[E], exploration rate of each environment, from 0 to 1.
          rng: source of exploration.
        """
        self._network = network.eval()
        self._rng = rng
        self.set_epsilons(epsilons)

    @property
    def epsilons(self) -> NDArray[np.float64]:
        """float64[E], exploration rate of each environment; read-only."""
        return self._epsilons

    def load(self, buffer: NDArray[np.uint8]) -> None:
        """Act by other weights from the next step on.

        Args:
          buffer: uint8[P], as common.networks.flatten_state.
        """
        load_flat_state(self._network, buffer)

    def set_epsilons(self, epsilons: NDArray[np.float64]) -> None:
        """Change the exploration rates from the next step on.

        Args:
          epsilons: float64[E], from 0 to 1; one for each environment.

        Raises:
          ValueError: they are not.
        """
        if epsilons.ndim != 1 or len(epsilons) < 1:
            raise ValueError(f"Expect `epsilons` as float64[E], actually: shape {epsilons.shape}")
        if not bool(np.all((epsilons >= 0) & (epsilons <= 1))):
            raise ValueError(f"Expect `epsilons` from 0 to 1, actually: {epsilons.tolist()}")
        self._epsilons = np.array(epsilons, np.float64)
        self._epsilons.flags.writeable = False

    def act(self, observation: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return what to do next.

        Args:
          observation: dtype[E, k, *frame_shape].

        Returns:
          actions: int64[E]; where Q-values tie, the greedy one is the first.
          q: float32[E, A], of the observation; fresh memory.
        """
        with torch.inference_mode():
            q: NDArray[np.float32] = self._network(torch.from_numpy(observation)).numpy()
        num_envs, num_actions = q.shape
        assert num_envs == len(self._epsilons), (num_envs, len(self._epsilons))
        explore = self._rng.random(num_envs) < self._epsilons
        random_actions = self._rng.integers(num_actions, size=num_envs)
        return np.where(explore, random_actions, q.argmax(axis=1)), q
