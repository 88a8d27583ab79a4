"""RMSProp and Adam, whose state exists from the start and keeps its place.

torch.optim's classes would do, but their state appears only with the first step, and loading one
replaces the tensors that a compiled step holds on to. RMSProp is plain tensor arithmetic, which has
no fused form in torch on any device and which torch.compile makes one; Adam is torch's own fused
kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, assert_never

import torch
from torch import Tensor
from torch.optim.adam import adam

from common.config import LearnerConfig

# Decays of Adam's averages of the gradient and of its square (Kingma & Ba 2015, algorithm 1).
_ADAM_BETAS = (0.9, 0.999)


class Optimizer(Protocol):
    """Moves parameters against their gradients, in place."""

    compiles: bool
    """Whether torch.compile makes `update` faster."""
    state: dict[str, list[Tensor]]
    """All it remembers, one tensor per parameter. Restore it in place."""

    def update(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Take one step; without gradient tracking, always with the same parameters."""
        ...


def make_optimizer(config: LearnerConfig, parameters: Sequence[Tensor]) -> Optimizer:
    """Return the optimiser that `config` names."""
    rate, epsilon = config.learning_rate, config.optimizer_epsilon
    match config.optimizer:
        case "adam":
            return Adam(parameters=parameters, learning_rate=rate, epsilon=epsilon)
        case "rmsprop":
            make = CenteredRmsProp if config.rmsprop_centered else RmsProp
            decay = config.rmsprop_decay
            return make(parameters=parameters, learning_rate=rate, decay=decay, epsilon=epsilon)
        case _:
            assert_never(config.optimizer)


class RmsProp:
    """RMSProp as in torch.optim: p -= lr * g / (sqrt(mean g^2) + epsilon)."""

    compiles = True

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

    compiles = True

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
    """Adam (Kingma & Ba 2015, algorithm 1), by torch.optim's fused kernel.

    On two cores it takes 1.5 ms for the Nature CNN's 3.3 million weights; the same arithmetic in
    the compiled graph took 5.
    """

    compiles = False

    def __init__(
        self, *, parameters: Sequence[Tensor], learning_rate: float, epsilon: float
    ) -> None:
        self._learning_rate = learning_rate
        self._epsilon = epsilon
        self.state = {
            "gradient_average": _zeros_like(parameters),
            "square_average": _zeros_like(parameters),
            # One for each parameter, on its device: so the kernel wants it.
            "steps": [torch.zeros((), device=parameter.device) for parameter in parameters],
        }

    def update(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Take one step."""
        adam(
            list(parameters),
            [
                # The kernel walks through memory, whatever the layout.
                gradient
                if gradient.stride() == parameter.stride()
                else torch.empty_like(parameter).copy_(gradient)
                for parameter, gradient in zip(parameters, gradients, strict=True)
            ],
            self.state["gradient_average"],
            self.state["square_average"],
            [],
            self.state["steps"],
            fused=True,
            amsgrad=False,
            beta1=_ADAM_BETAS[0],
            beta2=_ADAM_BETAS[1],
            lr=self._learning_rate,
            weight_decay=0.0,
            eps=self._epsilon,
            maximize=False,
        )


def _zeros_like(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(parameter, requires_grad=False) for parameter in parameters]
