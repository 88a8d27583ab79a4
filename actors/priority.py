"""The first priority of a transition: what the actor, who has no target network, says of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def first_priority(
    rule: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor],
    q_tm1: NDArray[Any],
    a_tm1: NDArray[Any],
    r_t: NDArray[Any],
    discount_t: NDArray[Any],
    q_t: NDArray[Any],
) -> NDArray[np.float32]:
    """Return float32[T], what the algorithm says of new transitions.

    Args:
      rule: `first_priority` of the algorithm's head.
      q_tm1: float32[T, A].
      a_tm1: int32[T].
      r_t: float32[T].
      discount_t: float32[T].
      q_t: float32[T, A].
    """
    priority: NDArray[np.float32] = rule(
        torch.from_numpy(q_tm1),
        torch.from_numpy(a_tm1).long(),
        torch.from_numpy(r_t),
        torch.from_numpy(discount_t),
        torch.from_numpy(q_t),
    ).numpy()
    return priority
