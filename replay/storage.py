"""FIFO of segments: ids, slots and bytes. Draws nothing and weighs nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from common.packing import check_segment, unpack_segment
from common.types import Segment, SegmentName
from replay.state import SnapshotError

# An insertion id, from below the sign bit on: 7 bits of shard, 16 of the shard's incarnation, 40 of
# the position in the shard's stream.
_POSITION_BITS = 40
_INCARNATION_BITS = 16
_POSITION_MASK = (1 << _POSITION_BITS) - 1
MAX_SHARDS = 1 << 7

# How many segment names back a repeated push is recognised.
_REMEMBERED_NAMES = 65_536

# One live transition. The frames it needs are `num_blocks` whole blocks of its segment from
# `first_block` on, and `newest_tm1` and `newest_t` count from the first of those frames.
ROW = np.dtype(
    [
        ("id", np.int64),
        ("segment", np.int64),  # running number of its segment in this shard
        ("a_tm1", np.int32),
        ("r_t", np.float32),
        ("discount_t", np.float32),
        ("first_block", np.int32),
        ("num_blocks", np.int32),
        ("newest_tm1", np.int32),
        ("newest_t", np.int32),
        ("depth_tm1", np.uint8),
        ("depth_t", np.uint8),
    ]
)


def shard_of(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64[B], the shard that issued each id."""
    return ids >> (_POSITION_BITS + _INCARNATION_BITS)


def position_of(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return int64[B], each id's position in its shard's stream."""
    return ids & _POSITION_MASK


class StoredSegment(NamedTuple):
    """One live segment.

    Fields:
      packed: the bytes that came in.
      blocks: the part of them that holds the lz4 blocks.
      block_bounds: [blocks + 1], offsets of the blocks' bounds in `blocks`, from 0 to their end.
      block_frames: [blocks], frames in each block.
      num_transitions: T.
    """

    packed: bytes
    blocks: memoryview
    block_bounds: list[int]
    block_frames: list[int]
    num_transitions: int


class Added(NamedTuple):
    """What one insertion changed.

    Fields:
      name: the segment's.
      slots: int64[T], where the new transitions lie.
      priority: float32[T], as pushed.
      weights_version: int64[T, 2], as pushed.
      evicted_slots: int64[...], slots emptied to make room; some may be among `slots`.
    """

    name: SegmentName
    slots: NDArray[np.int64]
    priority: NDArray[np.float32]
    weights_version: NDArray[np.int64]
    evicted_slots: NDArray[np.int64]


class SegmentStorage:
    """Holds the newest segments, bounded by transitions and by bytes.

    Whole segments leave, oldest first (FIFO). A transition's slot is its position in the stream
    modulo the capacity; its id is its position with the shard's index and incarnation in front, so
    an id is never reused and a stale one is recognised. What was restored keeps the ids of the
    incarnation that inserted it; positions go on where it ended. Not thread-safe.
    """

    def __init__(
        self, *, capacity: int, max_bytes: int, shard: int, incarnation: int, stack: int
    ) -> None:
        """Prepare an empty ring.

        Args:
          capacity: most live transitions.
          max_bytes: most bytes of live packed segments.
          shard: index of this shard in the run, 0..127.
          incarnation: how many times this shard was started before.
          stack: k, frames in an observation.
        """
        if capacity < 1:
            raise ValueError(f"Expect `capacity` >= 1, actually: {capacity}")
        if not 0 <= shard < MAX_SHARDS:
            raise ValueError(f"Expect `shard` from 0 to {MAX_SHARDS - 1}, actually: {shard}")
        most = (1 << _INCARNATION_BITS) - 1
        if not 0 <= incarnation <= most:
            raise ValueError(f"Expect `incarnation` from 0 to {most}, actually: {incarnation}")
        self._capacity = capacity
        self._max_bytes = max_bytes
        self._shard = shard
        self._incarnation = incarnation
        self._prefix = (shard << (_POSITION_BITS + _INCARNATION_BITS)) | (
            incarnation << _POSITION_BITS
        )
        self._stack = stack
        self._rows = np.zeros(capacity, ROW)
        self._segments: dict[int, StoredSegment] = {}
        self._order: deque[int] = deque()
        # In the same order, for `live_segments`: it must not take long.
        self._packed: deque[bytes] = deque()
        self._first_ids: deque[int] = deque()
        self._names: set[SegmentName] = set()
        self._names_order: deque[SegmentName] = deque()  # the oldest one first
        self._next_segment = 0
        self._first = 0  # position of the oldest live transition
        self._next = 0  # position of the next one
        self._restored = 0  # where this incarnation began
        self._bytes = 0

    def __len__(self) -> int:
        """Live transitions."""
        return self._next - self._first

    @property
    def shard(self) -> int:
        """Index of this shard in the run."""
        return self._shard

    @property
    def incarnation(self) -> int:
        """How many times this shard was started before."""
        return self._incarnation

    @property
    def num_bytes(self) -> int:
        """Bytes of the live segments as stored."""
        return self._bytes

    @property
    def inserted(self) -> int:
        """Transitions ever inserted, those of earlier incarnations included if restored."""
        return self._next

    @property
    def restored(self) -> int:
        """Position at which this incarnation began: the end of what was restored."""
        return self._restored

    @property
    def evicted(self) -> int:
        """Transitions ever evicted."""
        return self._first

    def knows(self, name: SegmentName) -> bool:
        """Whether a segment of this name was inserted lately; a push of it again is a retry."""
        return name in self._names

    def add(self, packed: bytes) -> Added | None:
        """Insert one packed segment, evicting old ones to make room.

        Returns:
          What changed, or None for a segment that was inserted before.

        Raises:
          PackingError: `packed` is not a sound segment; nothing was changed.
          ValueError: the segment alone is larger than the storage.
        """
        segment = self._checked(packed)
        if self.knows(segment.name):
            return None
        count = segment.num_transitions
        if count > self._capacity or len(packed) > self._max_bytes:
            raise ValueError(
                f"Expect a segment of <= {self._capacity} transitions and {self._max_bytes} bytes, "
                f"actually: {count} and {len(packed)}"
            )
        evicted = self._make_room(count, len(packed))
        slots = self._append(packed, segment, self._prefix | self._next)
        self._remember(segment.name)
        return Added(segment.name, slots, segment.priority, segment.weights_version, evicted)

    def live_segments(self) -> tuple[tuple[bytes, ...], NDArray[np.int64]]:
        """Return (packed, int64[S] id of the first transition) of the live segments, oldest first.

        The bytes are shared, so that 20,000 segments take 4 milliseconds.
        """
        first_ids = np.fromiter(self._first_ids, np.int64, len(self._first_ids))
        return tuple(self._packed), first_ids

    def names(self) -> tuple[SegmentName, ...]:
        """Return the segments lately inserted, oldest first; see `knows`."""
        return tuple(self._names_order)

    def restore(
        self,
        segments: Sequence[bytes],
        first_ids: NDArray[np.int64],
        inserted: int,
        names: Sequence[SegmentName],
    ) -> None:
        """Take in what another incarnation held: as many of the newest segments as there is room.

        They come in as pushes do, checked, and keep their ids.

        Args:
          segments: S packed segments, oldest first.
          first_ids: int64[S], id of each one's first transition.
          inserted: position of the next transition.
          names: segments that were inserted lately.

        Raises:
          ValueError: this storage has held something.
          SnapshotError: the ids are not this shard's, or do not follow each other.
          PackingError: a segment is not sound. In every case nothing was changed.
        """
        if self._next or self._names:
            raise ValueError(f"Expect an empty storage to restore into, actually: {self._next}")
        positions = position_of(first_ids)
        counts = np.diff(positions, append=inserted)
        if np.any(counts < 1) or inserted < 0 or np.any(shard_of(first_ids) != self._shard):
            raise SnapshotError(f"Expect ids of shard {self._shard} that follow each other")
        sizes = np.array([len(packed) for packed in segments], np.int64)
        fits = (inserted - positions <= self._capacity) & (
            np.cumsum(sizes[::-1])[::-1] <= self._max_bytes
        )
        skip = len(segments) - int(np.count_nonzero(fits))  # they fit from some segment on
        kept = [(packed, self._checked(packed)) for packed in segments[skip:]]
        for (_, segment), count in zip(kept, counts[skip:].tolist(), strict=True):
            if segment.num_transitions != count:
                raise SnapshotError(
                    f"Expect {count} transitions in segment {tuple(segment.name)}, actually: "
                    f"{segment.num_transitions}"
                )
        self._first = self._next = int(positions[skip]) if kept else inserted
        for (packed, segment), first_id in zip(kept, first_ids[skip:].tolist(), strict=True):
            self._append(packed, segment, first_id)
        self._restored = inserted
        for name in names:
            self._remember(name)

    def rows(self, slots: NDArray[np.int64]) -> NDArray[np.void]:
        """Return ROW[B], a copy of the live rows in these slots."""
        return self._rows[slots]

    def segment(self, number: int) -> StoredSegment:
        """Return the live segment of this running number."""
        return self._segments[number]

    def live_slots(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return (slots int64[B], live bool[B]) of ids; a slot is meaningless where not live."""
        positions = position_of(ids)
        slots = positions % self._capacity
        live = (positions >= self._first) & (positions < self._next)
        return slots, live & (self._rows["id"][slots] == ids)

    def check_valid(self) -> None:
        """Raise AssertionError unless counts, bytes and rows agree."""
        segments = [self._segments[number] for number in self._order]
        assert len(segments) == len(self._segments), "a segment is lost"
        assert sum(s.num_transitions for s in segments) == len(self), "transitions do not add up"
        assert sum(len(s.packed) for s in segments) == self._bytes, "bytes do not add up"
        assert len(self) <= self._capacity, f"{len(self)} transitions > {self._capacity}"
        assert self._bytes <= self._max_bytes, f"{self._bytes} bytes > {self._max_bytes}"
        live = np.arange(self._first, self._next)
        rows = self._rows[live % self._capacity]
        counts = np.array([s.num_transitions for s in segments], np.int64)
        assert [s.packed for s in segments] == list(self._packed), "other bytes would be saved"
        first_ids = np.array(self._first_ids, np.int64)
        starts = self._first + np.cumsum(counts) - counts
        assert np.array_equal(position_of(first_ids), starts), "segments do not follow each other"
        assert np.all(shard_of(first_ids) == self._shard), "a segment of another shard"
        ids = np.repeat(first_ids - starts, counts) + live
        assert np.array_equal(rows["id"], ids), "ids do not follow positions"
        numbers = np.repeat(np.array(self._order, np.int64), counts)
        assert np.array_equal(rows["segment"], numbers), "a live row lacks its segment"

    def _remember(self, name: SegmentName) -> None:
        self._names.add(name)
        self._names_order.append(name)
        if len(self._names_order) > _REMEMBERED_NAMES:
            self._names.remove(self._names_order.popleft())

    def _checked(self, packed: bytes) -> Segment:
        segment = unpack_segment(packed)
        check_segment(segment, self._stack)
        return segment

    def _append(self, packed: bytes, segment: Segment, first_id: int) -> NDArray[np.int64]:
        """Put a segment behind the newest, where there is room, and return its slots."""
        count = segment.num_transitions
        slots = np.arange(self._next, self._next + count) % self._capacity
        first_frame = segment.newest_tm1 - segment.depth_tm1.astype(np.int32) + 1
        first_block = first_frame // segment.frames_per_block
        offset = first_block * segment.frames_per_block
        rows = np.empty(count, ROW)
        rows["id"] = first_id + np.arange(count)
        rows["segment"] = self._next_segment
        rows["a_tm1"] = segment.a_tm1
        rows["r_t"] = segment.r_t
        rows["discount_t"] = segment.discount_t
        rows["first_block"] = first_block
        rows["num_blocks"] = segment.newest_t // segment.frames_per_block - first_block + 1
        rows["newest_tm1"] = segment.newest_tm1 - offset
        rows["newest_t"] = segment.newest_t - offset
        rows["depth_tm1"] = segment.depth_tm1
        rows["depth_t"] = segment.depth_t
        self._rows[slots] = rows
        self._segments[self._next_segment] = StoredSegment(
            packed=packed,
            blocks=segment.blocks.data,
            block_bounds=[0, *segment.block_ends.tolist()],
            block_frames=_block_frames(segment.num_frames, segment.frames_per_block),
            num_transitions=count,
        )
        self._order.append(self._next_segment)
        self._packed.append(packed)
        self._first_ids.append(first_id)
        self._next_segment += 1
        self._next += count
        self._bytes += len(packed)
        return slots

    def _make_room(self, transitions: int, num_bytes: int) -> NDArray[np.int64]:
        first = self._first
        while self._order and (
            len(self) + transitions > self._capacity or self._bytes + num_bytes > self._max_bytes
        ):
            oldest = self._segments.pop(self._order.popleft())
            self._packed.popleft()
            self._first_ids.popleft()
            self._first += oldest.num_transitions
            self._bytes -= len(oldest.packed)
        return np.arange(first, self._first) % self._capacity


def _block_frames(num_frames: int, frames_per_block: int) -> list[int]:
    """Return how many frames each block of a segment holds: all the same, but the last."""
    return [
        min(frames_per_block, num_frames - first)
        for first in range(0, num_frames, frames_per_block)
    ]
