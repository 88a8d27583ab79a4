"""One environment's stream of frames and transitions, cut into immutable segments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actors.n_step import Row
from common.compression import compress_frames
from common.types import ObservationSpec, Segment, SegmentName

# (q_tm1 float32[T, A], a_tm1 int32[T], r_t float32[T], discount_t float32[T], q_t float32[T, A])
# -> float32[T]; see actors.priority.
FirstPriority = Callable[
    [NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]], NDArray[np.float32]
]


class SegmentWriter:
    """Collects frames and rows of one environment until a segment is full.

    The loop it lives in:

        index = writer.append(frame)             # every timestep, also a game's first
        for row in rows: writer.add(row)         # finished transitions, oldest first
        if writer.full: segment = writer.cut(name)

    Frames that later transitions still need stay and are stored again in the next segment, so a
    segment always holds every frame of its own rows. Not thread-safe.
    """

    def __init__(
        self,
        *,
        spec: ObservationSpec,
        n_step: int,
        segment_transitions: int,
        frames_per_block: int,
        first_priority: FirstPriority | None,
    ) -> None:
        """Prepare an empty stream.

        Args:
          spec: what a frame is.
          n_step: longest span of a row, in agent steps.
          segment_transitions: rows in a segment.
          frames_per_block: see common.compression.
          first_priority: computes the rows' |TD errors|; None where replay is uniform, then every
            priority is 1.
        """
        self._stack = spec.stack
        self._segment_transitions = segment_transitions
        self._frames_per_block = frames_per_block
        self._first_priority = first_priority
        # A game has one frame more than rows, and may last one step: at most two frames for each
        # row, with the rows that a game's end closes beyond the full segment, and the stack before
        # the oldest.
        capacity = 2 * (segment_transitions + 2 * n_step + spec.stack) + 2
        self._frames = np.zeros((capacity, *spec.frame_shape), spec.dtype)
        self._base = 0  # index in the stream of self._frames[0]
        self._next = 0  # index in the stream of the next frame
        self._rows: list[Row] = []

    @property
    def full(self) -> bool:
        """Whether a segment can be cut."""
        return len(self._rows) >= self._segment_transitions

    def append(self, frame: NDArray[Any]) -> int:
        """Copy the stream's next frame, dtype[*frame_shape], and return its index."""
        self._frames[self._next - self._base] = frame
        self._next += 1
        return self._next - 1

    def add(self, row: Row) -> None:
        """Add a finished transition; rows come in the order in which they began."""
        self._rows.append(row)

    def cut(self, name: SegmentName) -> Segment:
        """Return the oldest full segment and forget what no later row can need."""
        rows, self._rows = (
            self._rows[: self._segment_transitions],
            self._rows[self._segment_transitions :],
        )
        start = rows[0].tm1.frame - rows[0].tm1.depth + 1
        stop = rows[-1].t.frame + 1
        blocks, block_ends = compress_frames(
            self._frames[start - self._base : stop - self._base], self._frames_per_block
        )
        a_tm1 = np.array([row.a_tm1 for row in rows], np.int32)
        r_t = np.array([row.r_t for row in rows], np.float32)
        discount_t = np.array([row.discount_t for row in rows], np.float32)
        if self._first_priority is None:
            priority = np.ones(len(rows), np.float32)
        else:
            q_tm1 = np.stack([row.tm1.q for row in rows])
            q_t = np.stack([row.t.q for row in rows])
            priority = self._first_priority(q_tm1, a_tm1, r_t, discount_t, q_t)
        segment = Segment(
            name=name,
            blocks=blocks,
            block_ends=block_ends,
            num_frames=stop - start,
            frames_per_block=self._frames_per_block,
            newest_tm1=np.array([row.tm1.frame - start for row in rows], np.int32),
            newest_t=np.array([row.t.frame - start for row in rows], np.int32),
            depth_tm1=np.array([row.tm1.depth for row in rows], np.uint8),
            depth_t=np.array([row.t.depth for row in rows], np.uint8),
            a_tm1=a_tm1,
            r_t=r_t,
            discount_t=discount_t,
            priority=priority,
            weights_version=np.array([row.version for row in rows], np.int64),
        )
        self._forget(rows[-1].tm1.frame + 2 - self._stack)
        return segment

    def _forget(self, keep_from: int) -> None:
        """Drop the frames before `keep_from`, where the next row's stack can begin at the earliest.

        The next row starts at least one frame after the last one cut.
        """
        keep_from = max(keep_from, self._base)
        live = self._frames[keep_from - self._base : self._next - self._base].copy()
        self._frames[: len(live)] = live
        self._base = keep_from
