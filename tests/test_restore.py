from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import NOTHING_LEARNED, SPEC, make_push, make_segment, make_shard
from snapshotting import assert_same

from actors.environments import resolve
from common.packing import pack_segment, unpack_segment
from common.presets import PRESETS
from common.source import own_source
from common.types import EpisodeRecord, ObservationSpec, PriorityUpdate, SegmentName
from replay.assembly import restore
from replay.server import ReplayProcess
from replay.shard import ReplayShard
from replay.snapshot import SnapshotFolder
from replay.state import ShardState, SnapshotError
from replay.storage import SegmentStorage

EPISODE = EpisodeRecord(episode_return=21.0, agent_steps=900, epsilon=0.1, ladder_position=0.5)


def filled(*sequences: int, transitions: int = 5, **settings: Any) -> ReplayShard:
    """Return a shard with one segment for each sequence; priorities tell the rows apart."""
    shard = make_shard(**({"alpha": 1.0} | settings))
    for sequence in sequences:
        priority = 1.0 + sequence + np.arange(transitions) / 8
        segment = make_segment(
            sequence=sequence, transitions=transitions, priority=priority.tolist()
        )
        assert shard.add(make_push(segment))
    return shard


def restored(state: ShardState, **settings: Any) -> ReplayShard:
    shard = make_shard(**({"alpha": 1.0, "incarnation": state.incarnation + 1} | settings))
    shard.restore(state)
    shard.check_valid()
    return shard


def live_ids(shard: ReplayShard) -> list[int]:
    state = shard.capture()
    sizes = [unpack_segment(packed).num_transitions for packed in state.segments]
    firsts = state.first_ids.tolist()
    return [first + i for first, size in zip(firsts, sizes, strict=True) for i in range(size)]


def assert_goes_on(state: ShardState, earlier: ShardState) -> None:
    assert_same(state._replace(incarnation=earlier.incarnation), earlier)


# --- what is captured -----------------------------------------------------------------------------


def test_state_holds_what_is_live_oldest_first() -> None:
    shard = filled(0, 1, 2, capacity=12, shard=2, shards=3, incarnation=4)
    state = shard.capture()
    assert (state.shard, state.shards, state.incarnation) == (2, 3, 4)
    assert (state.alpha, state.inserted, state.observation) == (1.0, 15, SPEC)
    assert [unpack_segment(packed).name.sequence for packed in state.segments] == [1, 2]
    again = shard.capture().segments
    assert all(one is other for one, other in zip(state.segments, again, strict=True))
    assert state.first_ids.tolist() == [2 * 2**56 + 4 * 2**40 + i for i in (5, 10)]
    priority = [1 + s + i / 8 for s in (1, 2) for i in range(5)]
    np.testing.assert_allclose(state.masses, np.array(priority) + 1e-6, rtol=1e-12)
    assert state.names == tuple(SegmentName(0, 0, sequence) for sequence in range(3))
    assert json.loads(json.dumps(state.rng)) == state.rng


def test_state_does_not_change_when_the_shard_goes_on() -> None:
    shard = filled(0, 1, capacity=12)
    state = shard.capture()
    before = state._replace(masses=state.masses.copy(), first_ids=state.first_ids.copy())
    shard.update_priorities(PriorityUpdate(np.arange(10), np.full(10, 9.0, np.float32)))
    shard.sample((3,), NOTHING_LEARNED)
    for sequence in (2, 3, 4):
        shard.add(make_push(make_segment(sequence=sequence)))
    assert_same(state, before)


# --- what comes back ------------------------------------------------------------------------------


def test_restored_shard_is_the_same_and_draws_the_same() -> None:
    shard = filled(0, 1, 2, 3, capacity=17)
    shard.sample((5, 3), NOTHING_LEARNED)
    shard.update_priorities(PriorityUpdate(np.array([1, 6, 17]), np.array([1, 0.5, 9], np.float32)))
    shard.add(make_push(make_segment(sequence=3)))
    state = shard.capture()
    other = restored(state, capacity=17, seed=99)
    assert_goes_on(other.capture(), state)
    assert live_ids(other) == live_ids(shard)
    for _ in range(5):
        one, two = (s.sample((7,), NOTHING_LEARNED).batches[0] for s in (shard, other))
        for field in one._fields:
            np.testing.assert_array_equal(getattr(one, field), getattr(two, field))


def test_counters_go_on_and_what_is_of_this_incarnation_starts_anew() -> None:
    shard = filled(0, 1, 2, 2, capacity=12)
    bad = make_push(make_segment(sequence=7, priority=np.nan), episodes=(EPISODE,))
    shard.add(bad)
    shard.sample((9,), NOTHING_LEARNED)
    shard.update_priorities(PriorityUpdate(np.array([0]), np.ones(1, np.float32)))
    other = restored(shard.capture(), capacity=12)
    report = other.report()
    assert (
        report.history.samples,
        report.history.stale_priority_updates,
        report.history.duplicate_segments,
    ) == (9, 1, 1)
    assert (report.history.refused_segments, report.evicted, report.counts.inserts) == (1, 5, 15)
    assert (report.counts.accepted, report.counts.episodes, report.episodes) == (0, 0, ())
    assert (report.counts.incarnation, report.actors) == (1, ())
    other.add(make_push(make_segment(sequence=8), episodes=(EPISODE,)))
    counts = other.counts(NOTHING_LEARNED)
    assert (counts.inserts, counts.accepted, counts.episodes, counts.incarnation) == (20, 5, 1, 1)
    assert (shard.report().counts.inserts, shard.report().counts.accepted) == (15, 15)


def test_new_rows_go_on_behind_the_restored_ones_with_the_new_incarnation_in_their_ids() -> None:
    shard = filled(0, 1, capacity=12, shard=1, incarnation=2)
    other = restored(shard.capture(), capacity=12, shard=1, incarnation=6)
    other.add(make_push(make_segment(sequence=2)))
    other.check_valid()
    old, new = (2**56 + incarnation * 2**40 for incarnation in (2, 6))
    assert live_ids(other) == [old + i for i in range(5, 10)] + [new + i for i in range(10, 15)]
    third = restored(other.capture(), capacity=12, shard=1, incarnation=7)
    assert live_ids(third) == live_ids(other)


def test_trap_priority_of_a_lost_transition_is_stale_although_its_position_lives_again() -> None:
    shard = filled(0)
    state = shard.capture()
    shard.add(make_push(make_segment(sequence=1)))
    lost = np.array(live_ids(shard)[5:])
    other = restored(state)
    ones = np.ones(5, np.float32)
    assert other.update_priorities(PriorityUpdate(lost, ones)) == 5
    other.add(make_push(make_segment(sequence=2, priority=4.0)))
    assert other.update_priorities(PriorityUpdate(lost, ones)) == 5
    assert other.report().history.stale_priority_updates == 10
    np.testing.assert_allclose(other.capture().masses[5:], 4.0 + 1e-6, rtol=1e-12)
    assert other.update_priorities(PriorityUpdate(np.array(live_ids(other)[5:]), ones)) == 0
    assert other.update_priorities(PriorityUpdate(np.arange(5), ones)) == 0


def test_trap_push_retried_after_a_restore_is_inserted_once() -> None:
    shard = filled(0, 1, 2, capacity=10)
    other = restored(shard.capture(), capacity=10)
    for sequence in range(3):  # the first one is evicted, and known all the same
        assert other.add(make_push(make_segment(sequence=sequence)))
    assert other.add(make_push(make_segment(sequence=3)))
    assert other.inserted == 20


def test_shard_with_room_for_nothing_is_restored_with_its_place_and_names() -> None:
    other = restored(filled(0).capture(), capacity=4)
    assert (other.inserted, live_ids(other)) == (5, [])
    assert other.add(make_push(make_segment(sequence=0)))
    other.add(make_push(make_segment(sequence=1, transitions=3)))
    assert live_ids(other) == [2**40 + i for i in range(5, 8)]
    fresh = restored(make_shard(alpha=1.0).capture())
    assert (fresh.inserted, fresh.report().counts.accepted) == (0, 0)


# --- other settings -------------------------------------------------------------------------------


@pytest.mark.parametrize(("capacity", "kept"), [(1000, 4), (20, 4), (19, 3), (9, 1), (5, 1)])
def test_smaller_capacity_keeps_the_newest_whole_segments(capacity: int, kept: int) -> None:
    state = filled(0, 1, 2, 3, capacity=20).capture()
    other = restored(state, capacity=capacity)
    assert live_ids(other) == list(range(20 - 5 * kept, 20))
    again = other.capture()
    assert again.segments == state.segments[-kept:]
    assert again.masses.tolist() == state.masses[-5 * kept :].tolist()
    assert again.names == state.names
    other.add(make_push(make_segment(sequence=4)))
    other.check_valid()
    assert len(live_ids(other)) == min(5 * kept + 5, capacity // 5 * 5)


def test_fewer_bytes_keep_the_newest_whole_segments() -> None:
    state = filled(0, 1, 2).capture()
    sizes = [len(packed) for packed in state.segments]
    assert live_ids(restored(state, max_bytes=sizes[1] + sizes[2])) == list(range(5, 15))
    assert live_ids(restored(state, max_bytes=sizes[1] + sizes[2] - 1)) == list(range(10, 15))
    empty = restored(state, max_bytes=sizes[2] - 1)
    assert (live_ids(empty), empty.inserted) == ([], 15)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (1.0, 0.5, lambda p: p**0.5),
        (0.6, 1.0, lambda p: p),
        (0.6, 0.0, lambda p: p**0),
        # Without an exponent the priorities are lost: taken to be 1.
        (0.0, 0.5, lambda p: np.full(len(p), (1 + 1e-6) ** 0.5)),
        (0.0, 0.0, lambda p: np.ones(len(p))),
    ],
)
def test_another_alpha_keeps_the_priorities(
    old: float, new: float, expected: Callable[[np.ndarray], np.ndarray]
) -> None:
    priority = [0.0, 0.25, 1.0, 3.0, 1e4]
    shard = make_shard(alpha=old)
    shard.add(make_push(make_segment(priority=priority)))
    masses = restored(shard.capture(), alpha=new).capture().masses
    np.testing.assert_allclose(masses, expected(np.array(priority) + 1e-6), rtol=1e-9)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"shards": 3}, "Expect a snapshot of `replay.shards` 3, actually: 2"),
        ({"shard": 0}, "Expect a snapshot of shard 0, actually: 1"),
        (
            {"observation": ObservationSpec((2, 3), "uint8", 2)},
            r"Expect a snapshot of observations \(\(2, 3\), 'uint8', 2\), "
            r"actually: \(\(2, 3\), 'uint8', 4\)",
        ),
        ({"observation": ObservationSpec((3, 3), "uint8", 4)}, r"actually: \(\(2, 3\), 'uint8'"),
        ({"observation": ObservationSpec((2, 3), "float32", 4)}, r"actually: \(\(2, 3\), 'uint8'"),
        ({"incarnation": 4}, "Expect a snapshot of an incarnation before 4, actually: 4"),
        ({"incarnation": 3}, "Expect a snapshot of an incarnation before 3, actually: 4"),
    ],
)
def test_snapshot_of_something_else_is_refused(settings: dict[str, Any], match: str) -> None:
    state = filled(0, shard=1, shards=2, incarnation=4).capture()
    shard = make_shard(**({"shard": 1, "shards": 2, "incarnation": 5} | settings))
    with pytest.raises(SnapshotError, match=match):
        shard.restore(state)
    assert (shard.inserted, shard.report().counts.transitions) == (0, 0)


def test_unsound_state_is_refused_and_changes_nothing() -> None:
    state = filled(0, 1).capture()
    senseless = pack_segment(make_segment(sequence=1, priority=np.nan))
    longer = pack_segment(make_segment(sequence=1, transitions=6))
    cases = (
        (state._replace(segments=(state.segments[0], senseless)), "Expect finite priorities"),
        (state._replace(segments=(state.segments[0], longer)), "Expect 5 transitions in segment"),
        (state._replace(first_ids=state.first_ids[::-1]), "Expect 5 finite masses"),
        (state._replace(first_ids=state.first_ids + 2**56), "Expect ids of shard 0"),
        (state._replace(masses=state.masses[1:]), "Expect 10 finite masses > 0, actually: 9 of 9"),
        (state._replace(masses=state.masses * 0.0), "actually: 0 of 10"),
        (state._replace(rng={"bit_generator": "MT19937"}), "Expect the state of a PCG64 generator"),
    )
    for unsound, match in cases:
        shard = make_shard(alpha=1.0, incarnation=1)
        before = shard.capture()
        with pytest.raises(SnapshotError, match=match):
            shard.restore(unsound)
        assert_same(shard.capture(), before)
        shard.check_valid()
        shard.restore(state)


def test_shard_that_holds_something_is_not_restored_into() -> None:
    state = filled(0).capture()
    shard = filled(1, incarnation=1)
    with pytest.raises(ValueError, match="Expect an empty storage to restore into, actually: 5"):
        shard.restore(state)
    assert shard.inserted == 5


def test_names_are_remembered_up_to_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replay.storage._REMEMBERED_NAMES", 2)
    storage = SegmentStorage(capacity=10, max_bytes=10**6, shard=0, incarnation=1, stack=SPEC.stack)
    names = tuple(SegmentName(0, 0, sequence) for sequence in range(3))
    storage.restore((), np.zeros(0, np.int64), 15, names)
    assert storage.names() == names[1:]


# --- what is said ---------------------------------------------------------------------------------


def test_a_shard_s_first_start_says_nothing_and_a_later_one_that_it_starts_empty(
    tmp_path: Path,
) -> None:
    folder = SnapshotFolder(tmp_path / "replay_0", 1)
    assert restore(make_shard(incarnation=0), folder) == ""
    for incarnation in (1, 7):
        said = restore(make_shard(incarnation=incarnation), folder)
        assert said == "starts empty: it has no snapshot"


def test_a_shard_says_what_it_goes_on_with_or_why_it_does_not(tmp_path: Path) -> None:
    folder = SnapshotFolder(tmp_path / "replay_0", 1)
    folder.write(filled(0, 1).capture())
    said = restore(make_shard(incarnation=1), folder)
    assert said == "goes on with the 10 transitions of its snapshot"
    (manifest,) = (tmp_path / "replay_0").glob("*.manifest")
    manifest.write_bytes(b"damaged")
    said = restore(make_shard(incarnation=1), folder)
    assert said.startswith("starts empty: Expect a whole snapshot, actually damaged: ")


@pytest.mark.parametrize(
    ("incarnation", "keeps_snapshots", "expected"),
    [
        (0, True, ""),
        (1, True, "starts empty: it has no snapshot"),
        (1, False, ""),  # --checkpoint.no-replay: nobody expects one
    ],
)
def test_a_shard_s_process_tells_the_driver(
    incarnation: int, keeps_snapshots: bool, expected: str, tmp_path: Path
) -> None:
    config = PRESETS["cartpole"].config
    snapshots = tmp_path / "replay_0" if keeps_snapshots else None
    process = ReplayProcess(
        config, resolve(config.env), 0, incarnation, 1 << 30, snapshots, (0, 0), own_source()
    )
    assert process.describe() == expected
