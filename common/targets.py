"""The n-step target and the TD error: actors (first priority) and learner run the same lines."""

from __future__ import annotations

import torch
from torch import Tensor


def n_step_target(
    r_t: Tensor, discount_t: Tensor, q_t_value: Tensor, q_t_selector: Tensor
) -> Tensor:
    """Return float32[B], the n-step double-DQN target, without a gradient.

        r_t + discount_t * q_t_value[argmax_a q_t_selector[a]]

    (van Hasselt et al. 2016, equation 4). With the online network's values as the selector and the
    target network's as the value this is double DQN; with the target network's for both it is DQN
    (Mnih et al. 2015). Termination is a matter of `discount_t` alone: 0 where the episode
    terminated, gamma to the steps taken where it went on or was cut.

    Args:
      r_t: float32[B], n-step return.
      discount_t: float32[B].
      q_t_value: float32[B, A], values at s_t that are bootstrapped from.
      q_t_selector: float32[B, A], values at s_t that choose the action.
    """
    _expect(r_t, 1, torch.float32, "r_t")
    _expect(discount_t, 1, torch.float32, "discount_t")
    _expect(q_t_value, 2, torch.float32, "q_t_value")
    _expect(q_t_selector, 2, torch.float32, "q_t_selector")
    assert q_t_value.shape == q_t_selector.shape, (q_t_value.shape, q_t_selector.shape)
    assert r_t.shape == discount_t.shape == q_t_value.shape[:1], (
        r_t.shape,
        discount_t.shape,
        q_t_value.shape,
    )
    a_t = q_t_selector.argmax(dim=1, keepdim=True)
    v_t = q_t_value.gather(1, a_t).squeeze(1)
    return (r_t + discount_t * v_t).detach()


def td_error(q_tm1: Tensor, a_tm1: Tensor, target: Tensor) -> Tensor:
    """Return float32[B], target - q_tm1[a_tm1]; the gradient flows into `q_tm1` only.

    Args:
      q_tm1: float32[B, A], values at s_tm1.
      a_tm1: int64[B], actions taken there.
      target: float32[B].
    """
    _expect(q_tm1, 2, torch.float32, "q_tm1")
    _expect(a_tm1, 1, torch.int64, "a_tm1")
    _expect(target, 1, torch.float32, "target")
    assert a_tm1.shape == target.shape == q_tm1.shape[:1], (
        a_tm1.shape,
        target.shape,
        q_tm1.shape,
    )
    return target.detach() - q_tm1.gather(1, a_tm1.unsqueeze(1)).squeeze(1)


def _expect(tensor: Tensor, rank: int, dtype: torch.dtype, name: str) -> None:
    """Stop (B,) against (B, 1), which would broadcast to (B, B) in silence."""
    assert tensor.dim() == rank, f"{name}: rank {rank}, actually: {tuple(tensor.shape)}"
    assert tensor.dtype == dtype, f"{name}: {dtype}, actually: {tensor.dtype}"
