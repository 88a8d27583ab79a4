"""Losses: hand arithmetic, slopes, and weights that touch the loss alone."""

from __future__ import annotations

import pytest
import torch

from learner.losses import half_square, huber, weighted_mean


def test_huber_is_a_parabola_inside_delta_and_a_line_outside() -> None:
    td = torch.tensor([0.0, 0.5, -0.5, 1.0, 3.0, -3.0])
    line = 1.0 * (3.0 - 0.5)
    expected = torch.tensor([0.0, 0.5**2 / 2, 0.5**2 / 2, 0.5, line, line])
    torch.testing.assert_close(huber(td, delta=1.0), expected)
    wide = torch.tensor([2.0 * (3.0 - 1.0)])
    torch.testing.assert_close(huber(torch.tensor([3.0]), delta=2.0), wide)


@pytest.mark.parametrize("delta", [0.5, 1.0, 2.0])
def test_huber_equals_torch_and_its_slope_is_the_clipped_error(delta: float) -> None:
    td = torch.linspace(-4.0, 4.0, 101, requires_grad=True)
    loss = huber(td, delta=delta)
    zeros = torch.zeros_like(td)
    expected = torch.nn.functional.huber_loss(td, zeros, delta=delta, reduction="none")
    torch.testing.assert_close(loss, expected)
    (slope,) = torch.autograd.grad(loss.sum(), td)
    torch.testing.assert_close(slope, td.detach().clamp(-delta, delta))


def test_half_square_has_the_error_as_its_slope() -> None:
    td = torch.tensor([-3.0, 0.0, 2.0], requires_grad=True)
    loss = half_square(td)
    torch.testing.assert_close(loss, torch.tensor([4.5, 0.0, 2.0]))
    (slope,) = torch.autograd.grad(loss.sum(), td)
    torch.testing.assert_close(slope, td.detach())


def test_weighted_mean_divides_by_rows_and_not_by_the_sum_of_weights() -> None:
    loss, weight = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 0.5, 0.25])
    expected = torch.tensor((1.0 + 0.5 * 2.0 + 0.25 * 4.0) / 3.0)
    torch.testing.assert_close(weighted_mean(loss, weight), expected)


def test_weights_multiply_the_loss_after_the_error_was_clipped() -> None:
    # Weighting the error instead of the loss would turn the line of a large error back into a
    # parabola.
    td = torch.tensor([4.0], requires_grad=True)
    loss = weighted_mean(huber(td, delta=1.0), torch.tensor([0.25]))
    torch.testing.assert_close(loss, torch.tensor(0.25 * (4.0 - 0.5)))
    (slope,) = torch.autograd.grad(loss, td)
    torch.testing.assert_close(slope, torch.tensor([0.25]))


def test_no_gradient_flows_into_the_weights() -> None:
    loss = torch.tensor([1.0, 2.0], requires_grad=True)
    weight = torch.tensor([1.0, 1.0], requires_grad=True)
    weighted_mean(loss, weight).backward()
    assert weight.grad is None
    assert loss.grad is not None


def test_column_vectors_are_rejected_instead_of_broadcast() -> None:
    row, column = torch.ones(3), torch.ones(3, 1)
    for call in (
        lambda: weighted_mean(row, column),
        lambda: weighted_mean(column, row),
        lambda: weighted_mean(row, torch.ones(1)),
        lambda: huber(column, delta=1.0),
        lambda: half_square(column),
        lambda: half_square(row.double()),
    ):
        with pytest.raises(AssertionError):
            call()
