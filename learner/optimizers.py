"""RMSProp and Adam as plain tensor arithmetic, so that a compiled step can swallow them whole.

torch.optim would do, but its centred RMSProp has no fused form on any device, its state appears
only with the first step, and loading a state replaces the tensors that a compiled step holds on to.
Here the state exists from the start and keeps its place. Inside one compiled graph with the
backward pass an update is a single sweep over the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from common.config import LearnerConfig

# Decays of Adam's averages of the gradient and of its square (Kingma & Ba 2015, algorithm 1).
_ADAM_BETAS = (0.9, 0.999)


class Optimizer(Protocol):
    """Moves parameters against their gradients, in place."""

    state: dict[str, list[Tensor]]
    """All it remembers: one tensor per parameter, or one for all. Restore it in place."""

    def update(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Take one step; without gradient tracking, always with the same parameters."""
        ...


def make_optimizer(config: LearnerConfig, parameters: Sequence[Tensor]) -> Optimizer:
    """Return the optimiser that `config` names."""
    if config.optimizer == "adam":
        return Adam(
            parameters=parameters,
            learning_rate=config.learning_rate,
            epsilon=config.optimizer_epsilon,
        )
    make = CenteredRmsProp if config.rmsprop_centered else RmsProp
    return make(
        parameters=parameters,
        learning_rate=config.learning_rate,
        decay=config.rmsprop_decay,
        epsilon=config.optimizer_epsilon,
    )


class RmsProp:
    """RMSProp as in torch.optim: p -= lr * g / (sqrt(mean g^2) + epsilon)."""

    def __init__(
        self, *, parameters: Sequence[Tensor], learning_rate: float, decay: float, epsilon: float
    ) -> None:
        self._learning_rate = learning_rate
        self._decay = decay
        self._epsilon = epsilon
        self.state = {"square_average": _zeros_like(parameters)}

    def update(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Take one step."""
        squares = self.state["square_average"]
        for parameter, gradient, square in zip(parameters, gradients, squares, strict=True):
            square.lerp_(gradient.square(), 1.0 - self._decay)
            parameter.addcdiv_(
                gradient, square.sqrt().add_(self._epsilon), value=-self._learning_rate
            )


class CenteredRmsProp:
    """RMSProp of Graves 2013, equations 38 to 41.

        p -= lr * g / sqrt(mean g^2 - (mean g)^2 + epsilon)

    Epsilon stands under the root, as in Graves and in TensorFlow's ApplyCenteredRMSProp, which DQN
    papers' values of it stem from; torch.optim adds it after the root. 1.5e-7 means a denominator
    of at least 3.9e-4 here and of at least 1.5e-7 there.
    """

    def __init__(
        self, *, parameters: Sequence[Tensor], learning_rate: float, decay: float, epsilon: float
    ) -> None:
        self._learning_rate = learning_rate
        self._decay = decay
        self._epsilon = epsilon
        self.state = {
            "square_average": _zeros_like(parameters),
            "gradient_average": _zeros_like(parameters),
        }

    def update(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Take one step."""
        squares, means = self.state["square_average"], self.state["gradient_average"]
        for parameter, gradient, square, mean in zip(
            parameters, gradients, squares, means, strict=True
        ):
            square.lerp_(gradient.square(), 1.0 - self._decay)
            mean.lerp_(gradient, 1.0 - self._decay)
            # A gradient that hardly changes leaves a variance of rounding errors, which may be
            # below zero.
            variance = (square - mean.square()).clamp_(min=0.0)
            parameter.addcdiv_(
                gradient, variance.add_(self._epsilon).sqrt_(), value=-self._learning_rate
            )


class Adam:
    """Adam (Kingma & Ba 2015, algorithm 1), as in torch.optim."""

    def __init__(
        self, *, parameters: Sequence[Tensor], learning_rate: float, epsilon: float
    ) -> None:
        self._learning_rate = learning_rate
        self._epsilon = epsilon
        self.state = {
            "gradient_average": _zeros_like(parameters),
            "square_average": _zeros_like(parameters),
            # A tensor: a Python number would be a constant of the compiled graph.
            "steps": [torch.zeros((), device=parameters[0].device)],
        }

    def update(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Take one step."""
        means, squares = self.state["gradient_average"], self.state["square_average"]
        (steps,) = self.state["steps"]
        steps.add_(1.0)
        # 1 - beta^t by expm1: the plain difference would lose four of float32's seven digits in the
        # first steps.
        beta_1, beta_2 = _ADAM_BETAS
        correction_1 = -torch.expm1(steps * math.log(beta_1))
        correction_2 = (-torch.expm1(steps * math.log(beta_2))).sqrt()
        for parameter, gradient, square, mean in zip(
            parameters, gradients, squares, means, strict=True
        ):
            mean.lerp_(gradient, 1.0 - beta_1)
            square.lerp_(gradient.square(), 1.0 - beta_2)
            denominator = (square.sqrt() / correction_2).add_(self._epsilon)
            parameter.addcdiv_(mean / correction_1, denominator, value=-self._learning_rate)


def _zeros_like(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]
