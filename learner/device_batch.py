"""What the learner learns of, on its device."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class DeviceBatch(NamedTuple):
    """A batch on the learner's device; observations as they were stored, uint8 pixels unscaled.

    Fields:
      weight: float32[B], importance weights.
      s_tm1: dtype[B, k, *frame_shape].
      a_tm1: int64[B].
      r_t: float32[B].
      discount_t: float32[B].
      s_t: dtype[B, k, *frame_shape].
    """

    weight: Tensor
    s_tm1: Tensor
    a_tm1: Tensor
    r_t: Tensor
    discount_t: Tensor
    s_t: Tensor
