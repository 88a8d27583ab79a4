from __future__ import annotations

import dataclasses

from fakes import FakeClock, make_segment, make_shard
from hypothesis import given
from hypothesis import strategies as st

from common.types import PhaseSeconds, RunCounts
from replay.handles import LocalShard
from replay.rate_limiter import RateLimiter
from replay.waiting_line import WaitingLine
from replay.writer import ReplayWriter


def test_room_is_promised_to_those_who_asked_before() -> None:
    line = WaitingLine()
    assert line.ahead_of(b"a") == 0
    line.wait(b"a", 400)
    line.wait(b"b", 50)
    assert (line.ahead_of(b"a"), line.ahead_of(b"b"), line.ahead_of(b"new")) == (0, 400, 450)


def test_place_is_kept_while_asking_again_and_given_up_on_leaving() -> None:
    line = WaitingLine()
    for key in (b"a", b"b", b"a", b"b"):
        line.wait(key, 10)
    assert (line.ahead_of(b"a"), line.ahead_of(b"b"), len(line)) == (0, 10, 2)
    line.leave(b"a")
    line.leave(b"never waited")
    assert (line.ahead_of(b"b"), len(line)) == (0, 1)


@given(st.integers(0, 8))
def test_who_asks_no_more_loses_the_place_and_nobody_else_does(others: int) -> None:
    line = WaitingLine()
    line.wait(b"dead", 1_000)
    for turn in range(100):
        for k in range(others + 1):
            line.wait(b"%d" % k, 1)
        alive = others + 1
        assert len(line) == alive + (line.ahead_of(b"0") == 1_000)
        if turn < 35:
            assert line.ahead_of(b"0") == 1_000
    assert line.ahead_of(b"%d" % others) == others


# --- with writers and a shard ---------------------------------------------------------------------


@dataclasses.dataclass
class FakeActor:
    """Offers one push after the other, each of so many segments of 5 transitions."""

    actor: int
    segments: int
    writer: ReplayWriter
    sequence: int = 0
    longest_wait_s: float = 0.0
    waited_s: float = 0.0

    def turn(self, seconds: float) -> None:
        if not self.writer.has_room():
            self.waited_s += seconds
            self.longest_wait_s = max(self.longest_wait_s, self.waited_s)
            return
        self.waited_s = 0.0
        new = range(self.sequence, self.sequence + self.segments)
        self.sequence = new.stop
        made = [make_segment(actor=self.actor, sequence=s) for s in new]
        self.writer.push(made, (), PhaseSeconds(()))


def compete(sizes: list[int], seconds: float) -> list[FakeActor]:
    """Let actors with such pushes compete for the room that 600 samples/s leave."""
    limiter = RateLimiter(min_size=1, samples_per_insert=1.0, band=160.0)
    shard = make_shard(capacity=1_000, limiter=limiter)
    clock = FakeClock()
    handle = LocalShard(shard)
    actors = [
        FakeActor(k, size, ReplayWriter(shards=[handle], window=1, first_shard=0, clock=clock))
        for k, size in enumerate(sizes)
    ]
    tick_s = 0.0101
    samples = 0.0
    while clock.now_s < seconds:
        clock.now_s += tick_s
        samples = min(samples + 600.0 * tick_s, shard.inserted + 160.0)
        shard.counts(RunCounts(samples=int(samples), inserts_elsewhere=0, learner_step=0))
        for actor in actors:
            actor.turn(tick_s)
    return actors


def test_trap_small_pushes_do_not_keep_a_large_one_out() -> None:
    *small, large = compete([1, 1, 1, 16], seconds=60.0)
    # The learner takes a sixth of a second for 95 transitions; a retry every 50 ms comes on top.
    assert large.longest_wait_s < 0.5
    assert max(actor.longest_wait_s for actor in small) < 0.5
    assert large.writer.accepted_transitions > 10 * small[0].writer.accepted_transitions


def test_nothing_the_learner_has_room_for_is_kept_out() -> None:
    """Keeping order costs no throughput, as whoever fits beside those who wait goes in."""
    actors = compete([1, 3, 16, 8], seconds=60.0)
    inserted = sum(actor.writer.accepted_transitions for actor in actors)
    assert inserted >= 0.97 * 600.0 * 60.0
    # Everybody gets one turn a round.
    turns = [actor.writer.accepted_transitions / (5 * actor.segments) for actor in actors]
    assert max(turns) < 1.3 * min(turns)
