"""The sampler of a learner that comes anew: where it sets in, and what it hears before it ends."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fakes import FakeClock, LateShard, kill, make_push, make_segment
from sampling import BATCH, LIMITER, filled_shard, make_sampler, turn


class TickingClock(FakeClock):
    """Goes on by 10 ms whenever somebody looks."""

    def __call__(self) -> float:
        self.now_s += 0.01
        return self.now_s


def serve_at_once(wires: Sequence[LateShard]) -> None:
    """Let whoever looks at an answer of these find it there."""
    for wire in wires:
        wire.waits_s = Serving(wire)


class Serving(list[float]):
    """Notes the waits, and serves what they wait for."""

    def __init__(self, wire: LateShard) -> None:
        super().__init__()
        self._wire = wire

    def append(self, timeout_s: float) -> None:
        super().append(timeout_s)
        self._wire.deliver_all()


@pytest.mark.parametrize("shards", [1, 3])
def test_learner_that_comes_anew_sets_in_without_an_error_and_honours_the_band(
    shards: int,
) -> None:
    wires = [LateShard(filled_shard(shard, 40, LIMITER)) for shard in range(shards)]
    sampler = make_sampler(wires, clock=TickingClock(), limiter=LIMITER)
    serve_at_once(wires)
    assert sampler.catch_up(1.0)
    assert LIMITER.error(40 * shards, sampler.samples) == 0.0
    got = sum(turn(sampler, wires) is not None for _ in range(40))
    assert got == 32 // BATCH
    assert LIMITER.error(40 * shards, sampler.samples) == -32.0
    wires[0].shard.add(make_push(make_segment(actor=9, transitions=4)))
    assert sum(turn(sampler, wires) is not None for _ in range(40)) == 4 * 4 // BATCH


def test_learner_that_sets_in_below_the_minimum_waits_for_it() -> None:
    wire = LateShard(filled_shard(0, 8, LIMITER))
    sampler = make_sampler([wire], clock=TickingClock(), limiter=LIMITER)
    serve_at_once([wire])
    assert sampler.catch_up(1.0)
    assert sampler.samples == 0
    assert [turn(sampler, [wire]) for _ in range(5)] == [None] * 5
    wire.shard.add(make_push(make_segment(actor=9, transitions=2)))
    assert sum(turn(sampler, [wire]) is not None for _ in range(20)) == 32 // BATCH


@pytest.mark.parametrize("is_dead", [False, True])
def test_shard_that_answers_after_the_others_were_set_in_is_set_in_alike(is_dead: bool) -> None:
    """Else its whole history would be owed at once, and the actors stand still for that long."""
    wires = [LateShard(filled_shard(shard, 40, LIMITER)) for shard in range(2)]
    sampler = make_sampler(wires, clock=(clock := TickingClock()), limiter=LIMITER)
    core = wires[1].shard
    serve_at_once(wires[:1])
    if is_dead:
        kill(wires[1])
        serve_at_once(wires[1:])
    assert not sampler.catch_up(2.0)
    assert (sampler.inserts, sampler.samples) == (40, (40 - 10) * 4)
    while turn(sampler, wires[:1]) is not None:
        pass
    error = LIMITER.error(40, sampler.samples)
    wires[1].shard = core
    clock.now_s += 1.0
    got = sum(turn(sampler, wires) is not None for _ in range(200))
    assert (sampler.inserts, sampler.accepted) == (80, 80)
    assert got == 0, "nothing new came in"
    assert LIMITER.error(80, sampler.samples) == error


def test_refresh_sees_what_was_inserted_last_although_an_older_question_is_under_way() -> None:
    wire = LateShard(filled_shard(0, 8))
    sampler = make_sampler([wire], clock=TickingClock())
    assert sampler.fetch() is None
    wire.deliver_all()  # the answer to an older question
    wire.shard.add(make_push(make_segment(actor=9, transitions=8)))
    serve_at_once([wire])
    sampler.refresh(1.0)
    assert (sampler.inserts, sampler.accepted) == (16, 16)


def test_refresh_waits_for_a_silent_shard_no_longer_than_it_may() -> None:
    wires = [LateShard(filled_shard(shard, 8)) for shard in range(2)]
    sampler = make_sampler(wires, clock=(clock := TickingClock()))
    serve_at_once(wires[:1])
    sampler.refresh(1.0)
    assert sampler.inserts == 8
    assert clock.now_s < 1.2
