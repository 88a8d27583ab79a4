from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fakes import (
    NO_PHASES,
    FakeClock,
    LateShard,
    StubbornShard,
    kill,
    make_segment,
    make_shard,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from common.packing import unpack_segment
from common.types import EpisodeRecord, LearnerCounts, PhaseSeconds, Push, Segment
from replay.handles import LocalHandle
from replay.rate_limiter import RateLimiter
from replay.writer import ReplayWriter

EPISODE = EpisodeRecord(episode_return=1.0, agent_steps=9, epsilon=0.1, ladder_position=0.0)
PHASES = PhaseSeconds((("inference", 0.5),))


def make_writer(
    shards: Sequence[Any], *, window: int = 2, first_shard: int = 0
) -> tuple[ReplayWriter, FakeClock]:
    clock = FakeClock()
    writer = ReplayWriter(shards=shards, window=window, first_shard=first_shard, clock=clock)
    return writer, clock


def push(
    writer: ReplayWriter,
    *sequences: int,
    episodes: tuple[EpisodeRecord, ...] = (),
    phases: PhaseSeconds = NO_PHASES,
) -> None:
    writer.push([make_segment(sequence=s) for s in sequences], episodes, phases, 0.5)


def offered(shard: LateShard) -> list[Push]:
    return [arguments[0] for method, arguments in shard.calls if method == "add"]


def sequences(one: Push) -> list[int]:
    return [unpack_segment(packed).name.sequence for packed in one.segments]


# --- where pushes go ------------------------------------------------------------------------------


def test_segments_go_round_the_shards_one_by_one() -> None:
    wires = [LateShard(make_shard()) for _ in range(3)]
    writer, _ = make_writer(wires, first_shard=1)
    push(writer, 0, 1)
    push(writer, 2)
    push(writer, 3, 4, 5, 6)
    got = [[sequences(one) for one in offered(wire)] for wire in wires]
    assert got == [[[2], [5]], [[0], [3, 6]], [[1], [4]]]


def test_each_shard_gets_its_part_in_one_push() -> None:
    wires = [LateShard(make_shard()) for _ in range(2)]
    writer, _ = make_writer(wires)
    push(writer, 0, 1, 2)
    assert [one.transitions for wire in wires for one in offered(wire)] == [2 * 5, 5]


def test_segments_arrive_as_they_were_written() -> None:
    shard = StubbornShard(refusals=0)
    writer, _ = make_writer([LocalHandle(shard)])  # type: ignore[arg-type]
    segment = make_segment(transitions=7)
    writer.push([segment], (), NO_PHASES, 0.5)
    (arrived,) = (unpack_segment(packed) for packed in shard.accepted[0].segments)
    for field in Segment._fields:
        np.testing.assert_array_equal(getattr(arrived, field), getattr(segment, field))


def test_records_ride_on_the_first_push_only() -> None:
    wires = [LateShard(make_shard()) for _ in range(2)]
    writer, _ = make_writer(wires, first_shard=1)
    push(writer, 0, 1, 2, episodes=(EPISODE,), phases=PHASES)
    (second,), (first,) = offered(wires[0]), offered(wires[1])
    assert (first.episodes, first.phases) == ((EPISODE,), PHASES)
    assert (second.episodes, second.phases) == ((), NO_PHASES)


def test_records_without_a_segment_to_ride_on_are_refused() -> None:
    writer, _ = make_writer([LateShard(make_shard())])
    with pytest.raises(ValueError, match="Expect `segments` to hold at least one"):
        writer.push([], (EPISODE,), PHASES, 0.5)


# --- the window -----------------------------------------------------------------------------------


def test_window_bounds_the_pushes_under_way() -> None:
    wire = LateShard(make_shard())
    writer, _ = make_writer([wire], window=2)
    assert writer.has_room()
    push(writer, 0)
    assert writer.has_room()
    push(writer, 1)
    assert not writer.has_room()
    wire.deliver()
    assert writer.has_room()
    assert writer.accepted_transitions == 5
    wire.deliver()
    assert writer.has_room()
    assert writer.accepted_transitions == 10


def test_answers_may_come_in_any_order() -> None:
    wires = [LateShard(make_shard()) for _ in range(2)]
    writer, _ = make_writer(wires, window=2)
    push(writer, 0, 1)
    wires[1].deliver()
    assert writer.has_room()
    push(writer, 2)
    assert not writer.has_room()
    wires[0].deliver_all()
    assert writer.has_room()
    assert writer.accepted_transitions == 15


def test_waiting_asks_the_oldest_push_under_way() -> None:
    wire = LateShard(make_shard())
    writer, _ = make_writer([wire])
    writer.wait(0.7)
    assert wire.waits_s == []
    push(writer, 0)
    writer.wait(0.7)
    assert wire.waits_s == [0.7]


# --- not yet --------------------------------------------------------------------------------------


def test_refused_push_is_offered_again_until_it_is_accepted() -> None:
    shard = StubbornShard(refusals=3)
    wire = LateShard(shard)
    writer, clock = make_writer([wire], window=1)
    push(writer, 4)
    for attempt in range(1, 4):
        assert wire.count("add") == attempt
        wire.deliver()
        assert not writer.has_room()  # refused just now
        assert not writer.has_room()  # not before its time
        assert wire.under_way == 0
        clock.now_s += 0.051
        assert not writer.has_room()  # offered again
    wire.deliver()
    assert writer.has_room()
    assert [sequences(one) for one in shard.accepted] == [[4]]
    assert wire.count("prepare") == 1
    assert writer.accepted_transitions == 5


def test_waiting_for_the_next_offer_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("replay.writer.time.sleep", slept.append)
    wire = LateShard(StubbornShard(refusals=1))
    writer, clock = make_writer([wire])
    push(writer, 0)
    wire.deliver()
    assert writer.has_room()
    clock.now_s = 0.02
    writer.wait(10.0)
    writer.wait(0.01)
    clock.now_s = 1.0
    writer.wait(10.0)
    assert slept == pytest.approx([0.05 - 0.02, 0.01, 0.0])


def test_one_stubborn_shard_does_not_hold_up_the_others() -> None:
    stubborn, ready = LateShard(StubbornShard(refusals=99)), LateShard(make_shard())
    writer, _ = make_writer([stubborn, ready], window=2)
    push(writer, 0, 1)
    stubborn.deliver()
    ready.deliver()
    assert writer.has_room()
    assert writer.accepted_transitions == 5


def test_dead_shard_is_an_error_and_not_a_silence() -> None:
    wire = LateShard(make_shard(capacity=4))
    writer, _ = make_writer([wire])
    push(writer, 0)
    wire.deliver()
    with pytest.raises(ValueError, match="Expect a segment of <= 4 transitions"):
        writer.has_room()


def test_window_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="Expect `window` >= 1, actually: 0"):
        make_writer([], window=0)


# --- lost shards ----------------------------------------------------------------------------------


@pytest.mark.parametrize("was_inserted", [False, True])
def test_push_that_a_dead_shard_was_offered_is_inserted_once_in_its_follower(
    was_inserted: bool,
) -> None:
    """Whether the dead one had it is not known, so it is offered again, and known by its name."""
    wire = LateShard(make_shard())
    writer, clock = make_writer([wire], window=1)
    push(writer, 4, episodes=(EPISODE,))
    if was_inserted:
        wire.shard.add(offered(wire)[0])  # and its answer never came
    state = wire.shard.capture()
    kill(wire)
    assert not writer.has_room()
    follower = make_shard(incarnation=1)
    follower.restore(state)
    wire.shard = follower
    clock.now_s += 0.49
    assert not writer.has_room()
    assert wire.count("add") == 1, "not before its time"
    clock.now_s += 0.02
    assert not writer.has_room()
    assert wire.count("add") == 2
    wire.deliver()
    assert writer.has_room()
    assert [sequences(one) for one in offered(wire)] == [[4], [4]]
    assert wire.count("prepare") == 1
    assert follower.inserted == 5
    assert follower.report().history.duplicate_segments == int(was_inserted)
    assert writer.accepted_transitions == 5


def test_push_is_offered_to_a_dead_shard_until_another_takes_its_place() -> None:
    wire = LateShard(make_shard())
    writer, clock = make_writer([wire], window=1)
    push(writer, 0)
    kill(wire)
    for _ in range(100):
        clock.now_s += 0.1
        wire.deliver_all()
        assert not writer.has_room()
    assert 10 <= wire.count("add") <= 20, "about twice a second"
    wire.shard = make_shard(incarnation=1)
    clock.now_s += 0.5
    wire.deliver_all()
    if not writer.has_room():
        wire.deliver_all()
    assert writer.has_room()
    assert wire.shard.inserted == 5


def test_other_shards_take_pushes_while_one_is_lost() -> None:
    wires = [LateShard(make_shard(shard=k)) for k in range(2)]
    writer, _ = make_writer(wires, window=2)
    kill(wires[0])
    push(writer, 0, 1)
    for wire in wires:
        wire.deliver_all()
    assert writer.has_room()
    assert writer.accepted_transitions == 5
    assert [wire.count("add") for wire in wires] == [1, 1], "never offered to another shard"


def test_waiting_for_a_lost_shard_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("replay.writer.time.sleep", slept.append)
    wire = LateShard(make_shard())
    writer, _ = make_writer([wire], window=1)
    push(writer, 0)
    kill(wire)
    assert not writer.has_room()
    writer.wait(10.0)
    assert slept == [0.5]


# --- traps ----------------------------------------------------------------------------------------


@given(seed=st.integers(0, 2**32 - 1), shards=st.integers(1, 3), window=st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_trap_every_segment_arrives_exactly_once_whatever_the_delays(
    seed: int, shards: int, window: int
) -> None:
    """Refusals, late answers and retries: nothing is lost and nothing comes twice."""
    rng = np.random.default_rng(seed)
    limiter = RateLimiter(min_size=5, samples_per_insert=1.0, band=20.0)
    cores = [make_shard(limiter=limiter, shard=k) for k in range(shards)]
    wires = [LateShard(core) for core in cores]
    writer, clock = make_writer(wires, window=window, first_shard=int(rng.integers(shards)))
    pushed = 0
    while pushed < 20 or writer.accepted_transitions < pushed * 5:
        move = rng.integers(3)
        if move == 0 and pushed < 20 and writer.has_room():
            count = int(rng.integers(1, 4))
            push(writer, *range(pushed, pushed + count))
            pushed += count
        elif move == 1:
            wires[int(rng.integers(shards))].deliver()
        else:
            clock.now_s += 0.03
            writer.has_room()
            samples = int(rng.integers(0, 200))
            run = LearnerCounts(samples=samples, inserts_elsewhere=0, version=None)
            cores[int(rng.integers(shards))].counts(run)
    assert sum(core.inserted for core in cores) == pushed * 5
    assert sum(core.report().history.duplicate_segments for core in cores) == 0
    assert max(core.inserted for core in cores) - min(core.inserted for core in cores) <= 5
