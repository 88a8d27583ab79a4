"""DQN (Mnih et al. 2015), double (van Hasselt et al. 2016) or plain, with n-step targets."""

from __future__ import annotations

from typing import Literal, assert_never

import torch
from torch import Tensor

from common.config import AgentConfig, LearnerConfig
from common.networks import QNetwork
from common.targets import n_step_target, td_error
from learner.algorithms.algorithm import Algorithm, Losses
from learner.device_batch import DeviceBatch
from learner.losses import half_square, huber

# Where the loss becomes linear: the error clipping of Mnih et al. 2015.
_HUBER_DELTA = 1.0


def make(agent: AgentConfig, config: LearnerConfig) -> Algorithm:
    """Return what the settings ask for."""
    return Dqn(double=agent.double, loss=config.loss)


class Dqn:
    """Losses of TD errors; priorities are their absolute values."""

    def __init__(self, *, double: bool, loss: Literal["huber", "mse"]) -> None:
        """Take the settings.

        Args:
          double: choose the bootstrap action with the online network.
          loss: of a TD error.
        """
        self._double = double
        self._loss = loss

    def loss(self, online: QNetwork, target: QNetwork, batch: DeviceBatch) -> Losses:
        """Return the losses, |TD errors|, and as `q_mean` the mean of Q(s_tm1, a_tm1)."""
        with torch.no_grad():
            floats_t = online.as_float(batch.s_t)  # once for both networks
            q_t_value = target.values(floats_t)
            # Not in one pass with s_tm1: the backward pass would then run over these rows too, for
            # nothing.
            q_t_selector = online.acting_values(floats_t) if self._double else q_t_value
            goal = n_step_target(batch.r_t, batch.discount_t, q_t_value, q_t_selector)
        q_tm1 = online.values(online.as_float(batch.s_tm1))
        td = td_error(q_tm1, batch.a_tm1, goal)
        loss = self._of(td)
        td = td.detach()
        return Losses(loss, td.abs(), {"q_mean": (goal - td).mean()})

    def _of(self, td: Tensor) -> Tensor:
        match self._loss:
            case "huber":
                return huber(td, delta=_HUBER_DELTA)
            case "mse":
                return half_square(td)
            case _:
                assert_never(self._loss)
