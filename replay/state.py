"""What a replay shard holds, as plain values: it is captured, saved and restored in this form."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.reports import ShardHistory
from common.types import ObservationSpec, SegmentName


class SnapshotError(ValueError):
    """A snapshot that is damaged, or one that does not belong here."""


class ShardState(NamedTuple):
    """One shard at one moment: S live segments with N transitions, oldest first.

    Nothing in it changes later, so another thread may save it while the shard goes on.

    Fields:
      shard: index of the shard.
      shards: shards in the run.
      observation: what the segments' frames are.
      incarnation: the shard's own, which none of its segments exceeds.
      alpha: priority exponent of the masses.
      inserted: position of the next transition in the shard's stream.
      segments: S packed segments, the bytes that came in.
      first_ids: int64[S], insertion id of each segment's first transition; the rest follow.
      masses: float64[N], (priority + 1e-6) ** alpha of each transition.
      names: segments lately inserted, live or not, oldest first.
      rng: state of the generator that draws samples, as numpy's `bit_generator.state`; only what
        JSON can hold.
      history: see ShardHistory.
    """

    shard: int
    shards: int
    observation: ObservationSpec
    incarnation: int
    alpha: float
    inserted: int
    segments: tuple[bytes, ...]
    first_ids: NDArray[np.int64]
    masses: NDArray[np.float64]
    names: tuple[SegmentName, ...]
    rng: dict[str, Any]
    history: ShardHistory
