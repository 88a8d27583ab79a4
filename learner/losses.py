"""Losses of TD errors, and their importance-weighted mean."""

from __future__ import annotations

import torch
from torch import Tensor


def huber(td: Tensor, *, delta: float) -> Tensor:
    """Return float32[B]: td^2 / 2 where |td| <= delta, else delta * (|td| - delta / 2).

    (Huber 1964.) Its slope is td clipped to +-delta, which is the error clipping of Mnih et al.
    2015 with delta 1.

    Args:
      td: float32[B].
      delta: where the parabola becomes a line, > 0.
    """
    _expect_rank_1(td)
    absolute = td.abs()
    parabola = absolute.clamp(max=delta)
    # One expression for both pieces: the second term is 0 inside the parabola.
    return 0.5 * parabola.square() + delta * (absolute - parabola)


def half_square(td: Tensor) -> Tensor:
    """Return float32[B], td^2 / 2; its slope is td.

    Args:
      td: float32[B].
    """
    _expect_rank_1(td)
    return 0.5 * td.square()


def weighted_mean(loss: Tensor, weight: Tensor) -> Tensor:
    """Return float32[], sum(weight * loss) / B (Schaul et al. 2016, algorithm 1).

    Divided by the rows and not by the sum of the weights, so that small weights do make small
    steps. Weights multiply the loss, after any clipping of errors inside it, and nothing else:
    priorities are |td| as it is.

    Args:
      loss: float32[B].
      weight: float32[B], importance weights; no gradient flows into them.
    """
    _expect_rank_1(loss)
    _expect_rank_1(weight)
    assert loss.shape == weight.shape, (loss.shape, weight.shape)
    return (weight.detach() * loss).mean()


def _expect_rank_1(tensor: Tensor) -> None:
    assert tensor.dim() == 1, tuple(tensor.shape)
    assert tensor.dtype == torch.float32, tensor.dtype
