"""What stands behind a torso, and what actors need of an algorithm: one entry for each."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from common.config import AgentConfig
from common.targets import n_step_target, td_error


class Head(Protocol):
    """Turns the features of a torso into what an algorithm learns, and that into action values."""

    layers: dict[str, nn.Module]
    """Under the names that they have in checkpoints; drawn in this order."""

    def hidden_features(self, features: Tensor) -> Tensor:
        """Return float32[B, F], the last hidden layer: in whatever precision the torso has."""
        ...

    def outputs(self, features: Tensor) -> Tensor:
        """Return float32[B, A, ...], what is learned, for `hidden_features`; always in float32."""
        ...

    def values(self, outputs: Tensor) -> Tensor:
        """Return float32[B, A], the action values that these outputs stand for."""
        ...

    def first_priority(
        self, q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t: Tensor
    ) -> Tensor:
        """Return float32[T], the first priority of new transitions; of these an actor keeps values.

        Args:
          q_tm1: float32[T, A].
          a_tm1: int64[T].
          r_t: float32[T].
          discount_t: float32[T].
          q_t: float32[T, A].
        """
        ...


class QHead:
    """Action values themselves, of one stream or of two.

    `hidden` is the last hidden layer, if there is one; `value` and `advantage` are linear. With two
    streams (Wang et al. 2016, equation 9)

        Q(s, a) = V(s) + A(s, a) - mean_a' A(s, a').

    The streams' hidden layers are one matrix, value's rows first: the same function, but the
    features are read once and the product is twice as large, which is worth 1 to 3 % of a
    learner step of batch 512 on a CPU.
    """

    def __init__(self, *, agent: AgentConfig, features: int, hidden: int, num_actions: int) -> None:
        """Make the layers.

        Args:
          agent: `dueling`: two streams, or only the one called `advantage`, which is then Q itself.
          features: numbers per row that come from the torso.
          hidden: width of the last hidden layer of each stream; 0: none.
          num_actions: A.
        """
        # Without a hidden layer both streams see the same features.
        self._width = hidden or features
        self.hidden = nn.Linear(features, hidden * (2 if agent.dueling else 1)) if hidden else None
        self.value = nn.Linear(self._width, 1) if agent.dueling else None
        self.advantage = nn.Linear(self._width, num_actions)
        layers = {"hidden": self.hidden, "value": self.value, "advantage": self.advantage}
        self.layers: dict[str, nn.Module] = {
            name: layer for name, layer in layers.items() if layer is not None
        }

    def hidden_features(self, features: Tensor) -> Tensor:
        """Return float32[B, F], of both streams side by side."""
        return features if self.hidden is None else torch.relu(self.hidden(features))

    def outputs(self, features: Tensor) -> Tensor:
        """Return float32[B, A], Q."""
        if self.value is None:
            return _linear(self.advantage, features)
        advantage = _linear(self.advantage, features[:, -self._width :])
        value = _linear(self.value, features[:, : self._width])
        return value + advantage - advantage.mean(dim=1, keepdim=True)

    def values(self, outputs: Tensor) -> Tensor:
        """Return the outputs."""
        return outputs

    @staticmethod
    def first_priority(
        q_tm1: Tensor, a_tm1: Tensor, r_t: Tensor, discount_t: Tensor, q_t: Tensor
    ) -> Tensor:
        """Return float32[T], |TD error| by the learner's lines (Horgan et al. 2018, section 3).

        An actor has one network, which both selects and values the bootstrap action: double and
        plain targets agree.
        """
        return td_error(q_tm1, a_tm1, n_step_target(r_t, discount_t, q_t, q_t)).abs()


class MakeHead(Protocol):
    """Makes a head; its layers lie on the meta device until the whole network is drawn."""

    def __call__(self, *, agent: AgentConfig, features: int, hidden: int, num_actions: int) -> Head:
        """Make it; see QHead for the arguments."""
        ...


HEADS: dict[str, MakeHead] = {"dqn": QHead}
"""By `agent.algorithm`."""


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    output: Tensor = layer(x)
    return output
