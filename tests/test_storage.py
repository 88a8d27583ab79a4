from __future__ import annotations

import numpy as np
import pytest
from fakes import SPEC, make_segment

from common.packing import PackingError, pack_segment
from common.types import Segment, SegmentName
from replay.storage import MAX_SHARDS, Added, SegmentStorage, shard_of


def make_storage(
    *, capacity: int = 100, max_bytes: int = 10**9, shard: int = 0, incarnation: int = 0
) -> SegmentStorage:
    return SegmentStorage(
        capacity=capacity,
        max_bytes=max_bytes,
        shard=shard,
        incarnation=incarnation,
        stack=SPEC.stack,
    )


def add(storage: SegmentStorage, segment: Segment) -> Added:
    added = storage.add(pack_segment(segment))
    assert added is not None
    storage.check_valid()
    return added


# --- ids and slots --------------------------------------------------------------------------------


def test_id_names_the_shard_its_incarnation_and_the_place_in_the_stream() -> None:
    storage = make_storage(shard=3, incarnation=5)
    first, second = (add(storage, make_segment(sequence=s, transitions=4)) for s in range(2))
    prefix = 3 * 2**56 + 5 * 2**40
    assert storage.rows(first.slots)["id"].tolist() == [prefix + i for i in range(4)]
    assert storage.rows(second.slots)["id"].tolist() == [prefix + 4 + i for i in range(4)]
    assert shard_of(storage.rows(first.slots)["id"]).tolist() == [3] * 4


def test_ids_of_the_last_shard_are_still_positive() -> None:
    storage = make_storage(shard=MAX_SHARDS - 1, incarnation=2**16 - 1)
    ids = storage.rows(add(storage, make_segment()).slots)["id"]
    assert np.all(ids > 0)
    assert shard_of(ids).tolist() == [MAX_SHARDS - 1] * 5


def test_ids_never_repeat_over_shards_and_restarts() -> None:
    ids: list[int] = []
    for shard in range(3):
        for incarnation in range(3):
            storage = make_storage(shard=shard, incarnation=incarnation, capacity=10)
            for sequence in range(4):
                added = add(storage, make_segment(sequence=sequence))
                ids += storage.rows(added.slots)["id"].tolist()
    assert len(set(ids)) == len(ids) == 3 * 3 * 4 * 5


def test_id_of_an_evicted_transition_is_stale_although_its_slot_lives() -> None:
    storage = make_storage(capacity=10)
    old = storage.rows(add(storage, make_segment(sequence=0)).slots)["id"]
    add(storage, make_segment(sequence=1))
    added = add(storage, make_segment(sequence=2))
    slots, live = storage.live_slots(old)
    assert not live.any()
    assert slots.tolist() == added.slots.tolist()
    slots, live = storage.live_slots(storage.rows(added.slots)["id"])
    assert live.all()
    assert slots.tolist() == added.slots.tolist()


def test_ids_of_another_shard_incarnation_or_future_are_stale() -> None:
    storage = make_storage(shard=1, incarnation=1)
    own = storage.rows(add(storage, make_segment()).slots)["id"]
    for foreign in (own + 2**56, own - 2**40, own + 5, own + 2**39):
        assert not storage.live_slots(foreign)[1].any()
    assert storage.live_slots(own)[1].all()


# --- rows -----------------------------------------------------------------------------------------


def test_row_needs_only_the_blocks_of_its_own_frames() -> None:
    # Blocks of 2 frames; row 5 is made of the frames 2..5 and 3..6, row 1 of 0..1 and 0..2.
    storage = make_storage()
    added = add(storage, make_segment(transitions=9, frames_per_block=2))
    rows = storage.rows(added.slots)
    assert rows["first_block"][5] == 2 // 2
    assert rows["num_blocks"][5] == 6 // 2 - 2 // 2 + 1
    assert rows["newest_tm1"][5] == 5 - 2
    assert rows["newest_t"][5] == 6 - 2
    assert rows["first_block"][1] == 0
    assert rows["num_blocks"][1] == 2 // 2 + 1
    assert (rows["depth_tm1"][1], rows["depth_t"][1]) == (2, 3)


def test_rows_are_copies() -> None:
    storage = make_storage()
    added = add(storage, make_segment())
    storage.rows(added.slots)["id"][:] = -1
    storage.check_valid()


def test_added_tells_what_was_pushed() -> None:
    storage = make_storage()
    segment = make_segment(actor=2, sequence=7, priority=[1, 2, 3, 4, 5], learner_step=40)
    added = add(storage, segment)
    assert added.name == SegmentName(2, 0, 7)
    assert added.priority.tolist() == [1, 2, 3, 4, 5]
    assert added.weights_version.tolist() == [[0, 40]] * 5
    assert len(added.evicted_slots) == 0


# --- eviction -------------------------------------------------------------------------------------


def test_oldest_segments_leave_whole_when_transitions_run_out() -> None:
    storage = make_storage(capacity=12)
    for sequence in range(2):
        add(storage, make_segment(sequence=sequence, transitions=5))
    assert (len(storage), storage.evicted) == (10, 0)
    added = add(storage, make_segment(sequence=2, transitions=4))
    assert added.evicted_slots.tolist() == [0, 1, 2, 3, 4]
    assert added.slots.tolist() == [10, 11, 0, 1]
    assert (len(storage), storage.evicted, storage.inserted) == (5 + 4, 5, 5 + 5 + 4)


def test_oldest_segments_leave_whole_when_bytes_run_out() -> None:
    segments = [make_segment(sequence=s) for s in range(4)]
    sizes = [len(pack_segment(segment)) for segment in segments]
    storage = make_storage(max_bytes=sizes[1] + sizes[2])
    add(storage, segments[0])
    add(storage, segments[1])
    add(storage, segments[2])
    assert storage.num_bytes == sizes[1] + sizes[2]
    assert storage.evicted == 5
    assert len(storage) == 10


def test_one_large_segment_may_push_out_everything() -> None:
    storage = make_storage(capacity=10)
    for sequence in range(2):
        add(storage, make_segment(sequence=sequence))
    added = add(storage, make_segment(sequence=2, transitions=10))
    assert sorted(added.evicted_slots) == list(range(10))
    assert len(storage) == 10


def test_segment_larger_than_the_storage_is_refused_and_changes_nothing() -> None:
    storage = make_storage(capacity=4, max_bytes=10_000)
    add(storage, make_segment(sequence=0, transitions=4))
    with pytest.raises(ValueError, match=r"Expect a segment of <= 4 transitions and 10000 bytes"):
        storage.add(pack_segment(make_segment(sequence=1, transitions=5)))
    storage.check_valid()
    assert (len(storage), storage.evicted) == (4, 0)
    assert not storage.knows(SegmentName(0, 0, 1))
    packed = pack_segment(make_segment(transitions=4))
    small = make_storage(max_bytes=len(packed) - 1)
    with pytest.raises(ValueError, match=rf"actually: 4 and {len(packed)}"):
        small.add(packed)


# --- repeats --------------------------------------------------------------------------------------


def test_segment_pushed_twice_is_inserted_once() -> None:
    storage = make_storage()
    packed = pack_segment(make_segment())
    assert not storage.knows(SegmentName(0, 0, 0))
    assert storage.add(packed) is not None
    assert storage.knows(SegmentName(0, 0, 0))
    assert storage.add(packed) is None
    assert (len(storage), storage.inserted, storage.num_bytes) == (5, 5, len(packed))
    storage.check_valid()


def test_segment_that_was_evicted_is_still_known() -> None:
    storage = make_storage(capacity=5)
    packed = pack_segment(make_segment(sequence=0))
    storage.add(packed)
    add(storage, make_segment(sequence=1))
    assert storage.add(packed) is None
    storage.check_valid()


def test_trap_segments_of_a_restarted_actor_are_not_repeats() -> None:
    storage = make_storage()
    for incarnation in range(3):
        add(storage, make_segment(actor=1, incarnation=incarnation, sequence=0))
    assert len(storage) == 3 * 5


def test_only_so_many_names_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replay.storage._REMEMBERED_NAMES", 3)
    storage = make_storage()
    for sequence in range(4):
        add(storage, make_segment(sequence=sequence))
    known = [storage.knows(SegmentName(0, 0, sequence)) for sequence in range(4)]
    assert known == [False, True, True, True]


# --- what is refused ------------------------------------------------------------------------------


def test_corrupt_segment_is_refused_and_changes_nothing() -> None:
    storage = make_storage(capacity=5)
    add(storage, make_segment(sequence=0))
    packed = bytearray(pack_segment(make_segment(sequence=1)))
    packed[70] ^= 1
    with pytest.raises(PackingError, match="its bytes were changed"):
        storage.add(bytes(packed))
    senseless = make_segment(sequence=1)._replace(depth_t=np.full(5, 9, np.uint8))
    with pytest.raises(PackingError, match="Expect depths from 1 to 4"):
        storage.add(pack_segment(senseless))
    storage.check_valid()
    assert (len(storage), storage.inserted) == (5, 5)
    assert not storage.knows(SegmentName(0, 0, 1))


def test_capacity_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="Expect `capacity` >= 1, actually: 0"):
        make_storage(capacity=0)


@pytest.mark.parametrize("shard", [-1, 128])
def test_shard_outside_its_bits_is_refused(shard: int) -> None:
    with pytest.raises(ValueError, match=f"Expect `shard` from 0 to 127, actually: {shard}"):
        make_storage(shard=shard)


@pytest.mark.parametrize("incarnation", [-1, 65536])
def test_incarnation_outside_its_bits_is_refused(incarnation: int) -> None:
    match = f"Expect `incarnation` from 0 to 65535, actually: {incarnation}"
    with pytest.raises(ValueError, match=match):
        make_storage(incarnation=incarnation)


def test_check_valid_finds_what_is_wrong() -> None:
    storage = make_storage()
    added = add(storage, make_segment())
    storage._bytes += 1
    with pytest.raises(AssertionError, match="bytes do not add up"):
        storage.check_valid()
    storage._bytes -= 1
    storage._rows["segment"][added.slots[2]] = 9
    with pytest.raises(AssertionError, match="a live row lacks its segment"):
        storage.check_valid()
    storage._rows["id"][added.slots[2]] = 9
    with pytest.raises(AssertionError, match="ids do not follow positions"):
        storage.check_valid()
    for first_id, match in ((7, "do not follow each other"), (2**56, "of another shard")):
        storage._first_ids[0] = first_id
        with pytest.raises(AssertionError, match=match):
            storage.check_valid()
    storage._packed[0] = b""
    with pytest.raises(AssertionError, match="other bytes would be saved"):
        storage.check_valid()
    storage._next += 1
    with pytest.raises(AssertionError, match="transitions do not add up"):
        storage.check_valid()
