"""Optimisers: against torch.optim, against hand arithmetic, and where rounding would bite."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from common.config import LearnerConfig
from learner.optimizers import Adam, CenteredRmsProp, Optimizer, RmsProp, make_optimizer

RATE = 0.01


def adam(parameters: Sequence[Tensor]) -> Optimizer:
    return Adam(parameters=parameters, learning_rate=RATE, epsilon=1e-8)


def rmsprop(parameters: Sequence[Tensor]) -> Optimizer:
    return RmsProp(parameters=parameters, learning_rate=RATE, decay=0.95, epsilon=1e-3)


@pytest.mark.parametrize(
    ("make", "reference"),
    [
        (adam, lambda p: torch.optim.Adam(p, lr=RATE, eps=1e-8)),
        (rmsprop, lambda p: torch.optim.RMSprop(p, lr=RATE, alpha=0.95, eps=1e-3)),
    ],
    ids=["adam", "rmsprop"],
)
def test_updates_equal_those_of_torch(
    make: Callable[[Sequence[Tensor]], Optimizer],
    reference: Callable[[Sequence[Tensor]], torch.optim.Optimizer],
) -> None:
    generator = torch.Generator().manual_seed(0)
    ours = [torch.randn(4, 3, generator=generator), torch.randn(5, generator=generator)]
    theirs = [tensor.clone().requires_grad_() for tensor in ours]
    optimizer, expected = make(ours), reference(theirs)
    for _ in range(50):
        gradients = [torch.randn(tensor.shape, generator=generator) for tensor in ours]
        for tensor, gradient in zip(theirs, gradients, strict=True):
            tensor.grad = gradient.clone()
        expected.step()
        optimizer.update(ours, gradients)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other.detach(), rtol=1e-5, atol=1e-6)


def test_adam_takes_gradients_of_another_memory_layout() -> None:
    """The fused kernel walks through memory: unguarded it would mix the elements up."""
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randn(2, 3, 4, 4, generator=generator)
    ours = [drawn.contiguous(memory_format=torch.channels_last)]
    theirs = drawn.clone().requires_grad_()
    optimizer, expected = adam(ours), torch.optim.Adam([theirs], lr=RATE, eps=1e-8)
    for _ in range(3):
        gradient = torch.randn(2, 3, 4, 4, generator=generator)
        theirs.grad = gradient.clone()
        expected.step()
        optimizer.update(ours, [gradient])
    torch.testing.assert_close(ours[0], theirs.detach(), rtol=1e-5, atol=1e-6)


def test_centered_rmsprop_by_hand_with_epsilon_under_the_root() -> None:
    parameter = torch.tensor([1.0])
    optimizer = CenteredRmsProp(parameters=[parameter], learning_rate=0.1, decay=0.9, epsilon=0.01)
    optimizer.update([parameter], [torch.tensor([2.0])])
    square, mean = 0.1 * 2.0**2, 0.1 * 2.0
    first = 1.0 - 0.1 * 2.0 / (square - mean**2 + 0.01) ** 0.5
    assert parameter.item() == pytest.approx(first, rel=1e-6)
    optimizer.update([parameter], [torch.tensor([-1.0])])
    square, mean = 0.9 * square + 0.1 * 1.0, 0.9 * mean + 0.1 * -1.0
    second = first + 0.1 * 1.0 / (square - mean**2 + 0.01) ** 0.5
    assert parameter.item() == pytest.approx(second, rel=1e-6)


def test_centered_rmsprop_survives_a_gradient_that_no_longer_changes() -> None:
    # The variance is then all rounding, and the root of -0.002 would be NaN for ever.
    parameter = torch.zeros(1000)
    gradient = torch.linspace(-40.0, 40.0, 1000)
    optimizer = CenteredRmsProp(
        parameters=[parameter], learning_rate=1e-4, decay=0.95, epsilon=1.5e-7
    )
    for step in range(2000):
        optimizer.update([parameter], [2.0 * gradient if step < 20 else gradient])
    square, mean = optimizer.state["square_average"][0], optimizer.state["gradient_average"][0]
    assert ((square - mean.square() + 1.5e-7) < 0.0).any(), "the case is not tested any more"
    assert parameter.isfinite().all()


def test_optimizers_never_replace_their_state() -> None:
    parameters = [torch.zeros(3)]
    for make in (adam, rmsprop):
        optimizer = make(parameters)
        before = [t.data_ptr() for tensors in optimizer.state.values() for t in tensors]
        optimizer.update(parameters, [torch.ones(3)])
        after = [t.data_ptr() for tensors in optimizer.state.values() for t in tensors]
        assert before == after
        assert any(t.abs().sum() > 0 for tensors in optimizer.state.values() for t in tensors)


def test_config_names_the_optimizer() -> None:
    parameters = [torch.zeros(1)]
    made = {
        type(make_optimizer(config, parameters))
        for config in (
            LearnerConfig(optimizer="adam"),
            LearnerConfig(optimizer="rmsprop", rmsprop_centered=False),
        )
    }
    assert made == {Adam, RmsProp}
    assert isinstance(make_optimizer(LearnerConfig(), parameters), CenteredRmsProp)
