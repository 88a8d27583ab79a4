"""The ring as a whole: any history against the naive replay, and ten times its size in inserts."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import SPEC, make_push, make_segment, make_shard
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from numpy.typing import NDArray
from oracles import NaiveReplay, naive_stacks

from common.compression import compress_frames, decompress_block
from common.packing import PackingError, pack_segment
from common.types import LearnerCounts, Segment
from replay.decoding import Decoder
from replay.storage import SegmentStorage

_LARGEST = 8  # transitions in a segment


class Ring(RuleBasedStateMachine):
    """Drives a SegmentStorage and the naive replay through the same history.

    After each step both hold the same rows with the same frames, and no bound is passed.
    """

    @initialize(
        capacity=st.integers(_LARGEST, 40),
        max_bytes=st.integers(700, 3000),
        shard=st.integers(0, 127),
        incarnation=st.integers(0, 2**16 - 1),
    )
    def start(self, capacity: int, max_bytes: int, shard: int, incarnation: int) -> None:
        self.capacity, self.max_bytes = capacity, max_bytes
        self.first_id = shard * 2**56 + incarnation * 2**40
        self.ring = SegmentStorage(
            capacity=capacity,
            max_bytes=max_bytes,
            shard=shard,
            incarnation=incarnation,
            stack=SPEC.stack,
        )
        self.naive = NaiveReplay(
            capacity=capacity, max_bytes=max_bytes, alpha=0.0, first_id=self.first_id, spec=SPEC
        )
        self.pushed: list[Segment] = []

    @rule(transitions=st.integers(1, _LARGEST), per_block=st.integers(1, 5))
    def add(self, transitions: int, per_block: int) -> None:
        segment = make_segment(
            sequence=len(self.pushed), transitions=transitions, frames_per_block=per_block
        )
        packed = pack_segment(segment)
        old_slots = self.slots()
        added = self.ring.add(packed)
        assert added is not None and self.naive.add(segment, len(packed))
        self.pushed.append(segment)
        assert added.name == segment.name
        slots = self.slots()
        assert added.slots.tolist() == slots[len(slots) - transitions :]
        gone = len(old_slots) + transitions - len(slots)
        assert added.evicted_slots.tolist() == old_slots[:gone]

    @rule(which=st.floats(0.0, 1.0, exclude_max=True))
    def add_again(self, which: float) -> None:
        if self.pushed:
            segment = self.pushed[int(which * len(self.pushed))]
            assert self.ring.knows(segment.name)
            assert self.ring.add(pack_segment(segment)) is None

    @rule(transitions=st.integers(1, 30))
    def add_too_large(self, transitions: int) -> None:
        segment = make_segment(sequence=10**6, transitions=self.capacity + transitions)
        with pytest.raises(ValueError, match="Expect a segment of <= "):
            self.ring.add(pack_segment(segment))
        assert not self.ring.knows(segment.name)

    @rule(where=st.floats(0.0, 1.0, exclude_max=True))
    def add_damaged(self, where: float) -> None:
        packed = bytearray(pack_segment(make_segment(sequence=10**6)))
        packed[int(where * len(packed))] ^= 1
        with pytest.raises(PackingError):
            self.ring.add(bytes(packed))

    @invariant()
    def bounds_hold(self) -> None:
        self.ring.check_valid()
        assert len(self.ring) == len(self.naive.rows) <= self.capacity
        assert self.ring.num_bytes == self.naive.num_bytes <= self.max_bytes
        assert self.ring.inserted == self.naive.inserted
        assert self.ring.evicted == self.naive.evicted

    @invariant()
    def live_ids_and_no_others_are_found(self) -> None:
        """Evicted, not yet given out, of another shard, of another life, or no ids at all."""
        own = self.first_id + np.arange(
            max(0, self.naive.inserted - 3 * self.capacity), self.naive.inserted + self.capacity
        )
        ids = np.concatenate([own, own ^ 2**56, own ^ 2**40, own ^ 2**39, ~own])
        slots, live = self.ring.live_slots(ids)
        assert live.tolist() == [number in self.naive.rows for number in ids.tolist()]
        assert slots[live].tolist() == self.slots()

    @invariant()
    def live_rows_have_all_their_frames(self) -> None:
        for slot, row in zip(self.slots(), self.naive.rows.values(), strict=True):
            s_tm1, s_t = stored_stacks(self.ring, slot)
            np.testing.assert_array_equal(s_tm1, row.s_tm1)
            np.testing.assert_array_equal(s_t, row.s_t)
            (stored,) = self.ring.rows(np.array([slot]))
            columns = (stored["id"], stored["a_tm1"], stored["r_t"], stored["discount_t"])
            assert columns == (row.id, row.a_tm1, row.r_t, row.discount_t)

    def slots(self) -> list[int]:
        """Return where the live rows have to lie, oldest first."""
        return [(number - self.first_id) % self.capacity for number in self.naive.rows]


Ring.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestRing = Ring.TestCase


def stored_stacks(storage: SegmentStorage, slot: int) -> tuple[NDArray, NDArray]:
    """Return (s_tm1, s_t) of a live slot from the stored bytes alone, frame by frame."""
    (row,) = storage.rows(np.array([slot]))
    stored = storage.segment(int(row["segment"]))
    frames: list[NDArray] = []
    for block in range(row["first_block"], row["first_block"] + row["num_blocks"]):
        start, end = stored.block_bounds[block : block + 2]
        raw = decompress_block(
            stored.blocks[start:end], stored.block_frames[block] * SPEC.frame_bytes
        )
        frames += list(np.frombuffer(raw, SPEC.dtype).reshape(-1, *SPEC.frame_shape))

    def stack(newest: int, depth: int) -> NDArray:
        padding = [np.zeros(SPEC.frame_shape, SPEC.dtype)] * (SPEC.stack - depth)
        return np.stack(padding + frames[newest - depth + 1 : newest + 1])

    return (
        stack(int(row["newest_tm1"]), int(row["depth_tm1"])),
        stack(int(row["newest_t"]), int(row["depth_t"])),
    )


@pytest.mark.parametrize(
    ("capacity", "max_bytes", "bounds"),
    [
        (200, 10**9, {"transitions"}),
        (4000, 12_000, {"bytes"}),
        (200, 14_000, {"transitions", "bytes"}),
    ],
)
def test_shard_at_capacity_keeps_its_bounds_and_every_frame_of_what_lives(
    capacity: int, max_bytes: int, bounds: set[str]
) -> None:
    """Ten times its size in inserts, in transitions and bytes; pixels bit for bit as pushed."""
    rng = np.random.default_rng(7)
    shard = make_shard(capacity=capacity, max_bytes=max_bytes, alpha=0.6)
    decoder = Decoder(spec=SPEC, threads=1)
    pushed: list[tuple[NDArray, NDArray]] = []  # by id
    pushed_bytes = sequence = sampled = 0
    full_by: set[str] = set()
    report = shard.report()
    while len(pushed) < 10 * 200 or pushed_bytes < 10 * 14_000:
        # Short segments, whose headers fill the bytes, and long ones in turn.
        shortest = (1, 20)[sequence // 80 % 2]
        batch = [
            noisy_segment(rng, sequence + i, transitions=shortest + int(rng.integers(4)))
            for i in range(int(rng.integers(1, 4)))
        ]
        sequence += len(batch)
        sizes = [len(pack_segment(segment)) for segment in batch]
        pushed += [row for segment in batch for row in naive_stacks(segment, SPEC)]
        pushed_bytes += sum(sizes)
        if report.counts.transitions + sum(segment.num_transitions for segment in batch) > capacity:
            full_by.add("transitions")
        if report.bytes + sum(sizes) > max_bytes:
            full_by.add("bytes")
        assert shard.add(make_push(*batch))
        report = shard.report()
        assert report.counts.transitions <= capacity
        assert report.bytes <= max_bytes
        assert report.counts.inserts == len(pushed) == report.counts.transitions + report.evicted
        shard.check_valid()
        reply = shard.sample((32,), LearnerCounts(0, 0, None)).batches[0]
        assert reply.ids.min() >= report.evicted
        s_tm1, s_t = decoder.decode(reply)
        for i, number in enumerate(reply.ids.tolist()):
            assert s_tm1[i].tobytes() == pushed[number][0].tobytes()
            assert s_t[i].tobytes() == pushed[number][1].tobytes()
        sampled += len(reply.ids)
    assert report.evicted > 0.8 * len(pushed)
    assert sampled > 1000
    assert full_by == bounds


def noisy_segment(rng: np.random.Generator, sequence: int, transitions: int) -> Segment:
    """Return a segment of noise, with any block size."""
    segment = make_segment(
        sequence=sequence,
        transitions=transitions,
        frames_per_block=int(rng.integers(1, 8)),
        priority=rng.exponential(1.0, transitions).tolist(),
    )
    frames = rng.integers(0, 256, (segment.num_frames, *SPEC.frame_shape), np.uint8)
    blocks, block_ends = compress_frames(frames, segment.frames_per_block)
    return segment._replace(blocks=blocks, block_ends=block_ends)
