"""The first priority of a transition: the actor's own n-step TD error.

Horgan et al. 2018, section 3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from common.targets import n_step_target, td_error


def first_priority(
    q_tm1: NDArray[Any],
    a_tm1: NDArray[Any],
    r_t: NDArray[Any],
    discount_t: NDArray[Any],
    q_t: NDArray[Any],
) -> NDArray[np.float32]:
    """Return float32[T], |TD error|, by the learner's own lines.

    An actor has one network, which both selects and values the bootstrap action: double and plain
    targets agree.

    Args:
      q_tm1: float32[T, A].
      a_tm1: int32[T].
      r_t: float32[T].
      discount_t: float32[T].
      q_t: float32[T, A].
    """
    q_next = torch.from_numpy(q_t)
    target = n_step_target(torch.from_numpy(r_t), torch.from_numpy(discount_t), q_next, q_next)
    td = td_error(torch.from_numpy(q_tm1), torch.from_numpy(a_tm1).long(), target)
    return td.abs().numpy()
