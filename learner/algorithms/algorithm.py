"""What an algorithm is to the learner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from torch import Tensor

from common.networks import QNetwork
from learner.device_batch import DeviceBatch


class Losses(NamedTuple):
    """What an algorithm says of a batch.

    Fields:
      loss: float32[B], of each transition, without importance weights.
      priority: float32[B], of each transition, >= 0; no gradient flows through it.
      metrics: float32[] each, by name, the same names with every batch; nor through these.
    """

    loss: Tensor
    priority: Tensor
    metrics: Mapping[str, Tensor]


class Algorithm(Protocol):
    """Turns a batch into losses, which the learner weighs and descends."""

    def loss(self, online: QNetwork, target: QNetwork, batch: DeviceBatch) -> Losses:
        """Return the losses of a batch; may be compiled, and must not wait for the device.

        Args:
          online: the network that learns; it comes and goes in training mode.
          target: its older twin, in evaluation mode, without gradients.
          batch: the transitions; their weights are the learner's affair.
        """
        ...
