"""The sampler when shards die and come back: what goes on, what is forgotten, what it believes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from fakes import (
    FakeClock,
    LateShard,
    kill,
    make_push,
    make_segment,
    make_shard,
)
from sampling import BATCH, LIMITER, filled_shard, make_sampler, turn

from common.types import Batch
from replay.sampler import ReplaySampler
from replay.shard import ReplayShard
from replay.state import ShardState
from replay.storage import shard_of


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeClock]:
    """A clock that goes on while the sampler sleeps, and only then."""
    made = FakeClock()

    def sleep(seconds: float) -> None:
        made.now_s += seconds

    monkeypatch.setattr("replay.sampler.time.sleep", sleep)
    yield made


def follower(state: ShardState | None, shard: int, incarnation: int) -> ReplayShard:
    """Return the process that takes a dead one's place, from its snapshot if it has one."""
    core = make_shard(alpha=1.0, shard=shard, incarnation=incarnation)
    if state is not None:
        core.restore(state)
    return core


def fetch(sampler: ReplaySampler, wires: Sequence[LateShard]) -> Batch:
    for _ in range(60):
        if (batch := turn(sampler, wires)) is not None:
            return batch
    raise AssertionError("no batch in 60 turns")


def hear(sampler: ReplaySampler, wires: Sequence[LateShard]) -> None:
    """Let the sampler learn how the shards stand, without fetching."""
    for _ in range(3):
        sampler.refresh(0.0)
        for wire in wires:
            wire.deliver_all()
    sampler.refresh(0.0)


def under_way(sampler: ReplaySampler) -> int:
    """Return the samples asked for that were not handed out yet."""
    requests = sum(len(request.splits) for request in sampler._requests)
    return BATCH * (requests + len(sampler._drawn))


# --- while a shard is lost ------------------------------------------------------------------------


def test_batches_of_the_others_go_on_and_weigh_by_the_living_alone(clock: FakeClock) -> None:
    wires = [LateShard(filled_shard(shard, 8)) for shard in range(3)]
    sampler = make_sampler(wires, clock=clock, beta=1.0)
    fetch(sampler, wires)
    assert sampler.size == 24
    kill(wires[1])
    assert turn(sampler, wires) is None, "asked partly of the lost shard"
    asked = wires[1].count("sample")
    for _ in range(20):
        batch = fetch(sampler, wires)
        shards = shard_of(batch.ids)
        assert set(shards.tolist()) == {0, 2}
        # A row of the third has 3 / 32 of the mass of the living, one of the first 1 / 32; the
        # share that was really drawn of a shard takes the place of its mass.
        share = np.array([np.mean(shards == shard) / 8 for shard in shards])
        closed = (16 * share) ** -1.0
        np.testing.assert_allclose(batch.weight, closed / closed.max(), rtol=1e-5)
    assert sampler.size == 16
    assert wires[1].count("sample") == asked
    assert sampler.inserts == sampler.accepted == 24, "nothing is known to be lost yet"


@pytest.mark.parametrize("rows_per_request", [1, 3 * BATCH])
@pytest.mark.parametrize("in_flight", [1, 3])
def test_samples_of_forgotten_batches_are_given_back(
    clock: FakeClock, rows_per_request: int, in_flight: int
) -> None:
    wires = [LateShard(filled_shard(shard, 16)) for shard in range(2)]
    sampler = make_sampler(
        wires, clock=clock, rows_per_request=rows_per_request, in_flight=in_flight
    )
    got = 0
    for step in range(60):
        if step == 7:
            kill(wires[1])
        got += BATCH * (turn(sampler, wires) is not None)
        assert sampler.samples == got + under_way(sampler)
    assert got >= 45 * BATCH


def test_answers_given_before_the_death_are_used(clock: FakeClock) -> None:
    wires = [LateShard(filled_shard(shard, 8)) for shard in range(2)]
    sampler = make_sampler(wires, clock=clock)
    fetch(sampler, wires)
    wires[1].deliver_all()
    kill(wires[1])
    batch = sampler.fetch()
    assert batch is not None
    assert set(shard_of(batch.ids).tolist()) == {0, 1}


def test_only_shard_lost_means_nothing_to_fetch_until_it_is_back(clock: FakeClock) -> None:
    wire = LateShard(filled_shard(0, 16))
    state = wire.shard.capture()
    sampler = make_sampler([wire], clock=clock, in_flight=2)
    fetch(sampler, [wire])
    kill(wire)
    asked, started_s = wire.count("counts"), clock.now_s
    for _ in range(200):
        assert turn(sampler, [wire]) is None
    away_s = clock.now_s - started_s
    assert away_s > 3.0, "it waits instead of spinning"
    assert wire.count("counts") - asked <= away_s / 0.5 + 1, "and asks twice a second at most"
    assert sampler.size == 0
    assert sampler.samples == BATCH, "of the batch that was handed out"
    wire.shard = follower(state, 0, 1)
    assert fetch(sampler, [wire]) is not None
    assert sampler.size == 16


def test_lost_shard_is_told_of_no_samples_until_it_answered(clock: FakeClock) -> None:
    """Its follower may hold less than they were drawn from, and would let actors run far ahead."""
    wires = [LateShard(filled_shard(shard, 40, LIMITER)) for shard in range(2)]
    state = filled_shard(1, 8).capture()
    sampler = make_sampler(wires, clock=clock, limiter=LIMITER)
    while turn(sampler, wires) is not None or sampler.samples < 200:
        pass
    kill(wires[1])
    hear(sampler, wires)
    wires[1].shard = core = follower(state, 1, 1)
    core._limiter = LIMITER
    clock.now_s += 0.5
    sampler.refresh(0.0)
    assert wires[1].calls[-1] == ("counts", ((0, 40, None),))
    wires[1].deliver_all()
    # (40 + 8 - 10) * 4 is more than the band: the follower cannot know what is due of that.
    assert not core.add(make_push(make_segment(actor=9, transitions=8)))
    hear(sampler, wires)
    assert wires[1].calls[-1] == ("counts", ((sampler.samples, 40, None),))
    assert core.add(make_push(make_segment(actor=9, transitions=8)))


def test_shard_that_is_back_is_drawn_from_again(clock: FakeClock) -> None:
    wires = [LateShard(filled_shard(shard, 8)) for shard in range(2)]
    state = wires[1].shard.capture()
    sampler = make_sampler(wires, clock=clock)
    fetch(sampler, wires)
    kill(wires[1])
    for _ in range(5):
        turn(sampler, wires)
    wires[1].shard = follower(state, 1, 1)
    clock.now_s += 0.5
    for _ in range(3):
        turn(sampler, wires)
    assert set(shard_of(fetch(sampler, wires).ids).tolist()) == {0, 1}


def test_no_weight_is_nan_when_all_shards_died_after_a_batch_was_drawn(clock: FakeClock) -> None:
    wire = LateShard(filled_shard(0, 16))
    sampler = make_sampler([wire], clock=clock, rows_per_request=2 * BATCH)
    fetch(sampler, [wire])
    kill(wire)
    hear(sampler, [wire])
    assert sampler.size == 0
    batch = sampler.fetch()
    assert batch is not None
    assert batch.weight.tolist() == [1.0] * BATCH


# --- after the restart ----------------------------------------------------------------------------


@pytest.mark.parametrize("restored", [0, 8, 24, 40])
@pytest.mark.parametrize("shards", [1, 2])
def test_error_of_the_limiter_is_what_it_was_when_the_shard_is_back(
    clock: FakeClock, shards: int, restored: int
) -> None:
    """Up to what was given back: 160 samples are due of a shard's 40 transitions."""
    wires = [LateShard(filled_shard(shard, 40, LIMITER)) for shard in range(shards)]
    last = shards - 1
    sampler = make_sampler(wires, clock=clock, limiter=LIMITER)
    for _ in range(12):
        fetch(sampler, wires)
    state = filled_shard(last, restored).capture()
    kill(wires[last])
    while under_way(sampler):
        sampler.fetch()
    inserts = sampler.inserts
    error = LIMITER.error(inserts, sampler.samples)
    wires[last].shard = follower(state if restored else None, last, 1)
    clock.now_s += 0.5
    hear(sampler, wires)
    assert sampler.inserts == inserts - 40 + restored
    after = LIMITER.error(max(10, sampler.inserts), sampler.samples)
    assert abs(after) <= abs(error)
    if sampler.inserts >= 10 and sampler.samples > 0:
        assert after == error
    assert sampler.accepted == 40 * shards, "agent steps are not taken back"


def test_learner_goes_on_at_once_and_honours_the_band_after_a_loss(clock: FakeClock) -> None:
    wires = [LateShard(filled_shard(shard, 80, LIMITER)) for shard in range(2)]
    state = filled_shard(1, 16).capture()
    sampler = make_sampler(wires, clock=clock, limiter=LIMITER)
    while turn(sampler, wires) is not None or sampler.samples < 500:
        pass
    kill(wires[1])
    wires[1].shard = follower(state, 1, 1)
    wires[0].shard.add(make_push(make_segment(actor=9, transitions=8)))
    got = 0
    for _ in range(60):
        clock.now_s += 0.02
        got += turn(sampler, wires) is not None
    assert sampler.inserts == 88 + 16
    assert got == 8 * 4 / BATCH, "as many as the new transitions allow"
    assert -32.0 <= LIMITER.error(sampler.inserts, sampler.samples) < -32.0 + BATCH


def test_new_process_that_is_empty_ends_no_run_although_it_was_asked_for_rows(
    clock: FakeClock,
) -> None:
    """The question reaches the new process, and its counts come in before its rows."""
    wires = [LateShard(filled_shard(shard, 8)) for shard in range(2)]
    sampler = make_sampler(wires, clock=clock)
    fetch(sampler, wires)
    assert wires[1].under_way == 1
    wires[1].shard = follower(None, 1, 1)
    hear(sampler, wires)
    assert (sampler.inserts, sampler.accepted) == (8, 16)
    assert sampler.fetch() is None
    assert set(shard_of(fetch(sampler, wires).ids).tolist()) == {0}


# --- late answers ---------------------------------------------------------------------------------


def test_late_answer_of_the_dead_process_does_no_harm(clock: FakeClock) -> None:
    wires = [LateShard(filled_shard(shard, 24)) for shard in range(2)]
    sampler = make_sampler(wires, clock=clock, in_flight=1)
    fetch(sampler, wires)
    wires[1].deliver_all()  # rows of the old process, not looked at yet
    kill(wires[1])
    wires[1].shard = follower(None, 1, 1)
    wires[1].shard.add(make_push(make_segment(actor=1, transitions=4, priority=2.0)))
    hear(sampler, wires)
    assert (sampler.inserts, sampler.accepted, sampler.size) == (28, 52, 28)
    batch = sampler.fetch()
    assert batch is not None, "rows that were drawn are as good as ever"
    assert (sampler.inserts, sampler.accepted, sampler.size) == (28, 52, 28)
    sampler.refresh(0.0)
    told = [arguments[-1] for _, arguments in wires[0].calls + wires[1].calls]
    assert all(run.inserts_elsewhere >= 0 for run in told)


def test_old_answer_of_the_living_process_takes_nothing_back(clock: FakeClock) -> None:
    wires = [LateShard(filled_shard(shard, 8)) for shard in range(2)]
    sampler = make_sampler(wires, clock=clock)
    assert sampler.fetch() is None
    wires[0].deliver_all()
    assert sampler.fetch() is None
    wires[1].deliver_all()  # its counts are there, and nobody looks
    wires[1].shard.add(make_push(make_segment(actor=9, transitions=8)))
    newest = 0
    for _ in range(6):
        turn(sampler, wires)
        sampler.refresh(0.0)
        assert sampler.accepted >= newest
        newest = sampler.accepted
        assert sampler.size == newest
    assert newest == 24
